"""What a run measures after every epoch, with real events and files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.control import Control
from lib_lora_train.core.events import EpochDone, Event, ImageLosses, LoraWritten, Measured, Noted, PhaseStarted
from lib_lora_train.core.measures import (
    BLEED,
    DRIFT,
    DRIFT_SHARE,
    MEASURES,
    OBEDIENCE,
    STEADY_LOSS,
    TRIGGER_BLEED,
    VALIDATION_LOSS,
    measure_title,
)
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.runs.measures.epoch_measures import early_stop_reason
from lib_lora_train.runs.trainer import run_training
from tests.stand_ins.run_parts import NO_SAMPLES, RunSetup, ending, only, small_run_setup

ALL: dict[str, Any] = {"measure_steady_loss": True, "measure_prompts": True, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def shared_host(tmp_path_factory: pytest.TempPathFactory) -> StandaloneHost:
    """One host, so that the checkpoint is read once."""
    return StandaloneHost(None, None, tmp_path_factory.mktemp("unused"), "cpu")


@pytest.fixture
def small_run(shared_host: StandaloneHost, demo_dir: Path, tmp_path: Path) -> RunSetup:
    return small_run_setup(shared_host, demo_dir, tmp_path)


def values_of(events: list[Event]) -> dict[int, dict[str, float]]:
    return {event.epoch: dict(event.values) for event in only(events, Measured)}


def test_every_epoch_has_its_measures_and_the_steady_loss_of_each_image(small_run: RunSetup) -> None:
    """Epochs of three samples are so short that the steady loss is measured without LoRA and at the end only."""
    events = small_run.run(**ALL)
    values = values_of(events)
    assert [sorted(values[epoch]) for epoch in (0, 1, 2)] == [
        [STEADY_LOSS],
        sorted([DRIFT, DRIFT_SHARE, OBEDIENCE, BLEED]),
        sorted([STEADY_LOSS, DRIFT, DRIFT_SHARE, OBEDIENCE, BLEED]),
    ]
    losses = {event.epoch: event.losses for event in only(events, ImageLosses)}
    assert sorted(losses) == [0, 2] and all(Path(path).is_file() for path in losses[0])
    for epoch, of_images in losses.items():
        assert sum(of_images.values()) / len(of_images) == pytest.approx(values[epoch][STEADY_LOSS])


def test_measures_are_the_same_again_and_do_not_change_what_is_trained(small_run: RunSetup) -> None:
    """Each measures what it would measure alone, from the seed and the images only."""
    first = values_of(small_run.run(**ALL, output_name="with"))
    assert values_of(small_run.run(**ALL, output_name="again")) == first
    small_run.run(learning_rate=ALL["learning_rate"], output_name="without")
    found = [load_file(small_run.host.lora_dir / f"{name}-000002.safetensors") for name in ("with", "without")]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_only_what_is_asked_for_is_measured(small_run: RunSetup) -> None:
    assert not values_of(small_run.run())
    steady = values_of(small_run.run(measure_steady_loss=True))
    assert {name for values in steady.values() for name in values} == {STEADY_LOSS}


def test_two_triggers_are_compared_and_a_run_without_any_measures_no_prompts(small_run: RunSetup) -> None:
    concept = small_run.config.concepts[0]
    both = (concept, type(concept)(folder=concept.folder, trigger="jinx"))
    values = values_of(small_run.run(**ALL, concepts=both))
    assert TRIGGER_BLEED in values[2]
    alone = values_of(small_run.run(**ALL, concepts=(type(concept)(folder=concept.folder),)))
    assert set(alone[2]) == {STEADY_LOSS}


def test_without_sample_prompts_the_trigger_alone_is_measured(small_run: RunSetup) -> None:
    values = values_of(small_run.run(**ALL, **NO_SAMPLES))
    assert OBEDIENCE in values[2] and DRIFT not in values[2]


def test_a_stop_while_measuring_prompts_takes_effect_at_once(small_run: RunSetup) -> None:
    control, events = Control(), list[Event]()
    config = small_run.config.replace(measure_prompts=True, sample_every_n_epochs=0)
    for event in run_training(config, small_run.host, folder=small_run.folder, control=control):
        events.append(event)
        if event == PhaseStarted("evaluate", 0):
            control.stop()
    assert ending(events) == "stopped" and not only(events, Measured)


def test_every_measure_has_a_title_and_a_sentence() -> None:
    assert all(info.title and info.help.endswith(".") for info in MEASURES.values())
    assert measure_title(BLEED) == "Bleed" and measure_title("concept_share") == "Concept share"


# --- ending early -------------------------------------------------------------------------------------


def _run_with_losses(small_run: RunSetup, losses: list[float], **values: Any) -> list[Event]:
    """A run whose validation losses are these, one for each epoch."""
    epochs = iter([0.0, *losses])  # first without LoRA
    config = small_run.config.replace(epochs=len(losses), **values)
    measured = run_training(
        config,
        small_run.host,
        folder=small_run.folder,
        control=Control(),
        measure=lambda _model, _adapter: {VALIDATION_LOSS: next(epochs)},
    )
    return list(measured)


def test_a_run_ends_early_after_epochs_without_a_gain(small_run: RunSetup) -> None:
    """The last epoch has its file although only every fourth is saved, and the run is finished, not stopped."""
    losses = [0.3, 0.2, 0.21, 0.22, 0.1]
    values = {"early_stopping_epochs": 2, "save_every_n_epochs": 4, **NO_SAMPLES, "make_grid": False}
    events = _run_with_losses(small_run, losses, **values)
    assert [event.epoch for event in only(events, EpochDone)] == [1, 2, 3, 4]
    assert (
        "Epoch 2 has the lowest validation loss so far; the 2 epochs after it were not better. The training ends here."
    ) in [event.message for event in only(events, Noted)]
    assert [event.epoch for event in only(events, LoraWritten)] == [4]
    assert ending(events) == "finished"


def test_an_unsaved_epoch_that_ends_a_run_early_is_saved(small_run: RunSetup) -> None:
    values = {"early_stopping_epochs": 1, "save_every_n_epochs": 4, **NO_SAMPLES, "make_grid": False}
    events = _run_with_losses(small_run, [0.2, 0.3, 0.1, 0.1], **values)
    assert [event.epoch for event in only(events, LoraWritten)] == [2]
    assert "the epoch after it was not better" in str(only(events, Noted))


def _after_losses(losses: list[float], *, patience: int, epochs: int) -> str:
    """Why a run of `epochs` ends after the epochs with these losses."""
    measured = {epoch: {VALIDATION_LOSS: loss} for epoch, loss in enumerate(losses, 1)}
    config, plan = TrainConfig(early_stopping_epochs=patience), SimpleNamespace(epochs=epochs)
    run: Any = SimpleNamespace(config=config, plan=plan, history=SimpleNamespace(measured=measured))
    return early_stop_reason(run, len(losses))


ONE = "Epoch 1 has the lowest validation loss so far; the epoch after it was not better. The training ends here."
TWO = "Epoch 1 has the lowest validation loss so far; the 2 epochs after it were not better. The training ends here."
LATER = "Epoch 2 has the lowest validation loss so far; the 2 epochs after it were not better. The training ends here."


@pytest.mark.parametrize(
    ("losses", "patience", "epochs", "reason"),
    [
        ([0.1], 1, 9, ""),
        ([0.1, 0.2], 1, 9, ONE),
        ([0.1, 0.1], 1, 9, ONE),  # as good is not better
        ([0.1, 0.2], 2, 9, ""),
        ([0.1, 0.2, 0.3], 2, 9, TWO),
        ([0.1, 0.2, 0.3], 3, 9, ""),
        ([0.3, 0.1, 0.2, 0.15], 2, 9, LATER),  # a gain counts from the best epoch, not from the epoch before
        ([0.1, 0.2, 0.3], 2, 4, TWO),  # one epoch is left
        ([0.1, 0.2, 0.3], 2, 3, ""),  # the last epoch is the end anyway
        ([0.1, 0.2, 0.3, 0.4], 0, 9, ""),  # switched off
    ],
)
def test_a_run_ends_early_once_so_many_epochs_were_not_better(
    losses: list[float], patience: int, epochs: int, reason: str
) -> None:
    assert _after_losses(losses, patience=patience, epochs=epochs) == reason


def test_an_epoch_that_was_not_measured_does_not_end_a_run() -> None:
    measured = {1: {VALIDATION_LOSS: 0.1}, 2: {VALIDATION_LOSS: 0.2}, 3: {STEADY_LOSS: 0.3}}
    config, plan = TrainConfig(early_stopping_epochs=1), SimpleNamespace(epochs=9)
    run: Any = SimpleNamespace(config=config, plan=plan, history=SimpleNamespace(measured=measured))
    assert early_stop_reason(run, 2) == ONE and early_stop_reason(run, 3) == ""


HINT = "Epoch 1 has the lowest validation loss so far; the 3 epochs after it were not better."


@pytest.mark.parametrize(
    ("epochs", "patience", "hints"),
    [
        (4, 0, []),  # after the last epoch, the run's advice says it
        (5, 3, [f"{HINT} The training ends here."]),  # not the same sentence twice
        (6, 4, [HINT, f"{HINT.replace('3 epochs', '4 epochs')} The training ends here."]),
    ],
)
def test_the_best_epoch_is_named_once_while_epochs_follow(
    small_run: RunSetup, epochs: int, patience: int, hints: list[str]
) -> None:
    losses = [0.1 * epoch for epoch in range(1, epochs + 1)]
    values = {"early_stopping_epochs": patience, **NO_SAMPLES, "make_grid": False}
    events = _run_with_losses(small_run, losses, **values)
    said = [event.message for event in only(events, Noted)]
    assert [text for text in said if "so far" in text] == hints


def test_a_run_that_gains_in_time_trains_all_epochs(small_run: RunSetup) -> None:
    values = {"early_stopping_epochs": 2, **NO_SAMPLES, "make_grid": False}
    events = _run_with_losses(small_run, [0.3, 0.31, 0.2, 0.21, 0.22], **values)
    assert [event.epoch for event in only(events, EpochDone)] == [1, 2, 3, 4, 5]
    assert "The training ends here" not in str(only(events, Noted))
