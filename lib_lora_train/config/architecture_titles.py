"""What the kinds of models are called in every text."""

from __future__ import annotations

from collections.abc import Mapping

TITLES: Mapping[str, str] = {"sd1": "SD1", "sd2": "SD2", "sdxl": "SDXL", "anima": "Anima"}
