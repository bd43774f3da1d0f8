"""TensorBoard logs: kohya's names, written from the run's events."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.errors import HostError
from lib_lora_train.core.events import (
    Advised,
    EpochDone,
    Event,
    ImagesRated,
    Measured,
    Noted,
    Planned,
    Resumed,
    StateChanged,
    StepDone,
    StrengthTested,
    TagsRated,
)
from lib_lora_train.formats.toml import write_toml_config
from lib_lora_train.runs.records.event_log import log_events
from lib_lora_train.runs.records.folder import new_run_folder, write_json
from lib_lora_train.runs.records.late_events import keep_events
from lib_lora_train.runs.records.tensorboard import (
    TensorBoardServer,
    log_to_tensorboard,
    start_tensorboard,
    tensorboard_folder,
)
from lib_lora_train.runs.sweeps.sweep import Variant
from lib_lora_train.runs.sweeps.sweep_record import write_sweep

RATES = {"unet": 1e-4, "unet_up": 4e-4, "text_encoder": 5e-5}


def step_events(*losses: float, first: int = 1, rates: dict[str, float] = RATES) -> Iterator[Event]:
    """A run of two steps per epoch."""
    yield Planned(4, 0, 2, 2, 4)
    if first > 1:
        yield Resumed(first - 1)
    for step, loss in enumerate(losses, start=first):
        yield StepDone(step, (step + 1) // 2, loss, rates, 1.0, 0.1)
        if step % 2 == 0:
            yield EpochDone(step // 2, step, loss)
    yield StateChanged("finished")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads from the logs."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = accumulator.EventAccumulator(str(folder))
    reader.Reload()
    return {tag: [(scalar.step, scalar.value) for scalar in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def test_losses_and_learning_rates_have_kohyas_names(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    folder = new_run_folder(tmp_path, "zok")
    events = list(step_events(1.0, 0.5, 0.25, 0.125))
    assert list(log_to_tensorboard(iter(events), folder, "AdamW")) == events
    found = scalars(tensorboard_folder(tmp_path) / folder.root.name)
    assert found["loss/current"] == [(1, 1.0), (2, 0.5), (3, 0.25), (4, 0.125)]
    assert found["loss/average"] == [(1, 1.0), (2, 0.75), (3, 0.375), (4, 0.1875)]
    assert found["loss/epoch_average"] == [(1, 0.5), (2, 0.125)]
    assert {tag for tag in found if tag.startswith("lr/")} == {"lr/unet", "lr/unet plus", "lr/textencoder"}
    assert found["lr/unet plus"][0][1] == pytest.approx(4e-4)


def test_validation_loss_has_kohyas_tag(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    folder = new_run_folder(tmp_path, "zok")
    list(
        log_to_tensorboard(
            iter([Measured(0, {"validation_loss": 0.5}), Measured(1, {"validation_loss": 0.25, "drift": 1.0})]),
            folder,
            "AdamW",
        )
    )
    found = scalars(tensorboard_folder(tmp_path) / folder.root.name)
    assert found == {"loss/validation/epoch_average": [(0, 0.5), (1, 0.25)], "measured/drift": [(1, 1.0)]}


def test_trials_and_the_advice_are_logged(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = new_run_folder(tmp_path, "zok")
    events: list[Event] = [
        StrengthTested(1, 1.0, (0.25, 0.75), (), 1.0),
        StrengthTested(2, 1.25, (0.5, 0.75), (0.25, 0.75), 1.5),
        Advised(2, 1.25, True, ("It is the most like.",), ("Train longer.",)),
    ]
    list(log_to_tensorboard(iter(events), folder, "AdamW"))
    logs = tensorboard_folder(tmp_path) / folder.root.name
    assert scalars(logs) == {
        "strength 1/likeness": [(1, 0.5)],
        "strength 1/roughness": [(1, 1.0)],
        "strength 1.25/likeness": [(2, 0.625)],
        "strength 1.25/change": [(2, 0.5)],
        "strength 1.25/roughness": [(2, 1.5)],
    }
    reader = accumulator.EventAccumulator(str(logs))
    reader.Reload()
    (text,) = [event.tensor_proto.string_val[0].decode() for event in reader.Tensors("advice/text_summary")]
    assert text == "Use epoch 2 at strength 1.25.\n\nIt is the most like.\n\nTrain longer."


def texts(folder: Path, name: str) -> list[str]:
    """The texts of this name that TensorBoard reads from the logs."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = accumulator.EventAccumulator(str(folder))
    reader.Reload()
    return [event.tensor_proto.string_val[0].decode() for event in reader.Tensors(f"{name}/text_summary")]


