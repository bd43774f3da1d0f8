"""The training loop and its state: reported events, when the model is free, exact resuming."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_lora_train.adapters.inject import Adapter
from lib_lora_train.config.optimizer_catalog import OPTIMIZER_CATALOG
from lib_lora_train.config.settings.optimizer import LR_SCHEDULES
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import ConfigError, OutputError, TrainingError
from lib_lora_train.core.events import EpochDone, Event, Noted, Progress, StateChanged, StepDone
from lib_lora_train.dataset.plan import Plan, epoch_steps
from lib_lora_train.models.architecture import Architecture
from lib_lora_train.models.latent_cache import LatentCache, Posterior
from lib_lora_train.training.loop import train
from lib_lora_train.training.lr_schedule import LrSchedule, lr_factor
from lib_lora_train.training.step import batch_loss
from lib_lora_train.training.training_run import Training
from lib_lora_train.training.training_state import TrainState, load_state, write_state
from tests.paths import ROOT
from tests.stand_ins.training_parts import (
    OneModelHost,
    losses,
    random_latents,
    run_to_end,
    small_config,
    small_plan,
    started,
)
from tests.stand_ins.training_parts import shared_model as model

_live: list[Training] = []


@pytest.fixture(autouse=True)
def _remove_adapters() -> Iterator[None]:
    yield
    for training in _live:
        training.adapter.remove()
    _live.clear()


def start_run(
    config: TrainConfig,
    *,
    architecture: Architecture = "sd1",
    plan: Plan | None = None,
    state: TrainState | None = None,
) -> Training:
    """A run whose adapter is removed before the next one starts, and after the test."""
    while _live:
        _live.pop().adapter.remove()
    _live.append(started(model(architecture), config, plan=plan, state=state))
    return _live[0]


def numbers(training: Training) -> Tensor:
    """All weights of the adapter, as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in training.parameters])


def reported_steps(events: list[Event]) -> list[int]:
    """The step numbers in order."""
    return [event.step for event in events if isinstance(event, StepDone)]


# --- events -------------------------------------------------------------------------------------


def test_every_step_and_epoch_is_reported_in_order() -> None:
    events = run_to_end(start_run(small_config(epochs=2)), model())
    assert reported_steps(events) == list(range(1, 9))
    reported = [event for event in events if isinstance(event, (StepDone, EpochDone))]
    assert [type(event) for event in reported] == ([StepDone] * 4 + [EpochDone]) * 2
    assert [(e.epoch, e.step) for e in events if isinstance(e, EpochDone)] == [(1, 4), (2, 8)]
    assert events[-2] == Progress("train", 8, 8)


@pytest.mark.parametrize(("step", "epoch", "trained"), [(0, 1, 0), (1, 1, 1), (3, 1, 1), (4, 2, 1), (5, 2, 2)])
def test_epoch_of_the_next_step_and_of_the_last_one(step: int, epoch: int, trained: int) -> None:
    """With four steps in an epoch; the epochs are counted from 1."""
    training = start_run(small_config())
    training.step = step
    assert (training.epoch, training.trained_epoch) == (epoch, trained)


def test_epoch_loss_is_the_mean_of_its_steps() -> None:
    events = run_to_end(start_run(small_config(epochs=2)), model())
    means = [event.mean_loss for event in events if isinstance(event, EpochDone)]
    reported = losses(events)
    assert means == pytest.approx([sum(reported[:4]) / 4, sum(reported[4:]) / 4])


def test_max_steps_ends_within_an_epoch() -> None:
    events = run_to_end(start_run(small_config(epochs=5, max_steps=6)), model())
    assert reported_steps(events) == [1, 2, 3, 4, 5, 6]
    assert isinstance(events[-1], EpochDone) and events[-1].epoch == 2


