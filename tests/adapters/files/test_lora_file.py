"""LoRA files: written completely or not at all, readable by other tools, with the rounding error reported."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from lib_lora_train.adapters.files.lora_file import read_adapter, write_adapter
from lib_lora_train.core.errors import AdapterError, OutputError
from tests.paths import ROOT

METADATA = {"ss_output_name": "cat", "ss_tag_frequency": '{"10_cat": {"katze, süß": 3}}', "modelspec.title": "cat\n№1"}


def state(size: int = 6) -> dict[str, Tensor]:
    """Two modules of a LoRA."""
    generator = torch.Generator().manual_seed(0)
    return {
        "lora_unet_b.lora_down.weight": torch.randn(2, size, generator=generator),
        "lora_unet_b.lora_up.weight": torch.randn(size, 2, generator=generator),
        "lora_unet_b.alpha": torch.tensor(0.3),
        "lora_unet_a.lora_down.weight": torch.randn(2, size, 3, 3, generator=generator),
        "lora_unet_a.lora_up.weight": torch.randn(size, 2, 1, 1, generator=generator),
        "lora_unet_a.alpha": torch.tensor(0.3),
    }


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """A path to write to; no other file may remain in its folder."""
    path = tmp_path / "cat-000001.safetensors"
    yield path
    assert {entry.name for entry in tmp_path.iterdir()} <= {path.name}


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_safetensors_library_reads_the_file(target: Path, precision: str, dtype: torch.dtype) -> None:
    saved = write_adapter(target, state(), metadata=METADATA, precision=precision)
    loaded = load_file(target)
    assert loaded.keys() == state().keys()
    for key, tensor in state().items():
        expected = tensor if tensor.dim() == 0 else tensor.to(dtype)
        assert loaded[key].dtype == expected.dtype and torch.equal(loaded[key], expected)
    assert saved.size_bytes == target.stat().st_size and saved.path == target


def test_alpha_keeps_fp32_so_that_the_scale_is_exact(target: Path) -> None:
    write_adapter(target, state(), metadata={}, precision="bf16")
    assert read_adapter(target).state["lora_unet_a.alpha"].item() == torch.tensor(0.3).item()


def test_metadata_comes_back_with_kohyas_hashes(target: Path) -> None:
    write_adapter(target, state(), metadata=METADATA, precision="fp16")
    metadata = read_adapter(target).metadata
    assert {key: metadata[key] for key in METADATA} == METADATA
    content = target.read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    assert metadata["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
    assert metadata["sshs_legacy_hash"] == "e3b0c442"  # a file under 1 MiB: the hash of nothing


@pytest.mark.parametrize("size", [14_000, 18_000, 60_000])
def test_legacy_hash_is_that_of_the_file_kohya_would_have_written(target: Path, size: int) -> None:
    """The three files end before, inside and beyond the hashed 64 KiB at 1 MiB."""
    tensors = {key: tensor.half() for key, tensor in state(size).items() if tensor.dim() == 2}
    tensors["lora_unet_c.lora_up.weight"] = torch.ones(450_000 + size).half()
    write_adapter(target, tensors, metadata=METADATA, precision="fp16")
    ss_only = {key: value for key, value in METADATA.items() if key.startswith("ss_")}
    stream = io.BytesIO(save(dict(tensors), ss_only))
    stream.seek(0x100000)
    expected = hashlib.sha256(stream.read(0x10000)).hexdigest()[:8]
    assert read_adapter(target).metadata["sshs_legacy_hash"] == expected


def test_every_tensor_is_aligned_and_order_does_not_depend_on_the_state(target: Path) -> None:
    odd = {**state(5), "lora_unet_0.lora_up.weight": torch.ones(1, 1)}
    write_adapter(target, odd, metadata=METADATA, precision="fp16")
    content = target.read_bytes()
    length = int.from_bytes(content[:8], "little")
    table = json.loads(content[8 : 8 + length])
    del table["__metadata__"]
    widths = {"F16": 2, "F32": 4}
    assert length % 8 == 0
    assert all(entry["data_offsets"][0] % widths[entry["dtype"]] == 0 for entry in table.values())
    write_adapter(target, dict(reversed(odd.items())), metadata=METADATA, precision="fp16")
    assert target.read_bytes() == content


def test_values_lost_by_half_precision_are_counted(target: Path) -> None:
    """Half of the smallest fp16 number, 2^-25, and all below become 0; 2^16 and all above infinite."""
    lossy = {
        "a.lora_down.weight": torch.tensor([[1e-9, 1e5, 1.0, 0.0]]),  # what vanishes is nothing beside the rest
        "a.lora_up.weight": torch.tensor([[1e-9], [2e-9]]),  # all of it
        "b.lora_up.weight": torch.tensor([[2e-8, 1e-6]]),  # a fiftieth
        "b.lora_down.weight": torch.tensor([[1e-30, 1e-9, 1e-6]]),  # a thousandth
        "a.alpha": torch.tensor(1.0),
    }
    saved = write_adapter(target, lossy, metadata={}, precision="fp16")
    assert saved.vanished == 2 / 4 and saved.overflowed == pytest.approx(1 / 11)
    whole = write_adapter(target, lossy, metadata={}, precision="fp32")
    assert (whole.vanished, whole.overflowed) == (0.0, 0.0)


def test_an_existing_file_is_replaced_atomically(target: Path) -> None:
    target.write_bytes(b"old" * 1000)
    write_adapter(target, state(), metadata={}, precision="fp16")
    assert read_adapter(target).state.keys() == state().keys()


@pytest.mark.skipif(os.name == "nt", reason="permission bits are POSIX's")
def test_file_has_ordinary_permissions(target: Path) -> None:
    before = os.umask(0o022)
    try:
        write_adapter(target, state(), metadata={}, precision="fp16")
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == 0o644


def test_error_names_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"nowhere does not exist\. Create it"):
        write_adapter(tmp_path / "nowhere" / "a.safetensors", state(), metadata={}, precision="fp16")


def test_full_disk_keeps_the_old_file_and_leaves_nothing(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_adapter(target, state(), metadata={}, precision="fp16")
    before = target.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"cat-000001\.safetensors could not be written: .* has no space left"):
        write_adapter(target, state(12), metadata={}, precision="fp16")
    assert target.read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="Windows has no file-size limit to stand in for a full disk")
def test_a_write_that_fails_midway_leaves_no_file(target: Path) -> None:
    """A process that may write 64 KiB per file tries to write more."""
    script = f"""
