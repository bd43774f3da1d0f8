"""A whole run, from folder to grid, on the embedded model; and what goes wrong on the way."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lib_lora_train.adapters.adapted_layer import AdaptedLayer
from lib_lora_train.adapters.files.lora_file import read_adapter
from lib_lora_train.adapters.inject import Adapter
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.errors import ConfigError, DataError, HostError, MemoryFullError, OutputError
from lib_lora_train.core.events import (
    VALIDATION_LOSS,
    EpochDone,
    Event,
    GridDrawn,
    LoraWritten,
    Measured,
    Noted,
    PhaseStarted,
    Planned,
    SampleDrawn,
    StateChanged,
    StepDone,
    Workload,
)
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.runs import trainer as jobs
from lib_lora_train.runs.folder import RunFolder
from lib_lora_train.runs.runner import Runner, downsample
from lib_lora_train.sampling.sampler_options import SamplerOptions
from lib_lora_train.training.control import Control
from tests.stand_ins.run_parts import Place, ending, only, small_place


@pytest.fixture(scope="module")
def shared_host(tmp_path_factory: pytest.TempPathFactory) -> StandaloneHost:
    """One host, so that the checkpoint is read once."""
    return StandaloneHost(None, None, tmp_path_factory.mktemp("unused"), "cpu")


@pytest.fixture
def place(shared_host: StandaloneHost, demo_dir: Path, tmp_path: Path) -> Place:
    """See `small_place`."""
    return small_place(shared_host, demo_dir, tmp_path)


def weights_of(model: DiffusionModel) -> dict[str, torch.Tensor]:
    modules = {"unet": model.unet, **{f"text{i}": encoder for i, encoder in enumerate(model.text_encoders)}}
    return {f"{name}.{key}": t.clone() for name, module in modules.items() for key, t in module.state_dict().items()}


def test_a_run_leaves_a_file_per_epoch_samples_and_a_grid(place: Place) -> None:
    events = place.run()
    assert only(events, Planned) == [Planned(3, 0, 3, 2, 6)]
    assert [event.step for event in only(events, StepDone)] == [1, 2, 3, 4, 5, 6]
    names = [Path(event.path).name for event in only(events, LoraWritten)]
    assert names == ["test-000001.safetensors", "test-000002.safetensors"]
    assert sorted(path.name for path in place.host.lora_dir.glob("*.safetensors")) == names
    assert [(e.epoch, Path(e.path).is_file()) for e in only(events, SampleDrawn)] == [
        (epoch, True) for epoch in (0, 0, 1, 1, 2, 2)
    ]
    with Image.open(only(events, GridDrawn)[0].path) as grid:
        assert grid.width > 2 * 128 and grid.height > 3 * 128
    assert events[0] == StateChanged("running") and ending(events) == "finished"


def test_a_run_tells_what_its_steps_work_on(place: Place) -> None:
    (work,) = only(place.run(epochs=1), Workload)
    assert (work.family, work.device, work.adapter) == ("sd1", "cpu", "lora standard")
    assert work.pixels_per_step == 128 * 128


def test_each_file_carries_its_own_name_and_what_it_was_made_of(place: Place) -> None:
    events = place.run()
    for event in only(events, LoraWritten):
        metadata = read_adapter(Path(event.path)).metadata
        assert metadata["ss_output_name"] == Path(event.path).stem
        assert metadata["ss_network_dim"] == "2"
        assert json.loads(metadata["lora_train_config"])["epochs"] == 2


def test_each_file_has_its_card(place: Place) -> None:
    events = place.run(comment="my mascot")
    stems = [Path(event.path).with_suffix("") for event in only(events, LoraWritten)]
    card = json.loads(stems[1].with_suffix(".json").read_text(encoding="utf-8"))
    assert card["activation text"] == "zorp" and card["sd version"] == "SD1" and card["preferred weight"] == 1
    assert card["description"] == "my mascot" and card["notes"].startswith("epoch 2 of 2, step 6, loss ")
    with Image.open(stems[1].with_suffix(".png")) as preview, Image.open(only(events, SampleDrawn)[4].path) as sample:
        assert list(preview.getdata()) == list(sample.getdata())


def test_a_card_that_is_there_stays_and_cards_can_be_left_out(place: Place) -> None:
    place.host.lora_dir.mkdir(parents=True)
    own = place.host.lora_dir / "test-000001.json"
    own.write_text("{}", encoding="utf-8")
    place.run(sample_prompts=())
    assert own.read_text(encoding="utf-8") == "{}"
    place.run(sample_prompts=(), output_name="bare", write_card=False)
    assert sorted(path.suffix for path in place.host.lora_dir.glob("bare-*")) == [".safetensors"] * 2


def test_samples_carry_the_webuis_infotext(place: Place) -> None:
    drawn = only(place.run(), SampleDrawn)
    with Image.open(drawn[2].path) as image:
        text = image.text["parameters"]  # type: ignore[attr-defined]
    assert text.startswith("zorp <lora:test-000001:1>\n")
    assert "Steps: 1, Sampler: Euler a, CFG scale: 1, Seed: 5, Size: 128x128" in text


def test_the_model_is_as_it_was_after_a_run_and_after_a_broken_one(place: Place) -> None:
    with place.host.lease() as model:
        before = weights_of(model)
    place.run(sample_prompts=())
    broken = jobs.run_training(place.config, place.host, folder=place.folder, control=Control())
    next(event for event in broken if isinstance(event, StepDone))
    broken.close()  # type: ignore[attr-defined]
    with place.host.lease() as model:
        after = weights_of(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_second_run_of_the_same_name_overwrites_nothing(place: Place) -> None:
    place.run(sample_prompts=())
    first = {path: path.read_bytes() for path in place.host.lora_dir.iterdir()}
    events = place.run(sample_prompts=(), seed=7)
    assert [Path(e.path).name for e in only(events, LoraWritten)] == [
        "test-2-000001.safetensors",
        "test-2-000002.safetensors",
    ]
    assert any(note.where == "output_name" for note in only(events, Noted))
    assert all(path.read_bytes() == content for path, content in first.items())


def test_the_same_seed_gives_the_same_file_and_samples_change_nothing(place: Place) -> None:
    states = [
        read_adapter(Path(only(place.run(sample_prompts=prompts), LoraWritten)[-1].path)).state
        for prompts in ((), place.config.sample_prompts)
    ]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_broken_image_is_named_and_the_rest_trains(place: Place, tmp_path: Path) -> None:
    (tmp_path / "data" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno image")
    events = place.run(sample_prompts=())
    assert any("broken.png" in f"{note.where} {note.message}" for note in only(events, Noted))
    assert only(events, Planned)[0].images == 3
    assert ending(events) == "finished"


def test_stop_ends_after_the_step_and_keeps_what_was_learnt(place: Place) -> None:
    control = Control()
    events = []
    for event in jobs.run_training(place.config, place.host, folder=place.folder, control=control):
        events.append(event)
        if isinstance(event, EpochDone):
            control.stop()
    assert only(events, StepDone)[-1].step == 3
    assert [Path(e.path).name for e in only(events, LoraWritten)] == ["test-000001.safetensors"]
    assert ending(events) == "stopped"


def test_stop_in_the_middle_of_an_epoch_writes_a_file_of_that_step(place: Place) -> None:
    control = Control()
    run = jobs.run_training(place.config, place.host, folder=place.folder, control=control)
    events = []
    for event in run:
        events.append(event)
        if isinstance(event, PhaseStarted) and event.phase == "train":
            control.stop()
    assert only(events, StepDone) == []
    assert only(events, LoraWritten) == []  # nothing was learnt yet, so there is nothing to keep
    control = Control()
    events = []
    for event in jobs.run_training(
        place.config.replace(epochs=1, gradient_accumulation=1),
        place.host,
        folder=place.folder,
        control=control,
    ):
        events.append(event)
        if isinstance(event, StepDone):
            control.save_now()
    assert {Path(e.path).name for e in only(events, LoraWritten)} >= {"test-000001.safetensors"}


def test_without_samples_on_the_way_the_grid_is_drawn_from_the_files(place: Place) -> None:
    events = place.run(sample_every_n_epochs=0)
    trained = next(i for i, e in enumerate(events) if isinstance(e, StepDone) and e.step == 6)
    drawn = [i for i, e in enumerate(events) if isinstance(e, SampleDrawn)]
    assert len(drawn) == 6 and min(drawn) > trained
    assert len(only(events, GridDrawn)) == 1


def test_samples_that_do_not_fit_are_left_out_and_the_run_goes_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr("lib_lora_train.runs.samples.sample_images", full)
    events = place.run()
    notes = [event for event in only(events, Noted) if event.where == "sample_prompts"]
    assert [note.level for note in notes] == ["warning"] * 3 and "did not fit" in notes[0].message
    assert ending(events) == "finished" and len(only(events, LoraWritten)) == 2


def test_full_memory_ends_in_a_sentence_with_file_state_and_free_model(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While measuring, say: the page is told what to do, what was learnt is kept, and others may use the model."""

    def full(_model: DiffusionModel, _adapter: Adapter) -> Mapping[str, float]:
        if only(told, StepDone):
            raise torch.cuda.OutOfMemoryError
        return {}

    told: list[Event] = []
    run = jobs.run_training(place.config, place.host, folder=place.folder, control=Control(), measure=full)
    with pytest.raises(MemoryFullError, match=r"memory is full\. Close other programs .* resume the run"):
        for event in run:
            told.append(event)
    assert place.folder.state_steps() == [3]
    assert {Path(event.path).name for event in only(told, LoraWritten)} == {"test-000001.safetensors"}
    with place.host.lease() as model:
        assert not any(isinstance(module, AdaptedLayer) for module in model.unet.modules())


