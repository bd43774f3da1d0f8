"""Whether a finished step is sound, and the sentence if it is not."""

from __future__ import annotations

import torch


def is_finite(loss: float, norm: float, scale: float) -> bool:
    """Whether a step is sound: in float16 the gradients may overflow as long as the loss scale can still fall."""
    finite = torch.isfinite(torch.tensor([loss, norm])).tolist()
    return finite[0] and (finite[1] or scale > 1)


def not_finite_message(step: int, loss: float) -> str:
    what = "the loss" if loss != loss or abs(loss) == float("inf") else "the gradient"
    return (
        f"Step {step}: {what} is NaN or infinite. Lower the learning rate, or choose precision bf16 or fp32 if the "
        "model is in fp16. The last good weights were kept."
    )
