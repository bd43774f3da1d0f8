"""Pickled checkpoints are read as PyTorch reads them, without calling anything that they name."""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as serialise
from torch import Tensor, nn

from lib_lora_train.core.errors import ModelError
from lib_lora_train.models.pickled_tensors import open_pickled


class Callback:
    """An object of a trainer, with everything that pickles have."""

    def __init__(self) -> None:
        self.best, self.seen, self.names = 0.5, [1, 2], {"a"}


class Runs:
    """An object whose pickle calls a function."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.folder,)


def read(path: Path) -> dict[str, Tensor]:
    """All tensors of a file."""
    with open_pickled(path) as file:
        return {name: file.read(name) for name in file.tensors}


def example() -> dict[str, Tensor]:
    """Tensors of every kind that PyTorch saves: dtypes, views of one storage, scalars, empty ones."""
    whole = torch.arange(24.0).reshape(4, 6)
    return {
        **{str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in (torch.float64, torch.float16)},
        **{str(dtype): torch.arange(6).to(dtype) for dtype in (torch.bfloat16, torch.int64, torch.int32, torch.uint8)},
        "bool": torch.tensor([True, False]),
        "whole": whole,
        "transposed": whole.t(),
        "part": whole[1:3, ::2],
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "expanded": torch.ones(1, 3).expand(4, 3),
        "fp8": torch.arange(6.0).to(torch.float8_e4m3fn),
    }


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "lightning"])
def test_tensors_are_those_that_were_saved(tmp_path: Path, wrap: str) -> None:
    tensors, path = example(), tmp_path / "a.ckpt"
    content: Any = collections.OrderedDict(tensors)
    content._metadata = {"version": 1}
    if wrap != "plain":
        content = {"state_dict": content, "epoch": 3}
    if wrap == "lightning":
        parameter = nn.Parameter(torch.ones(2))
        optimiser = torch.optim.AdamW([parameter])
        torch.autograd.backward(parameter.sum())
        optimiser.step()
        content |= {"optimizer_states": [optimiser.state_dict()], "callbacks": {Callback: Callback()}, "p": parameter}
    torch.save(content, path)
    found = read(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name].double(), tensor.double()), name


def test_parameters_are_their_tensors(tmp_path: Path) -> None:
    marked = nn.Parameter(torch.zeros(2))
    marked.note = "an attribute"  # type: ignore[attr-defined]
    own = {"own": nn.Parameter(torch.ones(2)), "marked": marked}
    torch.save(nn.Linear(3, 2).state_dict() | own, tmp_path / "a.pt")
    found = read(tmp_path / "a.pt")
    assert torch.equal(found["own"], torch.ones(2)) and torch.equal(found["marked"], torch.zeros(2))


@pytest.mark.parametrize(
    "value", [torch.ones(2, dtype=torch.complex64), torch.eye(2).to_sparse(), Callback(), {"inner": torch.ones(2)}]
)
def test_a_file_is_not_read_in_part(tmp_path: Path, value: Any) -> None:
    torch.save({"a": torch.ones(2), "unet.other": value, "step": 3, "note": None}, tmp_path / "a.ckpt")
    with pytest.raises(ModelError, match="other is not a tensor of a kind that can be read"):
        read(tmp_path / "a.ckpt")


def test_nothing_that_a_file_names_is_called(tmp_path: Path) -> None:
    folder = tmp_path / "made by the pickle"
    torch.save({"state_dict": {"a": torch.ones(2)}, "callback": Runs(folder)}, tmp_path / "a.ckpt")
    assert torch.equal(read(tmp_path / "a.ckpt")["a"], torch.ones(2))
    assert not folder.exists()
    torch.load(tmp_path / "a.ckpt", weights_only=False)
    assert folder.exists(), "the test's file does call something"


def archive(path: Path, content: bytes, name: str = "a/data.pkl", **more: Any) -> Path:
    """A file as PyTorch's, with this pickle."""
    with zipfile.ZipFile(path, "w", **more) as file:
        file.writestr(name, content)
    return path


def test_files_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    with pytest.raises(ModelError, match="No such file"):
        read(path)
    with pytest.raises(ModelError, match=r"Is a directory|denied"):
        read(tmp_path)
    path.write_bytes(serialise({"a": torch.ones(2)}))
    with pytest.raises(ModelError, match="is a safetensors file with another ending"):
        read(path)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ModelError, match="is not a checkpoint of PyTorch, or the download is incomplete"):
        read(path)
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ModelError, match=r"before 1\.6"):
        read(path)
    with pytest.raises(ModelError, match="is an archive, but not a checkpoint"):
        read(archive(path, b"", "a/other.txt"))
    for damaged in (b"", b"\x80\x02", pickle.dumps({"a": 1})[:-3], b"junk"):
        with pytest.raises(ModelError, match="is damaged, or not a checkpoint"):
            read(archive(path, damaged))
    for other in ({"a": 1}, [1, 2], "text", {}):
        with pytest.raises(ModelError, match="has no weights under names"):
            read(archive(path, pickle.dumps(other)))


def test_a_damaged_tensor_is_named(tmp_path: Path) -> None:
    whole, path = io.BytesIO(), tmp_path / "a.ckpt"
    torch.save({"unet": torch.ones(5, 5)}, whole)
    with zipfile.ZipFile(whole) as file:
        entries = {one.filename: file.read(one) for one in file.infolist()}
    (storage,) = (name for name in entries if name.endswith("data/0"))
    stored, packed = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
    whole_storage = entries[storage]
    cases = [(b"", stored), (whole_storage[:40], stored), (whole_storage[:-1], stored), (None, stored)]
    for content, compression in [*cases, (whole_storage, packed)]:
        with zipfile.ZipFile(path, "w", compression) as file:
            for name, text in {**entries, storage: content}.items():
                if text is not None:
                    file.writestr(name, text)
        with pytest.raises(ModelError, match="unet is damaged"):
            read(path)