def test_samples_are_drawn_as_the_host_draws_and_let_others_go_first(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, sampler_options = place.host, SamplerOptions(eta_noise_seed_delta=7)
    lease, leases, in_breaths = host.lease, list[Any](), set[int]()

    def counted(*arguments: Any) -> Any:
        leases.append(arguments)
        return lease(*arguments)

    def drawn(_model: Any, prompts: Any, *, on_progress: Any, **others: Any) -> list[Image.Image]:
        assert others["sampler_options"] == sampler_options
        before = len(leases)
        on_progress(1, 2)
        in_breaths.add(len(leases) - before)
        return [Image.new("RGB", (64, 64))] * len(prompts)

    monkeypatch.setattr(host, "lease", counted)
    monkeypatch.setattr(host, "has_waiters", lambda: True)
    monkeypatch.setattr(type(host), "sampler_options", sampler_options)
    monkeypatch.setattr("lib_lora_train.runs.samples.sample_images", drawn)
    place.run(epochs=1)
    assert in_breaths == {1}


def test_samples_of_steps_have_rows_of_their_own(place: Place) -> None:
    """Six steps in two epochs: after step 2 and 4; step 6 ends an epoch, whose samples are its own."""
    events = place.run(sample_every_n_steps=2)
    drawn = only(events, SampleDrawn)
    of_steps = [(event.step, event.epoch, Path(event.path).name) for event in drawn if event.step]
    assert sorted({(step, epoch) for step, epoch, _ in of_steps}) == [(2, 1), (4, 2)]
    assert all(name.startswith(f"step-{step:08}-") for step, _, name in of_steps)
    assert {event.epoch for event in drawn if not event.step} == {0, 1, 2}
    assert all(Path(event.path).is_file() for event in drawn)
    for event in drawn:
        if event.step:
            position = events.index(event)
            assert max(e.step for e in events[:position] if isinstance(e, StepDone)) == event.step
            with Image.open(event.path) as image:
                told = image.text["parameters"]  # type: ignore[attr-defined]
            assert f"<lora:test-step{event.step:08}:1>" in told, "the epoch's file will hold other numbers"
    again = place.run(sample_every_n_steps=3, sample_every_n_epochs=0, make_grid=False)
    assert {event.step for event in only(again, SampleDrawn)} == {3, 6}  # no samples of epochs: their ends count too


def test_the_measure_sees_the_model_without_lora_first(place: Place) -> None:
    seen: list[bool] = []

    def measure(model: DiffusionModel, adapter: Adapter) -> Mapping[str, float]:
        seen.append(any(norm > 0 for norm in adapter.norms().values()))
        return {"number": float(len(seen))}

    run = jobs.run_training(
        place.config.replace(sample_prompts=()), place.host, folder=place.folder, control=Control(), measure=measure
    )
    events = list(run)
    assert seen == [False, True, True]
    assert [(e.epoch, dict(e.values)) for e in only(events, Measured)] == [
        (0, {"number": 1.0}),
        (1, {"number": 2.0}),
        (2, {"number": 3.0}),
    ]


def test_settings_that_contradict_each_other_are_told_together(place: Place) -> None:
    with pytest.raises(ConfigError) as told:
        place.run(
            output_name="../elsewhere", train_unet=False, train_text_encoder=False, min_bucket=512, max_bucket=256
        )
    assert {"output_name", "train_unet", "min_bucket"} <= {problem.where for problem in told.value.problems}


def test_a_loss_weight_for_another_kind_of_model_is_told_before_images_are_encoded(place: Place) -> None:
    phases = []
    config = place.config.replace(scale_v_pred_loss_like_noise_pred=True)
    with pytest.raises(ConfigError, match="predict v"):
        for event in jobs.run_training(config, place.host, folder=place.folder, control=Control()):
            phases += [event.phase] if isinstance(event, PhaseStarted) else []
    assert phases == ["scan", "load"]


def test_a_missing_folder_is_told(place: Place, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        place.run(concepts=(Concept(folder=str(tmp_path / "nowhere")),))


def test_a_full_disk_is_told_before_training(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(place.folder.root)._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match="MiB free"):
        place.run()


def test_a_disk_that_fills_while_training_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    lora_dir = place.host.lora_dir
    lora_dir.mkdir()
    sync = os.fsync

    def full(descriptor: int) -> None:
        written = os.fstat(descriptor)
        if any(os.path.samestat(written, file.stat()) for file in lora_dir.iterdir()):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)  # The run's other files lie elsewhere and are written before.

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match=r"test-000001\.safetensors .* has no space left"):
        place.run(sample_prompts=())
    assert list(lora_dir.iterdir()) == []


