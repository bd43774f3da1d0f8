"""Any adapter in a form that every webui reads: the exact difference, or a LoRA of a chosen rank with its error.

ΔW is computed on the model the file is for, since DoRA, GLoRA, (IA)³, OFT and BOFT depend on its weights. The best LoRA
of rank r is the truncated singular value decomposition (Eckart & Young 1936).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lib_lora_train.adapters.files.decode import parse_sound_file
from lib_lora_train.adapters.files.lora_file import HASH_KEYS, AdapterFile, SavedAdapter, cast_for_file, write_adapter
from lib_lora_train.adapters.files.rename import renamed_metadata
from lib_lora_train.adapters.inject import Adapter, ModelParts, inject_parsed
from lib_lora_train.adapters.registry import NORM
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.lora_tools.new_file import refuse_existing
from lib_lora_train.models.checkpoint import legacy_hash

OUTPUT_FORMATS = ("lora", "diff")


@dataclass(frozen=True)
class Converted:
    """A converted or merged adapter.

    Attributes:
        state: kohya keys → tensors in `precision`, as they are written
        error: ‖ΔW' − ΔW‖ / ‖ΔW‖ over all layers, rounding included
        worst: the layer with the largest share of the error
        left_out: what the new form cannot hold, or what fits no layer; it is reported, not dropped silently
    """

    state: Mapping[str, Tensor]
    error: float
    worst: str
    left_out: tuple[str, ...]
    precision: str


class ConversionBuilder:
    """Collects the new file's layers and measures what each loses of its ΔW."""

    def __init__(self, precision: str) -> None:
        self._precision = precision
        self._state: dict[str, Tensor] = {}
        self._squared_errors: dict[str, float] = {}
        self._squared_norm = 0.0

    def add_layer(self, key: str, tensors: Mapping[str, Tensor], diff: Tensor | None = None) -> None:
        """Add a layer's tensors by kohya ending; `diff` is the exact ΔW, None for norm layers, which lose nothing."""
        stored = {
            ending: cast_for_file(f"{key}.{ending}", tensor, self._precision) for ending, tensor in tensors.items()
        }
        self._state |= {f"{key}.{ending}": tensor for ending, tensor in stored.items()}
        if diff is not None:
            self._squared_errors[key] = float((_product(stored) - diff.flatten(1).double()).square().sum())
            self._squared_norm += float(diff.double().square().sum())

    def build(self, left_out: Sequence[str]) -> Converted:
        """All layers added, with the error over all of them."""
        error = (sum(self._squared_errors.values()) / self._squared_norm) ** 0.5 if self._squared_norm else 0.0
        worst = max(self._squared_errors, key=lambda key: self._squared_errors[key], default="")
        return Converted(self._state, error, worst, tuple(left_out), self._precision)


def convert(file: AdapterFile, model: ModelParts, *, to: str, rank: int = 16, precision: str = "fp32") -> Converted:
    """The file's ΔW on this model as `diff` or as a LoRA of `rank`; the model is left as it was.

    AdapterError for an unknown format, or a file with no layer that fits the model.
    """
    if to not in OUTPUT_FORMATS:
        raise AdapterError(f"A file can be converted to {' or '.join(OUTPUT_FORMATS)}, not to {to!r}.")
    if rank < 1:
        raise AdapterError(f"Rank {rank} is too low. Give 1 or more; 16 to 64 is usual.")
    parsed = parse_sound_file(file)
    adapter, unmatched = inject_parsed(model, parsed, allow_output_dora=True)
    try:
        return _converted(adapter, to, rank, ConversionBuilder(precision), (*parsed.unknown, *unmatched))
    finally:
        adapter.remove()


@torch.no_grad()
def _converted(
    adapter: Adapter, to: str, rank: int, builder: ConversionBuilder, unmatched: tuple[str, ...]
) -> Converted:
    left_out = list(unmatched)
    for key, layer in adapter.layers.items():
        if layer.family is NORM:
            builder.add_layer(key, layer.state())
            continue
        diff = layer.diff_weight().cpu()
        tensors = {"diff": diff} if to == "diff" else truncate_to_rank(diff, rank)
        left_out += add_bias(key, tensors, layer.diff_bias(), to)
        builder.add_layer(key, tensors, diff)
    return builder.build(left_out)


def add_bias(key: str, tensors: dict[str, Tensor], bias: Tensor | None, to: str) -> list[str]:
    """Add a layer's bias update to `tensors`; the keys left out, since only `diff` holds bias updates."""
    if bias is None:
        return []
    if to == "diff":
        tensors["diff_b"] = bias.cpu()
        return []
    return [f"{key}.diff_b"] if float(bias.abs().max()) > 0 else []


def base_mismatch(file: AdapterFile, checkpoint: Path) -> str:
    """A warning if ΔW depends on the model and the file was trained on other weights than the checkpoint's, else ""."""
    trained_on = file.metadata.get("ss_sd_model_hash", "")
    if trained_on in ("", "None", legacy_hash(checkpoint)):
        return ""
    if not any(layer.depends_on_model for layer in parse_sound_file(file).layers.values()):
        return ""
    name = file.metadata.get("ss_sd_model_name") or "another checkpoint"
    return (
        f"{file.path.name} was trained on {name} ({trained_on}), and its effect depends on the model. The result is "
        f"its effect on {checkpoint.name}; for its effect in training, choose the checkpoint it was trained on."
    )


def truncate_to_rank(diff: Tensor, rank: int) -> dict[str, Tensor]:
    """The nearest LoRA of at most `rank`, kohya ending → tensor; the singular values are split evenly between both."""
    flat = diff.flatten(1)
    left, values, right = torch.linalg.svd(flat, full_matrices=False)
    rank = min(rank, len(values))
    roots = values[:rank].sqrt()
    up, down = left[:, :rank] * roots, right[:rank] * roots[:, None]
    ones = (1,) * (diff.dim() - 2)
    return {
        "lora_down.weight": down.reshape(rank, *diff.shape[1:]).contiguous(),
        "lora_up.weight": up.reshape(-1, rank, *ones).contiguous(),
        "alpha": torch.tensor(float(rank)),
    }


def _product(tensors: Mapping[str, Tensor]) -> Tensor:
    """The ΔW of a layer's tensors, (out, in · kernel), float64; alpha is the rank."""
    if "diff" in tensors:
        return tensors["diff"].flatten(1).double()
    return (tensors["lora_up.weight"].flatten(1).float() @ tensors["lora_down.weight"].flatten(1).float()).double()


def write_converted(
    path: Path, converted: Converted, *, to: str, rank: int, metadata: Mapping[str, str]
) -> SavedAdapter:
    """Write a new file with the old one's metadata, network keys and name updated.

    LoraTrainError if there is a file already, OutputError if writing fails.
    """
    refuse_existing(path)
    module, arguments = ("networks.lora", {}) if to == "lora" else ("lycoris.kohya", {"algo": "full"})
    network = {
        "ss_network_module": module,
        "ss_network_args": json.dumps(arguments),
        "ss_network_dim": str(rank) if to == "lora" else "None",
        "ss_network_alpha": str(float(rank)) if to == "lora" else "None",
        **renamed_metadata(metadata, path.stem),
    }
    without_hashes = {key: value for key, value in metadata.items() if key not in HASH_KEYS}
    return write_adapter(path, converted.state, metadata={**without_hashes, **network}, precision=converted.precision)
