"""A background task runs one function at a time and reports progress, remaining time and errors."""

from __future__ import annotations

import threading

import pytest

from lib_lora_train.core.background_task import BackgroundTask
from lib_lora_train.core.errors import DataError


def _after(task: BackgroundTask) -> tuple[str, str]:
    """State and message once the task has ended."""
    task.wait(10)
    status = task.status()
    return status["state"], status["message"]


def test_the_remaining_time_follows_the_recent_speed() -> None:
    now = 0.0
    task = BackgroundTask("dataset check", clock=lambda: now)
    task.start_phase("images checked", 5000)
    for done in range(1, 1241):
        now += 0.032
        task.report(done)
    assert task.status()["line"] == "1,240 of 5,000 images checked, about 2 min left"


def test_cached_images_do_not_shorten_the_remaining_time() -> None:
    now = 0.0
    task = BackgroundTask("dataset check", clock=lambda: now)
    task.start_phase("images checked", 1000)
    for done in range(1, 901):
        now += 0.001
        task.report(done)
    assert task.status()["line"] == "900 of 1,000 images checked"
    for done in range(901, 961):
        now += 1
        task.report(done)
    assert task.status()["line"] == "960 of 1,000 images checked, about 40 s left"


def test_a_busy_task_refuses_another_function_and_stops_on_request() -> None:
    task = BackgroundTask("tagger")
    stopped = threading.Event()

    def work() -> None:
        while not task.is_stopped():
            stopped.wait(0.01)

    task.start(work)
    with pytest.raises(DataError, match="The tagger is already running"):
        task.start(work)
    task.stop()
    assert _after(task) == ("stopped", "")
    task.start(lambda: None)
    assert _after(task) == ("done", "")


def test_a_cleared_stop_does_not_end_the_next_phase() -> None:
    task = BackgroundTask("tagger")
    task.stop()
    task.clear_stop()
    assert not task.is_stopped()


def _raise(error: Exception) -> None:
    raise error


def test_an_expected_error_becomes_the_message() -> None:
    task = BackgroundTask("tagger")
    task.start(lambda: _raise(DataError("The folder is gone.")))
    assert _after(task) == ("failed", "The folder is gone.")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_unexpected_error_points_to_the_console() -> None:
    task = BackgroundTask("tagger")
    task.start(lambda: _raise(ZeroDivisionError()))
    assert _after(task) == ("failed", "It failed unexpectedly; see the console.")
