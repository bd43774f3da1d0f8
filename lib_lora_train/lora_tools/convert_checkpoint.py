"""A checkpoint written again: a pickle as safetensors, in another precision, without leftovers, with another VAE.

Tensors are read, changed and written one at a time, so that memory does not grow with the model.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from lib_lora_train.core import atomic_write
from lib_lora_train.core.errors import ModelError, OutputError, VaeError
from lib_lora_train.core.wording import count
from lib_lora_train.core.writable import failed_write_advice
from lib_lora_train.lora_tools.checkpoint_changes import CheckpointChanges
from lib_lora_train.lora_tools.new_file import new_config, refuse_existing
from lib_lora_train.lora_tools.streamed_file import header_bytes, tensor_bytes
from lib_lora_train.models.architecture import TEXT_PREFIXES, UNET_PREFIX, VAE_PREFIX
from lib_lora_train.models.dtypes import DTYPES
from lib_lora_train.models.file_kinds import refuse_other_kinds
from lib_lora_train.models.loading import load_fitting_vae, require_fitting_vae
from lib_lora_train.models.pickled_tensors import is_pickle, open_pickled
from lib_lora_train.models.weight_files import read_model_header

_HASH_KEY = "modelspec.hash_sha256"
_EMA_PREFIX = "model_ema."
_LEFTOVERS = (f"{VAE_PREFIX}loss.", f"{VAE_PREFIX}model_ema.")
_VAE_LEFTOVERS = ("loss.",)  # in a file of the VAE alone
_PARTS = (UNET_PREFIX, VAE_PREFIX, *TEXT_PREFIXES, _EMA_PREFIX)
_POSITIONS = re.compile(r"^(cond_stage_model|conditioner\.embedders\.\d)\..*position_ids$")
_WIDE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_SCALES = (".scale_weight", ".weight_scale", ".scale_input", ".comfy_quant", ".absmax", "scaled_fp8")
_NAMES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    **{
        dtype: name
        for attribute, name in (("float8_e4m3fn", "F8_E4M3"), ("float8_e5m2", "F8_E5M2"))
        if (dtype := getattr(torch, attribute, None))
    },
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_FLOATS = (*_WIDE, *(dtype for dtype, name in _NAMES.items() if name.startswith("F8")))


@dataclass(frozen=True)
class ConvertedCheckpoint:
    """The file that was written; `notes` say what is different in it."""

    path: Path
    size_bytes: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Stored:
    """A tensor to write: its dtype and shape now, and how to read it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        """Size in bytes as it is now."""
        return _size(self.dtype, self.shape)


@dataclass(frozen=True)
class _Source:
    """An open checkpoint."""

    tensors: Mapping[str, _Stored]
    metadata: Mapping[str, str]


def convert_checkpoint(
    source: Path,
    path: Path,
    changes: CheckpointChanges,
    *,
    on_tensor: Callable[[int, int], None] = lambda _done, _total: None,
) -> ConvertedCheckpoint:
    """Write `source`, a .safetensors file or a pickle, to the new file `path`; `on_tensor` gets the progress.

    Position ids that were rounded, which some mergers leave behind, are put right. A .yaml beside it is copied.
    LoraTrainError if the file exists or a choice is unknown, ModelError for a source that cannot be read or whose
    values the precision cannot hold, VaeError for the VAE, OutputError if it cannot be written.
    """
    changes.check()
    refuse_existing(path)
    config = new_config(source, path)
    with _opened(source) as file:
        notes: list[str] = []
        _require_convertible(source, file.tensors, changes)
        tensors = _changed(source, file.tensors, changes, notes)
        dtypes = _new_dtypes(tensors, changes.precision)
        header = {
            name: (_NAMES[dtypes[name]], one.shape, _size(dtypes[name], one.shape)) for name, one in tensors.items()
        }
        try:
            with atomic_write.replacing(path) as part, part.open("wb") as new:
                metadata = {key: text for key, text in file.metadata.items() if key != _HASH_KEY}
                new.write(header_bytes(header, metadata))
                for number, (name, tensor) in enumerate(tensors.items()):
                    on_tensor(number, len(tensors))
                    new.write(tensor_bytes(_converted(name, tensor.read(), dtypes[name])))
            if config:
                shutil.copy(source.with_suffix(".yaml"), config)
        except OSError as error:
            reason = error.strerror or error
            raise OutputError(f"{path} could not be written: {reason}. {failed_write_advice(error)}") from error
        on_tensor(len(tensors), len(tensors))
    return ConvertedCheckpoint(path, path.stat().st_size, tuple(notes))


def _changed(
    source: Path, tensors: Mapping[str, _Stored], changes: CheckpointChanges, notes: list[str]
) -> dict[str, _Stored]:
    """What will be written, still in its dtypes; `notes` receives what is different from the source."""
    leftovers = _LEFTOVERS if _has_unet(tensors) else (*_LEFTOVERS, *_VAE_LEFTOVERS)
    left_out = (*leftovers, *(() if changes.ema == "keep" else (_EMA_PREFIX,)))
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(left_out)}
    dropped = sum(tensor.bytes for name, tensor in tensors.items() if name not in kept)
    if dropped:
        notes.append(f"What only trainers need was left out: {max(0.1, dropped / 2**20):,.1f} MiB.")
    if changes.ema == "use":
        kept.update(_ema_weights(source, tensors))
        notes.append("The UNet is that of the EMA weights.")
    for name in filter(_POSITIONS.match, kept):
        kept[name], wrong = _positions(kept[name])
        if wrong:
            notes.append(f"{count(wrong, 'position id')} of the text encoder put right.")
    if changes.vae:
        vae = {name: _constant(tensor) for name, tensor in _read_vae(changes.vae).items()}
        kept = {**{name: tensor for name, tensor in kept.items() if not name.startswith(VAE_PREFIX)}, **vae}
        notes.append(f"The VAE is that of {changes.vae.name}.")
    return kept


