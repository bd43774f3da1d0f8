"""The file that a tool is about to write: one rule for names, and nothing is ever overwritten."""

from __future__ import annotations

from pathlib import Path

from lib_lora_train.config.validation.validate import unusable_name
from lib_lora_train.core.errors import LoraTrainError

ENDING = ".safetensors"
SIDECAR_ENDINGS = (".json", ".png", ".preview.png")
"""A LoRA's card and previews, which webuis find by the file's name."""


def new_file(folder: Path, name: str) -> Path:
    """`FOLDER/NAME.safetensors`.

    LoraTrainError if the name cannot be used, as for `output_name`, if that file or a card or preview for it exists, or
    if the folder does not: some tools work for minutes before they write.
    """
    reason = unusable_name(name)
    if reason:
        raise LoraTrainError(f"The name {reason}")
    path = folder / f"{name}{ENDING}"
    refuse_existing(path)
    if not folder.is_dir():
        raise LoraTrainError(f"The folder {folder} does not exist. Create it or choose another one.")
    return path


def refuse_existing(path: Path) -> None:
    """LoraTrainError if the file, or a card or preview for it, exists: no tool overwrites or takes over one."""
    existing = next((place for place in (path, *sidecars(path)) if place.exists()), None)
    if existing:
        raise LoraTrainError(f"{existing} already exists. Choose another name.")


def new_config(source: Path, path: Path) -> Path | None:
    """Where the .yaml beside the checkpoint `source` goes for its copy `path`; None if there is none.

    LoraTrainError if a file is there already.
    """
    if not source.with_suffix(".yaml").is_file():
        return None
    config = path.with_name(f"{path.stem}.yaml")
    if config.exists():
        raise LoraTrainError(f"{config} already exists. Choose another name.")
    return config


def sidecars(lora: Path) -> list[Path]:
    """Where the card and the previews of a LoRA file are, if it has any."""
    return [lora.with_name(f"{lora.stem}{ending}") for ending in SIDECAR_ENDINGS]
