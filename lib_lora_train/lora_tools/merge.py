"""Several adapters merged into one file or into a checkpoint: the weighted sum of their updates, ΔW = Σ wᵢ · ΔWᵢ.

A sum of LoRAs is exactly a LoRA whose rank is the sum of theirs, with the matrices concatenated. Adding matrices of the
same name, as some tools do, gives cross terms that were never trained. For a smaller rank, and for other families, the
sum is truncated by a singular value decomposition, and the error is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from lib_lora_train.adapters.families.base import base_bias, base_weight
from lib_lora_train.adapters.families.dora import MAGNITUDE
from lib_lora_train.adapters.files.conversion import ConversionBuilder, Converted, add_bias
from lib_lora_train.adapters.files.decode import parse_sound_file
from lib_lora_train.adapters.files.lora_file import AdapterFile, SavedAdapter
from lib_lora_train.adapters.inject import ModelParts, Target, match_targets
from lib_lora_train.adapters.registry import NORM
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.lora_tools.convert import OUTPUT_FORMATS, truncate_to_rank, write_converted
from lib_lora_train.lora_tools.low_rank import lora_tensors
from lib_lora_train.lora_tools.new_file import refuse_existing

WeightedFiles = Sequence[tuple[AdapterFile, float]]
_BASE_MODEL_KEYS = (
    "ss_base_model_version",
    "ss_v2",
    "modelspec.architecture",
    "modelspec.prediction_type",
    "modelspec.resolution",
)


@dataclass
class LayerSum:
    """The weighted sum of the files' updates of one layer, in fp32.

    Attributes:
        target: the layer
        pairs: (up, down) of plain LoRAs, flattened
        rest: the sum of all other updates, shaped like the weight; None if there are none
        bias: the sum of the bias updates; None if there are none
    """

    target: Target
    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    rest: Tensor | None = None
    bias: Tensor | None = None

    @property
    def is_norm(self) -> bool:
        """Whether it is a norm layer, whose update is not a matrix."""
        return self.target.family is NORM

    @property
    def shape(self) -> torch.Size:
        """The shape of the layer's weight."""
        return base_weight(self.target.layer).shape

    def delta(self) -> Tensor:
        """ΔW, shaped like the layer's weight."""
        parts = [(up @ down).view(self.shape) for up, down in self.pairs]
        parts += [] if self.rest is None else [self.rest]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

    def add(self, target: Target, weight: float) -> None:
        """Add `weight` times a file's update of the layer."""
        weights, family = target.weights, target.family
        assert weights is not None
        if family.NAME == "lora" and "mid" not in weights and MAGNITUDE not in weights:
            scale = target.options.scale * weight
            self.pairs.append((weights["up"].flatten(1) * scale, weights["down"].flatten(1)))
        else:
            base = base_weight(target.layer).detach().float().cpu()
            diff = family.diff_weight(weights, target.options, base) * weight
            self.rest = diff if self.rest is None else self.rest + diff
        bias = family.diff_bias(weights)
        if bias is not None:
            self.bias = bias * weight if self.bias is None else self.bias + bias * weight


@torch.no_grad()
def sum_layers(files: WeightedFiles, model: ModelParts) -> tuple[dict[str, LayerSum], tuple[str, ...]]:
    """The layer's name in files → the sum of all files' updates of it; and what does not fit the model, by file.

    AdapterError for a file with no layer that fits the model.
    """
    layers: dict[str, LayerSum] = {}
    left_out: list[str] = []
    for file, weight in files:
        parsed = parse_sound_file(file)
        groups, unmatched = match_targets(model, parsed)
        if not groups:
            raise AdapterError(f"No layer of {file.path.name} fits the model. Choose the checkpoint it was trained on.")
        for _, targets in groups.values():
            for target in targets:
                layers.setdefault(target.key, LayerSum(replace(target, weights=None))).add(target, weight)
        left_out += [f"{file.path.name}: {name}" for name in (*parsed.unknown, *unmatched)]
    return layers, tuple(left_out)


