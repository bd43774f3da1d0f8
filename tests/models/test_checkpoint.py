"""Checkpoint and VAE files: what loads, and the errors for everything else."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lib_lora_train.core.errors import ModelError
from lib_lora_train.models.checkpoint import file_hash, legacy_hash, load_checkpoint, load_vae, replace_vae
from lib_lora_train.models.checkpoint_hints import read_hints, tokenizer_folder
from lib_lora_train.models.infer_spec import infer_spec
from tests.stand_ins.tiny_models import tiny_tensors, write_tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors", "sd1")


def test_a_checkpoint_comes_back_as_it_was_written(checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    expected = tiny_tensors("sd1")
    assert loaded.tensors.keys() == expected.keys()
    assert all(torch.equal(loaded.tensors[name], expected[name].half()) for name in expected)
    assert loaded.metadata == {"text_heads": "4"}
    assert loaded.hash == hashlib.sha256(checkpoint.read_bytes()).hexdigest()


def test_training_leftovers_are_skipped_and_markers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    extra = {"model_ema.decay": torch.zeros(1), "betas": torch.zeros(9), "v_pred": torch.zeros(0)}
    save_file({**tiny_tensors("sd1"), **extra}, path)
    assert load_checkpoint(path).tensors.keys() - tiny_tensors("sd1").keys() == {"v_pred"}


def _header(size: int) -> bytes:
    text = json.dumps({"a": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>Please log in</html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"PK\x03\x04 archive/data.pkl and so on", "pickle file with a .safetensors name"),
        (b"GGUF\3\0\0\0" + b"\x84\3" + b"x" * 1000, "is a GGUF file"),
        (b"\x89PNG\r\n\x1a\n" + b"x" * 100, "is an image"),
        (b"any other file of some length", "is not a safetensors file"),
        (_header(4096) + b"\0" * 100, "is truncated: it has 100 of 4,096 bytes"),
        (_header(4096)[:20], "is damaged: it ends inside its header"),
        (struct.pack("<Q", 9) + b"not json." + b"\0" * 50, "is not a safetensors file"),
    ],
)
def test_error_says_how_a_file_is_damaged(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=sentence) as caught:
        load_checkpoint(path)
    assert "model.safetensors" in str(caught.value)


def test_a_truncated_checkpoint_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    content = checkpoint.read_bytes()
    for length in (1, 9, 1000, len(content) // 2, len(content) - 1):
        path = tmp_path / "cut.safetensors"
        path.write_bytes(content[:length])
        with pytest.raises(ModelError, match=r"cut\.safetensors"):
            load_checkpoint(path)


def test_missing_files_folders_and_pickles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(ModelError, match="is a folder"):
        load_checkpoint(tmp_path)
    (tmp_path / "old.ckpt").write_bytes(b"\x80\x02")
    with pytest.raises(ModelError, match="can run any program"):
        load_checkpoint(tmp_path / "old.ckpt")


def test_a_lora_or_a_vae_is_refused_as_a_checkpoint(tmp_path: Path) -> None:
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(ModelError, match=r"lora\.safetensors: This is a LoRA"):
        load_checkpoint(tmp_path / "lora.safetensors")
    save_file(_vae(""), tmp_path / "vae.safetensors")
    with pytest.raises(ModelError, match=r"vae\.safetensors: This is a VAE"):
        load_checkpoint(tmp_path / "vae.safetensors")


def _vae(prefix: str, seed: int = 5) -> dict[str, torch.Tensor]:
    tensors = tiny_tensors("sd1", seed=seed)
    front = "first_stage_model."
    return {prefix + name.removeprefix(front): t for name, t in tensors.items() if name.startswith(front)}


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_a_vae_file_replaces_the_checkpoints(tmp_path: Path, prefix: str) -> None:
    save_file({**_vae(prefix), f"{prefix}loss.logvar": torch.zeros(1)}, tmp_path / "vae.safetensors")
    vae = load_vae(tmp_path / "vae.safetensors")
    expected = _vae("first_stage_model.")
    assert vae.keys() == expected.keys()
    tensors = replace_vae(tiny_tensors("sd1"), vae)
    assert tensors.keys() == tiny_tensors("sd1").keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_other_vae_files_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="not a Stable Diffusion VAE"):
        load_vae(tmp_path / "x.safetensors")
    assert load_vae(checkpoint).keys() == _vae("first_stage_model.").keys()  # a checkpoint works as a VAE file


def test_hashes_match_the_webuis(tmp_path: Path) -> None:
    path = tmp_path / "file"
    content = bytes(range(256)) * 8192  # 2 MiB
    path.write_bytes(content)
    assert file_hash(path) == hashlib.sha256(content).hexdigest()
    assert legacy_hash(path) == hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    path.write_bytes(content[:100])
    assert file_hash(path) == hashlib.sha256(content[:100]).hexdigest()  # a changed file is read again
    assert legacy_hash(path) == "e3b0c442"  # under 1 MiB there is nothing there: sha256 of no bytes


def test_yaml_overrides_metadata(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    metadata = {"modelspec.prediction_type": "epsilon", "text_heads": "9, 20", "unet_heads": "3"}
    assert read_hints(path, metadata).metadata_prediction_type == "epsilon"
    assert read_hints(path, metadata).text_heads == (9, 20)
    assert read_hints(path, metadata).unet_heads == 3
    (tmp_path / "words").mkdir()
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "words" / name).touch()
    (tmp_path / "words" / "config.json").write_text('{"num_attention_heads": 4}')
    path.with_suffix(".yaml").write_text(
        "model:\n  params:\n    parameterization: v\n    scale_factor: 0.5\n"
        "    unet_config: {params: {num_heads: -1, num_head_channels: 64}}\n"
        "    cond_stage_config: {params: {version: words}}\n"
    )
    hints = read_hints(path, metadata)
    assert (hints.prediction_type, hints.scale_factor) == ("v_prediction", 0.5)
    assert (hints.unet_heads, hints.unet_head_dim, hints.text_heads) == (None, 64, (4, 20))
    assert tokenizer_folder(path) == tmp_path / "words"


def test_sgm_yaml_selects_v_prediction(tmp_path: Path) -> None:
    path = tmp_path / "xl.safetensors"
    path.with_suffix(".yaml").write_text(
        "model: {params: {denoiser_config: {params: {scaling_config: "
        "{target: sgm.modules.diffusionmodules.denoiser_scaling.VScaling}}}}}"
    )
    assert read_hints(path, {}).prediction_type == "v_prediction"


def test_an_unreadable_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_text("model: [")
    with pytest.raises(ModelError, match=r"model\.yaml cannot be read"):
        read_hints(tmp_path / "model.safetensors", {})


def test_a_plain_checkpoint_has_no_tokenizer_of_its_own(checkpoint: Path) -> None:
    assert tokenizer_folder(checkpoint) is None
    assert (
        infer_spec(load_checkpoint(checkpoint).shapes, hints=read_hints(checkpoint, {"text_heads": "4"})).architecture
        == "sd1"
    )
