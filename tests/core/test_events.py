"""Every event survives the way to JSON and back."""

from __future__ import annotations

import json
import typing

import pytest

from lib_lora_train.core.events import (
    Advised,
    EpochDone,
    Event,
    GridDrawn,
    ImageLosses,
    ImagesRated,
    LoraRemoved,
    LoraWritten,
    Measured,
    Noted,
    PhaseEnded,
    PhaseStarted,
    Planned,
    Progress,
    Resumed,
    SampleDrawn,
    SampleMatched,
    SamplesStarted,
    StateChanged,
    StateSaved,
    StepDone,
    StrengthTested,
    TagsRated,
    Workload,
    from_record,
    to_record,
)

EVENTS: tuple[Event, ...] = (
    PhaseStarted("train", 10),
    Progress("latents", 1, 2),
    PhaseEnded("samples", 1.5),
    Planned(20, 5, 100, 10, 1000),
    Workload("sdxl", "cuda", 1e6, "lora standard", True, False),
    StepDone(3, 1, 0.1, {"unet": 1e-4}, 0.5, 1.25),
    EpochDone(1, 100, 0.09),
    LoraWritten("a.safetensors", 1, 100),
    LoraRemoved("a.safetensors"),
    StateSaved("state", 100),
    Resumed(100),
    SamplesStarted(1, 50, 4),
    SampleDrawn("a.png", 1, "a cat", 7, 50),
    GridDrawn("grid.png"),
    Measured(1, {"validation_loss": 0.2}),
    ImageLosses(1, {"a.png": 0.1}),
    SampleMatched(1, "001.png", "a.png", 0.9, True),
    StrengthTested(3, 1.25, (0.7, 0.8), (0.1,), 1.2, ("a.png", "b.png")),
    Advised(3, 1.25, False, ("Its samples are good.",), ()),
    ImagesRated(3, 16, {"a.png": "Its loss stayed."}),
    TagsRated(3, 5, {"learnt": 4, "ignored": 1}, {"glossy": "Ignored."}),
    Noted("hint", "a.png", "is small."),
    StateChanged("failed", "Disk full."),
)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_survives_the_round_trip(event: Event) -> None:
    assert from_record(json.loads(json.dumps(to_record(event)))) == event


def test_there_is_a_round_trip_for_every_event() -> None:
    assert {type(event) for event in EVENTS} == set(typing.get_args(Event))


def test_unknown_records_are_refused() -> None:
    with pytest.raises(KeyError):
        from_record({"kind": "Unknown"})
    with pytest.raises(TypeError):
        from_record({"kind": "Resumed", "steps": 1})


def test_an_advice_says_what_to_use() -> None:
    assert Advised(4, 1.25, True, ()).sentence == "Use epoch 4 at strength 1.25."
    assert Advised(0, 1.0, True, ()).sentence == "No epoch of this run is good."
