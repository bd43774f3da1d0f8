"""Alphas that PEFT and diffusers keep apart from the tensors.

PEFT has them in an `adapter_config.json` beside its `adapter_model.safetensors`, diffusers (from 0.34 on) in the file's
metadata, as JSON under `lora_adapter_metadata`. Without them alpha would be taken for the rank, as everywhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lib_lora_train.adapters.files.lora_file import AdapterFile

_IN_METADATA = "lora_adapter_metadata"
_BESIDE = ("adapter_model.safetensors", "adapter_config.json")
_PEFT = re.compile(r"(?P<module>.+)\.(lora_A(\.[^.]+)?\.weight|hada_w1_b|lokr_w1|lokr_w1_b)")


def with_told_alphas(file: AdapterFile) -> dict[str, Tensor]:
    """The file's tensors, and `….alpha` for each layer whose alpha stands elsewhere.

    PEFT scales a LoKr of two whole matrices too, where the webuis' format has no scale: there it is multiplied in.
    """
    state = dict(file.state)
    told = _from_metadata(file) or _from_neighbour(file)
    if not told:
        return state
    for key, tensor in file.state.items():
        match = _PEFT.fullmatch(key)
        if match and tensor.dim() and f"{match['module']}.alpha" not in state:
            module = match["module"]
            rank = _rank(told, module, file.state, key)
            alpha = None if rank is None else _alpha(told, module, rank)
            if alpha is not None and f"{module}.lokr_w2" in state and key.endswith("lokr_w1"):
                state[key] = tensor * (alpha / (rank or 1))
            elif alpha is not None:
                state[f"{module}.alpha"] = torch.tensor(alpha)
    return state


def _rank(told: Mapping[str, Any], module: str, state: Mapping[str, Tensor], key: str) -> int | None:
    """The layer's rank by its tensors; by what is told where LoKr has no split matrix."""
    if not key.endswith("lokr_w1"):
        return int(state[key].shape[0])
    if f"{module}.lokr_w2_b" in state:
        return int(state[f"{module}.lokr_w2_b"].shape[0])
    rank = _matching(told.get("rank_pattern"), module)
    rank = _number(told.get("r")) if rank is None else rank
    return int(rank) if rank else None


def _matching(patterns: Any, name: str) -> float | None:
    """The number of the first pattern that ends the name."""
    found = patterns.items() if isinstance(patterns, dict) else ()
    return next((_number(number) for pattern, number in found if _ends(name, pattern)), None)


def _from_metadata(file: AdapterFile) -> dict[str, Any]:
    """diffusers' JSON: `unet.lora_alpha`, `text_encoder.alpha_pattern` …; empty where there is none."""
    return _object(file.metadata.get(_IN_METADATA, ""))


def _from_neighbour(file: AdapterFile) -> dict[str, Any]:
    """PEFT's configuration of the only model in the file."""
    name, beside = _BESIDE
    place = file.path.with_name(beside)
    if file.path.name != name or not place.is_file():
        return {}
    try:
        return _object(place.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return {}


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _alpha(told: Mapping[str, Any], module: str, rank: int) -> float | None:
    """The alpha of a layer at this rank, as hosts divide it; None where nothing is told of its model."""
    part, _, rest = module.partition(".")
    prefix, name = (f"{part}.", rest) if f"{part}.lora_alpha" in told else ("", module)
    own = _matching(told.get(f"{prefix}alpha_pattern"), name)
    plain = told.get(f"{prefix}lora_alpha", told.get("alpha"))  # PEFT's LoHa and LoKr call it alpha
    alpha = _number(plain) if own is None else own
    if alpha is None:
        return None
    return alpha * rank**0.5 if told.get(f"{prefix}use_rslora") else alpha


def _ends(name: str, pattern: str) -> bool:
    """PEFT's rule: the first pattern that ends the name counts. One that is no regular expression fits nothing."""
    try:
        return re.fullmatch(rf"(.*\.)?({pattern})", name) is not None
    except re.error:
        return False


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