import resource, sys, torch
from lib_lora_train.adapters.files.lora_file import write_adapter
from lib_lora_train.core.errors import OutputError
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    write_adapter({str(target)!r}, {{"a.lora_up.weight": torch.ones(200_000)}}, metadata={{}}, precision="fp32")
except OutputError as error:
    sys.exit(0 if "no space left" in str(error) else str(error))
sys.exit("nothing was raised")
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert not target.exists()


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_error_names_missing_permission(target: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(source: Path, destination: Path) -> Path:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OutputError, match="permission denied"):
        write_adapter(target, state(), metadata={}, precision="fp16")


def test_error_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"gone\.safetensors does not exist\. Choose a LoRA file"):
        read_adapter(tmp_path / "gone.safetensors")


_SEEN = {"empty": "empty", "text": "a web page", "cut": "truncated", "long header": "not a safetensors file"}


@pytest.mark.parametrize("damage", _SEEN)
def test_damaged_file_is_refused_with_its_name(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "bad.safetensors"
    write_adapter(path, state(), metadata=METADATA, precision="fp16")
    content = path.read_bytes()
    replaced = {
        "empty": b"",
        "text": b"<html>404 not found</html>",
        "cut": content[:-20],
        "long header": (2**40).to_bytes(8, "little") + content[8:],
    }
    path.write_bytes(replaced[damage])
    with pytest.raises(AdapterError, match=rf"bad\.safetensors is {_SEEN[damage]}"):
        read_adapter(path)


def test_file_without_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "void.safetensors"
    path.write_bytes(save({}))
    with pytest.raises(AdapterError, match="no tensors"):
        read_adapter(path)


@pytest.mark.parametrize("ending", ["dora_scale", "rescale"])
def test_factors_of_the_base_weight_are_never_rounded(ending: str, tmp_path: Path) -> None:
    """In fp16 they would change W by 0.05%, as much as a weak LoRA does."""
    factors = 1 + torch.rand(1, 9) * 1e-4
    write_adapter(tmp_path / "a.safetensors", {f"lora_unet_a.{ending}": factors}, metadata={}, precision="fp16")
    assert torch.equal(read_adapter(tmp_path / "a.safetensors").state[f"lora_unet_a.{ending}"], factors)
