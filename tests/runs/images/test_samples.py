"""A run's images: what they show, how they are named, what a failure means, and which are drawn at the end."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lib_lora_train.core.control import RunStoppedError
from lib_lora_train.core.errors import (
    HostError,
    LoraTrainError,
    MemoryFullError,
    ModelUnavailableError,
    OutputError,
)
from lib_lora_train.core.events import Event, GridDrawn, Noted, PhaseStarted, Progress, SampleDrawn, SamplesStarted
from lib_lora_train.hosts.host import GeneratedImage, GenerationRequest
from lib_lora_train.runs.checkpoints import save_epoch_lora, save_step_lora
from lib_lora_train.runs.images import samples
from lib_lora_train.runs.images.samples import draw_grid, generate_sample_row, load_sample_rows, read_sample_rows
from lib_lora_train.runs.run_context import RunContext
from lib_lora_train.sampling.infotext import write_image
from tests.stand_ins.run_parts import only, run_context
from tests.stand_ins.training_parts import shared_model as model

Made = Callable[..., RunContext]
TWO = ("zok --s 1 --l 1 --w 64 --h 64 --d 5", "fox --s 1 --l 1 --w 64 --h 64 --d 6")


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    """Makes the test's run, whose adapter changes the images; it is removed afterwards."""
    monkeypatch.setattr("os.fsync", lambda _: None)  # which takes longer than all the rest
    made: list[RunContext] = []

    def make_run(**values: Any) -> RunContext:
        defaults = {"sample_prompts": TWO, "sample_every_n_epochs": 1, "make_grid": True}
        run, training = run_context(model(), tmp_path, rank=1, **{**defaults, **values})
        for parameter in training.parameters:
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(1))
        made.append(run)
        return run

    yield make_run
    for run in made:
        run.adapter.remove()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The prompts of each batch of our own sampler, which draws nothing: its images are one colour."""
    batches: list[list[str]] = []

    def draw(_model: object, prompts: Any, **_: object) -> Generator[Any, None, list[Image.Image]]:
        batches.append([prompt.prompt for prompt in prompts])
        yield from ()
        return [Image.new("RGB", (16, 16), (prompt.seed, 0, 0)) for prompt in prompts]

    monkeypatch.setattr(samples, "sample_in_steps", draw)
    return batches


def pixels(run: RunContext, epoch: int, step: int = 0) -> bytes:
    with Image.open(run.folder.sample(epoch, 1, step)) as image:
        return image.tobytes()


def text_of(run: RunContext, epoch: int, step: int = 0) -> str:
    with Image.open(run.folder.sample(epoch, 1, step)) as image:
        return str(image.text["parameters"])  # type: ignore[attr-defined]


def files(run: RunContext) -> list[str]:
    return sorted(path.name for path in run.folder.samples.iterdir())


# --- one row --------------------------------------------------------------------------------------


def test_samples_of_an_epoch_show_the_lora_and_those_of_epoch_0_the_model_alone(make: Made) -> None:
    run = make(sample_prompts=TWO[:1])
    for epoch, step in ((0, 0), (1, 0), (1, 3)):
        list(generate_sample_row(run, epoch, step))
    with run.adapter.enabled(False):
        list(generate_sample_row(run, 9))  # enabled inside, whatever it was before
    assert pixels(run, 1) == pixels(run, 1, 3) == pixels(run, 9) != pixels(run, 0)
    run.adapter.remove()
    list(generate_sample_row(run, 8))
    assert pixels(run, 8) == pixels(run, 0)


@pytest.mark.usefixtures("drawn")
def test_the_infotext_names_the_file_with_these_weights(make: Made) -> None:
    run = make()
    for epoch, step in ((0, 0), (1, 0), (2, 5)):
        list(generate_sample_row(run, epoch, step))
    found = [text_of(run, *moment).splitlines()[0] for moment in ((0, 0), (1, 0), (2, 5))]
    assert found == ["zok", "zok <lora:test-000001:1>", "zok <lora:test-step00000005:1>"]


def test_samples_are_drawn_by_four_in_the_order_of_the_prompts(make: Made, drawn: list[list[str]]) -> None:
    names = [f"fox {number}" for number in range(6)]
    run = make(sample_prompts=tuple(f"{name} --d {number} --w 64 --h 64" for number, name in enumerate(names)))
    events = list(generate_sample_row(run, 2))
    assert drawn == [names[:4], names[4:]]
    assert only(events, SamplesStarted) == [SamplesStarted(2, 0, 6)]
    assert [event.done for event in only(events, Progress)] == [4, 6]
    paths = [run.folder.sample(2, number) for number in range(1, 7)]
    assert [(event.path, event.prompt, event.seed) for event in only(events, SampleDrawn)] == [
        (str(path), name, seed) for seed, (path, name) in enumerate(zip(paths, names, strict=True))
    ]
    assert [image.getpixel((0, 0)) for image in run.images[2]] == [(seed, 0, 0) for seed in range(6)]


def test_the_steps_of_a_batch_are_counted_after_the_samples_before_it(
    make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(sample_prompts=tuple(f"fox --d {number} --s 2 --l 1 --w 64 --h 64" for number in range(5)))
    monkeypatch.setattr(samples, "TURN_SECONDS", 0.0)
    steps = [event for event in only(list(generate_sample_row(run, 0)), Progress) if event.steps]
    assert [(event.done, event.total, event.at_once, event.step) for event in steps] == [
        (0, 5, 4, 1),
        (0, 5, 4, 2),
        (4, 5, 1, 1),
        (4, 5, 1, 2),
    ]


@pytest.mark.usefixtures("drawn")
def test_samples_within_an_epoch_are_none_of_the_grids_and_no_preview(make: Made) -> None:
    run = make()
    list(save_epoch_lora(run, 1, 4))
    list(generate_sample_row(run, 1, 3))
    assert run.images == {} and not list(run.lora_dir.glob("*.png"))
    list(generate_sample_row(run, 1))
    assert list(run.images) == [1] and [path.stem for path in run.lora_dir.glob("*.png")] == ["test-000001"]


def test_without_prompts_nothing_is_drawn(make: Made, drawn: list[list[str]]) -> None:
    assert list(generate_sample_row(make(sample_prompts=()), 1)) == [] and drawn == []


@pytest.mark.parametrize(
    ("error", "level", "where", "text"),
    [
        (RunStoppedError(), "hint", "", "The samples of epoch 1 are incomplete because the run was stopped."),
        (MemoryFullError("Full."), "warning", "sample_prompts", "The samples of epoch 1 were skipped because they did"),
        (HostError("Busy."), "warning", "webui_sampler", "Busy. The samples of epoch 1 were skipped."),
        (OutputError("No space."), "warning", "", "No space. Samples of epoch 1 are missing; the training continues."),
    ],
)
def test_samples_that_cannot_be_drawn_are_a_sentence_and_not_half_a_row(
    error: Exception, level: str, where: str, text: str, make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> Iterator[Event]:
        yield from ()
        raise error

    run = make()
    list(save_epoch_lora(run, 1, 4))
    monkeypatch.setattr(samples, "_images", fail)
    (note,) = only(list(generate_sample_row(run, 1)), Noted)
    assert (note.level, note.where) == (level, where) and note.message.startswith(text)
    assert run.images == {} and not list(run.lora_dir.glob("*.png")), "nor a preview of what was not drawn"
    (note,) = only(list(generate_sample_row(run, 1, 7)), Noted)
    assert "amples of step 7 " in note.message


def test_a_run_whose_model_is_away_waits_instead_of_skipping_samples(
    make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> Iterator[Event]:
        yield from ()
        raise ModelUnavailableError("Another model is loaded.")

    monkeypatch.setattr(samples, "_images", fail)
    with pytest.raises(ModelUnavailableError):
        list(generate_sample_row(make(), 1))


# --- the webui's sampler --------------------------------------------------------------------------


class WebuiSampler:
    """Notes the LoRA of each request."""

    model_name, sampler = "model", "DPM++ 2M"

    def __init__(self) -> None:
        self.loras: list[str] = []

    def generate(self, request: GenerationRequest, watch: object = None) -> GeneratedImage:
        self.loras.append(request.lora)
        return GeneratedImage(Image.new("RGB", (16, 16)), f"{request.prompt}, by the webui")


def test_the_webui_draws_with_the_file_of_the_epoch_or_else_the_newest(make: Made) -> None:
    run = make(sample_prompts=TWO[:1])
    run.txt2img = webui = WebuiSampler()
    (note,) = only(list(generate_sample_row(run, 1)), Noted)
    assert note.message.startswith("The webui generates from LoRA files, and this run has not saved one yet.")
    training = run.training
    assert training
    training.step = 3
    list(save_step_lora(run, training))
    list(save_epoch_lora(run, 1, 4))
    training.step = 6
    list(save_step_lora(run, training))
    for epoch, step in ((0, 0), (1, 0), (2, 6), (2, 0)):
        list(generate_sample_row(run, epoch, step))
    assert webui.loras == ["", "test-000001", "test-step00000006", "test-step00000006"]
    assert text_of(run, 1) == "zok, by the webui"


def test_the_webui_draws_one_image_at_a_time(make: Made) -> None:
    run = make()
    run.txt2img = WebuiSampler()
    events = list(generate_sample_row(run, 0))
    assert [event.done for event in only(events, Progress)] == [1, 2]


# --- rows of earlier runs -------------------------------------------------------------------------


def test_only_whole_rows_of_the_asked_epochs_are_read(make: Made) -> None:
    """Epoch 2 also has an image of a third prompt, which is gone."""
    run = make()
    for epoch, number in ((0, 1), (0, 2), (1, 1), (2, 1), (2, 2), (2, 3), (3, 1), (3, 2)):
        write_image(run.folder.sample(epoch, number), Image.new("RGB", (16, 16), (epoch, number, 0)), "")
    rows = read_sample_rows(run.folder, 2, (0, 1, 2, 5))
    assert {epoch: [image.getpixel((0, 0)) for image in row] for epoch, row in rows.items()} == {
        epoch: [(epoch, 1, 0), (epoch, 2, 0)] for epoch in (0, 2)
    }
    assert read_sample_rows(run.folder, 0, (0, 1)) == {}


@pytest.mark.parametrize(("before", "found"), [(list(TWO), [0, 2]), (list(TWO[::-1]), []), (None, [])])
def test_a_resumed_run_reads_its_samples_if_its_prompts_are_the_same(
    before: list[str] | None, found: list[int], make: Made
) -> None:
    run = make()
    for epoch in (0, 2, 3):
        for number in (1, 2):
            write_image(run.folder.sample(epoch, number), Image.new("RGB", (16, 16)), "")
    training = run.training
    assert training
    run.history.losses = {1: 0.1, 2: 0.1}
    if before is not None:
        run.state = training.state()
        run.state.config["sample_prompts"] = before  # type: ignore[index]
    load_sample_rows(run)
    assert list(run.images) == found


# --- the grid -------------------------------------------------------------------------------------


def grid_events(run: RunContext) -> list[Event]:
    return list(draw_grid(run))


@pytest.mark.parametrize("values", [{"make_grid": False}, {"sample_prompts": ()}])
def test_no_grid_without_prompts_or_if_it_is_off(values: dict[str, Any], make: Made) -> None:
    run = make(**values)
    run.images[0] = [Image.new("RGB", (16, 16))] * 2
    assert grid_events(run) == [] and not run.folder.grid.exists()


def test_the_grid_has_the_rows_that_were_drawn(make: Made, drawn: list[list[str]]) -> None:
    run = make()
    assert grid_events(run) == []
    for epoch in (1, 0):
        list(generate_sample_row(run, epoch))
    drawn.clear()
    events = grid_events(run)
    assert only(events, GridDrawn) == [GridDrawn(str(run.folder.grid))]
    assert only(events, PhaseStarted) == [PhaseStarted("grid")]
    assert drawn == [] and run.folder.grid.is_file()


def test_a_grid_that_cannot_be_written_is_a_warning(make: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make()
    run.images[0] = [Image.new("RGB", (16, 16))] * 2
    for error, text in ((OutputError("No space."), "No space. The LoRA"), (MemoryError(), "The grid does not fit")):
        monkeypatch.setattr(samples, "write_image", _raising(error))
        (note,) = only(grid_events(run), Noted)
        assert note.level == "warning" and note.message.startswith(text)


def _raising(error: Exception | LoraTrainError) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


def test_without_samples_the_grid_shows_the_weights_of_each_file(make: Made) -> None:
    run = make(sample_every_n_epochs=0, sample_prompts=TWO[:1])
    training = run.training
    assert training
    for epoch in (1, 2, 3):
        with torch.no_grad():
            for parameter in training.parameters:
                parameter.mul_(-1)
        list(save_epoch_lora(run, epoch, 4 * epoch))
    (run.lora_dir / "test-000002.safetensors").write_bytes(b"replaced")
    events = grid_events(run)
    assert [event.epoch for event in only(events, SampleDrawn)] == [0, 1, 3]
    assert ["Epoch 2 is missing in the grid." in event.message for event in only(events, Noted)] == [True]
    assert len({pixels(run, 0), pixels(run, 1)}) == 2 and pixels(run, 1) == pixels(run, 3)
    assert run.training is None and only(events, GridDrawn)


def test_a_stopped_run_draws_no_further_rows_and_a_resumed_one_only_those_that_are_missing(
    make: Made, drawn: list[list[str]]
) -> None:
    run = make(sample_every_n_epochs=0, sample_prompts=TWO[:1])
    for epoch in (1, 2):
        list(save_epoch_lora(run, epoch, 4 * epoch))
    run.images[0] = run.images[1] = [Image.new("RGB", (16, 16))]
    assert [event.epoch for event in only(grid_events(run), SampleDrawn)] == [2]
    del run.images[2]
    run.control.stop()
    assert only(grid_events(run), SampleDrawn) == [] and len(drawn) == 1
