"""Adapters merged into a checkpoint that is one file with a transformer, such as an Anima, tensor by tensor.

The names in the file decide, so every spelling of the checkpoint and of the adapters is read, and layers beside the
transformer that the file holds, such as Anima's text adapter, are merged, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from lib_lora_train.adapters.files.decode import ParsedLayer, parse_sound_file, weights_for
from lib_lora_train.core.errors import AdapterError, ModelError
from lib_lora_train.core.safetensors_header import Header
from lib_lora_train.lora_tools.changed_copy import write_changed_copy
from lib_lora_train.lora_tools.merge import WeightedFiles
from lib_lora_train.models.architecture import UNET_PREFIX, CheckpointHints, ModelSpec
from lib_lora_train.models.kinds.base import ModelKind
from lib_lora_train.models.kinds.registry import kind_in
from lib_lora_train.models.unet_layers import kohya_key
from lib_lora_train.models.weight_files import read_model_header

_DTYPES = ("F64", "F32", "F16", "BF16")


@dataclass
class _Update:
    """What is added to a layer's weight and bias: layers of files with their weights."""

    parts: list[tuple[ParsedLayer, float]] = field(default_factory=list)

    @torch.no_grad()
    def weight(self, base: Tensor) -> Tensor:
        """The layer's new weight (out, in), fp32. Each ΔW is computed on the unchanged one."""
        base = base.float()
        return base + torch.stack([layer.diff_weight(base) * share for layer, share in self.parts]).sum(0)

    @torch.no_grad()
    def bias(self, base: Tensor) -> Tensor:
        """The layer's new bias (out,), fp32."""
        updates = [(_diff_bias(layer), share) for layer, share in self.parts]
        return base.float() + sum(update * share for update, share in updates if update is not None)


def merge_into_transformer(
    checkpoint: Path, files: WeightedFiles, path: Path, *, metadata: Mapping[str, str]
) -> tuple[int, tuple[str, ...]]:
    """Write the checkpoint with the files' updates; (layers changed, what of the files does not fit).

    ModelError for weights stored in 8 bit, AdapterError for a file with no layer that fits, OSError or SafetensorError
    if it cannot be written.
    """
    header = read_model_header(checkpoint)
    layers = _layers_by_key(header)
    updates: dict[str, _Update] = {}
    left_out: list[str] = []
    for file, share in files:
        parsed = parse_sound_file(file)
        fitting = {name: layers[name] for name, layer in parsed.layers.items() if _fits(layer, name, layers, header)}
        if not fitting:
            raise AdapterError(
                f"No layer of {file.path.name} fits the model. Choose a checkpoint of the kind it was trained on."
            )
        for name, place in fitting.items():
            updates.setdefault(place, _Update()).parts.append((parsed.layers[name], share))
            if _diff_bias(parsed.layers[name]) is not None and f"{place}.bias" not in header.entries:
                left_out.append(f"{name}.diff_b")
        unmatched = [name for name in parsed.layers if name not in fitting]
        left_out += [f"{file.path.name}: {name}" for name in (*parsed.unknown, *unmatched)]
    _require_plain(checkpoint, header, updates)
    write_changed_copy(
        checkpoint,
        header,
        path,
        metadata=metadata,
        changed=set(_changed_tensors(updates, header)),
        change=lambda name, tensor: _changed(updates, name, tensor),
    )
    return len(updates), tuple(left_out)


def _layers_by_key(header: Header) -> dict[str, str]:
    """Every name that LoRA files have for a layer → the layer's name in the checkpoint."""
    kind = kind_in(header.entries)
    own = kind.own_tensors({name: name for name in header.entries})  # the webuis' name → the one in the file
    theirs, name = next(iter(own.items()))
    prefix = name[: len(name) - len(theirs) + len(UNET_PREFIX)]
    linear = [name for name, entry in header.entries.items() if name.endswith(".weight") and len(entry.shape) == 2]
    places = {name.removesuffix(".weight") for name in linear if name.startswith(prefix)}
    by_key = {kohya_key(place[len(prefix) :]): place for place in places}
    spec = kind.infer_spec({name: header.entries[place].shape for name, place in own.items()}, CheckpointHints())
    aliases = kind.lora_aliases(_module_names(kind, spec))
    return {**{alias: by_key[key] for alias, key in aliases.items() if key in by_key}, **by_key}


def _module_names(kind: ModelKind, spec: ModelSpec) -> Iterable[str]:
    """The transformer's layers in diffusers' spelling."""
    network = next(kind.networks(spec))
    assert network.prefix == UNET_PREFIX, "the transformer comes first"
    return [name for name, module in network.module.named_modules() if isinstance(module, nn.Linear)]


def _fits(layer: ParsedLayer, name: str, layers: Mapping[str, str], header: Header) -> bool:
    """Whether the layer's update has the shape of the checkpoint's weight."""
    if name not in layers:
        return False
    rows, columns = header.entries[f"{layers[name]}.weight"].shape
    return weights_for(layer, nn.Linear(columns, rows, device="meta")) is not None


def _diff_bias(layer: ParsedLayer) -> Tensor | None:
    bias = layer.family.diff_bias(layer.weights)
    return None if bias is None else bias.float()


def _require_plain(checkpoint: Path, header: Header, updates: Mapping[str, _Update]) -> None:
    """ModelError if a weight to be changed is quantised."""
    if any(header.entries[name].dtype not in _DTYPES for name in _changed_tensors(updates, header)):
        raise ModelError(f"{checkpoint.name} is stored in 8 bit or less. Merge into its 16-bit or 32-bit version.")


def _changed_tensors(updates: Mapping[str, _Update], header: Header) -> list[str]:
    biases = (
        place for place, update in updates.items() if any(_diff_bias(layer) is not None for layer, _ in update.parts)
    )
    return [f"{place}.weight" for place in updates] + [
        f"{place}.bias" for place in biases if f"{place}.bias" in header.entries
    ]


def _changed(updates: Mapping[str, _Update], name: str, tensor: Tensor) -> Tensor:
    place, _, part = name.rpartition(".")
    return updates[place].weight(tensor) if part == "weight" else updates[place].bias(tensor)
