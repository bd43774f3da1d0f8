"""A step's numbers: on the device while the turn goes on, and what is told of them when they are read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lib_lora_train.core.events import StepDone


@dataclass(frozen=True, eq=False)
class StepResult:
    """A step whose numbers are still on the device: loss, gradient norm, loss scale, and the limited norms' three."""

    step: int
    epoch: int
    rates: dict[str, float]
    numbers: Tensor

    def told(self, row: list[float], seconds: float) -> StepDone:
        """What is told of it: `row` are its numbers, read; `seconds` is what it took."""
        norms = (row[3], row[4], row[5]) if len(row) > 3 else None
        return StepDone(self.step, self.epoch, row[0], self.rates, row[1], seconds, norms)


def is_sound(loss: float, norm: float, scale: float) -> bool:
    """Finite; an overflow of the gradients alone is float16's everyday while the loss scale can still fall."""
    finite = torch.isfinite(torch.tensor([loss, norm])).tolist()
    return finite[0] and (finite[1] or scale > 1)


def not_a_number(step: int, loss: float) -> str:
    """Why the run ends at this step, and what to do."""
    what = "the loss" if loss != loss or abs(loss) == float("inf") else "the gradient"
    return (
        f"Step {step}: {what} is not a number any more (NaN or infinity). Lower the learning rate, or choose "
        "precision bf16 or fp32 if the model is in fp16. The weights from just before were kept."
    )
