"""When the graphics card's memory does not suffice: what saves some, and in which order it is tried."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.dataset.plan import MicroBatch


@dataclass(frozen=True)
class OomFallback:
    """What saves memory beyond the settings: checkpointing, and micro-batches cut into `split` parts.

    Neither changes what is learnt: activations are computed again to the same numbers, and a step's gradient is the sum
    over its samples however they are grouped, up to the order of rounding.
    """

    checkpointing: bool = False
    split: int = 1


def more_relief(relief: OomFallback, config: TrainConfig) -> OomFallback | None:
    """The next thing to try after memory ran out; None if nothing is left."""
    if not (relief.checkpointing or config.gradient_checkpointing):
        return replace(relief, checkpointing=True)
    if relief.split < config.batch_size:
        return replace(relief, split=relief.split * 2)
    return None


def describe_relief(relief: OomFallback, config: TrainConfig) -> str:
    """What is done from now on, for people."""
    if relief.split == 1:
        return "gradient checkpointing is used from here on: slower, and the same result"
    size = -(-config.batch_size // relief.split)
    return f"batches are computed {size} image{'s' if size > 1 else ''} at a time from here on, with the same effect"


def parted(step: Sequence[MicroBatch], split: int) -> list[MicroBatch]:
    """The step's micro-batches, each cut into up to `split` parts of nearly equal size."""
    parts = []
    for batch in step:
        size = max(1, -(-len(batch.items) // split))
        for start in range(0, len(batch.items), size):
            here = slice(start, start + size)
            parts.append(replace(batch, items=batch.items[here], draws=batch.draws[here]))
    return parts


def out_of_memory(step: int, config: TrainConfig) -> str:
    """The reason and the advice when nothing helped."""
    advice = (
        "lower the resolution, train fewer parts (train_text_encoder off), take an optimizer with small states "
        "(Adafactor, AdamW8bit), or close other programs on the card"
    )
    tried = "checkpointing and single images" if config.batch_size > 1 else "checkpointing"
    return f"Step {step}: the graphics card's memory is full, with {tried} too. Try this: {advice}."


@contextmanager
def checkpointing(unet: Any, on: bool) -> Iterator[None]:
    """Inside, the UNet keeps block inputs only and computes the rest again in the backward pass (non-reentrant).

    Some diffusers versions do that in training mode only; Stable Diffusion's UNet has no layer that minds.
    """
    if not on:
        yield
        return
    unet.train()
    unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        unet.disable_gradient_checkpointing()
        unet.eval()