@torch.no_grad()
def merge(
    files: WeightedFiles, model: ModelParts, *, to: str = "lora", rank: int = 0, precision: str = "fp32"
) -> Converted:
    """The files as one: `to` a LoRA of at most `rank` (0: all ranks, exact) or the exact `diff`.

    AdapterError for fewer than two files, an unknown format, and rank 0 with files that are not plain LoRAs.
    """
    if to not in OUTPUT_FORMATS:
        raise AdapterError(f"Files can be merged to {' or '.join(OUTPUT_FORMATS)}, not to {to!r}.")
    if len(files) < 2:
        raise AdapterError("Give two or more LoRA files to merge. To rewrite a single file, use `convert`.")
    layers, unmatched = sum_layers(files, model)
    builder, left_out = ConversionBuilder(precision), list(unmatched)
    for key, layer in layers.items():
        if layer.is_norm:
            assert layer.rest is not None and layer.bias is not None
            builder.add_layer(key, {"w_norm": layer.rest, "b_norm": layer.bias})
            continue
        diff = layer.delta()
        tensors = _layer_tensors(layer, diff, to, rank)
        left_out += add_bias(key, tensors, layer.bias, to)
        builder.add_layer(key, tensors, diff)
    return builder.build(left_out)


def _layer_tensors(layer: LayerSum, diff: Tensor, to: str, rank: int) -> dict[str, Tensor]:
    """kohya's ending → tensor of a layer with the ΔW `diff`."""
    if to == "diff":
        return {"diff": diff}
    if rank:
        return truncate_to_rank(diff, rank)
    if layer.rest is not None:
        raise AdapterError(
            f"{layer.target.key} is a {layer.target.family.NAME} layer, not a plain LoRA: set a rank, or merge to diff."
        )
    return _concatenate(layer)


def _concatenate(layer: LayerSum) -> dict[str, Tensor]:
    """The LoRA with all ranks; alpha is the rank, and both matrices of a pair are scaled to the same norm."""
    ups, downs = [], []
    for up, down in layer.pairs:
        ratio = float(down.norm()) / max(float(up.norm()), torch.finfo(torch.float32).tiny)
        share = ratio**0.5 if 0 < ratio < 1e12 else 1.0
        ups.append(up * share)
        downs.append(down / share)
    return lora_tensors(torch.cat(ups, dim=1), torch.cat(downs), layer.shape)


@torch.no_grad()
def add_to_layers(files: WeightedFiles, model: ModelParts) -> tuple[int, tuple[str, ...]]:
    """Add the files' ΔW and biases to the model's own weights, in place; (layers changed, what does not fit).

    Sums are in fp32 and rounded once. Each ΔW is computed on the unchanged weights.
    """
    layers, unmatched = sum_layers(files, model)
    left_out = list(unmatched)
    for key, layer in layers.items():
        weight, bias = base_weight(layer.target.layer), base_bias(layer.target.layer)
        weight.copy_(weight.float().cpu() + layer.delta())
        if layer.bias is not None and bias is not None:
            bias.copy_(bias.float().cpu() + layer.bias)
        elif layer.bias is not None:
            left_out.append(f"{key}.diff_b")
    return len(layers), tuple(left_out)


def merged_metadata(files: WeightedFiles) -> dict[str, str]:
    """The base-model metadata on which all files agree, and the files' names and weights."""
    first = files[0][0].metadata
    shared = {
        key: first[key]
        for key in _BASE_MODEL_KEYS
        if key in first and all(file.metadata.get(key) == first[key] for file, _ in files)
    }
    sources = ", ".join(f"{Path(file.path).stem} × {weight:g}" for file, weight in files)
    return {**shared, "modelspec.merged_from": sources, "ss_training_comment": f"merged: {sources}"}


def merge_into_file(
    path: Path, files: WeightedFiles, model: ModelParts, *, to: str, rank: int, precision: str
) -> tuple[Converted, SavedAdapter]:
    """The merged files, written to `path`; LoraTrainError if it exists."""
    refuse_existing(path)
    merged = merge(files, model, to=to, rank=rank, precision=precision)
    rank = largest_rank(merged.state)
    metadata = merged_metadata(files)
    return merged, write_converted(path, merged, to=to, rank=rank, metadata=metadata)


def largest_rank(state: Mapping[str, Tensor]) -> int:
    """The largest rank of a file's LoRA layers; 0 if it has none."""
    return max((tensor.shape[0] for key, tensor in state.items() if key.endswith("lora_down.weight")), default=0)
