"""LoRA files: safetensors with the webui's keys, written completely or not at all.

The header is written here rather than by the safetensors library, which orders the metadata randomly: the same LoRA
with the same metadata must give the same bytes.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lib_lora_train.core import atomic_write
from lib_lora_train.core.errors import AdapterError, OutputError
from lib_lora_train.core.safetensors_header import explain_unreadable
from lib_lora_train.core.user_paths import explain_wrong_path
from lib_lora_train.models.checkpoint import LEGACY_HASH_RANGE
from lib_lora_train.models.dtypes import DTYPES
from lib_lora_train.models.file_kinds import describe_other_than_lora

_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.bool: "BOOL",
}
HASH_KEYS = ("sshs_model_hash", "sshs_legacy_hash")
# These multiply W itself: rounding them to fp16 would change it by 0.05%, as much as many LoRAs do.
_FACTORS = (".dora_scale", ".rescale")
_MAX_LOST = 0.01  # of a tensor's norm


@dataclass(frozen=True)
class SavedAdapter:
    """A file on disk, and what its precision cost.

    `vanished` is the share of tensors that lost more than a hundredth of their norm because values became 0,
    `overflowed` the share of finite values that became infinite; both are 0 for a healthy LoRA.
    """

    path: Path
    size_bytes: int
    vanished: float
    overflowed: float


@dataclass(frozen=True)
class AdapterFile:
    """A LoRA file in memory: tensors on the CPU in the file's dtypes, and its metadata."""

    path: Path
    state: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def write_adapter(
    path: Path | str, state: Mapping[str, Tensor], *, metadata: Mapping[str, str], precision: str
) -> SavedAdapter:
    """Write `state` as `precision` (fp16, bf16, fp32), with kohya's hashes added to the metadata.

    Scalars (alpha) and factors of the weights (DoRA's, OFT's) keep their dtype. An existing file is replaced
    atomically. OutputError, leaving no partial file behind, if the file cannot be written.
    """
    path = Path(path)
    tensors = _in_file_order({key: cast_for_file(key, tensor, precision) for key, tensor in state.items()})
    vanished, overflowed = _rounding_losses(state, tensors)
    header = _header(tensors, {**metadata, **_hashes(tensors, metadata)})
    size = _write_atomically(path, header, tensors)
    return SavedAdapter(path=path, size_bytes=size, vanished=vanished, overflowed=overflowed)


def read_adapter(path: Path | str) -> AdapterFile:
    """The LoRA at `path`; AdapterError for a missing or damaged file, or a file of another kind."""
    return read_tensors(path, "a LoRA", check=_refuse_other_files)


def read_tensors(
    path: Path | str, what: str, *, check: Callable[[Path, Collection[str]], None] = lambda _path, _keys: None
) -> AdapterFile:
    """The file at `path`, which is to be `what`; `check` raises for keys of another kind, before tensors are read.

    AdapterError for a missing or damaged file.
    """
    path = Path(path)
    if reason := explain_wrong_path(path, ".safetensors"):
        raise AdapterError(f"{path} {reason} Choose {what} file (.safetensors).")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as opened:
            check(path, set(opened.keys()))
            state = {key: opened.get_tensor(key) for key in sorted(opened.keys())}
            metadata = dict(opened.metadata() or {})
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (SafetensorError, ValueError) as error:
        raise AdapterError(f"{path.name} {explain_unreadable(path)}") from error
    if not state:
        raise AdapterError(f"{path.name} contains no tensors. Download or train it again.")
    return AdapterFile(path=path, state=state, metadata=metadata)


def _refuse_other_files(path: Path, keys: Collection[str]) -> None:
    """AdapterError, naming what it is, for a file without a layer of a LoRA."""
    kind = describe_other_than_lora(sorted(keys))
    if kind:
        raise AdapterError(f"{path.name} is {kind}, not a LoRA. Choose a LoRA file.")


def cast_for_file(key: str, tensor: Tensor, precision: str) -> Tensor:
    """As stored in a file of `precision`: on the CPU, contiguous; scalars, integers and factors unchanged."""
    stored = tensor.detach().to("cpu")
    if stored.dim() > 0 and stored.is_floating_point() and not key.endswith(_FACTORS):
        stored = stored.to(DTYPES[precision])
    return stored.contiguous()


def _in_file_order(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Widest dtypes first, as in the safetensors library, so that every tensor is aligned; then by name."""
    return dict(sorted(tensors.items(), key=lambda entry: (-entry[1].element_size(), entry[0])))


def _rounding_losses(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> tuple[float, float]:
    """(share of tensors that lost more than a hundredth of their norm to zeros, share of values that became infinite).

    Single values that become 0 mean nothing: those of a unit that never fires were practically 0 before.
    """
    tensors = vanished = finite_count = overflowed = 0
    for key, stored in after.items():
        original = before[key].detach().to("cpu")
        if stored.dtype == original.dtype or not stored.is_floating_point():
            continue
        finite = original.isfinite()
        values = torch.where(finite, original, 0).double()  # squares of tiny values would underflow in fp32 too
        lost = torch.where(stored == 0, values, 0)
        tensors += 1
        vanished += int(lost.norm() > _MAX_LOST * values.norm())
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
    """The two hashes by which webuis identify a LoRA.

    `sshs_model_hash` is over the tensors' bytes. `sshs_legacy_hash` is over `LEGACY_HASH_RANGE` of the file as it would
    be with only the ss_* metadata.
    """
    start, end = LEGACY_HASH_RANGE
    full, legacy = hashlib.sha256(), hashlib.sha256()
    plain_header = _header(tensors, {key: value for key, value in metadata.items() if key.startswith("ss_")})
    position = len(plain_header)
    legacy.update(plain_header[start:end])
    for block in _blocks(tensors):
        full.update(block)
        legacy.update(block[max(start - position, 0) : max(end - position, 0)])
        position += len(block)
    return dict(zip(HASH_KEYS, (full.hexdigest(), legacy.hexdigest()[:8]), strict=True))


def _write_atomically(path: Path, header: bytes, tensors: Mapping[str, Tensor]) -> int:
    """Write beside the target, flush it to disk, then rename; returns the size in bytes."""
    try:
        with atomic_write.replacing(path) as place:
            with place.open("wb") as file:
                file.write(header)
                file.writelines(_blocks(tensors))
            return place.stat().st_size
    except OSError as error:
        raise OutputError(_why_not_written(path, error)) from error


def _why_not_written(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{path.name} could not be written: {path.parent} has no space left. Free some and save again."
    if not path.parent.is_dir():
        return f"{path.name} could not be written: {path.parent} does not exist. Create it or choose another folder."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{path.name} could not be written: permission denied, or it is in use. Choose another name or folder."
    return f"{path.name} could not be written to {path.parent}: {error.strerror or error}. Choose another folder."
