"""Images drawn while training."""

from __future__ import annotations

from dataclasses import dataclass

from lib_lora_train.config.parameters import param

SAMPLERS = ("DDIM", "Euler", "Euler a")


@dataclass(frozen=True)
class SampleSettings:
    """Images drawn while training."""

    sample_prompts: tuple[str, ...] = param(
        (),
        "One prompt per line, drawn after each epoch and in the grid. kohya's options may follow a prompt: --w width "
        "--h height --d seed --s steps --l cfg scale --n negative prompt.",
        group="samples",
        tier="essential",
        kohya="sample_prompts",
    )
    sample_every_n_epochs: int = param(
        1,
        "Draw samples after every so many epochs. 0: only the grid at the end.",
        group="samples",
        tier="beginner",
        low=0,
        high=10_000,
        kohya="sample_every_n_epochs",
    )
    sample_every_n_steps: int = param(
        0,
        "Draw samples after every so many steps too, in rows of their own; the grid holds epochs only. 0: no. For long "
        "epochs; below 50 the drawing takes longer than the training. Where the webui draws, each writes a file.",
        group="samples",
        low=0,
        high=10_000_000,
        kohya="sample_every_n_steps",
    )
    sample_sampler: str = param(
        "Euler a",
        "Sampler of the samples and the grid.",
        group="samples",
        choices=SAMPLERS,
        kohya="sample_sampler",
    )
    webui_sampler: str = param(
        "",
        "Name of a sampler of the webui, e.g. DPM++ 2M Karras: the webui then draws samples and grid, in its queue and "
        "from the LoRA files. Empty: the trainer draws them, several at a time, with sample_sampler. Inside a webui "
        "only. It takes longer, and epochs without a file get no samples.",
        group="samples",
    )
    sample_steps: int = param(20, "Sampling steps where a prompt gives none.", group="samples", low=1, high=150)
    sample_cfg: float = param(
        7.0, "Guidance (cfg) scale where a prompt gives none.", group="samples", low=1.0, high=30.0
    )
    make_grid: bool = param(
        True,
        "After the run, draw epochs × prompts into one image, the first row without LoRA.",
        group="samples",
        tier="beginner",
    )
