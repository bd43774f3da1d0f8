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
from lib_lora_train.adapters.inject import require_a_fit
from lib_lora_train.adapters.layer_block_weights import BASE, unet_block_weights
from lib_lora_train.adapters.registry import NORM
from lib_lora_train.adapters.targets import ModelParts, Target, match_targets
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.core.wording import count
from lib_lora_train.lora_tools.convert import OUTPUT_FORMATS, truncate_to_rank, write_converted
from lib_lora_train.lora_tools.low_rank import lora_tensors
from lib_lora_train.lora_tools.merge_methods import combine, sum_of
from lib_lora_train.lora_tools.merge_options import MergeOptions
from lib_lora_train.lora_tools.new_file import refuse_existing

PLAIN_SUM = MergeOptions()
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
    """The updates of one layer in all files, which are computed when they are needed.

    Attributes:
        target: the layer
        parts: what each file that has the layer says about it, and the weight of the file there
    """

    target: Target
    parts: list[tuple[Target, float]] = field(default_factory=list)

    @property
    def is_norm(self) -> bool:
        """Whether it is a norm layer, whose update is not a matrix."""
        return self.target.family is NORM

    @property
    def shape(self) -> torch.Size:
        """The shape of the layer's weight."""
        return base_weight(self.target.layer).shape

    @property
    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """(up, down) of each file, flattened, with its weight in `up`; AdapterError if a file is not a plain LoRA."""
        other = next((part for part, _ in self.parts if not _is_plain(part)), None)
        if other is not None:
            raise AdapterError(
                f"{self.target.key} is a {other.family.NAME} layer, not a plain LoRA: set a rank, or merge to diff."
            )
        return [_pair(part, weight) for part, weight in self.parts]

    def deltas(self) -> list[Tensor]:
        """Each file's ΔW times its weight, shaped like the layer's weight, fp32."""
        return [_delta(part, weight) for part, weight in self.parts]

    def delta(self) -> Tensor:
        """Their sum."""
        return sum_of(self.deltas())

    def bias(self) -> Tensor | None:
        """The weighted sum of the bias updates; None if there are none."""
        biases = [(part.family.diff_bias(part.weights or {}), weight) for part, weight in self.parts]
        found = [bias * weight for bias, weight in biases if bias is not None]
        return sum_of(found) if found else None


def _is_plain(part: Target) -> bool:
    assert part.weights is not None
    return part.family.NAME == "lora" and "mid" not in part.weights and MAGNITUDE not in part.weights


def _pair(part: Target, weight: float) -> tuple[Tensor, Tensor]:
    assert part.weights is not None
    scale = part.options.scale * weight
    return part.weights["up"].flatten(1) * scale, part.weights["down"].flatten(1)


def _delta(part: Target, weight: float) -> Tensor:
    """`weight` times ΔW of a file's layer."""
    assert part.weights is not None
    base = base_weight(part.layer).detach()
    if _is_plain(part):
        up, down = _pair(part, weight)
        return (up @ down).view(base.shape)
    return part.family.diff_weight(part.weights, part.options, base.float().cpu()) * weight


@torch.no_grad()
def sum_layers(
    files: WeightedFiles, model: ModelParts, blocks: Sequence[str] = ()
) -> tuple[dict[str, LayerSum], tuple[str, ...]]:
    """The layer's name in files → all files' updates of it; and what does not fit the model, by file.

    `blocks` are the files' block weights, as in `adapters.layer_block_weights`; "" or none: 1 everywhere.
    AdapterError for a file with no layer that fits the model, and for block weights that do not fit it.
    """
    layers: dict[str, LayerSum] = {}
    left_out: list[str] = []
    if len(blocks) > len(files):
        raise AdapterError(f"{count(len(blocks), 'list')} of block weights for {count(len(files), 'file')}.")
    for (file, weight), text in zip(files, [*blocks, *[""] * (len(files) - len(blocks))], strict=True):
        parsed = parse_sound_file(file)
        groups, unmatched = match_targets(model, parsed)
        require_a_fit(groups, parsed, file.path.name)
        shares = unet_block_weights(model, text) if text.strip() else {}
        for root, targets in groups.values():
            for target in targets:
                share = shares.get(target.name if root is model.unet else BASE, 1.0)
                layer = layers.setdefault(target.key, LayerSum(replace(target, weights=None)))
                layer.parts.append((target, weight * share))
        left_out += [f"{file.path.name}: {name}" for name in (*parsed.unknown, *unmatched)]
    return layers, tuple(left_out)