def _ema_weights(source: Path, tensors: Mapping[str, _Stored]) -> dict[str, _Stored]:
    """The EMA copy of every weight of the UNet, under the weight's name. ldm takes the dots out of the copy's name."""
    copies = {name: _EMA_PREFIX + name.removeprefix("model.").replace(".", "") for name in tensors}
    found = {name: tensors[copy] for name, copy in copies.items() if name.startswith(UNET_PREFIX) and copy in tensors}
    if not found:
        raise ModelError(f"{source.name} has no EMA weights. Leave the option out.")
    without = next((name for name in tensors if name.startswith(UNET_PREFIX) and name not in found), "")
    if without:
        raise ModelError(f"{source.name} has EMA weights for a part of its UNet only: {without} has none.")
    return found


def _has_unet(tensors: Mapping[str, _Stored]) -> bool:
    return any(name.startswith(UNET_PREFIX) for name in tensors)


def _require_convertible(source: Path, tensors: Mapping[str, _Stored], changes: CheckpointChanges) -> None:
    """ModelError for a file that is neither a checkpoint nor a VAE, or whose weights cannot be changed as asked."""
    is_vae = any(name.startswith(("encoder.", "decoder.")) for name in tensors)
    if not is_vae and not any(name.startswith((UNET_PREFIX, VAE_PREFIX, *TEXT_PREFIXES)) for name in tensors):
        if all(name.startswith(_EMA_PREFIX) for name in tensors):
            raise ModelError(
                f"{source.name} has EMA weights alone, which no program reads. Choose the whole checkpoint."
            )
        try:
            refuse_other_kinds(tensors)
        except ModelError as reason:
            raise ModelError(f"{source.name}: {reason}") from None
    if changes.vae and not _has_unet(tensors):
        raise ModelError(f"{source.name} has no UNet, so it needs no VAE. Leave the VAE out.")
    if changes.precision and any(name.endswith(_SCALES) for name in tensors):
        raise ModelError(f"{source.name} is stored in 8 bit or less with scales. Leave the precision as it is.")


def _read_vae(path: Path) -> Mapping[str, Tensor]:
    """A VAE's tensors under ldm's names with `first_stage_model.`, from any format; VaeError if it cannot be used."""
    if not is_pickle(path):
        return load_fitting_vae(path)
    try:
        with open_pickled(path) as file:
            names = {f"{VAE_PREFIX}{name.removeprefix(VAE_PREFIX)}": name for name in file.tensors}
            vae = {name: file.read(old) for name, old in names.items() if not name.startswith(_LEFTOVERS)}
    except ModelError as reason:
        raise VaeError(str(reason)) from reason
    return require_fitting_vae(path, vae)


def _positions(stored: _Stored) -> tuple[_Stored, int]:
    """The ids 0, 1, 2 … in the shape of the stored ones, and how many of those were others."""
    right = torch.arange(stored.shape[-1], dtype=torch.int64).expand(stored.shape)
    return _constant(right), int((stored.read().double() != right.double()).sum())


def _constant(tensor: Tensor) -> _Stored:
    return _Stored(tensor.dtype, tuple(tensor.shape), lambda: tensor)


def _size(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * torch.empty(0, dtype=dtype).element_size()


def _new_dtypes(tensors: Mapping[str, _Stored], precision: str) -> dict[str, torch.dtype]:
    """Each tensor's dtype in the new file: that of the precision for weights.

    Beside the parts of a model, noise schedules and markers stay as they are.
    """
    prefixes = _PARTS if any(name.startswith(_PARTS) for name in tensors) else ("",)
    return {
        name: DTYPES[precision] if precision and tensor.dtype in _FLOATS and name.startswith(prefixes) else tensor.dtype
        for name, tensor in tensors.items()
    }


def _converted(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in this dtype; ModelError if finite values become infinite."""
    if tensor.dtype == dtype:
        return tensor
    tensor = tensor if tensor.dtype in _WIDE else tensor.float()
    new = tensor.to(dtype)
    if dtype == torch.float16 and not torch.equal(new.isfinite(), tensor.isfinite()):
        largest = tensor[tensor.isfinite()].abs().max()
        raise ModelError(f"{name} has values up to {largest:.3g}, and fp16 ends at 65504. Choose bf16 or fp32.")
    return new


@contextmanager
def _opened(source: Path) -> Iterator[_Source]:
    if source.is_dir():
        raise ModelError(f"{source} is a folder. Choose a .safetensors, .ckpt or .pt file.")
    if is_pickle(source):
        with open_pickled(source) as pickled:
            kinds = {name: (place.dtype, place.shape) for name, place in pickled.tensors.items()}
            yield _Source(_stored(kinds, pickled.read), {"format": "pt"})
        return
    header = read_model_header(source)
    kinds = {name: (_dtype(source, entry.dtype), entry.shape) for name, entry in header.entries.items()}
    with safe_open(str(source), framework="pt", device="cpu") as opened:
        yield _Source(_stored(kinds, opened.get_tensor), header.metadata)


def _stored(
    kinds: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], read: Callable[[str], Tensor]
) -> dict[str, _Stored]:
    return {name: _Stored(dtype, shape, partial(read, name)) for name, (dtype, shape) in kinds.items()}


def _dtype(source: Path, name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise ModelError(f"{source.name} has tensors of the type {name}, which PyTorch here does not have.")
    return _DTYPES[name]
