"""LoRA files: safetensors in the webui's keys, written whole or not at all.

The header is written here and not by the safetensors library, because that library orders the metadata at random:
the same LoRA with the same metadata must give the same bytes.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lib_lora_train.adapters.precisions import PRECISIONS
from lib_lora_train.core import atomic_write
from lib_lora_train.core.errors import AdapterError, OutputError

_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.bool: "BOOL",
}
# They multiply W itself: rounded to fp16 they would change it by 0.05 %, which is as much as many a LoRA does.
_FACTORS = (".dora_scale", ".rescale")
_LEGACY_START, _LEGACY_END = 0x100000, 0x110000
_MOST_VANISHED = 0.01  # of a tensor's norm


@dataclass(frozen=True)
class SavedAdapter:
    """What stands on the disk, and what the number format did to it.

    `vanished` is the share of tensors that lost more than a hundredth of their norm as numbers became 0, `overflowed`
    the share of finite values that became infinite; both are 0 for a healthy LoRA.
    """

    path: Path
    size_bytes: int
    vanished: float
    overflowed: float


@dataclass(frozen=True)
class AdapterFile:
    """A LoRA file in memory: tensors on the CPU in the file's dtypes, metadata as text."""

    path: Path
    state: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def write_adapter(
    path: Path | str, state: Mapping[str, Tensor], *, metadata: Mapping[str, str], precision: str
) -> SavedAdapter:
    """Write `state` as `precision` (fp16, bf16, fp32), with kohya's hashes added to the metadata.

    Numbers without dimension (alpha) and factors of the weights (DoRA's, OFT's) stay as exact as they are. An older
    file of this name is replaced in one moment.
    OutputError, leaving no partial file behind, if the file cannot be written.
    """
    path = Path(path)
    tensors = _in_file_order({key: cast_for_file(key, tensor, precision) for key, tensor in state.items()})
    vanished, overflowed = _rounding_losses(state, tensors)
    header = _header(tensors, {**metadata, **_hashes(tensors, metadata)})
    size = _write_atomically(path, header, tensors)
    return SavedAdapter(path=path, size_bytes=size, vanished=vanished, overflowed=overflowed)


def read_adapter(path: Path | str) -> AdapterFile:
    """The LoRA at `path`; AdapterError for a missing or damaged file or another format."""
    path = Path(path)
    if not path.is_file():
        raise AdapterError(f"There is no LoRA file {path}. Choose an existing .safetensors file.")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as opened:
            state = {key: opened.get_tensor(key) for key in sorted(opened.keys())}
            metadata = dict(opened.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterError(
            f"{path.name} is damaged or not a safetensors file ({error}). Download or train it again."
        ) from error
    if not state:
        raise AdapterError(f"{path.name} holds no tensors. Download or train it again.")
    return AdapterFile(path=path, state=state, metadata=metadata)


def cast_for_file(key: str, tensor: Tensor, precision: str) -> Tensor:
    """As a file of `precision` has it: on the CPU, contiguous; scalars, whole numbers and factors of W as they are."""
    stored = tensor.detach().to("cpu")
    if stored.dim() > 0 and stored.is_floating_point() and not key.endswith(_FACTORS):
        stored = stored.to(PRECISIONS[precision])
    return stored.contiguous()


def _in_file_order(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Wide numbers first, as the safetensors library does it, so that every tensor is aligned; then by name."""
    return dict(sorted(tensors.items(), key=lambda entry: (-entry[1].element_size(), entry[0])))


def _rounding_losses(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> tuple[float, float]:
    """(share of tensors that lost more than a hundredth of their norm to zeros, share of values that became infinite).

    Single numbers that become 0 tell nothing: those of a unit that never fires are as good as 0 before.
    """
    tensors = vanished = finite_count = overflowed = 0
    for key, stored in after.items():
        original = before[key].detach().to("cpu")
        if stored.dtype == original.dtype or not stored.is_floating_point():
            continue
        finite = original.isfinite()
        whole = torch.where(finite, original, 0).double()  # squares of what vanishes would vanish in fp32 too
        lost = torch.where(stored == 0, whole, 0)
        tensors += 1
        vanished += int(lost.norm() > _MOST_VANISHED * whole.norm())
        finite_count += int(finite.sum())
        overflowed += int((finite & stored.isinf()).sum())
    return vanished / max(tensors, 1), overflowed / max(finite_count, 1)


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Length (8 bytes, little endian) and JSON table of a safetensors file, padded to 8 bytes."""
    table: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for key, tensor in tensors.items():
        end = offset + tensor.numel() * tensor.element_size()
        table[key] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _blocks(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """The raw bytes of the tensors, in order."""
    for tensor in tensors.values():
        yield tensor.reshape(-1).view(torch.uint8).numpy().data


def _hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The two hashes that webuis look a LoRA up by.

    `sshs_model_hash` is over the tensors' bytes. `sshs_legacy_hash` is over 64 KiB from 1 MiB on of the file as it
    would be with the ss_* metadata only.
    """
    whole, legacy = hashlib.sha256(), hashlib.sha256()
    plain_header = _header(tensors, {key: value for key, value in metadata.items() if key.startswith("ss_")})
    position = len(plain_header)
    legacy.update(plain_header[_LEGACY_START:_LEGACY_END])
    for block in _blocks(tensors):
        whole.update(block)
        legacy.update(block[max(_LEGACY_START - position, 0) : max(_LEGACY_END - position, 0)])
        position += len(block)
    return {"sshs_model_hash": whole.hexdigest(), "sshs_legacy_hash": legacy.hexdigest()[:8]}


def _write_atomically(path: Path, header: bytes, tensors: Mapping[str, Tensor]) -> int:
    """Write beside the target, force it to the disk, then rename; returns the size."""
    try:
        with atomic_write.replacing(path) as place:
            with place.open("wb") as file:
                file.write(header)
                file.writelines(_blocks(tensors))
            return place.stat().st_size
    except OSError as error:
        raise OutputError(_why_not_written(path, error)) from error


def _why_not_written(path: Path, error: OSError) -> str:
    """A sentence for the user: what, where, what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{path.name} could not be written: {path.parent} has no space left. Free some and save again."
    if not path.parent.is_dir():
        return f"{path.name} could not be written: there is no folder {path.parent}. Create it or choose another."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{path.name} could not be written: no permission, or it is in use. Choose another name or folder."
    return f"{path.name} could not be written to {path.parent}: {error.strerror or error}. Choose another folder."
