"""Lists of numbers for the UNet's blocks in kohya's syntax: `2,4,4,8`, or a curve such as `cosine+.25`.

kohya counts the blocks of the original UNet. SD1 and SD2: 12 down, 1 middle, 12 up (25). SDXL: 9 down, 3 middle, 9 up,
plus one before and one after them without LoRA (23).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from lib_lora_train.core.wording import count

RANK_COUNTS = (25, 23)
WEIGHT_COUNTS = (12, 9)
MIDDLE_COUNTS = (1, 3)


def parse_ranks(text: str) -> tuple[int, ...]:
    """The rank of each block, () for an empty text. ValueError with the reason."""
    numbers = _numbers(text)
    if any(number != int(number) for number in numbers):
        raise ValueError("contains a rank that is not a whole number")
    return tuple(int(number) for number in _check_count(numbers, RANK_COUNTS))


def parse_alphas(text: str) -> tuple[float, ...]:
    """The alpha of each block, () for an empty text. ValueError with the reason."""
    return _check_count(_numbers(text), RANK_COUNTS)


def parse_weights(text: str, count: int, allowed: tuple[int, ...]) -> tuple[float, ...]:
    """The weights from a list, or `count` weights from a curve; () for an empty text. ValueError with the reason.

    A list must have one of the `allowed` lengths. Whether it fits the model is checked later, when that is known.
    """
    name, _, base = text.strip().lower().partition("+")
    if name in _CURVES:
        added = _numbers(base)[0] if base else 0.0
        return tuple(_CURVES[name](index / max(count - 1, 1)) + added for index in range(count))
    return _check_count(_numbers(text), allowed)


def _numbers(text: str) -> tuple[float, ...]:
    words = [word for word in text.replace("[", " ").replace("]", " ").replace(",", " ").split() if word]
    try:
        numbers = tuple(float(word) for word in words)
    except ValueError:
        raise ValueError(f"{text!r} is not a list of numbers such as 2,4,4,8") from None
    if any(not math.isfinite(number) or number < 0 for number in numbers):
        raise ValueError("contains a number below 0")
    return numbers


def _check_count(numbers: tuple[float, ...], allowed: tuple[int, ...]) -> tuple[float, ...]:
    if numbers and len(numbers) not in allowed:
        expected = " or ".join(map(str, allowed))
        raise ValueError(f"has {count(len(numbers), 'number')} instead of {expected} (SD1 and SD2, or SDXL)")
    return numbers


_CURVES: Mapping[str, Callable[[float], float]] = {
    "cosine": lambda x: math.sin(math.pi * (1 - x) / 2),  # as in kohya: a quarter wave that falls from 1 to 0
    "sine": lambda x: math.sin(math.pi * x / 2),
    "linear": lambda x: x,
    "reverse_linear": lambda x: 1 - x,
    "zeros": lambda _: 0.0,
}
