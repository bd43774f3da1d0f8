"""Rows of images that are drawn in turns, between which others use the model."""

from __future__ import annotations

from collections.abc import Generator

from PIL import Image

from lib_lora_train.core.events import Event
from lib_lora_train.core.generators import WithResult
from lib_lora_train.sampling.sample import SamplingStep

Row = list[Image.Image]


def events_of(work: Generator[Event | SamplingStep, None, Row]) -> Generator[Event, None, Row]:
    """The events among what is yielded, without the sampling steps; returns what `work` returns."""
    units = WithResult(work)
    for unit in units:
        if not isinstance(unit, SamplingStep):
            yield unit
    return units.result
