"""Identifies a checkpoint's model from the names and shapes of its tensors; each kind does this for its own models."""

from __future__ import annotations

from lib_lora_train.models.architecture import CheckpointHints, ModelSpec, Shapes
from lib_lora_train.models.kinds.registry import kind_in

_NO_HINTS = CheckpointHints()


def infer_spec(shapes: Shapes, hints: CheckpointHints = _NO_HINTS) -> ModelSpec:
    """The model with tensors of these names and shapes; `hints` are what these do not show.

    ModelError, saying what it is instead, if it is not a text-to-image model of a kind in `models.kinds`.
    """
    return kind_in(shapes).infer_spec(shapes, hints)
