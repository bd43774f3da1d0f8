"""Whether saved tensors fit the layers of an adapter."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lib_lora_train.core.errors import AdapterError
from lib_lora_train.core.wording import shorten_list

_SHOWN_KEYS = 3


def require_fit(expected: Mapping[str, Mapping[str, torch.Size]], state: Mapping[str, Tensor]) -> None:
    """AdapterError, naming the first keys that are missing, unknown or of another shape."""
    shapes = {f"{key}.{ending}": shape for key, endings in expected.items() for ending, shape in endings.items()}
    optional = (".alpha", ".on_input")
    missing = [key for key in shapes if key not in state and not key.endswith(optional)]
    unknown = [key for key in state if key not in shapes]
    other = [
        f"{key} {tuple(state[key].shape)}, not {tuple(shape)}"
        for key, shape in shapes.items()
        if key in state and state[key].shape != shape
    ]
    findings = {"missing": missing, "unknown": unknown, "of another shape": other}
    if not any(findings.values()):
        return
    details = "; ".join(
        f"{len(keys)} {what} ({shorten_list(keys, _SHOWN_KEYS)})" for what, keys in findings.items() if keys
    )
    raise AdapterError(
        f"The LoRA does not fit this run: {details}. Its model kind, rank and targets must match the settings."
    )
