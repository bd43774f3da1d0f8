"""Several adapters as one file, or written into a checkpoint: the weighted sum of what they do, ΔW = Σ wᵢ · ΔWᵢ.

A sum of LoRAs is a LoRA of all their ranks together, with the matrices side by side, and nothing is lost; adding
matrices of the same name, as some tools do, gives cross terms that nobody trained. With a smaller rank, and for other
families, the sum is cut by a singular value decomposition, and what is lost is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from lib_lora_train.adapters.families.base import base_bias, base_weight
from lib_lora_train.adapters.families.dora import MAGNITUDE
from lib_lora_train.adapters.files.decode import open_file
from lib_lora_train.adapters.files.lora_file import AdapterFile, SavedAdapter
from lib_lora_train.adapters.inject import ModelParts, Target, opened_targets
from lib_lora_train.adapters.registry import NORM
from lib_lora_train.core.errors import AdapterError, LoraTrainError
from lib_lora_train.lora_tools.convert import KINDS, Converted, Ledger, truncated, write_converted

Weighted = Sequence[tuple[AdapterFile, float]]
_TOLD = (
    "ss_base_model_version",
    "ss_v2",
    "modelspec.architecture",
    "modelspec.prediction_type",
    "modelspec.resolution",
)


@dataclass
class Sum:
    """What the files do to one layer: products of small matrices, (up, down) flat, and what is none; fp32, weighted.

    `target` is the layer; `bias` is added to its bias.
    """

    target: Target
    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    rest: Tensor | None = None
    bias: Tensor | None = None

    @property
    def is_norm(self) -> bool:
        """Whether it is a norm layer, whose difference is no matrix."""
        return self.target.family is NORM

    @property
    def shape(self) -> torch.Size:
        """The layer's weight's."""
        return base_weight(self.target.layer).shape

    def whole(self) -> Tensor:
        """ΔW, shaped like the layer's weight."""
        parts = [(up @ down).view(self.shape) for up, down in self.pairs]
        parts += [] if self.rest is None else [self.rest]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

    def add(self, given: Target, weight: float) -> None:
        """Add `weight` times what a file does to the layer."""
        weights, family = given.given, given.family
        assert weights is not None
        if family.NAME == "lora" and "mid" not in weights and MAGNITUDE not in weights:
            scale = given.options.scale * weight
            self.pairs.append((weights["up"].flatten(1) * scale, weights["down"].flatten(1)))
        else:
            base = base_weight(given.layer).detach().float().cpu()
            diff = family.diff_weight(weights, given.options, base) * weight
            self.rest = diff if self.rest is None else self.rest + diff
        bias = family.diff_bias(weights)
        if bias is not None:
            self.bias = bias * weight if self.bias is None else self.bias + bias * weight


@torch.no_grad()
def sums(files: Weighted, model: ModelParts) -> tuple[dict[str, Sum], tuple[str, ...]]:
    """The file's name of each layer → what all files together do to it; and what fits nowhere, by file.

    AdapterError for a file of which no layer fits the model.
    """
    found: dict[str, Sum] = {}
    left_out: list[str] = []
    for file, weight in files:
        opened = open_file(file)
        places, left = opened_targets(model, opened, True)
        if not places:
            raise AdapterError(f"No layer of {file.path.name} fits the model. Choose the checkpoint it was trained on.")
        for _, targets in places.values():
            for target in targets:
                bare = replace(target, given=None)
                found.setdefault(target.key, Sum(bare)).add(target, weight)
        left_out += [f"{file.path.name}: {name}" for name in (*opened.unknown, *left)]
    return found, tuple(left_out)