def test_learning_rates_follow_warmup_and_groups() -> None:
    config = small_config(epochs=1, lr_schedule="constant", warmup=2.0, text_encoder_lr=1e-4)
    events = run_to_end(start_run(config), model())
    rates = [event.learning_rates for event in events if isinstance(event, StepDone)]
    assert [rate["unet"] for rate in rates] == pytest.approx([0.0, 5e-4, 1e-3, 1e-3])
    assert [rate["text_encoder"] for rate in rates] == pytest.approx([0.0, 5e-5, 1e-4, 1e-4])


@pytest.mark.parametrize("values", [{"optimizer": "AdamW"}, {"optimizer": "Prodigy", "text_encoder_lr": 0.5}])
def test_norms_are_limited_after_each_step_and_reported(values: dict[str, Any]) -> None:
    """Also where the optimiser holds scaled copies, as Prodigy does for groups at different rates."""
    rate, arguments = (1.0, "d0=0.05") if values["optimizer"] == "Prodigy" else (1e-2, "")
    config = small_config(epochs=2, scale_weight_norms=0.05, optimizer_args=arguments, learning_rate=rate, **values)
    run = start_run(config)
    reported = [event.norms for event in run_to_end(run, model()) if isinstance(event, StepDone)]
    assert all(norms is not None and norms[2] <= 0.05 * 1.0001 for norms in reported)
    assert max(norms[0] for norms in reported if norms) > 0
    assert isinstance(run.adapter, Adapter)
    after = list(run.adapter.norms().values())
    assert reported[-1] and reported[-1][1:] == pytest.approx((sum(after) / len(after), max(after)), rel=1e-4)


def test_the_layers_that_max_norm_scales_are_counted() -> None:
    """All of them that have learnt anything, at a limit that every update is above."""
    training = start_run(small_config(max_steps=1, rank=1, scale_weight_norms=1e-9))
    (norms,) = [event.norms for event in run_to_end(training, model()) if isinstance(event, StepDone)]
    assert isinstance(training.adapter, Adapter)
    assert norms and norms[0] == sum(norm > 0 for norm in training.adapter.norms().values()) > 100


def test_a_step_starts_from_the_limited_weights_also_where_the_optimiser_holds_scaled_copies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values: dict[str, Any] = {"optimizer": "Prodigy", "optimizer_args": "d0=0.05", "scale_weight_norms": 0.05}
    training = start_run(small_config(epochs=1, rank=1, learning_rate=1.0, text_encoder_lr=0.5, **values))
    optimizer: Any = training.optimizer
    step, compared = optimizer.step, list[tuple[Tensor, Tensor]]()

    def checked(factor: float) -> None:
        copies = [
            (scaled * ratio, parameter) for parameter, scaled, ratio in optimizer._pairs if scaled is not parameter
        ]
        compared.extend((scaled.detach(), parameter.detach().clone()) for scaled, parameter in copies)
        step(factor)

    monkeypatch.setattr(optimizer, "step", checked)
    reported = [event.norms for event in run_to_end(training, model()) if isinstance(event, StepDone)]
    assert any(norms and norms[0] > 0 for norms in reported[:-1]) and len(compared) == 4
    assert all(torch.allclose(scaled, parameter, rtol=1e-5) for scaled, parameter in compared)


@pytest.mark.parametrize("values", [{}, {"optimizer": "Adafactor"}, {"loraplus_unet_ratio": 4.0}])
def test_block_weights_scale_the_learning_rates(values: dict[str, Any]) -> None:
    config = small_config(epochs=1, lr_schedule="constant", warmup=0.0, down_lr_weight="zeros+0.5", **values)
    events = run_to_end(start_run(config), model())
    rates = [event.learning_rates for event in events if isinstance(event, StepDone)]
    assert rates[-1]["unet x0.5"] == pytest.approx(rates[-1]["unet"] / 2)
    if "loraplus_unet_ratio" in values:
        assert rates[-1]["unet x0.5_up"] == pytest.approx(rates[-1]["unet"] * 2)