def test_images_by_loss_and_tags_are_logged(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    folder = new_run_folder(tmp_path, "zok")
    events: list[Event] = [
        ImagesRated(2, 16, {"/set/17.png": "Its loss stayed."}),
        TagsRated(2, 3, {"learnt": 2, "ignored": 1}, {"glossy": "Ignored."}),
        ImagesRated(3, 16, {}),
    ]
    list(log_to_tensorboard(iter(events), folder, "AdamW"))
    logs = tensorboard_folder(tmp_path) / folder.root.name
    assert scalars(logs) == {
        "images/measured": [(2, 16.0), (3, 16.0)],
        "images/standing_out": [(2, 1.0), (3, 0.0)],
        "tags/learnt": [(2, 2.0)],
        "tags/ignored": [(2, 1.0)],
        "tags/standing_out": [(2, 1.0)],
    }
    assert texts(logs, "images by loss") == ["**17.png**: Its loss stayed.", "None stands out."]
    assert texts(logs, "tags") == ["**glossy**: Ignored."]


def _hyperparameters(logs: Path) -> dict[str, object]:
    """The settings that TensorBoard's HPARAMS tab shows of a run."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    plugin_data = pytest.importorskip("tensorboard.plugins.hparams.plugin_data_pb2")
    reader = accumulator.EventAccumulator(str(logs))
    reader.Reload()
    content = reader.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = plugin_data.HParamsPluginData.FromString(content).session_start_info
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}


def test_the_runs_of_a_sweep_can_be_compared_by_what_it_varies_and_what_came_of_it(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    config = TrainConfig(concepts=(Concept("/set", trigger="zok"),), output_name="zok", epochs=3)
    variants = [Variant({"rank": rank}, config.replace(rank=rank)) for rank in (8, TrainConfig().rank)]
    sweep, logs = write_sweep(tmp_path, "", variants, "zok"), []
    for number, variant in enumerate(variants):
        folder = new_run_folder(tmp_path, f"zok-{number}")
        write_toml_config(folder.config, variant.config)
        write_json(folder.origin, sweep.origin(number))
        events: list[Event] = [EpochDone(1, 1, 0.5), Measured(1, {"drift": 0.25}), StateChanged("finished")]
        list(log_events(log_to_tensorboard(iter(events), folder, "AdamW"), folder.log))
        logs.append(tensorboard_folder(tmp_path) / folder.root.name)
    assert [_hyperparameters(one) for one in logs] == [{"rank": 8.0}, {"rank": float(TrainConfig().rank)}]
    found = scalars(logs[0])
    assert found["best/epoch"] == [(1, 1.0)] and found["best/drift"] == [(1, 0.25)]


def test_a_run_outside_a_sweep_shows_the_settings_that_are_not_the_defaults(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    folder = new_run_folder(tmp_path, "zok")
    config = TrainConfig(concepts=(Concept("/set", trigger="zok"),), output_name="zok", rank=4, output_dir="/loras")
    write_toml_config(folder.config, config.replace(optimizer="Prodigy"))
    events: list[Event] = [EpochDone(1, 1, 0.5), StateChanged("finished")]
    list(log_events(log_to_tensorboard(iter(events), folder, "AdamW"), folder.log))
    assert _hyperparameters(tensorboard_folder(tmp_path) / folder.root.name) == {"rank": 4.0, "optimizer": "Prodigy"}


def test_what_is_measured_after_the_end_of_a_run_is_logged_too(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    folder = new_run_folder(tmp_path, "zok")
    write_toml_config(folder.config, TrainConfig(tensorboard=True))
    list(log_events(log_to_tensorboard(step_events(1.0, 0.5), folder, "AdamW"), folder.log))
    keep_events(folder, TagsRated(1, 3, {"learnt": 3}, {}), ImagesRated(1, 16, {}))
    found = scalars(tensorboard_folder(tmp_path) / folder.root.name)
    assert found["tags/learnt"] == [(1, 3.0)] and found["images/measured"] == [(1, 16.0)]
    assert found["loss/current"] == [(1, 1.0), (2, 0.5)], "what was logged before stays"


def test_adaptive_optimisers_log_d_times_lr(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    folder = new_run_folder(tmp_path, "zok")
    list(log_to_tensorboard(step_events(1.0, rates={"unet": 2e-3, "text_encoder_2": 1e-3}), folder, "Prodigy"))
    found = scalars(tensorboard_folder(tmp_path) / folder.root.name)
    assert {tag for tag in found if tag.startswith("lr/")} == {"lr/d*lr/unet", "lr/d*lr/textencoder 2"}


def test_max_norm_values_have_kohyas_names(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    folder = new_run_folder(tmp_path, "zok")
    step = StepDone(1, 1, 0.5, RATES, 1.0, 0.1, norms=(3.0, 0.25, 1.0))
    list(log_to_tensorboard(iter([step]), folder, "AdamW"))
    found = scalars(tensorboard_folder(tmp_path) / folder.root.name)
    names = ("max_norm/keys_scaled", "norm/avg_key_norm", "max_norm/max_key_norm")
    assert [found[name] for name in names] == [[(1, 3.0)], [(1, 0.25)], [(1, 1.0)]]


def test_resumed_run_continues_the_same_logs(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    folder = new_run_folder(tmp_path, "zok")
    list(log_to_tensorboard(step_events(1.0, 0.5, 9.0), folder, "AdamW"))
    list(log_to_tensorboard(step_events(0.25, 0.125, first=3), folder, "AdamW"))
    found = scalars(tensorboard_folder(tmp_path) / folder.root.name)
    assert found["loss/current"] == [(1, 1.0), (2, 0.5), (3, 0.25), (4, 0.125)]


def test_run_continues_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib_lora_train.runs.records.tensorboard._summary_writer", lambda: None)
    folder = new_run_folder(tmp_path, "zok")
    first, *rest = log_to_tensorboard(step_events(1.0), folder, "AdamW")
    assert isinstance(first, Noted) and "pip install tensorboard" in first.message
    assert rest == list(step_events(1.0))
    assert not tensorboard_folder(tmp_path).exists()


def test_tensorboard_is_started_or_installation_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: started.append(command))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    start_tensorboard(tmp_path, 6007)
    assert started[0][:3] == [sys.executable, "-m", "tensorboard.main"]
    assert started[0][3:5] == ["--logdir", str(tmp_path / "tensorboard")] and started[0][-1] == "6007"
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(HostError, match="pip install tensorboard"):
        start_tensorboard(tmp_path)


def test_one_tensorboard_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small web server in TensorBoard's place: it answers at the address, and is started once."""
    started: list[subprocess.Popen[bytes]] = []

    def start(_home: Path, port: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)]
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        return started[-1]

    monkeypatch.setattr("lib_lora_train.runs.records.tensorboard.start_tensorboard", start)
    server = TensorBoardServer(tmp_path)
    with pytest.raises(HostError, match="No run has written TensorBoard logs yet"):
        server.address()
    log = tensorboard_folder(tmp_path) / "run" / "events.out.tfevents.1"
    log.parent.mkdir(parents=True)
    log.touch()
    try:
        address = server.address()
        with urllib.request.urlopen(address, timeout=10) as answer:
            assert answer.status == 200
        assert server.address() == address and len(started) == 1
    finally:
        for process in started:
            process.kill()
            process.wait()
    started.clear()
    try:
        server.address()
        assert len(started) == 1, "one that ended is started again"
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_tensorboard_that_fails_to_start_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", "raise SystemExit(1)"]
    monkeypatch.setattr(
        "lib_lora_train.runs.records.tensorboard.start_tensorboard", lambda *_: subprocess.Popen(command)
    )
    log = tensorboard_folder(tmp_path) / "run" / "events.out.tfevents.1"
    log.parent.mkdir(parents=True)
    log.touch()
    with pytest.raises(HostError, match="did not start"):
        TensorBoardServer(tmp_path).address()
