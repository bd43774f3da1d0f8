"""When memory runs out: what is tried in which order, and that nothing of the failed step is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.events import Noted, StepDone
from lib_lora_train.dataset.plan import MicroBatch
from lib_lora_train.training.oom_fallback import OomFallback, describe_fallback, next_fallback, split_micro_batches
from lib_lora_train.training.step import batch_loss
from lib_lora_train.training.training_run import Training
from tests.stand_ins.training_parts import losses, run_to_end, small_config, started
from tests.stand_ins.training_parts import shared_model as model


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"batch_size": 1}, [(True, 1)]),
        ({"batch_size": 4}, [(True, 1), (True, 2), (True, 4)]),
        ({"batch_size": 3}, [(True, 1), (True, 2), (True, 4)]),
        ({"batch_size": 2, "gradient_checkpointing": True}, [(False, 2)]),
        ({"batch_size": 1, "gradient_checkpointing": True}, []),
    ],
)
def test_checkpointing_comes_before_smaller_batches(values: dict[str, Any], expected: list[tuple[bool, int]]) -> None:
    config, found = TrainConfig().replace(**values), []
    fallback = next_fallback(OomFallback(), config)
    while fallback is not None:
        found.append((fallback.checkpointing, fallback.split))
        fallback = next_fallback(fallback, config)
    assert found == expected


@pytest.mark.parametrize(
    ("split", "sizes"), [(1, [5, 2]), (2, [3, 2, 1, 1]), (4, [2, 2, 1, 1, 1]), (8, [1, 1, 1, 1, 1, 1, 1])]
)
def test_batches_are_split_in_order_into_nearly_equal_parts(split: int, sizes: list[int]) -> None:
    step = [MicroBatch(64, 64, (0, 1, 2, 3, 4), (10, 11, 12, 13, 14)), MicroBatch(64, 64, (5, 6), (15, 16))]
    parts = split_micro_batches(step, split)
    assert [len(part.items) for part in parts] == sizes
    assert [item for part in parts for item in part.items] == list(range(7))
    assert [draw for part in parts for draw in part.draws] == list(range(10, 17))


@pytest.mark.parametrize(("split", "words"), [(1, "checkpointing"), (2, "3 images at a time"), (8, "1 image at a")])
def test_warning_says_how_many_images_are_computed_at_a_time(split: int, words: str) -> None:
    assert words in describe_fallback(OomFallback(True, split), TrainConfig(batch_size=5))


# --- in a run ---------------------------------------------------------------------------------------


@pytest.fixture
def run() -> Iterator[Callable[..., Training]]:
    """Starts runs, each of which removes the adapter of the one before."""
    live: list[Training] = []

    def start(**values: Any) -> Training:
        while live:
            live.pop().adapter.remove()
        live.append(started(model(), small_config(max_steps=2, **values)))
        return live[-1]

    yield start
    for training in live:
        training.adapter.remove()


def fail_once(error: Exception, call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this call of the forward pass fail, counted from 1."""
    calls = 0

    def failing(*arguments: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == call:
            raise error
        return batch_loss(*arguments)

    monkeypatch.setattr("lib_lora_train.training.loop.batch_loss", failing)


def test_gradients_of_a_step_that_did_not_fit_are_discarded(
    run: Callable[..., Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two micro-batches fails, once the first has its gradients. Without momentum, so that they show."""
    values: dict[str, Any] = {"gradient_accumulation": 2, "optimizer": "SGDNesterov", "max_grad_norm": 0.0}
    expected = run(**values)
    alone = losses(run_to_end(expected, model()))
    weights = [parameter.detach().clone() for parameter in expected.parameters]
    fail_once(torch.cuda.OutOfMemoryError(), 2, monkeypatch)
    training = run(**values)
    events = run_to_end(training, model())
    assert [event.step for event in events if isinstance(event, StepDone)] == [1, 2]
    (note,) = (event for event in events if isinstance(event, Noted))
    assert (note.level, note.where) == ("warning", "batch_size") and note.message.startswith("Step 1 did not fit into ")
    assert losses(events) == pytest.approx(alone, rel=1e-5)
    for parameter, before in zip(training.parameters, weights, strict=True):
        assert torch.allclose(parameter, before, rtol=1e-4, atol=1e-9)  # checkpointing sums in another order


@pytest.mark.parametrize("where", ["forward", "optimiser"])
def test_another_error_is_not_taken_for_full_memory(
    where: str, run: Callable[..., Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    training, error = run(), RuntimeError("shapes do not match")

    def fail(_: float) -> None:
        raise error

    if where == "forward":
        fail_once(error, 1, monkeypatch)
    else:
        monkeypatch.setattr(training.optimizer, "step", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run_to_end(training, model())
    assert training.oom_fallback == OomFallback()
