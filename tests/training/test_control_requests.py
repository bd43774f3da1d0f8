"""What the page says about requests that wait for the current step."""

from __future__ import annotations

from lib_lora_train.core.control import Control


def test_every_request_is_pending_until_it_is_answered() -> None:
    control = Control()
    control.save_now()
    control.sample_now()
    control.pause()
    assert control.pending == ("pause", "save", "sample")
    control.pop_save_request()
    control.resume()
    assert list(control.pending) == ["sample"]


def test_drop_stops_without_saving() -> None:
    control = Control()
    control.stop()
    assert control.is_stopped and not control.is_dropped
    control.drop()
    assert control.is_stopped and control.is_dropped
