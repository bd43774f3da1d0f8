"""The loss of every image of a run: at its end, and of a past run on request, with real files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_lora_train.core.control import Control, RunStoppedError
from lib_lora_train.core.errors import HostError
from lib_lora_train.core.events import Event, Noted, Progress
from lib_lora_train.evaluation import fixed_loss
from lib_lora_train.evaluation.fixed_loss import STEADY_TIMESTEPS
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.runs.measures.image_list import ImageList, image_values, read_images, write_images
from lib_lora_train.runs.measures.image_losses import measure_past_run
from lib_lora_train.runs.records.event_log import log_events
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.trainer import run_training
from tests.stand_ins.run_parts import NO_SAMPLES, RunSetup, ending, only, small_run_setup

SETTINGS: dict[str, Any] = {**NO_SAMPLES, "learning_rate": 1e-2, "measure_steady_loss": True}


@pytest.fixture(scope="module")
def shared_host(tmp_path_factory: pytest.TempPathFactory) -> StandaloneHost:
    """One host, so that the checkpoint is read once."""
    return StandaloneHost(None, None, tmp_path_factory.mktemp("unused"), "cpu")


@pytest.fixture
def small_run(shared_host: StandaloneHost, demo_dir: Path, tmp_path: Path) -> RunSetup:
    return small_run_setup(shared_host, demo_dir, tmp_path)


@pytest.fixture
def at_any_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six steps are so few that three images would take more than 3% of them."""
    monkeypatch.setattr(fixed_loss, "STEADY_SHARE", 10.0)


def run(setup: RunSetup, control: Control | None = None, **values: Any) -> list[Event]:
    """The events of a run with its log, as the past runs of a page have."""
    config = setup.config.replace(**{**SETTINGS, **values})
    events = run_training(config, setup.host, folder=setup.folder, control=control or Control())
    return list(log_events(events, setup.folder.log))


def measured(setup: RunSetup) -> ImageList:
    return value_of(measure_past_run(setup.folder, setup.host, Control()))


def value_of(events: Iterable[Event]) -> ImageList:
    events = iter(events)
    while True:
        try:
            next(events)
        except StopIteration as end:
            found: ImageList = end.value
            return found


@pytest.mark.usefixtures("at_any_cost")
def test_at_its_end_a_run_has_measured_every_image_and_so_it_is_later_with_its_file(small_run: RunSetup) -> None:
    """The file has 16 bits of what the run had in 32: losses agree to 1%."""
    assert ending(run(small_run)) == "finished"
    kept = read_images(small_run.folder)
    assert kept and kept.epoch == 2
    folder = Path(small_run.config.concepts[0].folder)
    assert {one.path for one in kept.images} == {str(path) for path in folder.glob("*.png")}
    assert all(len(one.trained) == len(STEADY_TIMESTEPS) for one in kept.images)
    assert kept.captions == {one.path: Path(one.path).with_suffix(".txt").read_text().strip() for one in kept.images}
    assert any(one.trained != one.untrained for one in kept.images)
    again = measured(small_run)
    assert again.epoch == 2
    for one, other in zip(kept.images, again.images, strict=True):
        assert (one.path, one.group, one.nearest, one.untrained) == (
            other.path,
            other.group,
            other.nearest,
            other.untrained,
        )
        assert one.trained == pytest.approx(other.trained, rel=1e-2)
        assert one.uncaptioned == pytest.approx(other.uncaptioned, rel=1e-2)
    assert read_images(small_run.folder) == again


def test_a_run_in_which_that_would_take_too_long_does_not_measure_its_images(small_run: RunSetup) -> None:
    run(small_run)
    assert read_images(small_run.folder) is None


@pytest.mark.usefixtures("at_any_cost")
def test_a_run_without_the_steady_loss_or_that_is_stopped_does_not_measure_its_images(small_run: RunSetup) -> None:
    run(small_run, measure_steady_loss=False)
    assert read_images(small_run.folder) is None
    control = Control()
    control.stop()
    run(small_run, control)
    assert read_images(small_run.folder) is None


def test_measuring_a_past_run_shows_progress_and_leaves_the_model_as_it_was(small_run: RunSetup) -> None:
    run(small_run)
    model = small_run.host.load_model(small_run.config)
    before = {name: type(module) for name, module in model.unet.named_modules()}
    events = list(measure_past_run(small_run.folder, small_run.host, Control()))
    done = [event for event in only(events, Progress) if event.phase == "evaluate"]
    assert done[-1].done == done[-1].total == 3 * 3 * len(STEADY_TIMESTEPS)
    assert [one.done for one in done] == sorted(one.done for one in done)
    assert {name: type(module) for name, module in model.unet.named_modules()} == before