@pytest.mark.parametrize("kind", LR_SCHEDULES)
def test_learning_rates_follow_the_set_schedule(kind: str) -> None:
    values: dict[str, Any] = {"lr_decay": 2, "lr_cycles": 2, "lr_power": 2.0, "lr_timescale": 3, "lr_min_ratio": 0.1}
    config = small_config(epochs=2, lr_schedule=kind, warmup=2.0, **values)
    events = run_to_end(start_run(config), model())
    rates = [event.learning_rates["unet"] for event in events if isinstance(event, StepDone)]
    schedule = LrSchedule(kind, 8, warmup=2, decay=2, cycles=2, power=2.0, timescale=3, min_ratio=0.1)
    assert rates == pytest.approx([1e-3 * lr_factor(schedule, step) for step in range(8)])


@pytest.mark.parametrize(
    "values",
    [
        {"loss_type": "huber"},
        {"loss_type": "smooth_l1", "huber_schedule": "constant", "huber_c": 0.5},
        {"debiased_estimation": True},
        {"v_pred_like_loss": 0.5},
        {"multires_noise_iterations": 4},
        {"ip_noise_gamma": 0.3},
        {"min_timestep": 800},
    ],
)
def test_noise_and_loss_settings_reach_the_training(values: dict[str, Any]) -> None:
    plain, changed = (
        losses(run_to_end(start_run(config), model()))
        for config in (small_config(max_steps=1), small_config(max_steps=1, **values))
    )
    assert plain[0] != pytest.approx(changed[0], rel=1e-4)


def test_a_loss_weight_for_another_prediction_type_is_rejected_before_the_first_step() -> None:
    with pytest.raises(ConfigError, match="predict v"):
        start_run(small_config(scale_v_pred_loss_like_noise_pred=True))


