"""Settings: sample images and the grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lib_lora_train.config.parameters import Group, param

SAMPLERS = ("DDIM", "Euler", "Euler a")


@dataclass(frozen=True)
class SampleSettings:
    """Sample images and the grid."""

    GROUP: ClassVar[Group] = "samples"

    sample_prompts: tuple[str, ...] = param(
        (),
        "Prompts for the sample images and the grid, one per line. Options can follow a prompt, as in kohya: --w "
        "width --h height --d seed --s steps --l CFG scale --n negative prompt. Prompts without a trigger word are "
        "control prompts, which should not change; the lines # concept and # control mark the prompts below "
        "them. Other lines that begin with # are comments. Empty: the run writes its own prompts from trigger words, "
        "class words and captions.",
        tier="essential",
        kohya="sample_prompts",
    )
    sample_every_n_epochs: int = param(
        1,
        "Generate samples every N epochs. 0: no samples; the grid at the end has only your own prompts.",
        tier="beginner",
        low=0,
        high=10_000,
        kohya="sample_every_n_epochs",
    )
    sample_every_n_steps: int = param(
        0,
        "Also generate samples every N steps, shown in extra rows; the grid contains only epochs. 0: never. Useful "
        "for long epochs; below 50, sampling takes longer than training. If the webui generates the samples, each "
        "time also writes a LoRA file.",
        low=0,
        high=10_000_000,
        kohya="sample_every_n_steps",
    )
    sample_sampler: str = param(
        "Euler a",
        "Sampler for the samples and the grid.",
        choices=SAMPLERS,
        kohya="sample_sampler",
    )
    webui_sampler: str = param(
        "",
        "Generate samples and grid with this sampler of the webui, for example DPM++ 2M Karras. The webui then "
        "generates from the LoRA files, in its own queue: this is slower, and epochs without a file get no samples. "
        "Empty: the trainer generates several at a time with sample_sampler. Only inside a webui.",
    )
    sample_steps: int = param(20, "Sampling steps for prompts without --s.", low=1, high=1000)
    sample_cfg: float = param(7.0, "CFG scale for prompts without --l.", low=0.0, high=100.0)
    measure_steady_loss: bool = param(
        True,
        "Measure the loss on up to nine training images with the same noise after every epoch, and without LoRA. It "
        "shows what the training loss hides in its noise. Takes at most 3% of the training's time; in short epochs "
        "it is measured less often. If every image takes no longer than that, all are measured at the end.",
    )
    measure_prompts: bool = param(
        True,
        "After every epoch, measure what the LoRA does to prompts with a trigger, without it, and to those that have "
        "nothing to do with it: trigger obedience, bleed and drift. Takes about as long as three sampling steps for "
        "each prompt.",
    )
    measure_likeness: bool = param(
        False,
        "After every epoch with samples, compare up to four of them with the training images, by the loaded model: "
        "likeness, copies and diversity. Each sample takes as long as three sampling steps and three encodings of an "
        "image; and, once per run, so does each of up to 24 training images.",
    )
    early_stopping_epochs: int = param(
        0,
        "End the training once this many measured epochs in a row were not better than the best one: by the validation "
        "loss (validation_share) or, without it, by likeness (measure_likeness). The run ends like any other, with its "
        "grid and advice. 0: train all epochs.",
        low=0,
        high=1000,
    )
    test_strengths: bool = param(
        True,
        "After training, find the best epoch and its strength: the samples of all epochs are compared with the "
        "training images and with those without LoRA, then the best ones are drawn at other strengths. Draws at most "
        "as much as the samples of eight epochs. Needs samples every epoch.",
        tier="beginner",
    )
    make_grid: bool = param(
        True,
        "After training, generate a grid of epochs × prompts. The first row is without the LoRA.",
        tier="beginner",
    )