def test_between_batches_the_model_has_the_adapter_of_the_run_that_is_training(small_run: RunSetup) -> None:
    """Others take the lease in these moments, and train or draw with what they find."""
    from lib_lora_train.adapters.create import create_adapter

    run(small_run)
    model = small_run.host.load_model(small_run.config)
    other = create_adapter(model, small_run.config.replace(rank=4))
    layers = [layer for layer in model.unet.modules() if layer in list(other.layers.values())]
    try:
        for _ in measure_past_run(small_run.folder, small_run.host, Control()):
            assert [layer for layer in model.unet.modules() if layer in list(other.layers.values())] == layers
    finally:
        other.remove()


def test_a_stop_while_measuring_keeps_nothing(small_run: RunSetup) -> None:
    run(small_run)
    control = Control()
    with pytest.raises(RunStoppedError):
        for event in measure_past_run(small_run.folder, small_run.host, control):
            if isinstance(event, Progress) and event.phase == "evaluate":
                control.stop()
    assert read_images(small_run.folder) is None


def test_without_a_lora_file_the_reason_is_a_sentence(small_run: RunSetup) -> None:
    run(small_run)
    for file in small_run.host.lora_dir.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(HostError, match="has no LoRA file to measure its images with"):
        measured(small_run)


@pytest.mark.usefixtures("at_any_cost")
def test_measuring_does_not_change_what_is_trained(small_run: RunSetup) -> None:
    from safetensors.torch import load_file

    for name, is_measured in (("with", True), ("without", False)):
        run(small_run, output_name=name, measure_steady_loss=is_measured)
    found = [load_file(small_run.host.lora_dir / f"{name}-000002.safetensors") for name in ("with", "without")]
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


@pytest.mark.usefixtures("at_any_cost")
def test_the_log_names_the_images_that_stand_out(small_run: RunSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib_lora_train.runs.measures.image_list.STANDS_OUT", -100.0)
    texts = [event.message for event in only(run(small_run), Noted)]
    assert any(text.startswith("3 images stand out by the loss: ") for text in texts)


# --- what is kept ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("at_any_cost")
def test_images_of_a_moved_run_are_found_again(small_run: RunSetup, tmp_path: Path) -> None:
    data = tmp_path / "data"
    run(small_run)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("outputs", "data", "Lora"):
        shutil.move(tmp_path / name, moved / name)
    folder = RunFolder(moved / small_run.folder.root.relative_to(tmp_path))
    found = read_images(folder)
    assert found and all(Path(one.path).is_file() for one in found.images) and not data.exists()
    assert {path for one in found.images for path, _ in one.nearest} <= set(found.captions)


@pytest.mark.usefixtures("at_any_cost")
@pytest.mark.parametrize(
    "damage",
    ["", "[]", "{", '{"epoch": 1}', '{"epoch": 1, "images": [{}]}', '{"epoch": 1, "images": 3}'],
)
def test_a_damaged_list_counts_as_none(small_run: RunSetup, damage: str) -> None:
    small_run.folder.image_losses.write_text(damage, encoding="utf-8")
    assert read_images(small_run.folder) is None


@pytest.mark.parametrize("value", [[], [0.0], [-1.0], ["x"], [1e999], [0.1, 0.2], None])
def test_a_list_with_a_loss_that_is_none_counts_as_none(small_run: RunSetup, value: Any) -> None:
    image = {"path": "a.png", "group": "a", "trained": [0.1], "untrained": [0.1], "uncaptioned": [0.1]}
    good = {"epoch": 1, "images": [{**image, "nearest": [["b.png", 0.5]], "caption": "a"}]}
    small_run.folder.image_losses.write_text(json.dumps(good), encoding="utf-8")
    assert read_images(small_run.folder)
    good["images"][0]["trained"] = value  # type: ignore[index]
    small_run.folder.image_losses.write_text(json.dumps(good), encoding="utf-8")
    assert read_images(small_run.folder) is None


def test_what_is_written_is_read_again(small_run: RunSetup) -> None:
    run(small_run)
    images = measured(small_run)
    write_images(small_run.folder, images)
    assert read_images(small_run.folder) == images
    values = image_values(images)
    assert [set(one) for one in values] == [set(values[0])] * 3 and json.dumps(values)
