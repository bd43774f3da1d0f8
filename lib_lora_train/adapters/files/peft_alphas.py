"""Alphas, and OFT's terms, that PEFT and diffusers store apart from the tensors.

PEFT has them in an `adapter_config.json` beside its `adapter_model.safetensors`, diffusers (0.34 and later) in the
file's metadata, as JSON under `lora_adapter_metadata`. Without them alpha would be assumed to be the rank.
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


def add_external_alphas(file: AdapterFile) -> dict[str, Tensor]:
    """The file's tensors, and `….alpha` for each layer whose alpha is stored elsewhere.

    PEFT also scales a LoKr of two full matrices, which has no scale in the webuis' format: there it is multiplied in.
    """
    state = dict(file.state)
    config = _config_in_metadata(file) or _config_beside(file)
    if not config:
        return state
    if config.get("peft_type") == "OFT":
        return state | _oft_terms(config, file.state)
    for key, tensor in file.state.items():
        match = _PEFT.fullmatch(key)
        if match and tensor.dim() and f"{match['module']}.alpha" not in state:
            module = match["module"]
            rank = _rank(config, module, file.state, key)
            alpha = None if rank is None else _alpha(config, module, rank)
            if alpha is not None and f"{module}.lokr_w2" in state and key.endswith("lokr_w1"):
                state[key] = tensor * (alpha / (rank or 1))
            elif alpha is not None:
                state[f"{module}.alpha"] = torch.tensor(alpha)
    return state


def _oft_terms(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`….oft_R.terms` for each layer of PEFT's OFT, 0 for the exact transform.

    {} for its constrained variant, whose weights are projected whenever they are used.
    """
    terms = _number(config.get("num_cayley_neumann_terms")) if config.get("use_cayley_neumann") else 0.0
    if terms is None or config.get("coft"):
        return {}
    ending = ".oft_R.weight"
    layers = (key.removesuffix(ending) for key in state if key.endswith(ending))
    return {f"{layer}.oft_R.terms": torch.tensor(terms) for layer in layers}


def _rank(config: Mapping[str, Any], module: str, state: Mapping[str, Tensor], key: str) -> int | None:
    """The layer's rank, from its tensors, or from the configuration for a LoKr of full matrices."""
    if not key.endswith("lokr_w1"):
        return int(state[key].shape[0])
    if f"{module}.lokr_w2_b" in state:
        return int(state[f"{module}.lokr_w2_b"].shape[0])
    rank = _match_pattern(config.get("rank_pattern"), module)
    rank = _number(config.get("r")) if rank is None else rank
    return int(rank) if rank else None


def _match_pattern(patterns: Any, name: str) -> float | None:
    """The value of the first pattern that matches the end of the name."""
    found = patterns.items() if isinstance(patterns, dict) else ()
    return next((_number(number) for pattern, number in found if _matches_end(name, pattern)), None)


def _config_in_metadata(file: AdapterFile) -> dict[str, Any]:
    """diffusers' JSON: `unet.lora_alpha`, `text_encoder.alpha_pattern` …; empty if there is none."""
    return _parse_object(file.metadata.get(_IN_METADATA, ""))


def _config_beside(file: AdapterFile) -> dict[str, Any]:
    """PEFT's `adapter_config.json` beside the file; empty if there is none."""
    name, beside = _BESIDE
    place = file.path.with_name(beside)
    if file.path.name != name or not place.is_file():
        return {}
    try:
        return _parse_object(place.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return {}


def _parse_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _alpha(config: Mapping[str, Any], module: str, rank: int) -> float | None:
    """The layer's alpha, to be divided by its rank; None if the configuration has none for its model."""
    part, _, rest = module.partition(".")
    prefix, name = (f"{part}.", rest) if f"{part}.lora_alpha" in config else ("", module)
    own = _match_pattern(config.get(f"{prefix}alpha_pattern"), name)
    common = config.get(f"{prefix}lora_alpha", config.get("alpha"))  # PEFT's LoHa and LoKr call it alpha
    alpha = _number(common) if own is None else own
    if alpha is None:
        return None
    return alpha * rank**0.5 if config.get(f"{prefix}use_rslora") else alpha


def _matches_end(name: str, pattern: str) -> bool:
    """Whether the pattern matches the end of the name, by PEFT's rule; an invalid regular expression never does."""
    try:
        return re.fullmatch(rf"(.*\.)?({pattern})", name) is not None
    except re.error:
        return False


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
