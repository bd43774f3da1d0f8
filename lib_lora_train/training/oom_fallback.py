"""What to do when memory runs out: what saves memory, and in which order it is tried."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.memory_errors import memory_name
from lib_lora_train.dataset.plan import MicroBatch


@dataclass(frozen=True)
class OomFallback:
    """What saves memory beyond the settings: gradient checkpointing, and micro-batches cut into `split` parts.

    Neither changes what is learnt: activations are recomputed to the same numbers, and a step's gradient is the sum
    over its samples however they are grouped, up to the order of rounding.
    """

    checkpointing: bool = False
    split: int = 1


def next_fallback(fallback: OomFallback, config: TrainConfig) -> OomFallback | None:
    """What to try next after memory ran out; None if nothing is left."""
    if not (fallback.checkpointing or config.gradient_checkpointing):
        return replace(fallback, checkpointing=True)
    if fallback.split < config.batch_size:
        return replace(fallback, split=fallback.split * 2)
    return None


def describe_fallback(fallback: OomFallback, config: TrainConfig) -> str:
    """What changes from now on, to complete a sentence."""
    if fallback.split == 1:
        return "gradient checkpointing is on from here: slower, with the same result"
    size = -(-config.batch_size // fallback.split)
    return f"from here batches are computed {size} image{'s' if size > 1 else ''} at a time, with the same result"


def split_micro_batches(step: Sequence[MicroBatch], split: int) -> list[MicroBatch]:
    """The step's micro-batches, each cut into up to `split` parts of nearly equal size."""
    parts = []
    for batch in step:
        size = max(1, -(-len(batch.items) // split))
        for start in range(0, len(batch.items), size):
            part = slice(start, start + size)
            parts.append(replace(batch, items=batch.items[part], draws=batch.draws[part]))
    return parts


def out_of_memory_message(step: int, config: TrainConfig, fallback: OomFallback, device: str) -> str:
    """Why the run ends and what to do, when nothing helped. Names only what was really tried."""
    tried = []
    if fallback.checkpointing or config.gradient_checkpointing:
        tried.append("gradient checkpointing")
    if fallback.split >= config.batch_size > 1:
        tried.append("single images")
    even = f", even with {' and '.join(tried)}" if tried else ""
    where = memory_name(device)
    return (
        f"Step {step}: {where} is full{even}. Lower the resolution, train fewer parts (train_text_encoder off), choose "
        "an optimiser with small states (Adafactor, AdamW8bit), or close other programs."
    )


@contextmanager
def gradient_checkpointing(unet: Any, on: bool) -> Iterator[None]:
    """Inside, the UNet keeps only its blocks' inputs and recomputes the rest in the backward pass (non-reentrant).

    Some diffusers versions do that in training mode only; no layer of Stable Diffusion's UNet depends on that mode.
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
