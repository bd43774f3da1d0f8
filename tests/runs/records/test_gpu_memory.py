"""The curve of GPU memory."""

from __future__ import annotations

import time

import pytest
import torch

from lib_lora_train.runs.records import gpu_memory
from lib_lora_train.runs.records.gpu_memory import MemoryCurve, read_gpu_memory


def test_the_driver_is_asked_at_most_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    now = 100.0

    def read() -> dict[str, float]:
        asked.append(now)
        return {"used_gib": len(asked), "total_gib": 80.0}

    monkeypatch.setattr(gpu_memory, "read_gpu_memory", read)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    curve = MemoryCurve()
    for step in range(1, 13):  # four steps a second
        curve.measure(step)
        now += 0.25
    assert asked == [100, 101, 102] and [step for step, _ in curve.points] == [1, 5, 9]


def test_without_a_card_there_is_no_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_memory, "read_gpu_memory", lambda: None)
    curve = MemoryCurve()
    curve.measure(1)
    assert curve.points == []


@pytest.mark.parametrize(("is_available", "is_in_use"), [(False, False), (False, True), (True, False), (True, True)])
def test_memory_of_a_card_in_use_is_that_of_all_programs_in_gib(
    is_available: bool, is_in_use: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card that nobody uses is not asked, which would take memory on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_available)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: is_in_use)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (6 * 1024**3, 24 * 1024**3))
    expected = {"used_gib": 18.0, "total_gib": 24.0} if is_available and is_in_use else None
    assert read_gpu_memory() == expected
