"""The report on the tags of a past run, with real images and files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.core.control import Control, RunStoppedError
from lib_lora_train.core.errors import HostError
from lib_lora_train.core.events import Event, Progress
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.runs.images import tag_images
from lib_lora_train.runs.measures import tag_report
from lib_lora_train.runs.measures.tag_list import TagList, read_tags, tag_values
from lib_lora_train.runs.measures.tag_report import measure_tags
from lib_lora_train.runs.records.event_log import log_events
from lib_lora_train.runs.trainer import run_training
from tests.stand_ins.run_parts import NO_SAMPLES, RunSetup, only, small_run_setup

_SEEDS = 2
_CAPTIONS = ("zorp, hat, red background", "zorp, hat", "zorp, red background")


@pytest.fixture(scope="module")
def shared_host(tmp_path_factory: pytest.TempPathFactory) -> StandaloneHost:
    """One host, so that the checkpoint is read once."""
    return StandaloneHost(None, None, tmp_path_factory.mktemp("unused"), "cpu")


@pytest.fixture
def past_run(shared_host: StandaloneHost, demo_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunSetup:
    """A run of one epoch; two images of each prompt show what eight would."""
    monkeypatch.setattr(tag_images, "SEEDS", _SEEDS)
    monkeypatch.setattr(tag_report, "SEEDS", _SEEDS)
    setup = small_run_setup(shared_host, demo_dir, tmp_path)
    for path, caption in zip(sorted(Path(setup.config.concepts[0].folder).glob("*.txt")), _CAPTIONS, strict=True):
        path.write_text(caption, encoding="utf-8")
    config = setup.config.replace(**NO_SAMPLES, epochs=1, learning_rate=1e-2, sample_steps=2, cache_to_disk=False)
    list(log_events(run_training(config, setup.host, folder=setup.folder, control=Control()), setup.folder.log))
    return setup


def _measure(setup: RunSetup, *also: str, control: Control | None = None) -> tuple[TagList, list[Event]]:
    return _ended(measure_tags(setup.folder, setup.host, control or Control(), also))


def _ended(work: Iterable[Event]) -> tuple[TagList, list[Event]]:
    work, events = iter(work), []
    while True:
        try:
            events.append(next(work))
        except StopIteration as end:
            return end.value, events


def _images(setup: RunSetup) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (setup.folder.root / "tags").glob("*.png")}


def test_every_tag_is_counted_drawn_and_kept(past_run: RunSetup) -> None:
    found, events = _measure(past_run)
    assert [(one.tag, one.images, one.total, len(one.having)) for one in found.tags] == [
        ("hat", 2, 3, _SEEDS),
        ("red background", 2, 3, _SEEDS),
    ]
    assert found.epoch == 1 and found.alone == {"zorp": "zorp"} and all(one.separation > 0 for one in found.tags)
    assert len(_images(past_run)) == _SEEDS * (1 + 2 + 2 + 1)  # alone, two words, two tags, and without the LoRA
    drawn = [event for event in only(events, Progress) if event.phase == "samples"]
    looked_at = [event for event in only(events, Progress) if event.phase == "evaluate"]
    assert drawn[-1].done == drawn[-1].total == _SEEDS * 6
    assert looked_at[-1].done == looked_at[-1].total == _SEEDS * 5  # progress counts what has the LoRA
    assert read_tags(past_run.folder) == found
    assert {one["tag"] for one in tag_values(found)} == {"hat", "red background"}


def test_images_are_drawn_once_and_rare_tags_on_request(past_run: RunSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tag_report, "MAX_TAGS", 1)
    first, _ = _measure(past_run)
    assert [bool(one.having) for one in first.tags] == [True, False]
    before = _images(past_run)
    again, _ = _measure(past_run, "Red Background")
    assert [bool(one.having) for one in again.tags] == [True, True]
    assert before.items() < _images(past_run).items()
    assert again.tags[0].effect == first.tags[0].effect


def test_a_stop_keeps_the_images_and_leaves_the_model_as_it_was(past_run: RunSetup) -> None:
    model = past_run.host.load_model(past_run.config)
    before = {name: type(module) for name, module in model.unet.named_modules()}
    control, done = Control(), 0
    with pytest.raises(RunStoppedError):
        for event in measure_tags(past_run.folder, past_run.host, control):
            if isinstance(event, Progress) and event.phase == "samples":
                done = event.done
                control.stop()
    assert len(_images(past_run)) == done > 0 and read_tags(past_run.folder) is None
    assert {name: type(module) for name, module in model.unet.named_modules()} == before


def test_captions_without_tags_are_an_error(past_run: RunSetup) -> None:
    for path in Path(past_run.config.concepts[0].folder).glob("*.txt"):
        path.write_text("zorp", encoding="utf-8")
    with pytest.raises(HostError, match="no tags beside the trigger word"):
        _measure(past_run)


@pytest.mark.parametrize(
    "damage",
    [
        {"images": 0},
        {"having": [0.1]},
        {"effect": ["much", 1.0]},
        {"separation": None},
        {"pulls": [{"tag": "hat"}]},
    ],
)
def test_a_damaged_list_counts_as_none(tmp_path: Path, damage: dict[str, Any]) -> None:
    from lib_lora_train.evaluation.tag_report import TagMeasure
    from lib_lora_train.runs.measures.tag_list import write_tags
    from lib_lora_train.runs.records.folder import RunFolder

    folder = RunFolder(tmp_path)
    values = (0.1, 0.2)
    measure = TagMeasure("zok", "hat", "zok, hat", 2, 3, 1.0, values, values, values, values, values)
    write_tags(folder, TagList(1, "zok", {"zok": "zok"}, (measure,)))
    good = json.loads(folder.tags.read_text(encoding="utf-8"))
    assert read_tags(folder) == TagList(1, "zok", {"zok": "zok"}, (measure,))
    folder.tags.write_text(json.dumps({**good, "tags": [{**good["tags"][0], **damage}]}), encoding="utf-8")
    assert read_tags(folder) is None
    folder.tags.write_text("{", encoding="utf-8")
    assert read_tags(folder) is None
