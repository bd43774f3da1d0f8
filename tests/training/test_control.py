"""Promises of train/control.py."""

from __future__ import annotations

import threading

import pytest

from lib_lora_train.training.control import Control


def test_requests_are_seen_until_taken() -> None:
    control = Control()
    control.save_now()
    control.sample_now()
    assert control.needs_attention
    assert (control.take_save(), control.take_save()) == (True, False)
    assert (control.take_sample(), control.take_sample()) == (True, False)
    assert not control.needs_attention


def test_a_stopped_run_is_not_paused() -> None:
    control = Control()
    control.pause()
    assert control.paused
    control.stop()
    assert (control.paused, control.stopped) == (False, True)


@pytest.mark.parametrize("wake", ["resume", "stop", "save_now", "sample_now"])
def test_every_request_wakes_a_paused_run(wake: str) -> None:
    control = Control()
    control.pause()
    control.wait_for_news()  # the pause itself
    waiting = threading.Thread(target=control.wait_for_news, daemon=True)
    waiting.start()
    getattr(control, wake)()
    waiting.join(timeout=5)
    assert not waiting.is_alive()


def test_news_before_the_wait_is_not_lost() -> None:
    control = Control()
    control.resume()
    control.wait_for_news()  # would hang for ever
