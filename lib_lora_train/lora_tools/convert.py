"""Any adapter as one that every webui reads: an exact difference, or a LoRA of a chosen rank with its measured error.

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

from lib_lora_train.adapters.files.decode import open_file
from lib_lora_train.adapters.files.lora_file import AdapterFile, SavedAdapter, as_stored, write_adapter
from lib_lora_train.adapters.inject import Adapter, ModelParts, inject_opened
from lib_lora_train.adapters.registry import NORM
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.models.checkpoint import legacy_hash

KINDS = ("lora", "diff")


@dataclass(frozen=True)
class Converted:
    """`state`: kohya keys → tensors in `precision`, as they are written; `error`: ‖ΔW' − ΔW‖ / ‖ΔW‖ over all layers,
    rounding included; `worst`: the layer with most of it.

    `left_out`: what the new kind cannot hold or no layer fits; it is told, not lost silently.
    """

    state: Mapping[str, Tensor]
    error: float
    worst: str
    left_out: tuple[str, ...]
    precision: str


class Ledger:
    """Collects what is written, layer by layer, and what it loses of each ΔW."""

    def __init__(self, precision: str) -> None:
        self._precision = precision
        self._state: dict[str, Tensor] = {}
        self._lost: dict[str, float] = {}
        self._whole = 0.0

    def take(self, key: str, tensors: Mapping[str, Tensor], diff: Tensor | None = None) -> None:
        """The layer's kohya endings → tensors, which stand for the ΔW `diff`; None for norms, which lose nothing."""
        stored = {ending: as_stored(f"{key}.{ending}", tensor, self._precision) for ending, tensor in tensors.items()}
        self._state |= {f"{key}.{ending}": tensor for ending, tensor in stored.items()}
        if diff is not None:
            self._lost[key] = float((_product(stored) - diff.flatten(1).double()).square().sum())
            self._whole += float(diff.double().square().sum())

    def converted(self, left_out: Sequence[str]) -> Converted:
        """What was taken, with the error over all layers."""
        error = (sum(self._lost.values()) / self._whole) ** 0.5 if self._whole else 0.0
        worst = max(self._lost, key=lambda key: self._lost[key], default="")
        return Converted(self._state, error, worst, tuple(left_out), self._precision)


def convert(file: AdapterFile, model: ModelParts, *, to: str, rank: int = 16, precision: str = "fp32") -> Converted:
    """The file's ΔW on this model as `diff` or as a LoRA of `rank`; the model is as before afterwards.

    AdapterError for an unknown kind, or a file of which no layer fits the model.
    """
    if to not in KINDS:
        raise AdapterError(f"A file can be converted to {' or '.join(KINDS)}, not to {to!r}.")
    if rank < 1:
        raise AdapterError(f"Rank {rank} is no rank. Give 1 or more; 16 to 64 is usual.")
    opened = open_file(file)
    adapter, left = inject_opened(model, opened, takes_rows=True)
    try:
        return _converted(adapter, to, rank, Ledger(precision), (*opened.unknown, *left))
    finally:
        adapter.remove()


@torch.no_grad()
def _converted(adapter: Adapter, to: str, rank: int, ledger: Ledger, left: tuple[str, ...]) -> Converted:
    left_out = list(left)
    for key, layer in adapter.layers.items():
        if layer.family is NORM:
            ledger.take(key, layer.state())
            continue
        diff = layer.diff_weight().cpu()
        tensors = {"diff": diff} if to == "diff" else truncated(diff, rank)
        bias = layer.diff_bias()
        if bias is not None:
            if to == "diff":
                tensors["diff_b"] = bias.cpu()
            elif float(bias.abs().max()) > 0:
                left_out.append(f"{key}.diff_b")
        ledger.take(key, tensors, diff)
    return ledger.converted(left_out)


def other_base(file: AdapterFile, checkpoint: Path) -> str:
    """A sentence where ΔW depends on the model's weights and the file names others than the checkpoint's, else ""."""
    told = file.metadata.get("ss_sd_model_hash", "")
    if told in ("", "None", legacy_hash(checkpoint)):
        return ""
    if not any(layer.depends_on_model for layer in open_file(file).layers.values()):
        return ""
    name = file.metadata.get("ss_sd_model_name") or "another checkpoint"
    return (
        f"{file.path.name} was trained on {name} ({told}), and what it does depends on the model. This is what it does "
        f"to {checkpoint.name}; name the other one's file as the checkpoint for what it did in training."
    )


def truncated(diff: Tensor, rank: int) -> dict[str, Tensor]:
    """The nearest LoRA of at most `rank`: kohya ending → tensor; the singular values are shared by both matrices."""
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
    """The ΔW that a layer's tensors stand for, (out, the rest), float64; alpha is the rank."""
    if "diff" in tensors:
        return tensors["diff"].flatten(1).double()
    return (tensors["lora_up.weight"].flatten(1).float() @ tensors["lora_down.weight"].flatten(1).float()).double()


def write_converted(
    path: Path, converted: Converted, *, to: str, rank: int, metadata: Mapping[str, str]
) -> SavedAdapter:
    """Write the new file with the old one's metadata, its network keys made true; OutputError if that fails."""
    module, arguments = ("networks.lora", {}) if to == "lora" else ("lycoris.kohya", {"algo": "full"})
    told = {
        "ss_network_module": module,
        "ss_network_args": json.dumps(arguments),
        "ss_network_dim": str(rank) if to == "lora" else "None",
        "ss_network_alpha": str(float(rank)) if to == "lora" else "None",
    }
    kept = {key: value for key, value in metadata.items() if key not in ("sshs_model_hash", "sshs_legacy_hash")}
    return write_adapter(path, converted.state, metadata={**kept, **told}, precision=converted.precision)
