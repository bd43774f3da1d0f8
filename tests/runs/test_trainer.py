"""A whole run, from folder to grid, on the embedded model, and its errors."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lib_lora_train.adapters.adapted_layer import AdaptedLayer
from lib_lora_train.adapters.files.lora_file import read_adapter
from lib_lora_train.adapters.inject import Adapter
from lib_lora_train.config.train_config import Concept
from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import ConfigError, DataError, OutputError
from lib_lora_train.core.events import (
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
from lib_lora_train.core.measures import VALIDATION_LOSS
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.methods.trained_part import TrainedPart
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.runs import trainer
from lib_lora_train.sampling.sample import SamplingStep
from lib_lora_train.sampling.sampler_options import SamplerOptions
from tests.stand_ins.run_parts import NO_SAMPLES, RunSetup, ending, only, small_run_setup


@pytest.fixture(scope="module")
def shared_host(tmp_path_factory: pytest.TempPathFactory) -> StandaloneHost:
    """One host, so that the checkpoint is read once."""
    return StandaloneHost(None, None, tmp_path_factory.mktemp("unused"), "cpu")


@pytest.fixture
def setup(shared_host: StandaloneHost, demo_dir: Path, tmp_path: Path) -> RunSetup:
    return small_run_setup(shared_host, demo_dir, tmp_path)


def weights_of(model: DiffusionModel) -> dict[str, torch.Tensor]:
    modules = {"unet": model.unet, **{f"text{i}": encoder for i, encoder in enumerate(model.text_encoders)}}
    return {f"{name}.{key}": t.clone() for name, module in modules.items() for key, t in module.state_dict().items()}


def test_run_saves_a_file_per_epoch_samples_and_a_grid(setup: RunSetup) -> None:
    events = setup.run()
    assert only(events, Planned) == [Planned(3, 0, 3, 2, 6)]
    assert [event.step for event in only(events, StepDone)] == [1, 2, 3, 4, 5, 6]
    names = [Path(event.path).name for event in only(events, LoraWritten)]
    assert names == ["test-000001.safetensors", "test-000002.safetensors"]
    assert sorted(path.name for path in setup.host.lora_dir.glob("*.safetensors")) == names
    assert [(e.epoch, Path(e.path).is_file()) for e in only(events, SampleDrawn)] == [
        (epoch, True) for epoch in (0, 0, 1, 1, 2, 2)
    ]
    with Image.open(only(events, GridDrawn)[0].path) as grid:
        assert grid.width > 2 * 128 and grid.height > 3 * 128
    assert events[0] == StateChanged("running") and ending(events) == "finished"


def test_run_reports_its_workload(setup: RunSetup) -> None:
    (work,) = only(setup.run(epochs=1), Workload)
    assert (work.family, work.device, work.adapter) == ("sd1", "cpu", "lora standard")
    assert work.pixels_per_step == 128 * 128


def test_metadata_has_the_files_name_and_settings(setup: RunSetup) -> None:
    events = setup.run()
    for event in only(events, LoraWritten):
        metadata = read_adapter(Path(event.path)).metadata
        assert metadata["ss_output_name"] == Path(event.path).stem
        assert metadata["ss_network_dim"] == "2"
        assert json.loads(metadata["lora_train_config"])["epochs"] == 2


def test_each_file_has_a_card(setup: RunSetup) -> None:
    events = setup.run(comment="my mascot")
    stems = [Path(event.path).with_suffix("") for event in only(events, LoraWritten)]
    card = json.loads(stems[1].with_suffix(".json").read_text(encoding="utf-8"))
    assert card["activation text"] == "zorp" and card["sd version"] == "SD1" and card["preferred weight"] == 1
    assert card["description"] == "my mascot" and card["notes"].startswith("epoch 2 of 2, step 6, loss ")
    with Image.open(stems[1].with_suffix(".png")) as preview, Image.open(only(events, SampleDrawn)[4].path) as sample:
        assert list(preview.getdata()) == list(sample.getdata())


def test_existing_card_is_kept_and_cards_can_be_turned_off(setup: RunSetup) -> None:
    setup.host.lora_dir.mkdir(parents=True)
    own = setup.host.lora_dir / "test-000001.json"
    own.write_text("{}", encoding="utf-8")
    setup.run(**NO_SAMPLES)
    assert own.read_text(encoding="utf-8") == "{}"
    setup.run(**NO_SAMPLES, output_name="bare", write_card=False)
    assert sorted(path.suffix for path in setup.host.lora_dir.glob("bare-*")) == [".safetensors"] * 2


def test_samples_have_the_webuis_infotext(setup: RunSetup) -> None:
    drawn = only(setup.run(), SampleDrawn)
    with Image.open(drawn[2].path) as image:
        text = image.text["parameters"]  # type: ignore[attr-defined]
    assert text.startswith("zorp <lora:test-000001:1>\n")
    assert "Steps: 1, Sampler: Euler a, CFG scale: 1, Seed: 5, Size: 128x128" in text


def test_model_is_unchanged_after_a_run_and_after_an_aborted_one(setup: RunSetup) -> None:
    with setup.host.lease() as model:
        before = weights_of(model)
    setup.run(**NO_SAMPLES)
    broken = trainer.run_training(setup.config, setup.host, folder=setup.folder, control=Control())
    next(event for event in broken if isinstance(event, StepDone))
    broken.close()  # type: ignore[attr-defined]
    with setup.host.lease() as model:
        after = weights_of(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_second_run_with_the_same_name_overwrites_nothing(setup: RunSetup) -> None:
    setup.run(**NO_SAMPLES)
    first = {path: path.read_bytes() for path in setup.host.lora_dir.iterdir()}
    events = setup.run(**NO_SAMPLES, seed=7)
    assert [Path(e.path).name for e in only(events, LoraWritten)] == [
        "test-2-000001.safetensors",
        "test-2-000002.safetensors",
    ]
    assert any(note.where == "output_name" for note in only(events, Noted))
    assert all(path.read_bytes() == content for path, content in first.items())


def test_same_seed_gives_the_same_file_with_and_without_samples(setup: RunSetup) -> None:
    states = [
        read_adapter(Path(only(setup.run(**samples), LoraWritten)[-1].path)).state for samples in (NO_SAMPLES, {})
    ]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_broken_image_is_named_and_the_rest_is_trained(setup: RunSetup, tmp_path: Path) -> None:
    (tmp_path / "data" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno image")
    events = setup.run(**NO_SAMPLES)
    assert any("broken.png" in f"{note.where} {note.message}" for note in only(events, Noted))
    assert only(events, Planned)[0].images == 3
    assert ending(events) == "finished"


def test_stop_after_an_epoch_saves_no_second_file(setup: RunSetup) -> None:
    events = stop_at(setup, lambda event: isinstance(event, EpochDone))
    assert only(events, StepDone)[-1].step == 3
    assert [Path(e.path).name for e in only(events, LoraWritten)] == ["test-000001.safetensors"]
    assert ending(events) == "stopped"


def stop_at(setup: RunSetup, is_moment: Callable[[Event], bool]) -> list[Event]:
    """The events of a run that is stopped at the first event for which `is_moment` holds."""
    control = Control()
    events = []
    for event in trainer.run_training(setup.config, setup.host, folder=setup.folder, control=control):
        events.append(event)
        if is_moment(event):
            control.stop()
    return events


def test_stop_before_the_first_step_saves_nothing(setup: RunSetup) -> None:
    events = stop_at(setup, lambda event: isinstance(event, PhaseStarted) and event.phase == "train")
    assert only(events, StepDone) == [] and only(events, LoraWritten) == []
    assert ending(events) == "stopped"


def test_stop_within_an_epoch_saves_a_file_of_that_step(setup: RunSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup.host, "has_waiters", lambda: True)  # one step per lease
    events = stop_at(setup, lambda event: isinstance(event, StepDone) and event.step == 2)
    assert only(events, StepDone)[-1].step == 2
    assert [Path(e.path).name for e in only(events, LoraWritten)] == ["test-step00000002.safetensors"]
    assert ending(events) == "stopped"


def test_save_now_saves_a_file_of_that_step(setup: RunSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup.host, "has_waiters", lambda: True)  # one step per lease
    control = Control()
    events = []
    config = setup.config.replace(epochs=1, **NO_SAMPLES)
    for event in trainer.run_training(config, setup.host, folder=setup.folder, control=control):
        events.append(event)
        if isinstance(event, StepDone) and event.step == 2:
            control.save_now()
    names = [Path(e.path).name for e in only(events, LoraWritten)]
    assert names == ["test-step00000002.safetensors", "test-000001.safetensors"]


def test_without_samples_the_grid_is_generated_from_the_files(setup: RunSetup) -> None:
    events = setup.run(sample_every_n_epochs=0)
    trained = next(i for i, e in enumerate(events) if isinstance(e, StepDone) and e.step == 6)
    drawn = [i for i, e in enumerate(events) if isinstance(e, SampleDrawn)]
    assert len(drawn) == 6 and min(drawn) > trained
    assert len(only(events, GridDrawn)) == 1


def test_samples_that_do_not_fit_into_memory_are_skipped(setup: RunSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Generator[SamplingStep, None, None]:
        yield SamplingStep(0, 2, 1, 2)
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr("lib_lora_train.runs.images.samples.sample_in_steps", full)
    events = setup.run()
    notes = [event for event in only(events, Noted) if event.where == "sample_prompts"]
    assert [note.level for note in notes] == ["warning"] * 3 and "did not fit" in notes[0].message
    assert ending(events) == "finished" and len(only(events, LoraWritten)) == 2


def failing_after_the_first_step(
    setup: RunSetup, error: Exception, events: list[Event]
) -> Generator[Event, None, None]:
    """The events of a run in which measuring the first epoch raises `error`; they are also added to `events`."""

    def measure(_model: DiffusionModel, _adapter: TrainedPart) -> Mapping[str, float]:
        if only(events, StepDone):
            raise error
        return {}

    for event in trainer.run_training(
        setup.config, setup.host, folder=setup.folder, control=Control(), measure=measure
    ):
        events.append(event)
        yield event


def test_an_error_saves_file_and_state_and_frees_the_model(setup: RunSetup) -> None:
    events: list[Event] = []
    with pytest.raises(OSError, match="the card was unplugged"):
        deque(failing_after_the_first_step(setup, OSError("the card was unplugged"), events))
    assert setup.folder.state_steps() == [3]
    assert {Path(event.path).name for event in only(events, LoraWritten)} == {"test-000001.safetensors"}
    with setup.host.lease() as model:
        assert not any(isinstance(module, AdaptedLayer) for module in model.unet.modules())


def test_full_memory_while_measuring_is_told_and_the_training_continues(setup: RunSetup) -> None:
    events: list[Event] = []
    deque(failing_after_the_first_step(setup, torch.cuda.OutOfMemoryError(), events))
    warnings = [event.message for event in only(events, Noted) if "not measured" in event.message]
    assert [text.split(" was")[0] for text in warnings] == ["Epoch 1", "Epoch 2"]
    assert all("Close other programs" in text and "resume" not in text for text in warnings)
    assert ending(events) == "finished" and len(only(events, LoraWritten)) == 2


def test_samples_use_the_hosts_options_and_yield_the_lease(setup: RunSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    host, sampler_options = setup.host, SamplerOptions(eta_noise_seed_delta=7)
    lease, leases, before = host.lease, list[Any](), list[int]()

    def counted(*arguments: Any) -> Any:
        leases.append(arguments)
        return lease(*arguments)

    def drawn(_model: Any, prompts: Any, **others: Any) -> Generator[SamplingStep, None, list[Image.Image]]:
        assert others["sampler_options"] == sampler_options
        for step in range(1, 4):
            before.append(len(leases))
            yield SamplingStep(0, len(prompts), step, 3)
        return [Image.new("RGB", (64, 64))] * len(prompts)

    monkeypatch.setattr(host, "lease", counted)
    monkeypatch.setattr(host, "has_waiters", lambda: True)
    monkeypatch.setattr(type(host), "sampler_options", sampler_options)
    monkeypatch.setattr("lib_lora_train.runs.images.samples.sample_in_steps", drawn)
    setup.run(epochs=1)
    assert before[1] - before[0] == before[2] - before[1] == 1


def test_samples_of_steps_are_separate_from_those_of_epochs(setup: RunSetup) -> None:
    """Six steps in two epochs: samples after steps 2 and 4; step 6 ends an epoch, which has its own samples."""
    events = setup.run(sample_every_n_steps=2)
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
                infotext = image.text["parameters"]  # type: ignore[attr-defined]
            assert f"<lora:test-step{event.step:08}:1>" in infotext, "the epoch's file will have other weights"
    again = setup.run(sample_every_n_steps=3, sample_every_n_epochs=0, make_grid=False)
    assert {event.step for event in only(again, SampleDrawn)} == {
        3,
        6,
    }  # without samples of epochs, their last steps count too


def test_measure_is_first_called_without_lora(setup: RunSetup) -> None:
    seen: list[bool] = []

    def measure(model: DiffusionModel, adapter: TrainedPart) -> Mapping[str, float]:
        assert isinstance(adapter, Adapter)
        seen.append(any(norm > 0 for norm in adapter.norms().values()))
        return {"number": float(len(seen))}

    run = trainer.run_training(
        setup.config.replace(**NO_SAMPLES), setup.host, folder=setup.folder, control=Control(), measure=measure
    )
    events = list(run)
    assert seen == [False, True, True]
    assert [(e.epoch, dict(e.values)) for e in only(events, Measured)] == [
        (0, {"number": 1.0}),
        (1, {"number": 2.0}),
        (2, {"number": 3.0}),
    ]


def test_contradicting_settings_are_reported_together(setup: RunSetup) -> None:
    with pytest.raises(ConfigError) as error:
        setup.run(
            output_name="../elsewhere", train_unet=False, train_text_encoder=False, min_bucket=512, max_bucket=256
        )
    assert {"output_name", "train_unet", "min_bucket"} <= {problem.where for problem in error.value.problems}


def test_loss_weight_for_another_prediction_type_is_refused_before_encoding(setup: RunSetup) -> None:
    phases = []
    config = setup.config.replace(scale_v_pred_loss_like_noise_pred=True)
    with pytest.raises(ConfigError, match="predict v"):
        for event in trainer.run_training(config, setup.host, folder=setup.folder, control=Control()):
            phases += [event.phase] if isinstance(event, PhaseStarted) else []
    assert phases == ["scan", "load"]


def test_missing_folder_is_reported(setup: RunSetup, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        setup.run(concepts=(Concept(folder=str(tmp_path / "nowhere")),))


def test_full_disk_is_reported_before_training(setup: RunSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(setup.folder.root)._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match="MiB free"):
        setup.run()


def test_disk_that_fills_during_training_is_reported(setup: RunSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    lora_dir = setup.host.lora_dir
    lora_dir.mkdir()
    sync = os.fsync

    def full(descriptor: int) -> None:
        written = os.fstat(descriptor)
        if any(os.path.samestat(written, file.stat()) for file in lora_dir.iterdir()):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)  # the run's other files are elsewhere and are written before

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match=r"test-000001\.safetensors .* has no space left"):
        setup.run(**NO_SAMPLES)
    assert list(lora_dir.iterdir()) == []


def test_validation_loss_is_measured_after_every_epoch(setup: RunSetup) -> None:
    """The first value is that of the model alone; a run with the same settings gives identical values."""
    values: dict[str, Any] = {**NO_SAMPLES, "validation_share": 0.3}
    events = setup.run(**values)
    assert only(events, Planned) == [Planned(2, 0, 2, 2, 4)]  # one of the three is held out
    measured = {event.epoch: event.values[VALIDATION_LOSS] for event in only(events, Measured)}
    assert sorted(measured) == [0, 1, 2]
    assert len(set(measured.values())) == 3
    again = setup.run(output_name="again", **values)
    assert {event.epoch: event.values[VALIDATION_LOSS] for event in only(again, Measured)} == measured
