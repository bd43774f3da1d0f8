"""Long work under a lease lets others use the model in between."""

from __future__ import annotations

import pytest

from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import ModelUnavailableError
from lib_lora_train.core.events import StateChanged
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.training.lease import YieldLease, run_leased_cooperatively
from tests.stand_ins.training_parts import OneModelHost, shared_model


@pytest.mark.parametrize(("wanted", "turns"), [(False, 1), (True, 4)])
def test_yielding_the_lease_releases_it_only_while_somebody_waits(wanted: bool, turns: int) -> None:
    host = OneModelHost(shared_model(), wanted=wanted)

    def three_breaths(model: DiffusionModel, yield_lease: YieldLease) -> str:
        for _ in range(3):
            yield_lease()
            assert host.is_leased and model is host.model
        return "done"

    work = run_leased_cooperatively(host, shared_model(), Control(), three_breaths)
    with pytest.raises(StopIteration) as end:
        next(work)
    assert (end.value.value, host.turns, host.is_leased) == ("done", turns, False)


def test_work_starts_over_if_the_model_was_replaced_while_yielding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib_lora_train.training.wait_for_model._RETRY_SECONDS", 0.001)
    host, start_run = OneModelHost(shared_model(), wanted=True), 0

    def work(_model: DiffusionModel, yield_lease: YieldLease) -> int:
        nonlocal start_run
        start_run += 1
        host.away = 2 if start_run == 1 else 0
        yield_lease()
        return start_run

    events = run_leased_cooperatively(host, shared_model(), Control(), work)
    reported = []
    with pytest.raises(StopIteration) as end:
        while True:
            reported.append(next(events))
    assert [event.state for event in reported if isinstance(event, StateChanged)] == ["waiting", "running"]
    assert (end.value.value, host.is_leased) == (2, False)


def test_a_run_that_is_stopped_while_the_model_is_away_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    host, control = OneModelHost(shared_model(), wanted=True), Control()

    def work(_model: DiffusionModel, yield_lease: YieldLease) -> None:
        host.away = 1
        control.stop()
        yield_lease()

    with pytest.raises(ModelUnavailableError):
        next(run_leased_cooperatively(host, shared_model(), control, work))
    assert not host.is_leased
