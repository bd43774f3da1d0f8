"""Which preset fits the graphics card and the checkpoint at hand."""

from __future__ import annotations

from lib_lora_train.config.architecture_titles import TITLES
from lib_lora_train.config.card_presets import find_card_preset, smallest_card
from lib_lora_train.core.errors import LoraTrainError
from lib_lora_train.core.wording import size_text
from lib_lora_train.hosts.host import RunTarget
from lib_lora_train.runs.estimates.memory import read_checkpoint_sizes

_BY_NAME = "choose a preset by its name, such as “SDXL on 8 GB”."


def my_card_preset(target: RunTarget) -> str:
    """The name of the preset for the target's card and checkpoint; LoraTrainError if one is not known or too small."""
    if target.gpu is None:
        raise LoraTrainError(f"No graphics card was found: {_BY_NAME}")
    sizes = read_checkpoint_sizes(target.checkpoint, target.vae) if target.checkpoint else None
    if sizes is None:
        raise LoraTrainError(f"What fits depends on the checkpoint. Choose one first, or {_BY_NAME}")
    architecture = sizes.spec.architecture
    preset = find_card_preset(architecture, target.gpu.total)
    if preset:
        return preset.name
    title, smallest = TITLES[architecture], smallest_card(architecture)
    if not smallest:
        raise LoraTrainError(f"There are no presets by card for {title}. The plan says how much memory is needed.")
    raise LoraTrainError(
        f"{title} needs a card with {smallest} GB; the {target.gpu.name} has {size_text(target.gpu.total)}. Train on a "
        "smaller model, or lower the resolution and see what the plan needs."
    )
