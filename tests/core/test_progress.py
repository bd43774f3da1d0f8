"""The remaining time follows the current speed, and pauses do not count."""

from __future__ import annotations

import pytest

from lib_lora_train.core.events import PhaseEnded, PhaseStarted, Progress, StateChanged
from lib_lora_train.core.progress import Eta, format_clock


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _eta_after(seconds_per_unit: float, units: int, total: int) -> tuple[Eta, _Clock]:
    clock = _Clock()
    eta = Eta(clock=clock)
    eta.handle(PhaseStarted("train", total))
    for done in range(1, units + 1):
        clock.now += seconds_per_unit
        eta.handle(Progress("train", done, total))
    return eta, clock


def test_remaining_time_is_the_remaining_units_at_the_measured_speed() -> None:
    eta, _ = _eta_after(0.5, 10, 100)
    assert eta.remaining_seconds() == pytest.approx(45.0)


def test_the_estimate_forgets_a_slow_start() -> None:
    eta, clock = _eta_after(20.0, 2, 1000)
    for done in range(3, 103):
        clock.now += 0.5
        eta.handle(Progress("train", done, 1000))
    assert eta.remaining_seconds() == pytest.approx((1000 - 102) * 0.5, rel=0.02)


def test_a_pause_does_not_slow_down_the_estimate() -> None:
    eta, clock = _eta_after(0.5, 10, 100)
    clock.now += 3600
    eta.handle(StateChanged("running"))
    for done in range(11, 21):
        clock.now += 0.5
        eta.handle(Progress("train", done, 100))
    assert eta.remaining_seconds() == pytest.approx(40.0)


def test_an_inner_phase_does_not_slow_down_the_estimate_of_the_outer_one() -> None:
    eta, clock = _eta_after(0.5, 10, 100)
    eta.handle(PhaseStarted("samples", 4))
    clock.now += 600
    eta.handle(Progress("samples", 4, 4))
    assert (eta.phase, eta.done) == ("samples", 4)
    eta.handle(PhaseEnded("samples", 600))
    assert (eta.phase, eta.done) == ("train", 10)
    for done in range(11, 21):
        clock.now += 0.5
        eta.handle(Progress("train", done, 100))
    assert eta.remaining_seconds() == pytest.approx(40.0)


def test_there_is_no_estimate_before_two_measurements_and_after_the_end() -> None:
    eta = Eta(clock=_Clock())
    assert eta.remaining_seconds() is None
    eta.handle(PhaseStarted("train", 10))
    assert eta.remaining_seconds() is None
    eta.handle(PhaseEnded("train", 1.0))
    assert eta.remaining_seconds() is None


@pytest.mark.parametrize(("seconds", "text"), [(None, "–"), (4.6, "0:05"), (75, "1:15"), (3725, "1:02:05")])
def test_format_clock(seconds: float | None, text: str) -> None:
    assert format_clock(seconds) == text
