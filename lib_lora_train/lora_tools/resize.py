"""A LoRA at another rank: fixed, or chosen for each layer by how fast its singular values fall.

Needs no checkpoint: a plain LoRA's ΔW = up · down · alpha / rank is all that counts. Its singular values come from the
small matrix between the QR factors of `up` and `down`, in float64; the nearest matrix of a lower rank keeps the largest
of them (Eckart & Young 1936). The rules are those of sd-scripts' `resize_lora.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lib_lora_train.adapters.families.dora import MAGNITUDE
from lib_lora_train.adapters.files.conversion import ConversionBuilder, Converted
from lib_lora_train.adapters.files.decode import ParsedLayer, parse_sound_file
from lib_lora_train.adapters.files.lora_file import AdapterFile
from lib_lora_train.adapters.registry import NORM
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.core.wording import count

_SIDES = ("up", "down")
RANK_RULES = ("sv_ratio", "sv_cumulative", "sv_fro")


@dataclass(frozen=True)
class RankRule:
    """How many singular values of a layer are kept, at least one.

    Attributes:
        rank: at most so many; 0: no limit
        conv_rank: the same for kernels larger than 1×1; None: as `rank`
        rule: `sv_ratio` keeps values above 1/threshold of the largest, `sv_cumulative` the fewest whose sum is this
            share of the sum of all, `sv_fro` the fewest whose matrix has this share of ΔW's Frobenius norm, each of
            them one value more, as sd-scripts does; "": `rank`
        threshold: above 1 for `sv_ratio`, else above 0 and at most 1
    """

    rank: int = 0
    conv_rank: int | None = None
    rule: str = ""
    threshold: float = 0.0

    @property
    def name(self) -> str:
        """A word for file names: `rank16`, `sv_fro0.9`."""
        return f"{self.rule}{self.threshold:g}" if self.rule else f"rank{self.rank}"

    def check(self) -> None:
        """AdapterError for a rule that says nothing, or a number out of range."""
        if self.rule and self.rule not in RANK_RULES:
            raise AdapterError(f"{self.rule!r} is not a rule for ranks. Choose one of {', '.join(RANK_RULES)}.")
        if self.rank < 0 or (self.conv_rank is not None and self.conv_rank < 1):
            raise AdapterError("A rank must be 1 or more.")
        if not self.rule and self.rank < 1:
            raise AdapterError(f"Give the new rank, or one of {', '.join(RANK_RULES)}.")
        if self.rule == "sv_ratio" and not 1 < self.threshold < float("inf"):
            raise AdapterError(f"sv_ratio must be above 1, not {self.threshold:g}; 2 to 20 is usual.")
        if self.rule in ("sv_cumulative", "sv_fro") and not 0 < self.threshold <= 1:
            raise AdapterError(f"{self.rule} must be above 0 and at most 1, not {self.threshold:g}; 0.9 is usual.")

    def rank_of(self, values: Tensor, *, is_conv: bool = False) -> int:
        """The rank for a layer with these singular values (n,), largest first."""
        most = self.conv_rank if is_conv and self.conv_rank is not None else self.rank
        return max(1, min(self._wanted(values), most or len(values), len(values)))

    def _wanted(self, values: Tensor) -> int:
        if not self.rule or float(values[0]) <= 0:
            return len(values) if not self.rule else 1
        if self.rule == "sv_ratio":
            return int((values > values[0] / self.threshold).sum()) + 1
        parts, target = (values, self.threshold) if self.rule == "sv_cumulative" else (values**2, self.threshold**2)
        share = parts.cumsum(0) / parts.sum()
        return int((share < target).sum()) + 2


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
        written = builder.store(key, {ending: tensor.float() for ending, tensor in tensors.items()})
        ranks[key] = len(tensors["lora_down.weight"])
        error = _squared_distance(up, down, *(written[f"lora_{side}.weight"].double().flatten(1) for side in _SIDES))
        builder.count_loss(key, error, float(values.square().sum()))
    return Resized(builder.build(parsed.unknown), ranks)


def describe_ranks(ranks: Mapping[str, int]) -> str:
    """`ranks 2 to 16, 7.5 on average`, or the only one: `rank 8`."""
    found = ranks.values()
    if min(found) == max(found):
        return f"rank {min(found)}"
    return f"ranks {min(found)} to {max(found)}, {sum(found) / len(found):.1f} on average"


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
    shape = (rank, -1, *kernel)
    return {
        "lora_down.weight": new_down.reshape(shape).contiguous(),
        "lora_up.weight": new_up.reshape(-1, rank, *(1,) * len(kernel)).contiguous(),
        "alpha": torch.tensor(float(rank)),
    }, values


def _squared_distance(up: Tensor, down: Tensor, new_up: Tensor, new_down: Tensor) -> float:
    """‖up · down − new_up · new_down‖², from the Gram matrices of the factors side by side."""
    columns, rows = torch.cat([up, -new_up], dim=1), torch.cat([down, new_down])
    return max(0.0, float(((columns.T @ columns) * (rows @ rows.T)).sum()))
