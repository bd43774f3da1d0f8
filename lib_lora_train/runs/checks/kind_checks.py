"""What settings mean nothing, or cannot work, on a kind of model other than Stable Diffusion.

Does not import PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator

from lib_lora_train.config.architecture_titles import TITLES
from lib_lora_train.config.sample_prompts import sample_prompts
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import ConfigError, Problem
from lib_lora_train.core.image_sizes import LATENT_CELL_PX
from lib_lora_train.models.architecture import ModelSpec
from lib_lora_train.models.kinds.registry import kind_of

_BLOCK_SETTINGS = ("block_ranks", "block_alphas", "down_lr_weight", "mid_lr_weight", "up_lr_weight")


def kind_problems(spec: ModelSpec, config: TrainConfig) -> Iterator[Problem]:
    """What speaks against these settings on a model of this kind."""
    kind, title = kind_of(spec.architecture), TITLES[spec.architecture]
    if kind.families is not None and config.family not in kind.families:
        text = (
            f"{config.family} is not read by any webui for {title}. Choose one of {', '.join(sorted(kind.families))}."
        )
        yield Problem("error", "family", text, (("family", "lora"),))
    if kind.has_unet_blocks:
        yield from _odd_sides(kind.even_step, title, config.bucket_step)
        return
    if config.method != "lora":
        text = f"{config.method} is not made for {title}, whose text encoder is used as a whole. Choose lora."
        yield Problem("error", "method", text, (("method", "lora"),))
    yield from _sizes(kind.side_step, title, config)
    if config.prediction_type not in ("auto", spec.prediction_type):
        text = f"{config.prediction_type} is wrong for {title}, which is always a rectified flow. Set it to auto."
        yield Problem("error", "prediction_type", text, (("prediction_type", "auto"),))
    if not config.train_unet:
        text = f"is off, and only the transformer of {title} can be trained. Turn it on."
        yield Problem("error", "train_unet", text, (("train_unet", True),))
    if config.measure_likeness or config.test_strengths:
        text = (
            f"and the test of strengths are not made for {title}: they need the features of a UNet. With "
            "validation_share, epochs are compared by the validation loss; other measures work as usual."
        )
        remedy = (("measure_likeness", False), ("test_strengths", False))
        yield Problem("hint", "measure_likeness", text, remedy)
    for name in _BLOCK_SETTINGS:
        if getattr(config, name):
            text = f"is for the blocks of a UNet, and {title} is a transformer. Leave it empty."
            yield Problem("error", name, text, ((name, ""),))
    if config.train_text_encoder:
        text = f"has no effect on {title}: only its transformer is trained, its text encoder stays as it is."
        yield Problem("hint", "train_text_encoder", text, (("train_text_encoder", False),))
    if config.train_norm:
        text = f"has no effect on {title}, whose norms have no weights that webuis read."
        yield Problem("hint", "train_norm", text, (("train_norm", False),))
    if config.clip_skip > 1:
        text = f"has no effect on {title}, which has no CLIP text encoder."
        yield Problem("hint", "clip_skip", text, (("clip_skip", 1),))


def _odd_sides(even: int, title: str, step: int) -> Iterator[Problem]:
    """Sides that the UNet rounds when it halves them."""
    if step % even and not step % LATENT_CELL_PX:
        text = f"{step} is not a multiple of {even}. {title} halves the latent again and again, and rounds odd sides. "
        yield Problem("warning", "bucket_step", f"{text}Set it to {even}.", (("bucket_step", even),))


def _sizes(step: int, title: str, config: TrainConfig) -> Iterator[Problem]:
    """Sides that the kind cannot divide into its patches."""
    if config.bucket_step % step:
        text = (
            f"{config.bucket_step} is not a multiple of {step}, the side of a patch of {title}. Set it to {step} or 64."
        )
        yield Problem("error", "bucket_step", text, (("bucket_step", 64),))
    try:
        prompts = sample_prompts(config)
    except ConfigError:  # the check of the settings says what is wrong with the prompts
        return
    for prompt in prompts:
        if prompt.width % step or prompt.height % step:
            text = f"{prompt.width} × {prompt.height} px cannot be drawn with {title}. Use multiples of {step}."
            yield Problem("error", "sample_prompts", text)
