"""The tensors of a pickled checkpoint (.ckpt, .pt, .pth, .bin), read without running anything that the file contains.

A pickle names functions that are called when it is loaded. This reader knows three of PyTorch's, which describe a
tensor, and answers every other name with an object that does nothing, as the callbacks and optimisers of trainers need
no more. PyTorch's own reader (`weights_only`) refuses such files, and before PyTorch 2.6 crafted files passed it.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib_lora_train.core.errors import ModelError
from lib_lora_train.models.weight_files import PICKLE_ENDINGS

_STORAGES: Mapping[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
_MAX_PICKLE_BYTES = 1 << 27  # of what describes the tensors; a checkpoint of SDXL has less than 1 MiB
_MAX_NESTED = 4  # state dicts within state dicts
_PLAIN = (int, float, str, bytes, tuple, list, type(None))  # values beside the tensors that hold none


@dataclass(frozen=True)
class PickledTensor:
    """Where a tensor is: elements of a storage, as in `torch.as_strided`."""

    storage: str
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class PickledTensors:
    """An open file with its tensors by name; one is read at a time."""

    def __init__(self, file: zipfile.ZipFile, folder: str, tensors: Mapping[str, PickledTensor]) -> None:
        self._file = file
        self._folder = folder
        self.tensors = tensors

    def read(self, name: str) -> Tensor:
        """The tensor; ModelError if the file ends before it."""
        place = self.tensors[name]
        try:
            entry = self._file.getinfo(f"{self._folder}data/{place.storage}")
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError("PyTorch never compresses tensors")
            content = bytearray(self._file.read(entry))
            if 0 in place.shape:
                return torch.empty(place.shape, dtype=place.dtype)
            storage = torch.frombuffer(content, dtype=place.dtype)
            return storage.as_strided(place.shape, place.stride, place.offset)
        except (KeyError, ValueError, RuntimeError, OSError, zipfile.BadZipFile) as reason:
            raise ModelError(
                f"{self._file.filename}: the tensor {name} is damaged. Download the file again."
            ) from reason


def is_pickle(path: Path) -> bool:
    """Whether a file is to be read as a pickle: by its content, else by its ending."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\x03\x04" or path.suffix.lower() in PICKLE_ENDINGS
    except OSError:
        return path.suffix.lower() in PICKLE_ENDINGS


@contextmanager
def open_pickled(path: Path) -> Iterator[PickledTensors]:
    """The tensors of the file's state dict.

    ModelError for a file that is missing or damaged, written before PyTorch 1.6, or without a state dict.
    """
    try:
        file = zipfile.ZipFile(path)
    except OSError as reason:
        raise ModelError(f"{path} cannot be read: {reason.strerror or reason}.") from reason
    except zipfile.BadZipFile as reason:
        raise ModelError(f"{path.name} {_explain_no_archive(path)}") from reason
    with file:
        folder, content = _content(path, file)
        yield PickledTensors(file, folder, _state_dict(path, content))


def _explain_no_archive(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(16)
    if start[8:10] == b'{"':
        return "is a safetensors file with another ending. Rename it to .safetensors."
    if start[:1] == b"\x80":
        return "was written by PyTorch before 1.6, in a format that cannot be read safely. Look for a newer file."
    return "is not a checkpoint of PyTorch, or the download is incomplete. Download it again."


def _content(path: Path, file: zipfile.ZipFile) -> tuple[str, Any]:
    """The folder inside the archive, and the objects that its pickle describes."""
    entry = next((one for one in file.infolist() if one.filename.endswith("/data.pkl")), None)
    if entry is None:
        raise ModelError(f"{path.name} is an archive, but not a checkpoint of PyTorch.")
    if entry.file_size > _MAX_PICKLE_BYTES:
        raise ModelError(f"{path.name} describes more than tensors: its index has {entry.file_size / 2**20:.0f} MiB.")
    folder = entry.filename.removesuffix("data.pkl")
    try:
        if file.NameToInfo.get(f"{folder}byteorder") and file.read(f"{folder}byteorder") != b"little":
            raise ModelError(f"{path.name} was written on a big-endian machine, which cannot be read.")
        with file.open(entry) as stream:
            return folder, _Unpickler(stream, encoding="utf-8").load()
    except ModelError:
        raise
    except Exception as reason:  # a damaged pickle can raise anything
        raise ModelError(f"{path.name} is damaged, or not a checkpoint of PyTorch. Download it again.") from reason


def _state_dict(path: Path, content: Any) -> dict[str, PickledTensor]:
    """The tensors by name, from the mapping that holds them: the content itself, or its `state_dict`."""
    for _ in range(_MAX_NESTED):
        if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
            break
        content = content["state_dict"]
    named = content if isinstance(content, dict) else {}
    tensors = {name: value for name, value in named.items() if isinstance(value, PickledTensor)}
    if not tensors:
        raise ModelError(f"{path.name} has no weights under names: it is not a checkpoint.")
    for name, value in named.items():
        if not isinstance(name, str) or not isinstance(value, (PickledTensor, *_PLAIN)):
            raise ModelError(f"{path.name}: {name} is not a tensor of a kind that can be read, so nothing is.")
    return tensors


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    """Its elements', where the tensor names none."""


class _Dict(dict[Any, Any]):
    """A dict, or one of its kinds, whose attributes are left out."""

    def __setstate__(self, state: Any) -> None:
        """Leave the attributes out."""


class _Inert:
    """Stands for everything that is not a tensor: it takes what is done to it, and does nothing."""

    def __init__(self, *_values: Any, **_named: Any) -> None:
        pass

    def __call__(self, *_values: Any, **_named: Any) -> _Inert:
        """Nothing is called."""
        return self

    def __setstate__(self, state: Any) -> None:
        """Leave the attributes out."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Leave the entry out."""

    def append(self, value: Any) -> None:
        """Leave the value out."""

    def extend(self, values: Any) -> None:
        """Leave the values out."""

    def add(self, value: Any) -> None:
        """Leave the value out."""


class _Call:
    """A function of PyTorch that a pickle calls. It has no attributes that the pickle could set."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function has no state")


class _RebuildTensor(_Call):
    __slots__ = ()

    def __call__(self, storage: Any, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *more: Any) -> Any:
        """The tensor's place; of `more`, only a dtype says something, where that is not the storage's."""
        if not isinstance(storage, _Storage):
            return _Inert()
        dtype = next((value for value in more if isinstance(value, torch.dtype)), storage.dtype)
        return PickledTensor(storage.key, dtype, int(offset), tuple(map(int, shape)), tuple(map(int, stride)))


class _RebuildParameter(_Call):
    __slots__ = ()

    def __call__(self, tensor: Any, *_more: Any) -> Any:
        """The parameter's tensor."""
        return tensor


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name in the pickle."""
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"):
            return _RebuildTensor()
        if module == "torch._utils" and name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return _RebuildParameter()
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return name
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if (module, name) in (("collections", "OrderedDict"), ("collections", "defaultdict"), ("builtins", "dict")):
            return _Dict if name != "defaultdict" else _Inert
        return _Inert

    def persistent_load(self, pid: Any) -> Any:
        """A storage, as `torch.save` refers to it: (kind, type, key, device, number of elements)."""
        _, kind, key, *_ = pid
        return _Storage(str(key), _STORAGES[kind]) if kind in _STORAGES else _Inert()
