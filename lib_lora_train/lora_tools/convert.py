"""Any adapter in a form that every webui reads: the exact difference, or a LoRA of a chosen rank with its error.

ΔW is computed on the model the file is for, since DoRA, GLoRA, (IA)³, OFT and BOFT depend on its weights. The best LoRA
of rank r is the truncated singular value decomposition (Eckart & Young 1936).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lib_lora_train.adapters.files.conversion import ConversionBuilder, Converted, add_bias, network_metadata
from lib_lora_train.adapters.files.decode import parse_sound_file
from lib_lora_train.adapters.files.lora_file import HASH_KEYS, AdapterFile, SavedAdapter, write_adapter
from lib_lora_train.adapters.files.rename import renamed_metadata
from lib_lora_train.adapters.inject import Adapter, inject_parsed
from lib_lora_train.adapters.registry import NORM
from lib_lora_train.adapters.targets import ModelParts
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.lora_tools.low_rank import decompose, lora_tensors
from lib_lora_train.lora_tools.new_file import refuse_existing
from lib_lora_train.lora_tools.rank_rule import RankRule
from lib_lora_train.models.checkpoint import legacy_hash

OUTPUT_FORMATS = ("lora", "diff")


def convert(file: AdapterFile, model: ModelParts, *, to: str, rank: int = 16, precision: str = "fp32") -> Converted:
    """The file's ΔW on this model as `diff` or as a LoRA of `rank`; the model is left as it was.

    AdapterError for an unknown format, or a file with no layer that fits the model.
    """
    if to not in OUTPUT_FORMATS:
        raise AdapterError(f"A file can be converted to {' or '.join(OUTPUT_FORMATS)}, not to {to!r}.")
    if rank < 1:
        raise AdapterError(f"Rank {rank} is too low. Give 1 or more; 16 to 64 is usual.")
    parsed = parse_sound_file(file)
    adapter, unmatched = inject_parsed(model, parsed)
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
    return lora_tensors(*decompose(diff.flatten(1), RankRule(rank)).balanced, diff.shape)


def write_converted(
    path: Path, converted: Converted, *, to: str, rank: int, metadata: Mapping[str, str]
) -> SavedAdapter:
    """Write a new file with the old one's metadata, network keys and name updated.

    LoraTrainError if there is a file already, OutputError if writing fails.
    """
    refuse_existing(path)
    network = {**network_metadata(to, rank), **renamed_metadata(metadata, path.stem)}
    without_hashes = {key: value for key, value in metadata.items() if key not in HASH_KEYS}
    return write_adapter(path, converted.state, metadata={**without_hashes, **network}, precision=converted.precision)