@torch.no_grad()
def merge(
    files: WeightedFiles,
    model: ModelParts,
    *,
    to: str = "lora",
    rank: int = 0,
    precision: str = "fp32",
    options: MergeOptions = PLAIN_SUM,
) -> Converted:
    """The files as one: `to` a LoRA of at most `rank` (0: all ranks, exact, for a sum only) or the exact `diff`.

    The error is that of the rank and of rounding; `change` is how far the way to merge goes from the plain sum.
    AdapterError for fewer than two files, an unknown format, options out of range, and rank 0 with files that are not
    plain LoRAs or another way than a sum.
    """
    options.check()
    if to not in OUTPUT_FORMATS:
        raise AdapterError(f"Files can be merged to {' or '.join(OUTPUT_FORMATS)}, not to {to!r}.")
    if len(files) < 2:
        raise AdapterError("Give two or more LoRA files to merge. To rewrite a single file, use `convert`.")
    if options.method != "sum" and to == "lora" and not rank:
        raise AdapterError(f"The result of {options.method} has no low rank. Set a rank, or merge to diff.")
    layers, unmatched = sum_layers(files, model, options.blocks)
    builder, left_out, moved, whole = ConversionBuilder(precision), list(unmatched), 0.0, 0.0
    for key, layer in layers.items():
        bias = layer.bias()
        if layer.is_norm:
            assert bias is not None
            builder.add_layer(key, {"w_norm": layer.delta(), "b_norm": bias})
            continue
        deltas = layer.deltas()
        diff = combine(deltas, options, key=key)
        if options.method != "sum":
            plain = sum_of(deltas)
            moved, whole = moved + _squared(diff - plain), whole + _squared(plain)
        tensors = _layer_tensors(layer, diff, to, rank)
        left_out += add_bias(key, tensors, bias, to)
        builder.add_layer(key, tensors, diff)
    return replace(builder.build(left_out), change=(moved / whole) ** 0.5 if whole else 0.0)


def _squared(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())


def _layer_tensors(layer: LayerSum, diff: Tensor, to: str, rank: int) -> dict[str, Tensor]:
    """kohya's ending → tensor of a layer with the ΔW `diff`."""
    if to == "diff":
        return {"diff": diff}
    return truncate_to_rank(diff, rank) if rank else _concatenate(layer)


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
def add_to_layers(files: WeightedFiles, model: ModelParts, blocks: Sequence[str] = ()) -> tuple[int, tuple[str, ...]]:
    """Add the files' ΔW and biases to the model's own weights, in place; (layers changed, what does not fit).

    Sums are in fp32 and rounded once. Each ΔW is computed on the unchanged weights.
    """
    layers, unmatched = sum_layers(files, model, blocks)
    left_out = list(unmatched)
    for key, layer in layers.items():
        weight, bias = base_weight(layer.target.layer), base_bias(layer.target.layer)
        change = layer.bias()
        weight.copy_(weight.float().cpu() + layer.delta())
        if change is not None and bias is not None:
            bias.copy_(bias.float().cpu() + change)
        elif change is not None:
            left_out.append(f"{key}.diff_b")
    return len(layers), tuple(left_out)


def merged_metadata(files: WeightedFiles, options: MergeOptions = PLAIN_SUM) -> dict[str, str]:
    """The base-model metadata on which all files agree, and the files' names and weights and how they were merged."""
    first = files[0][0].metadata
    shared = {
        key: first[key]
        for key in _BASE_MODEL_KEYS
        if key in first and all(file.metadata.get(key) == first[key] for file, _ in files)
    }
    sources = ", ".join(f"{Path(file.path).stem} × {weight:g}" for file, weight in files)
    how = "" if options.method == "sum" else f" by {options.method}, density {options.density:g}, seed {options.seed}"
    return {**shared, "modelspec.merged_from": sources, "ss_training_comment": f"merged{how}: {sources}"}


def merge_into_file(
    path: Path,
    files: WeightedFiles,
    model: ModelParts,
    *,
    to: str,
    rank: int,
    precision: str,
    options: MergeOptions = PLAIN_SUM,
) -> tuple[Converted, SavedAdapter]:
    """The merged files, written to `path`; LoraTrainError if it exists."""
    refuse_existing(path)
    merged = merge(files, model, to=to, rank=rank, precision=precision, options=options)
    rank = largest_rank(merged.state)
    metadata = merged_metadata(files, options)
    return merged, write_converted(path, merged, to=to, rank=rank, metadata=metadata)


def largest_rank(state: Mapping[str, Tensor]) -> int:
    """The largest rank of a file's LoRA layers; 0 if it has none."""
    return max((tensor.shape[0] for key, tensor in state.items() if key.endswith("lora_down.weight")), default=0)
