"""What is wrong with the tensors of an adapter file, found once, before anything uses them.

Each family declares the shapes that its tensors may have together (`Family.LAYOUTS`); see `families.layouts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib_lora_train.adapters.families.layouts import Layout, match_layout
from lib_lora_train.adapters.files.key_formats import FIXED
from lib_lora_train.core.wording import count

_SHOWN = 3
_MAX_ALPHA = 1e9  # LyCORIS' largest usual one, for a network_dim of 100000, is far below


@dataclass(frozen=True)
class Defect:
    """Why a layer of a file cannot be used; `reason` completes the sentence “LAYER: …”."""

    layer: str
    reason: str

    def __str__(self) -> str:
        return f"{self.layer}: {self.reason}"


def describe_defects(defects: Sequence[Defect]) -> str:
    """`3 layers are damaged (NAME: its …; …)`."""
    damaged = count(len(defects), "layer is damaged", "layers are damaged")
    return f"{damaged} ({'; '.join(map(str, defects[:_SHOWN]))}{'; …' if len(defects) > _SHOWN else ''})"


def find_defect(layer: str, tensors: Mapping[str, Tensor]) -> Defect | None:
    """Whatever is wrong with single tensors, by key ending: their type, their size, their numbers."""
    for ending, tensor in tensors.items():
        if ending in FIXED:
            if tensor.numel() != 1:
                return Defect(layer, f"{ending} has {count(tensor.numel(), 'number')} instead of one")
            if is_finite(tensor) and abs(float(tensor)) > _MAX_ALPHA:
                return Defect(layer, f"{ending} is {float(tensor):.3g}")
        elif not tensor.is_floating_point():
            return Defect(layer, f"{ending} has the type {str(tensor.dtype).removeprefix('torch.')}")
        elif tensor.numel() == 0:
            return Defect(layer, f"{ending} is empty ({_format_shape(tensor.shape)})")
    broken = [ending for ending, tensor in tensors.items() if not is_finite(tensor)]
    if broken:
        return Defect(layer, f"{broken[0]} contains NaN or infinity")
    return None


def find_misfit(
    layer: str, weights: Mapping[str, Tensor], endings: Mapping[str, str], layouts: Sequence[Layout]
) -> Defect | None:
    """A defect if the tensors, by short name, match none of the layouts together."""
    if not layouts or match_layout(weights, layouts) is not None:
        return None
    found = ", ".join(f"{endings[short]} {_format_shape(tensor.shape)}" for short, tensor in weights.items())
    return Defect(layer, f"its tensors do not fit together: {found}")


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite; fp8 types cannot be asked directly."""
    return bool(torch.isfinite(tensor.float()).all())


def _format_shape(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape)) or "a single number"
