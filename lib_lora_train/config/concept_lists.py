"""Settings of a concept that are lists in one text: resolutions and background colours."""

from __future__ import annotations

import re

from lib_lora_train.config.settings.dataset import MAX_RESOLUTION, MIN_RESOLUTION

_COLOUR = re.compile(r"[A-Za-z]+|#(?:[0-9A-Fa-f]{3}){1,2}")


def split_colours(text: str) -> list[str]:
    """The names and codes of colours, separated by commas; ValueError, with a sentence, for what looks like neither."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if not _COLOUR.fullmatch(name):
            raise ValueError(not_a_colour(name))
    return names


def not_a_colour(name: str) -> str:
    """The sentence about an unknown colour."""
    return f"{name!r} is not a colour. Use a name such as white or grey, or a code such as #808080."


def split_resolutions(text: str) -> list[str]:
    """The resolutions as written, separated by commas or blanks."""
    return text.replace(",", " ").split()


def parse_resolution(text: str) -> int:
    """The resolution in px; ValueError, with a sentence, for what is none."""
    side = int(text) if text.isdecimal() else 0
    if not MIN_RESOLUTION <= side <= MAX_RESOLUTION:
        raise ValueError(f"{text!r} is not a size from {MIN_RESOLUTION} to {MAX_RESOLUTION} px. Example: 512 768.")
    return side
