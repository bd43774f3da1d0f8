"""Look-ups of tensor shapes by name, with the error for a tensor that is missing."""

from __future__ import annotations

import re

from lib_lora_train.core.errors import ModelError
from lib_lora_train.models.architecture import Shapes


def shape_of(shapes: Shapes, name: str) -> tuple[int, ...]:
    """The shape of a tensor; ModelError if it is missing."""
    if name not in shapes:
        raise ModelError(f"The checkpoint is damaged or of an unknown kind: {name} is missing. Choose another one.")
    return shapes[name]


def first_shape(shapes: Shapes, pattern: str) -> tuple[int, ...]:
    """The shape of the first tensor whose name matches the pattern; ModelError if none does."""
    for name, shape in shapes.items():
        if re.search(pattern, name):
            return shape
    raise ModelError(f"The checkpoint is damaged or of an unknown kind: nothing matches {pattern}. Choose another one.")
