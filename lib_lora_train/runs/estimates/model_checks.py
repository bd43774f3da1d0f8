"""What training guides warn of in the choice of the checkpoint, and of a resolution for it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import LoraTrainError, Problem
from lib_lora_train.core.image_sizes import SMALLEST_SD_PX
from lib_lora_train.core.safetensors_header import read_header
from lib_lora_train.hosts.host import RunTarget
from lib_lora_train.models.architecture import ModelSpec
from lib_lora_train.models.model_files import model_name

_LOWEST, _HIGHEST = 0.75, 1.5  # times the model's own resolution; guides train SD1 (512 px) at up to 768 px
_MERGE_NAME = re.compile(r"(mix|merge|merged|blend)(?![a-z]{3})", re.IGNORECASE)
_MERGE_KEYS = ("sd_merge_recipe", "sd_merge_models")


def check_model(config: TrainConfig, spec: ModelSpec, run_target: RunTarget) -> Iterator[Problem]:
    """Problems of the resolution and of the checkpoint that a run would train on."""
    own, side = spec.own_resolution, config.resolution_side
    if side >= SMALLEST_SD_PX and not _LOWEST * own <= side <= _HIGHEST * own:
        effect = "repeats and distorts its subjects" if side > own else "learns a blur at its usual sizes"
        text = f"{side} is far from the {own} px of this {spec.architecture} model, which {effect}. Set it to {own}."
        yield Problem("warning", "resolution", text, tuple(_at_resolution(config, own).items()))
    if run_target.checkpoint and is_merge(run_target.checkpoint):
        text = (
            f"{run_target.checkpoint.name} is a merge, by its name or metadata. Guides train on the base model "
            "(SD 1.5, NAI, SDXL base), whose LoRAs work with all models made from it."
        )
        yield Problem("hint", "checkpoint", text)


def _at_resolution(config: TrainConfig, own: int) -> dict[str, Any]:
    """The resolution, and bucket limits that allow it."""
    values: dict[str, Any] = {"resolution": own}
    if config.resolution_height is not None:
        values["resolution_height"] = None
    if config.min_bucket > own:
        values["min_bucket"] = max(64, own // 2)
    if config.max_bucket < own:
        values["max_bucket"] = min(4096, 2 * own)
    return values


def is_merge(checkpoint: Path) -> bool:
    """Whether a checkpoint is a merge of others, according to its name or its metadata."""
    if _MERGE_NAME.search(model_name(checkpoint)):
        return True
    try:
        metadata = read_header(checkpoint).metadata
    except (LoraTrainError, OSError, ValueError):  # a .ckpt, or gone
        return False
    return any(key in metadata for key in _MERGE_KEYS)
