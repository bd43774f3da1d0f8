"""What a run says about weights that it cannot share with the webui, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lib_lora_train.core.wording import count, join_names
from lib_lora_train.hosts.host import HeldWeights
from lib_lora_train.models.architecture import ModelSpec
from lib_lora_train.models.graft import ELSEWHERE, QUANTIZED, GraftRow
from lib_lora_train.models.quantized import is_quantized, packed_bytes


def held_weights(tensors: Mapping[str, Tensor], spec: ModelSpec, device: torch.device) -> HeldWeights:
    """What the webui's tensors take, and what a run will take for those that it has to unpack or convert."""
    held = copied = 0
    for tensor in tensors.values():
        is_packed = is_quantized(tensor)
        held += packed_bytes(tensor) if is_packed else tensor.nbytes
        size = 4 if device.type == "cpu" else tensor.element_size()
        if is_packed or (tensor.is_floating_point() and size != tensor.element_size()):
            copied += tensor.numel() * size
    return HeldWeights(spec, held, copied)


def notes_on_copies(report: Sequence[GraftRow]) -> Iterator[str]:
    """A sentence on quantised weights, and one on weights that are not on the GPU; nothing if there are none."""
    packed = _copies(report, QUANTIZED)
    if packed:
        formats = join_names(sorted({row.reason.removeprefix(QUANTIZED) for row in packed}))
        yield (
            f"The webui keeps {count(len(packed), 'weight')} of this checkpoint quantised ({formats}), so the run "
            f"trains on unpacked copies. They take {_mebibytes(packed)} more memory."
        )
    moved = _copies(report, ELSEWHERE)
    if moved:
        place = "system memory" if moved[0].reason == f"{ELSEWHERE}cpu" else moved[0].reason.removeprefix(ELSEWHERE)
        yield (
            f"The webui keeps {count(len(moved), 'weight')} in {place} because the GPU's memory is short. They are "
            f"copied to the GPU for each turn of the run, which takes {_mebibytes(moved)} there and some time."
        )


def _copies(report: Sequence[GraftRow], reason: str) -> list[GraftRow]:
    return [row for row in report if row.status == "copied" and row.reason.startswith(reason)]


def _mebibytes(rows: Sequence[GraftRow]) -> str:
    return f"{sum(row.bytes for row in rows) / 2**20:.0f} MiB"
