"""Lists of numbers for the UNet's blocks, as kohya's users write them: `2,4,4,8`, or a curve such as `cosine+.25`.

kohya counts blocks by the original UNet: 12 on the way down, the middle, 12 on the way up for SD1 and SD2 (25 in all);
for SDXL 9, 3 in the middle and 9, with one before and one after that hold no LoRA (23 in all).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

RANK_COUNTS = (25, 23)
WEIGHT_COUNTS = (12, 9)
MIDDLE_COUNTS = (1, 3)


def parse_ranks(text: str) -> tuple[int, ...]:
    """Ranks of all blocks, () for an empty text; ValueError with the reason."""
    numbers = _numbers(text)
    if any(number != int(number) for number in numbers):
        raise ValueError("has a rank that is no whole number")
    return tuple(int(number) for number in _counted(numbers, RANK_COUNTS))


def parse_alphas(text: str) -> tuple[float, ...]:
    """Alphas of all blocks, () for an empty text; ValueError with the reason."""
    return _counted(_numbers(text), RANK_COUNTS)


def parse_weights(text: str, count: int, allowed: tuple[int, ...]) -> tuple[float, ...]:
    """`count` weights from a list of one of the `allowed` lengths, or from a curve; () for an empty text.

    A list that is not as long as the model has blocks is refused when the model is known.
    """
    name, _, base = text.strip().lower().partition("+")
    if name in _CURVES:
        added = _numbers(base)[0] if base else 0.0
        return tuple(_CURVES[name](index / max(count - 1, 1)) + added for index in range(count))
    return _counted(_numbers(text), allowed)


def _numbers(text: str) -> tuple[float, ...]:
    words = [word for word in text.replace("[", " ").replace("]", " ").replace(",", " ").split() if word]
    try:
        numbers = tuple(float(word) for word in words)
    except ValueError:
        raise ValueError(f"{text!r} is no list of numbers, such as 2,4,4,8") from None
    if any(not math.isfinite(number) or number < 0 for number in numbers):
        raise ValueError("has a number below 0")
    return numbers


def _counted(numbers: tuple[float, ...], allowed: tuple[int, ...]) -> tuple[float, ...]:
    if numbers and len(numbers) not in allowed:
        told = " or ".join(str(count) for count in allowed)
        raise ValueError(f"has {len(numbers)} numbers, not {told} (SD1 and SD2, or SDXL)")
    return numbers


_CURVES: Mapping[str, Callable[[float], float]] = {
    "cosine": lambda x: math.sin(math.pi * (1 - x) / 2),  # kohya's: falls from 1 to 0 as a quarter of a wave
    "sine": lambda x: math.sin(math.pi * x / 2),
    "linear": lambda x: x,
    "reverse_linear": lambda x: 1 - x,
    "zeros": lambda _: 0.0,
}