@torch.no_grad()
def merge(files: Weighted, model: ModelParts, *, to: str = "lora", rank: int = 0, precision: str = "fp32") -> Converted:
    """The files as one: `to` a LoRA of at most `rank` (0: as large as all together, exact) or the exact `diff`.

    AdapterError for fewer than two files, another kind, and for rank 0 with files that are no plain LoRA.
    """
    if to not in KINDS:
        raise AdapterError(f"Files can be merged to {' or '.join(KINDS)}, not to {to!r}.")
    if len(files) < 2:
        raise AdapterError("Name two LoRA files or more to merge. `convert` writes one of them in another form.")
    found, left = sums(files, model)
    ledger, left_out = Ledger(precision), list(left)
    for key, one in found.items():
        if one.is_norm:
            assert one.rest is not None and one.bias is not None
            ledger.take(key, {"w_norm": one.rest, "b_norm": one.bias})
            continue
        diff = one.whole()
        tensors = _written(one, diff, to, rank)
        if one.bias is not None:
            if to == "diff":
                tensors["diff_b"] = one.bias
            elif float(one.bias.abs().max()) > 0:
                left_out.append(f"{key}.diff_b")
        ledger.take(key, tensors, diff)
    return ledger.converted(left_out)


def _written(one: Sum, diff: Tensor, to: str, rank: int) -> dict[str, Tensor]:
    """kohya's ending → tensor of a layer whose whole ΔW is `diff`."""
    if to == "diff":
        return {"diff": diff}
    if rank:
        return truncated(diff, rank)
    if one.rest is not None:
        text = f"{one.target.key} is of {one.target.family.NAME}, which is no plain LoRA"
        raise AdapterError(f"{text}: give a rank to cut the sum to, or merge to diff.")
    return _side_by_side(one)


def _side_by_side(one: Sum) -> dict[str, Tensor]:
    """The LoRA of all ranks together; alpha is the rank, and each pair's two matrices are of one size."""
    ups, downs = [], []
    for up, down in one.pairs:
        ratio = float(down.norm()) / max(float(up.norm()), torch.finfo(torch.float32).tiny)
        share = ratio**0.5 if 0 < ratio < 1e12 else 1.0
        ups.append(up * share)
        downs.append(down / share)
    up, down = torch.cat(ups, dim=1), torch.cat(downs)
    ones = (1,) * (len(one.shape) - 2)
    return {
        "lora_down.weight": down.reshape(len(down), *one.shape[1:]).contiguous(),
        "lora_up.weight": up.reshape(*up.shape, *ones).contiguous(),
        "alpha": torch.tensor(float(len(down))),
    }


@torch.no_grad()
def add_to_layers(files: Weighted, model: ModelParts) -> tuple[int, tuple[str, ...]]:
    """Add the files' ΔW and biases to the model's own weights, in place; (layers changed, what fits nowhere).

    Sums are in fp32 and rounded once. Each ΔW is taken on the weights as they were.
    """
    found, left = sums(files, model)
    left_out = list(left)
    for key, one in found.items():
        weight, bias = base_weight(one.target.layer), base_bias(one.target.layer)
        weight.copy_(weight.float().cpu() + one.whole())
        if one.bias is not None and bias is not None:
            bias.copy_(bias.float().cpu() + one.bias)
        elif one.bias is not None:
            left_out.append(f"{key}.diff_b")
    return len(found), tuple(left_out)


def merged_metadata(files: Weighted) -> dict[str, str]:
    """What the files say alike of their base model, and what they are."""
    first = files[0][0].metadata
    told = {
        key: first[key] for key in _TOLD if key in first and all(f.metadata.get(key) == first[key] for f, _ in files)
    }
    sources = ", ".join(f"{Path(file.path).stem} × {weight:g}" for file, weight in files)
    return {**told, "modelspec.merged_from": sources, "ss_training_comment": f"merged: {sources}"}


def merge_into_file(
    path: Path, files: Weighted, model: ModelParts, *, to: str, rank: int, precision: str
) -> tuple[Converted, SavedAdapter]:
    """What `merge` makes, written to a place where nothing is; LoraTrainError if something is."""
    if path.exists():
        raise LoraTrainError(f"{path} is there already. Choose another name.")
    merged = merge(files, model, to=to, rank=rank, precision=precision)
    highest = largest_rank(merged.state)
    metadata = merged_metadata(files)
    return merged, write_converted(path, merged, to=to, rank=highest, metadata=metadata)


def largest_rank(state: Mapping[str, Tensor]) -> int:
    """Of a file's LoRA layers."""
    return max((tensor.shape[0] for key, tensor in state.items() if key.endswith("lora_down.weight")), default=0)