@pytest.mark.parametrize(("precision", "accumulation"), [("fp32", 1), ("fp32", 2), ("fp16", 2)])
def test_loss_and_gradient_are_means_over_the_images_that_could_be_read(
    precision: str, accumulation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each image's loss is the sum of the weights here, so that a gradient is 1, whatever float16's loss scale is.

    One of the four images is missing in both of its showings, so that a micro-batch is empty, or a step is skipped.
    """
    values: dict[str, Any] = {"batch_size": 1, "epochs": 1, "rank": 1, "learning_rate": 1e-30}
    training = start_run(small_config(gradient_accumulation=accumulation, lora_precision=precision, **values))
    full = training.latents
    training.latents = LatentCache({item: full[item] for item in (0, 1, 2)}, frozenset({3}))
    parameters = training.parameters

    def summed(_model: Any, batch: Any, *_: Any) -> Tensor:
        return torch.stack([one.float().sum() for one in parameters]).sum() * len(batch.captions)

    monkeypatch.setattr("lib_lora_train.training.loop.batch_loss", summed)
    expected = sum(float(one.detach().float().sum()) for one in parameters)
    count = sum(one.numel() for one in parameters)
    done = [event for event in run_to_end(training, model()) if isinstance(event, StepDone)]
    assert len(done) == {1: 6, 2: 4}[accumulation]
    assert [event.loss for event in done] == pytest.approx([expected] * len(done), rel=1e-4)
    assert [event.grad_norm for event in done] == pytest.approx([count**0.5] * len(done), rel=1e-4)


def test_text_encoders_stop_in_time_and_the_unet_goes_on() -> None:
    config = small_config(epochs=1, rank=1, stop_text_encoder=0.5, lr_schedule="constant")
    training = start_run(config)
    frozen: list[Tensor] = []
    rates = []
    for event in train(training, host=OneModelHost(model(), wanted=True), control=Control()):
        if isinstance(event, StepDone):
            rates.append(event.learning_rates)
            frozen.append(training.adapter.groups["text_encoder"][0].detach().clone())
    assert [rate["text_encoder"] > 0 for rate in rates[:2]] == [True, True]
    assert [rate["text_encoder"] for rate in rates[2:]] == [0.0, 0.0]
    assert all(rate["unet"] == pytest.approx(1e-3) for rate in rates)
    assert not torch.equal(frozen[0], frozen[1]) and torch.equal(frozen[1], frozen[3])


# --- learning -----------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["sd1", "sdxl"])
def test_one_batch_can_be_memorised(architecture: Architecture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same images, noise and timesteps each step: the loss must fall by a third in 28 steps."""
    config = small_config(rank=16, learning_rate=3e-3, lr_schedule="constant", epochs=7)
    same = epoch_steps(small_plan(config), config.seed, 1)[:1] * 4
    monkeypatch.setattr("lib_lora_train.training.loop.epoch_steps", lambda *_: same)
    reported = losses(run_to_end(start_run(config, architecture=architecture), model(architecture)))
    assert reported[-1] < 0.67 * reported[0]


def test_only_the_adapter_changes() -> None:
    before = {name: value.clone() for name, value in model().unet.state_dict().items()}
    training = start_run(small_config(epochs=1))
    start = numbers(training)
    run_to_end(training, model())
    assert not torch.equal(numbers(training), start)
    training.adapter.remove()
    _live.clear()
    after = model().unet.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


# --- turns and control --------------------------------------------------------------------------


def test_one_step_per_turn_while_somebody_waits() -> None:
    host = OneModelHost(model(), wanted=True)
    list(train(start_run(small_config(epochs=1)), host=host, control=Control()))
    assert host.turns == 4


@pytest.mark.parametrize(("limit_seconds", "turns"), [(0.0, 4), (1e9, 1)])
def test_turn_ends_at_the_time_limit_if_nobody_waits(
    limit_seconds: float, turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lib_lora_train.training.loop._TURN_SECONDS", limit_seconds)
    host = OneModelHost(model())
    list(train(start_run(small_config(epochs=1, rank=1)), host=host, control=Control()))
    assert host.turns == turns


@pytest.mark.parametrize(("limit", "ends", "seconds"), [(1.0, [2, 4], 1.5), (9.0, [4], 1.25)])
def test_a_turn_is_longer_than_its_limit_by_one_step_and_a_step_took_its_share_of_it(
    limit: float, ends: list[int], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that is a second later at each look: before the first step, after each step, and at the end."""
    ticks = itertools.count(100)
    monkeypatch.setattr("lib_lora_train.training.loop.time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    monkeypatch.setattr("lib_lora_train.training.loop._TURN_SECONDS", limit)
    events = run_to_end(start_run(small_config(epochs=1, rank=1)), model())
    assert [event.done for event in events if isinstance(event, Progress)] == ends
    assert [event.seconds for event in events if isinstance(event, StepDone)] == [seconds] * 4


@pytest.mark.parametrize("name", ["save_every_n_steps", "save_state_every_n_steps", "sample_every_n_steps"])
def test_turn_ends_with_a_step_after_which_something_is_written(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third step: whoever handles the turn's events then finds the weights of that very step."""
    monkeypatch.setattr("lib_lora_train.training.loop._TURN_SECONDS", 1e9)
    training = start_run(small_config(epochs=2, **{name: 3}))
    events = train(training, host=OneModelHost(model()), control=Control())
    # steps 4 and 8 end an epoch, which ends the turn too
    assert [training.step for event in events if isinstance(event, Progress)] == [3, 4, 6, 8]


def test_turn_ends_with_the_step_in_which_something_was_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib_lora_train.training.loop._TURN_SECONDS", 1e9)
    training, control, host = start_run(small_config(epochs=1, rank=1)), Control(), OneModelHost(model())
    control.save_now()
    for event in train(training, host=host, control=control):
        if event == Progress("train", 1, 4):
            assert control.pop_save_request()
    assert host.turns == 2  # the first step, and the three others


def test_the_model_is_not_leased_while_an_event_is_handled() -> None:
    host = OneModelHost(model())
    for _ in train(start_run(small_config(epochs=1)), host=host, control=Control()):
        assert not host.is_leased


def test_turns_do_not_change_the_result() -> None:
    config = small_config(epochs=1)
    long, short = start_run(config), None
    run_to_end(long, model())
    expected = numbers(long)
    short = start_run(config)
    run_to_end(short, model(), wanted=True)
    assert torch.equal(numbers(short), expected)


def test_stop_ends_after_the_step_and_keeps_what_was_learnt() -> None:
    control = Control()
    training = start_run(small_config())
    events = []
    for event in train(training, host=OneModelHost(model(), wanted=True), control=control):
        events.append(event)
        if isinstance(event, StepDone) and event.step == 3:
            control.stop()
    assert reported_steps(events) == [1, 2, 3]
    assert events[-1] == StateChanged("stopping")
    assert not any(isinstance(event, EpochDone) for event in events)
    assert training.step == 3


def test_a_paused_run_releases_the_model_and_continues_on_resume() -> None:
    control = Control()
    host = OneModelHost(model(), wanted=True)
    seen: list[Event] = []
    paused = threading.Event()

    def resume_later() -> None:
        paused.wait(timeout=20)
        assert not host.is_leased
        control.resume()

    waker = threading.Thread(target=resume_later)
    waker.start()
    for event in train(start_run(small_config(epochs=1)), host=host, control=control):
        seen.append(event)
        if isinstance(event, StepDone) and event.step == 2:
            control.pause()
        if event == StateChanged("paused"):
            paused.set()
    waker.join()
    states = [event.state for event in seen if isinstance(event, StateChanged)]
    assert states[0] == "paused" and states[-1] == "running"
    assert reported_steps(seen) == [1, 2, 3, 4]


def test_a_pause_is_reported_once_until_something_is_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    control = Control()
    control.pause()
    monkeypatch.setattr(control, "wait_for_request", control.resume)
    events = train(start_run(small_config(epochs=1)), host=OneModelHost(model()), control=control)
    assert [next(events), next(events)] == [StateChanged("paused"), StateChanged("running")]


def test_saving_works_during_a_pause() -> None:
    control = Control()
    control.pause()
    events = train(start_run(small_config(epochs=1)), host=OneModelHost(model()), control=control)
    assert next(events) == StateChanged("paused")
    control.save_now()
    assert next(events) == StateChanged("paused")
    assert control.pop_save_request()
    control.stop()
    assert next(events) == StateChanged("stopping")


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib_lora_train.training.wait_for_model._RETRY_SECONDS", 0.001)


@pytest.mark.usefixtures("_impatient")
def test_a_run_waits_for_its_model_and_continues() -> None:
    alone = run_to_end(start_run(small_config()), model())
    host = OneModelHost(model(), wanted=True)
    waited: list[Event] = []
    for event in train(start_run(small_config()), host=host, control=Control()):
        waited.append(event)
        if isinstance(event, Progress) and event.done == 2:
            host.away = 3
    assert losses(waited) == losses(alone)
    states = [event for event in waited if isinstance(event, StateChanged)]
    assert states == [StateChanged("waiting", "Another model is loaded."), StateChanged("running")]


@pytest.mark.usefixtures("_impatient")
def test_a_run_that_waits_for_its_model_can_be_stopped() -> None:
    control = Control()
    events = train(start_run(small_config()), host=OneModelHost(model(), away=10**6), control=control)
    assert next(events) == StateChanged("waiting", "Another model is loaded.")
    control.stop()
    assert list(events) == [StateChanged("stopping")]


# --- trouble ------------------------------------------------------------------------------------


def broken_latents(plan: Plan, item: int) -> LatentCache:
    """Latents, NaN for one image."""
    good = random_latents(plan)
    entries: dict[int, Posterior | Path] = {number: good[number] for number in range(len(plan.placements))}
    entries[item] = Posterior(good[item].mean * float("nan"), good[item].std)
    return LatentCache(entries, frozenset())


def test_nan_stops_the_run_and_keeps_the_last_good_weights() -> None:
    config = small_config(epochs=1, batch_size=1)
    plan = small_plan(config)
    training = start_run(config, plan=plan)
    training.latents = broken_latents(plan, 0)
    good: list[Tensor] = []
    with pytest.raises(TrainingError, match=r"Step \d+: the loss is NaN or infinite.*Lower the learning rate"):
        for event in train(training, host=OneModelHost(model(), wanted=True), control=Control()):
            if isinstance(event, Progress):
                good.append(numbers(training))
    assert numbers(training).isfinite().all()
    assert torch.equal(numbers(training), good[-1])


def test_a_step_without_usable_images_is_skipped() -> None:
    config = small_config(epochs=1, batch_size=1)
    plan = small_plan(config)
    training = start_run(config, plan=plan)
    full = training.latents
    training.latents = LatentCache({n: full[n] for n in (0, 1, 2)}, frozenset({3}))
    events = run_to_end(training, model())
    assert len(reported_steps(events)) == 6  # 8 showings, two of them of the missing image
    assert training.step == 8
    assert numbers(training).isfinite().all()


def memory_for(images: int, needs_checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Simulates a card with memory for `images` images at a time; returns what was tried."""
    tried: list[tuple[int, bool]] = []
    whole = batch_loss

    def limited(model: Any, batch: Any, *others: Any) -> Tensor:
        is_on = bool(getattr(model.unet, "is_gradient_checkpointing", False))
        tried.append((len(batch.captions), is_on))
        if len(batch.captions) > images or (needs_checkpointing and not is_on):
            raise torch.cuda.OutOfMemoryError
        return whole(model, batch, *others)

    monkeypatch.setattr("lib_lora_train.training.loop.batch_loss", limited)
    return tried


def test_out_of_memory_ends_with_advice_when_nothing_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = memory_for(0, False, monkeypatch)
    with pytest.raises(TrainingError, match=r"Step 1: the computer's memory is full.*Lower the resolution"):
        run_to_end(start_run(small_config()), model())
    assert tried == [(2, False), (2, True), (1, True)]


@pytest.mark.parametrize(("images", "relief"), [(4, (4, True)), (2, (2, True)), (1, (1, True))])
def test_a_step_that_does_not_fit_is_repeated_with_the_same_result(
    images: int, relief: tuple[int, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to rounding: the sum over the samples is grouped differently."""
    config = small_config(batch_size=4, epochs=2)
    alone = start_run(config)
    expected = losses(run_to_end(alone, model()))
    weights = numbers(alone).clone()
    tried = memory_for(images, True, monkeypatch)
    training = start_run(config)
    events = run_to_end(training, model())
    assert losses(events) == pytest.approx(expected, rel=1e-4)
    # Adam divides by the gradient's size: what is nearly 0 may round to another sign, one rate away per step
    assert torch.allclose(numbers(training), weights, atol=4e-4)
    assert tried[-1] == relief
    notes = [event.message for event in events if isinstance(event, Noted)]
    assert len(notes) == {4: 1, 2: 2, 1: 3}[images] and "gradient checkpointing" in notes[0]
    assert reported_steps(events) == list(range(1, len(expected) + 1))


@pytest.mark.parametrize("has_cuda", [True, False])
def test_memory_of_a_step_that_did_not_fit_is_freed_on_a_gpu(has_cuda: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks are scattered, and the next attempt needs them whole."""
    memory_for(1, False, monkeypatch)
    freed: list[str] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_cuda)
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: freed.append("freed"))
    events = train(start_run(small_config()), host=OneModelHost(model()), control=Control())
    next(event for event in events if isinstance(event, Noted))
    assert freed == ["freed"] * has_cuda
    events.close()  # type: ignore[attr-defined]


def test_out_of_memory_in_the_optimiser_restores_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    training = start_run(small_config())
    before = numbers(training).clone()

    def torn(_: float) -> None:
        with torch.no_grad():
            training.parameters[0].add_(1)
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(training.optimizer, "step", torn)
    with pytest.raises(TrainingError, match=r"Step 1: .*memory is full"):
        run_to_end(training, model())
    assert torch.equal(numbers(training), before) and not training.is_resumable


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")],
)
def test_out_of_memory_of_the_computer_is_a_sentence_that_names_only_what_was_tried(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = start_run(small_config())

    def fail(_: float) -> None:
        raise error

    monkeypatch.setattr(training.optimizer, "step", fail)
    with pytest.raises(TrainingError, match=r"the computer's memory is full\. Lower") as caught:
        run_to_end(training, model())
    assert "even with" not in str(caught.value)


# --- state --------------------------------------------------------------------------------------

EVERYTHING: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 2,
    "gradient_accumulation": 2,
    "shuffle_captions": True,
    "caption_dropout": 0.3,
    "noise_offset": 0.05,
    "noise_offset_random_strength": True,
    "adaptive_noise_scale": 0.05,
    "multires_noise_iterations": 3,
    "ip_noise_gamma": 0.1,
    "ip_noise_gamma_random_strength": True,
    "timestep_sampling": "sigmoid",
    "min_snr_gamma": 5.0,
    "loss_type": "huber",
    "lr_schedule": "cosine_with_restarts",
    "lr_cycles": 2,
    "warmup": 2.0,
    "optimizer": "Prodigy",
    "optimizer_args": "weight_decay=0.01 safeguard_warmup=True d0=1e-5",
    "learning_rate": 1.0,
}


PLAIN: dict[str, Any] = {"optimizer": "AdamW", "optimizer_args": "", "learning_rate": 1e-3, "epochs": 1}


def interrupted_and_resumed(config: TrainConfig, after: int, path: Path, **parts: Any) -> tuple[Training, list[float]]:
    """The finished run, and all losses, of a run that was stopped, written to a file and resumed from it."""
    control = Control()
    first = start_run(config, plan=small_plan(config, **parts))
    events: list[Event] = []
    for event in train(first, host=OneModelHost(model(), wanted=True), control=control):
        events.append(event)
        if isinstance(event, StepDone) and event.step == after:
            control.stop()
    write_state(path, first.state())
    second = start_run(config, plan=small_plan(config, **parts), state=load_state(path))
    events += run_to_end(second, model())
    return second, losses(events)


_LIMITED = {"network_dropout": 0.2, "rank_dropout": 0.2, "module_dropout": 0.2, "scale_weight_norms": 1e-3}


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"optimizer": "AdamW", "optimizer_args": "", "learning_rate": 1e-3},
        {"text_encoder_lr": 0.5, "epochs": 1},
        {"train_text_encoder": False, "epochs": 1},
        {**PLAIN, "ema_decay": 0.9, "stop_text_encoder": 1.0, "loraplus_unet_ratio": 4.0},
        {**PLAIN, "optimizer": "Adafactor"},
        {**PLAIN, "optimizer": "Lion"},
        {**PLAIN, "optimizer": "SGDNesterov"},
        {**PLAIN, "optimizer": "CAME"},
        {**PLAIN, "optimizer": "AdamWScheduleFree"},
        {"optimizer": "DAdaptAdam", "optimizer_args": "", "epochs": 1},
        {**_LIMITED, "text_encoder_lr": 0.5, "epochs": 1},
        {"family": "dylora", "dylora_unit": 1, "down_lr_weight": "linear+0.5", "epochs": 1},
        {**PLAIN, **_LIMITED, "down_lr_weight": "linear+0.5", "loraplus_unet_ratio": 4.0},
    ],
    ids=lambda changed: "-".join(map(str, changed.values())) or "prodigy",
)
def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(changed: dict[str, Any], tmp_path: Path) -> None:
    """Stopped in the middle of an epoch, with everything on that draws, counts or has a state."""
    pytest.importorskip(OPTIMIZER_CATALOG[str(changed.get("optimizer", "Prodigy"))].origin.partition(":")[0])
    config = small_config(**{**EVERYTHING, **changed})
    parts: dict[str, Any] = {"sizes": [(64, 64), (64, 64), (128, 64), (64, 64)], "regularisation": 1}
    whole = start_run(config, plan=small_plan(config, **parts))
    expected_losses = losses(run_to_end(whole, model()))
    expected, expected_state = numbers(whole), whole.state()
    assert whole.plan.steps_per_epoch > 2
    resumed, reported = interrupted_and_resumed(config, 2, tmp_path / "state.pt", **parts)
    assert reported == expected_losses
    assert torch.equal(numbers(resumed), expected)
    assert _flat(resumed.state().average) == _flat(expected_state.average)
    assert _flat(resumed.state().optimizer) == _flat(expected_state.optimizer)
    assert len(_flat(expected_state.optimizer)) > 0


def _flat(tree: Any) -> list[Any]:
    """All leaves of a nested structure, tensors as lists."""
    if isinstance(tree, Tensor):
        return tree.flatten().tolist()
    if isinstance(tree, dict):
        return [leaf for key in tree for leaf in _flat(tree[key])]
    if isinstance(tree, (list, tuple)):
        return [leaf for value in tree for leaf in _flat(value)]
    return [tree]


def test_epoch_mean_survives_an_interruption(tmp_path: Path) -> None:
    config = small_config(epochs=1)
    expected = run_to_end(start_run(config), model())[-1]
    control = Control()
    first = start_run(config)
    for event in train(first, host=OneModelHost(model(), wanted=True), control=control):
        if isinstance(event, StepDone) and event.step == 2:
            control.stop()
    write_state(tmp_path / "s", first.state())
    assert run_to_end(start_run(config, state=load_state(tmp_path / "s")), model())[-1] == expected


def test_a_state_does_not_change_with_the_run_it_came_from() -> None:
    training = start_run(small_config(epochs=1))
    state = training.state()
    before = state.parameters["unet"][0].clone()
    run_to_end(training, model())
    assert torch.equal(state.parameters["unet"][0], before)


def test_another_runs_state_is_rejected_with_every_difference() -> None:
    config = small_config()
    state = start_run(config).state()
    other = config.replace(rank=8, seed=7, output_name="else", epochs=9)
    with pytest.raises(ConfigError) as raised:
        start_run(other, plan=small_plan(other, captions=["new"]), state=state)
    assert {problem.where for problem in raised.value.problems} == {"rank", "seed", "concepts"}


def test_a_finished_run_can_be_extended() -> None:
    first = start_run(small_config(epochs=1, lr_schedule="constant"))
    run_to_end(first, model())
    longer = start_run(small_config(epochs=2, lr_schedule="constant"), state=first.state())
    assert reported_steps(run_to_end(longer, model())) == [5, 6, 7, 8]
    straight = start_run(small_config(epochs=2, lr_schedule="constant"))
    expected = numbers(longer).clone()
    run_to_end(straight, model())
    assert torch.equal(numbers(straight), expected)


def test_damaged_missing_and_foreign_states_have_different_messages(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="this training state does not exist"):
        load_state(tmp_path / "none.pt")
    (tmp_path / "bad.pt").write_bytes(b"not a state")
    with pytest.raises(TrainingError, match="is damaged"):
        load_state(tmp_path / "bad.pt")
    torch.save({"x": 1}, tmp_path / "other.pt")
    with pytest.raises(TrainingError, match="of this version"):
        load_state(tmp_path / "other.pt")


def test_a_state_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = start_run(small_config())
    path = tmp_path / "state.pt"
    write_state(path, training.state())
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        write_state(path, training.state())
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no file-size limit to stand in for a full disk")
def test_a_full_disk_is_named_by_the_error_of_a_state(tmp_path: Path) -> None:
    """A process that may write 64 KiB per file writes a state; PyTorch's own message names positions in the archive."""
    training = start_run(small_config())
    write_state(tmp_path / "state.pt", training.state())
    script = f"""
import resource, sys
from pathlib import Path
from lib_lora_train.core.errors import OutputError
from lib_lora_train.training.training_state import load_state, write_state
state = load_state(Path({str(tmp_path / "state.pt")!r}))
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    write_state(Path({str(tmp_path / "new.pt")!r}), state)
except OutputError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "the training state cannot be written (File too large). " in result.stdout
    assert "Free some space there" in result.stdout
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]
