"""The phases of a run, and what they are called in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Phase = Literal["load", "scan", "latents", "text", "train", "samples", "grid", "evaluate", "strengths"]

PHASE_TITLES: Mapping[Phase, str] = {
    "load": "Loading the model",
    "scan": "Reading the dataset",
    "latents": "Encoding images",
    "text": "Encoding captions",
    "train": "Training",
    "samples": "Drawing samples",
    "grid": "Drawing the grid",
    "evaluate": "Measuring",
    "strengths": "Testing strengths",
}
