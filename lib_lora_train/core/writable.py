"""Whether a folder can be written, without leaving anything there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def scan_write_obstacle(folder: Path) -> str:
    """Why files cannot be written to the folder, or why it cannot be created; "" if they can. Creates nothing."""
    place = folder
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        return f"{place} is not a folder"
    try:
        with tempfile.TemporaryFile(dir=place, prefix=".lora-train-"):
            return ""
    except OSError as error:
        return f"{place} cannot be written: {error.strerror or error}"