def test_images_kept_from_training_are_measured_after_every_epoch(place: Place) -> None:
    """The first number is the model's own; a run with the same settings gives the same numbers, bit by bit."""
    values: dict[str, Any] = {"sample_prompts": (), "validation_share": 0.3}
    events = place.run(**values)
    assert only(events, Planned) == [Planned(2, 0, 2, 2, 4)]  # one of the three is kept
    measured = {event.epoch: event.values[VALIDATION_LOSS] for event in only(events, Measured)}
    assert sorted(measured) == [0, 1, 2]
    assert len(set(measured.values())) == 3
    again = place.run(output_name="again", **values)
    assert {event.epoch: event.values[VALIDATION_LOSS] for event in only(again, Measured)} == measured


# --- the runner ------------------------------------------------------------------------------------


def _made(events: list[Event], gate: threading.Event) -> Any:
    def make(config: TrainConfig, host: Any, *, folder: RunFolder, control: Control) -> Iterator[Event]:
        yield from events
        gate.wait(10)
        yield StateChanged("finished")

    return make


def test_the_runner_refuses_a_second_run_and_remembers_the_first(tmp_path: Path) -> None:
    gate = threading.Event()
    steps: list[Event] = [StepDone(n, 1, 1.0 / n, {"unet": 1e-4}, 1.0, 0.1) for n in range(1, 4)]
    runner = Runner(None, tmp_path, make_events=_made([StateChanged("running"), *steps], gate))
    run = runner.start(TrainConfig(output_name="first"))
    with pytest.raises(HostError, match="already running"):
        runner.start(TrainConfig())
    gate.set()
    runner.wait(10)
    status = runner.status()
    assert (status["run"], status["state"], status["step"]) == (run, "finished", 3)
    assert runner.loss_curve() == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    lines = (tmp_path / run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["StateChanged", *["StepDone"] * 3, "StateChanged"]


def test_a_run_that_was_told_to_stop_says_so_until_it_has(tmp_path: Path) -> None:
    """A step, or an image of the webui's, may take a while to end."""
    gate = threading.Event()
    runner = Runner(None, tmp_path, make_events=_made([StateChanged("running")], gate))
    runner.start(TrainConfig())
    runner.stop()
    assert runner.status()["state"] == "stopping"
    gate.set()
    runner.wait(10)
    assert runner.status()["state"] == "finished"


def test_a_fault_of_ours_reaches_the_page_with_a_crash_report(tmp_path: Path) -> None:
    def broken(*_: object, **__: object) -> Iterator[Event]:
        yield StateChanged("running")
        raise RuntimeError("something unforeseen")

    runner = Runner(None, tmp_path, make_events=broken)
    run = runner.start(TrainConfig())
    runner.wait(10)
    assert runner.status()["state"] == "failed"
    assert "something unforeseen" in runner.status()["message"]
    assert "RuntimeError" in (tmp_path / run / "crash.txt").read_text(encoding="utf-8")


def test_commands_without_a_run_are_told(tmp_path: Path) -> None:
    runner = Runner(None, tmp_path)
    for command in (runner.pause, runner.resume, runner.stop):
        with pytest.raises(HostError, match="No training"):
            command()


def test_a_long_curve_is_averaged_to_few_points() -> None:
    points = [(step, float(step % 2)) for step in range(1, 10_001)]
    short = downsample(points, 1000)
    assert len(short) == 1000
    assert short[-1] == (10_000, 0.5) and all(loss == 0.5 for _, loss in short)
