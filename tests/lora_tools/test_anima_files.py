"""Anima's LoRA files are checked, converted and merged with nothing but the checkpoint's transformer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib_lora_train.adapters.files.lora_file import read_adapter, write_adapter
from lib_lora_train.adapters.files.spelling import lora_paths, spelled
from lib_lora_train.adapters.inject import inject
from lib_lora_train.adapters.registry import AdapterSpec
from lib_lora_train.cli import main as cli
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import ModelError
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.lora_tools.check import check_file
from lib_lora_train.lora_tools.merge_into_checkpoint import write_merged_checkpoint
from tests.stand_ins.tiny_anima import adapter_tensors, transformer_tensors


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "anima.safetensors"
    save_file({**transformer_tensors(prefix="net."), **adapter_tensors(prefix="net.")}, path)
    return path


def write_lora(checkpoint: Path, path: Path, seed: int) -> dict[str, torch.Tensor]:
    """A file as a run writes it; returns ΔW by layer."""
    config = TrainConfig(checkpoint=str(checkpoint), precision="fp32")
    model = StandaloneHost(None, None, path.parent).load_layers(config)
    adapter = inject(model, AdapterSpec(rank=2, alpha=1.0, text_encoder=False), seed=0)
    generator = torch.Generator().manual_seed(seed)
    state = adapter.state()
    random = {k: t if k.endswith("alpha") else torch.randn(t.shape, generator=generator) for k, t in state.items()}
    adapter.load_state(random)
    write_adapter(path, spelled(adapter.state(), lora_paths(model)), metadata={}, precision="fp32")
    deltas = {key: layer.diff_weight() for key, layer in adapter.layers.items()}
    adapter.remove()
    return deltas


def test_a_file_is_named_and_has_no_problem(checkpoint: Path, tmp_path: Path) -> None:
    write_lora(checkpoint, tmp_path / "a.safetensors", 1)
    report = check_file(tmp_path / "a.safetensors")
    assert (report.base_model, report.problems) == ("Anima", ())


def test_convert_writes_kohyas_names(checkpoint: Path, tmp_path: Path) -> None:
    deltas, out = write_lora(checkpoint, tmp_path / "a.safetensors", 1), tmp_path / "kohya.safetensors"
    given = [str(tmp_path / "a.safetensors"), "--ckpt", str(checkpoint), "--rank", "2", "--precision", "fp32"]
    assert cli.main(["convert", *given, "--out", str(out), "--cpu"]) == 0
    state = load_file(out)
    for key, delta in deltas.items():
        found = state[f"{key}.lora_up.weight"] @ state[f"{key}.lora_down.weight"]
        assert torch.allclose(found, delta, atol=1e-4 * float(delta.abs().max()))  # one SVD in fp32


def test_two_files_are_merged(checkpoint: Path, tmp_path: Path) -> None:
    first = write_lora(checkpoint, tmp_path / "a.safetensors", 1)
    second = write_lora(checkpoint, tmp_path / "b.safetensors", 2)
    files = [str(tmp_path / f"{name}.safetensors") for name in "ab"]
    options = ["--ckpt", str(checkpoint), "--weights", "1", "0.5", "--precision", "fp32"]
    assert cli.main(["merge", *files, *options, "--out", str(tmp_path / "ab.safetensors"), "--cpu"]) == 0
    state = load_file(tmp_path / "ab.safetensors")
    for key in first:
        found = state[f"{key}.lora_up.weight"] @ state[f"{key}.lora_down.weight"]
        wanted = first[key] + 0.5 * second[key]
        assert torch.allclose(found, wanted, atol=1e-5 * float(wanted.abs().max()))


def test_a_checkpoint_is_not_written_without_its_text_adapter(checkpoint: Path, tmp_path: Path) -> None:
    write_lora(checkpoint, tmp_path / "a.safetensors", 1)
    files = [(read_adapter(tmp_path / "a.safetensors"), 1.0)]
    with pytest.raises(ModelError, match="into which LoRAs cannot be merged"):
        write_merged_checkpoint(checkpoint, files, tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()


def test_training_needs_forge_neo(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the model that Forge Neo has loaded"):
        StandaloneHost(None, None, tmp_path).load_model(TrainConfig(checkpoint=str(checkpoint)))
