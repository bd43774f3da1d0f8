"""Requests to a run are seen once, wake a paused run, and are never lost."""

from __future__ import annotations

import threading

import pytest

from lib_lora_train.core.control import Control


def test_requests_remain_until_popped() -> None:
    control = Control()
    control.save_now()
    control.sample_now()
    assert control.has_requests
    assert (control.pop_save_request(), control.pop_save_request()) == (True, False)
    assert (control.pop_sample_request(), control.pop_sample_request()) == (True, False)
    assert not control.has_requests


def test_a_stopped_run_is_not_paused() -> None:
    control = Control()
    control.pause()
    assert control.is_paused
    control.stop()
    assert (control.is_paused, control.is_stopped) == (False, True)


@pytest.mark.parametrize("wake", ["resume", "stop", "save_now", "sample_now"])
def test_every_request_wakes_a_paused_run(wake: str) -> None:
    control = Control()
    control.pause()
    control.wait_for_request()  # the pause itself
    waiting = threading.Thread(target=control.wait_for_request, daemon=True)
    waiting.start()
    getattr(control, wake)()
    waiting.join(timeout=5)
    assert not waiting.is_alive()


def test_a_request_before_the_wait_is_not_lost() -> None:
    control = Control()
    control.resume()
    control.wait_for_request()  # would hang for ever
