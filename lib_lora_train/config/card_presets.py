"""Presets for the memory of a graphics card: the fastest settings that fit it, and what they trade for that.

Each fits the estimate of `runs/estimates/memory.py` into nine tenths of the card, for a LoRA of rank 32 with AdamW at
bf16 or fp16; PyTorch and the driver need the rest. A test compares them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lib_lora_train.config.architecture_titles import TITLES

MY_CARD = "My card"
"""The page's name for whichever of these fits the card and the checkpoint at hand."""

_SHARE_FREE = 0.93  # cards report a little less than their name says: an 8 GB card 7.6 to 8 GiB

_SD1: Mapping[str, Any] = {
    "resolution": 512,
    "resolution_height": None,
    "min_bucket": 256,
    "max_bucket": 1024,
    "gradient_accumulation": 1,
    "gradient_checkpointing": False,
    "fp8_base": False,
}
_SD1_LARGE: Mapping[str, Any] = {**_SD1, "resolution": 768, "min_bucket": 384, "max_bucket": 1536}
_SDXL: Mapping[str, Any] = {
    "resolution": 1024,
    "resolution_height": None,
    "min_bucket": 512,
    "max_bucket": 2048,
    "gradient_accumulation": 1,
    "gradient_checkpointing": True,
    "fp8_base": False,
    "train_text_encoder": False,
    "text_encoder_lr": None,
    "clip_skip": 1,
}
_ANIMA: Mapping[str, Any] = {**_SDXL, "timestep_sampling": "sigmoid"}  # as sd-scripts advises for Anima


@dataclass(frozen=True)
class CardPreset:
    """Settings for an architecture on a card with this many GB; `when` completes “For SDXL on a card with 8 GB: …”."""

    architecture: str
    gigabytes: int
    trade: str
    values: Mapping[str, Any]

    @property
    def name(self) -> str:
        """`SDXL on 8 GB`."""
        return f"{TITLES[self.architecture]} on {self.gigabytes} GB"

    @property
    def when(self) -> str:
        """When to use it, and what it trades, as a sentence."""
        return f"For {TITLES[self.architecture]} on a card with {self.gigabytes} GB: {self.trade}."


CARD_PRESETS: tuple[CardPreset, ...] = (
    CardPreset("sd1", 6, "two images per step at 512 px, no compromises", {**_SD1, "batch_size": 2}),
    CardPreset("sd1", 8, "four images per step at 512 px, no compromises", {**_SD1, "batch_size": 4}),
    CardPreset("sd1", 12, "768 px for more detail, two images per step", {**_SD1_LARGE, "batch_size": 2}),
    CardPreset("sd1", 16, "768 px for more detail, four images per step", {**_SD1_LARGE, "batch_size": 4}),
    CardPreset("sd1", 24, "768 px for more detail, six images per step", {**_SD1_LARGE, "batch_size": 6}),
    CardPreset(
        "sdxl",
        8,
        "the UNet in 8 bits (stand-alone only) and one image at a time, with gradient checkpointing (a third slower)",
        {**_SDXL, "fp8_base": True, "batch_size": 1, "gradient_accumulation": 2},
    ),
    CardPreset(
        "sdxl", 12, "two images per step, with gradient checkpointing (a third slower)", {**_SDXL, "batch_size": 2}
    ),
    CardPreset(
        "sdxl", 16, "four images per step, with gradient checkpointing (a third slower)", {**_SDXL, "batch_size": 4}
    ),
    CardPreset(
        "sdxl",
        24,
        "two images per step without recomputing them, which is faster than larger batches that are recomputed",
        {**_SDXL, "batch_size": 2, "gradient_checkpointing": False},
    ),
    CardPreset(
        "anima",
        6,
        "768 px and one image at a time, with gradient checkpointing (a third slower)",
        {**_ANIMA, "resolution": 768, "min_bucket": 384, "max_bucket": 1536, "batch_size": 1},
    ),
    CardPreset(
        "anima",
        8,
        "two images per step, with gradient checkpointing (a third slower)",
        {**_ANIMA, "batch_size": 2},
    ),
    CardPreset(
        "anima", 12, "four images per step, with gradient checkpointing (a third slower)", {**_ANIMA, "batch_size": 4}
    ),
    CardPreset(
        "anima", 16, "eight images per step, with gradient checkpointing (a third slower)", {**_ANIMA, "batch_size": 8}
    ),
    CardPreset(
        "anima",
        24,
        "one image at a time without recomputing it, which is faster than larger batches that are recomputed",
        {**_ANIMA, "batch_size": 1, "gradient_checkpointing": False},
    ),
)


def find_card_preset(architecture: str, memory: int) -> CardPreset | None:
    """The preset for the largest card that a card with this many bytes can stand in for; None if it is too small."""
    fitting = [preset for preset in _of(architecture) if preset.gigabytes * 2**30 * _SHARE_FREE <= memory]
    return max(fitting, key=lambda preset: preset.gigabytes, default=None)


def smallest_card(architecture: str) -> int:
    """The GB of the smallest card that there is a preset for; 0 if there is none for the architecture."""
    return min((preset.gigabytes for preset in _of(architecture)), default=0)


def _of(architecture: str) -> Iterator[CardPreset]:
    return (preset for preset in CARD_PRESETS if preset.architecture == architecture)
