"""A LoRA at another rank: fixed, or chosen for each layer by how fast its singular values fall.

Needs no checkpoint: a plain LoRA's ΔW = up · down · alpha / rank is all that counts. Its singular values come from the
small matrix between the QR factors of `up` and `down`, in float64; the nearest matrix of a lower rank keeps the largest
of them (Eckart & Young 1936). The rules are those of sd-scripts' `resize_lora.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lib_lora_train.adapters.families.dora import MAGNITUDE
from lib_lora_train.adapters.files.conversion import ConversionBuilder, Converted
from lib_lora_train.adapters.files.decode import ParsedLayer, parse_sound_file
from lib_lora_train.adapters.files.lora_file import AdapterFile, SavedAdapter
from lib_lora_train.adapters.registry import NORM
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.core.wording import count
from lib_lora_train.lora_tools.convert import write_converted
from lib_lora_train.lora_tools.low_rank import lora_tensors
from lib_lora_train.lora_tools.rank_rule import RankRule

_SIDES = ("up", "down")


@dataclass(frozen=True)
class Resized:
    """The new file's contents with the loss, and the rank of each layer by kohya's name."""

    converted: Converted
    ranks: Mapping[str, int]


@torch.no_grad()
def resize(file: AdapterFile, rule: RankRule, *, precision: str = "fp16") -> Resized:
    """The file with the ranks of `rule`, alpha equal to the rank; norm layers are kept.

    AdapterError for a rule out of range, or a file with layers of another family: their ΔW depends on the checkpoint
    or is not a product of two matrices.
    """
    rule.check()
    parsed = parse_sound_file(file)
    _refuse_other_families(file, parsed.layers)
    builder, ranks = ConversionBuilder(precision), dict[str, int]()
    for key, layer in parsed.layers.items():
        if layer.family is NORM:
            names = layer.family.STATE_KEYS
            builder.store(key, {names[name]: tensor.float() for name, tensor in layer.weights.items()})
            continue
        up, down = _factors(layer)
        tensors, values = _truncated(layer, up, down, rule)
        written = builder.store(key, tensors)
        ranks[key] = len(tensors["lora_down.weight"])
        error = _squared_distance(up, down, *(written[f"lora_{side}.weight"].double().flatten(1) for side in _SIDES))
        builder.count_loss(key, error, float(values.square().sum()))
    return Resized(builder.build(parsed.unknown), ranks)


def write_resized(path: Path, resized: Resized, metadata: Mapping[str, str]) -> SavedAdapter:
    """Write a new file with the old one's `metadata`, updated; errors as of `write_converted`."""
    return write_converted(path, resized.converted, to="lora", rank=max(resized.ranks.values()), metadata=metadata)


def _refuse_other_families(file: AdapterFile, layers: Mapping[str, ParsedLayer]) -> None:
    others = [layer.kind for layer in layers.values() if not _is_plain(layer) and layer.family is not NORM]
    if others or not any(layer.family is not NORM for layer in layers.values()):
        held = f"{count(len(others), 'layer')} of another family ({', '.join(sorted(set(others)))})" if others else ""
        what = f"has {held}" if others else "has no layer whose rank could change"
        raise AdapterError(f"{file.path.name} {what}. Convert it to a LoRA of a rank, with its checkpoint.")


def _is_plain(layer: ParsedLayer) -> bool:
    return layer.family.NAME == "lora" and MAGNITUDE not in layer.weights


def _factors(layer: ParsedLayer) -> tuple[Tensor, Tensor]:
    """(up, down) with ΔW = up · down, flattened to (out, r) and (r, in · kernel), float64; the scale is in `up`."""
    up, down = layer.weights["up"].double().flatten(1), layer.weights["down"].double()
    if "mid" in layer.weights:  # Tucker: up · mid · down, with `down` (r, in, 1, 1) and `mid` (r, r, k, k)
        down = torch.einsum("abhw,bi->aihw", layer.weights["mid"].double(), down.flatten(1))
    return up * layer.options.scale, down.flatten(1)


def _truncated(layer: ParsedLayer, up: Tensor, down: Tensor, rule: RankRule) -> tuple[dict[str, Tensor], Tensor]:
    """The layer's new tensors by kohya's ending, and all singular values of ΔW."""
    left, left_core = torch.linalg.qr(up)
    right, right_core = torch.linalg.qr(down.T)
    inner_left, values, inner_right = torch.linalg.svd(left_core @ right_core.T)
    kernel = layer.weights["mid" if "mid" in layer.weights else "down"].shape[2:]
    rank = rule.rank_of(values, is_conv=any(side > 1 for side in kernel))
    roots = values[:rank].sqrt()
    new_up = left @ inner_left[:, :rank] * roots
    new_down = (right @ inner_right[:rank].T * roots).T
    return lora_tensors(new_up, new_down, (len(up), -1, *kernel)), values


def _squared_distance(up: Tensor, down: Tensor, new_up: Tensor, new_down: Tensor) -> float:
    """‖up · down − new_up · new_down‖², from the Gram matrices of the factors side by side."""
    columns, rows = torch.cat([up, -new_up], dim=1), torch.cat([down, new_down])
    return max(0.0, float(((columns.T @ columns) * (rows @ rows.T)).sum()))
