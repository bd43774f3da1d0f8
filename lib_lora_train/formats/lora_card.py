"""The card that a webui shows for a LoRA: `NAME.json` and `NAME.png` next to `NAME.safetensors`.

The keys in the .json are A1111's, which Forge and reForge also read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib_lora_train.config.family_support import program_name
from lib_lora_train.core import atomic_write
from lib_lora_train.core.errors import OutputError
from lib_lora_train.core.writable import failed_write_advice

_RECOMMENDED = "Recommended strength "  # from here to the end, a newer recommendation replaces the notes

VERSIONS: Mapping[str, str] = {"sd1": "SD1", "sd2": "SD2", "sdxl": "SDXL", "anima": "Anima"}
NEO_VERSIONS: Mapping[str, str] = {"sd1": "sd", "sdxl": "xl", "anima": "anima"}
"""Forge Neo's names are those of its presets. A file with another one is shown in all of them."""


def card_values(
    *, architecture: str, triggers: Sequence[str], description: str, notes: str, webui: str = ""
) -> dict[str, Any]:
    """The card's fields; a click on the card puts the activation text into the prompt, at the preferred weight."""
    versions = NEO_VERSIONS if program_name(webui) == "Forge Neo" else VERSIONS
    return {
        "description": description,
        "sd version": versions[architecture],
        "activation text": ", ".join(dict.fromkeys(trigger for trigger in triggers if trigger)),
        "preferred weight": 1,
        "negative text": "",
        "notes": notes,
    }


def write_card(lora: Path, values: Mapping[str, Any]) -> Path | None:
    """Write the .json next to a LoRA file; returns None, and keeps the file, if there is one already."""
    text = json.dumps(values, indent=4, ensure_ascii=False)
    return _write_new(lora.with_suffix(".json"), lambda path: path.write_text(text, encoding="utf-8"))


def recommend(lora: Path, *, strength: float, reasons: str, preview: Path, is_embedding: bool = False) -> None:
    """Set the preferred weight of a card, and add the reasons to its notes; everything else in it stays.

    `preview` becomes its image if it has none. OutputError if the card cannot be written, or is no card.
    """
    path = lora.with_suffix(".json")
    values = _read_card(path) if path.exists() else {}
    kept = str(values.get("notes", "")).partition(_RECOMMENDED)[0].rstrip()
    notes = [kept, f"{_RECOMMENDED}{strength:g}. {reasons}"]
    values |= {"preferred weight": strength, "notes": "\n\n".join(filter(None, notes))}
    atomic_write.write_text(path, json.dumps(values, indent=4, ensure_ascii=False))
    if preview.is_file():
        image = preview_path(lora, is_embedding=is_embedding)
        try:
            write_preview(lora, lambda part: part.write_bytes(preview.read_bytes()), is_embedding=is_embedding)
        except OSError as error:
            raise OutputError(f"{image} cannot be written: {error.strerror}. {failed_write_advice(error)}") from error


def _read_card(path: Path) -> dict[str, Any]:
    """What is in the card; OutputError if that is not a card."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be read, so nothing was written to it. Delete it and try again.") from error
    if not isinstance(values, dict):
        raise OutputError(f"{path} is not a LoRA card. Delete it and try again.")
    return values


def preview_path(file: Path, *, is_embedding: bool = False) -> Path:
    """Where the image of a file's card is: `NAME.png`, or `NAME.preview.png` for an embedding.

    Webuis take other images in the folder of embeddings for embeddings that are hidden in images.
    """
    return file.with_suffix(".preview.png" if is_embedding else ".png")


def write_preview(lora: Path, save: Callable[[Path], object], *, is_embedding: bool = False) -> Path | None:
    """Have `save` write the .png next to a file (to a temporary name); returns None if there is one already."""
    return _write_new(preview_path(lora, is_embedding=is_embedding), save)


def _write_new(path: Path, save: Callable[[Path], object]) -> Path | None:
    if path.exists():
        return None
    with atomic_write.replacing(path, fsync=False) as part:
        save(part)
    return path
