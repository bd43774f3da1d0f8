"""The remaining time follows the current speed, and pauses do not count."""

from __future__ import annotations

import pytest

from lib_lora_train.core.events import PhaseEnded, PhaseStarted, Progress, StateChanged
from lib_lora_train.core.progress import Eta, format_clock, format_duration


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


def test_the_estimate_is_that_of_the_innermost_phase() -> None:
    eta, clock = _eta_after(0.5, 10, 100)
    eta.handle(PhaseStarted("samples", 4))
    assert eta.remaining_seconds() is None
    for done in (1, 2):
        clock.now += 3
        eta.handle(Progress("samples", done, 4))
    assert eta.remaining_seconds() == pytest.approx(2 * 3)


def test_a_pause_before_the_first_unit_does_not_count() -> None:
    clock = _Clock()
    eta = Eta(clock=clock)
    eta.handle(PhaseStarted("train", 10))
    clock.now += 600
    eta.handle(StateChanged("running"))
    clock.now += 2
    eta.handle(Progress("train", 1, 10))
    assert eta.remaining_seconds() == pytest.approx(9 * 2)


def _eta_at(*marks: tuple[float, int], total: int = 100) -> Eta:
    """After these numbers of finished units, each at a time in seconds."""
    clock = _Clock()
    eta = Eta(clock=clock)
    for seconds, done in marks:
        clock.now = seconds
        eta.handle(Progress("train", done, total))
    return eta


def test_the_speed_is_the_mean_over_the_last_thirty_seconds() -> None:
    """Marks of exactly thirty seconds ago count; older ones do not."""
    assert _eta_at((1000, 0), (1010, 10), (1030, 12)).remaining_seconds() == pytest.approx((100 - 12) * 30 / 12)
    assert _eta_at((1000, 0), (1010, 10), (1031, 12)).remaining_seconds() == pytest.approx((100 - 12) * 21 / 2)
    assert _eta_at((1000, 0), (1030, 3)).remaining_seconds() == pytest.approx((100 - 3) * 30 / 3)


def test_units_that_take_longer_than_the_window_are_measured_by_the_last_two() -> None:
    assert _eta_at((0, 0), (10, 1), (110, 2), (410, 4)).remaining_seconds() == pytest.approx((100 - 4) * 300 / 2)


def test_there_is_no_estimate_where_no_time_or_no_unit_has_passed() -> None:
    assert _eta_at((5, 1), (5, 2)).remaining_seconds() is None
    assert _eta_at((5, 2), (9, 2)).remaining_seconds() is None
    assert _eta_at((5, 2), (9, 1)).remaining_seconds() is None


def test_the_share_is_that_of_the_innermost_phase_with_the_steps_of_its_units() -> None:
    eta = Eta(clock=_Clock())
    assert (eta.share, eta.total, eta.done, eta.text) == (0, 0, 0, "")
    eta.handle(PhaseStarted("train", 8))
    assert (eta.share, eta.total, eta.done, eta.text) == (0, 8, 0, "")
    eta.handle(Progress("train", 3, 8))
    assert (eta.share, eta.done, eta.text) == (0.375, 3, "")
    eta.handle(PhaseStarted("samples", 4))
    eta.handle(Progress("samples", 1, 4, at_once=2, step=5, steps=10))
    assert (eta.share, eta.done, eta.text) == (0.5, 1, "samples 2 to 3 of 4, step 5 of 10")
    eta.handle(PhaseStarted("grid", 0))
    eta.handle(Progress("grid", 1, 1))
    assert (eta.share, eta.done, eta.text) == (1.0, 1, "")
    eta.handle(Progress("grid", 3, 2))
    assert eta.share == 1.0, "never more than everything"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "1 s"),
        (89, "89 s"),
        (90, "2 min"),
        (89 * 60, "89 min"),
        (90 * 60, "1 h 30 min"),
        (200 * 60, "3 h 20 min"),
        (180 * 60, "3 h"),
    ],
)
def test_durations_are_rounded_as_an_estimate_should_be(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


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
