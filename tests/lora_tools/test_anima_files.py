"""Anima's LoRA files are checked, converted and merged with nothing but the checkpoint's transformer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib_lora_train.adapters.create import create_adapter
from lib_lora_train.adapters.files.lora_file import AdapterFile, write_adapter
from lib_lora_train.adapters.files.spelling import lora_paths, spelled
from lib_lora_train.adapters.inject import inject
from lib_lora_train.adapters.registry import AdapterSpec
from lib_lora_train.cli import main as cli
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import AdapterError, ModelError
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.lora_tools.check import check, check_file
from lib_lora_train.lora_tools.convert import convert
from lib_lora_train.lora_tools.merge import merge
from lib_lora_train.runs.checks.continued_file import continued_file_problems
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


def test_training_needs_forge_neo(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the model that Forge Neo has loaded"):
        StandaloneHost(None, None, tmp_path).load_model(TrainConfig(checkpoint=str(checkpoint)))


def layers_file(layers: Mapping[str, tuple[int, int]], metadata: Mapping[str, str] | None = None) -> AdapterFile:
    """A LoRA of rank 2 on layers with these names and shapes (rows, columns)."""
    state: dict[str, torch.Tensor] = {}
    for name, (rows, columns) in layers.items():
        state |= {f"{name}.lora_A.weight": torch.ones(2, columns), f"{name}.lora_B.weight": torch.ones(rows, 2)}
    return AdapterFile(Path("a.safetensors"), state, dict(metadata or {}))


DIFFUSERS = "transformer.transformer_blocks.0"
ADAPTER_NAMES = (
    "diffusion_model.llm_adapter.blocks.0.cross_attn.q_proj",
    "lora_unet_llm_adapter_blocks_0_cross_attn_q_proj",
    "lora_te_llm_adapter_blocks_0_cross_attn_q_proj",
    "text_conditioner.blocks.0.cross_attn.q_proj",
)


@pytest.mark.parametrize(
    ("layers", "metadata", "model"),
    [
        ({f"{DIFFUSERS}.attn1.to_q": (64, 64), f"{DIFFUSERS}.attn2.to_k": (64, 24)}, {}, "Anima"),
        ({f"{DIFFUSERS}.ff.net.0.proj": (256, 64), f"{DIFFUSERS}.attn2.to_v": (64, 24)}, {}, "Anima"),
        ({f"{DIFFUSERS}.norm2.linear_1": (8, 64)}, {}, "Anima"),
        ({"diffusion_model.blocks.0.adaln_modulation_mlp.1": (8, 64)}, {}, "Anima"),
        ({f"{DIFFUSERS}.attn1.to_q": (64, 64)}, {"modelspec.architecture": "anima/lora"}, "Anima"),
        ({f"{DIFFUSERS}.attn1.to_q": (64, 64)}, {}, "PixArt, Sana or Anima"),
        ({f"{DIFFUSERS}.attn1.to_q": (64, 64), f"{DIFFUSERS}.attn2.to_k": (64, 64)}, {}, "PixArt or Sana"),
        *(({name: (8, 8)}, {}, "Anima") for name in ADAPTER_NAMES),
        ({"lora_te_layers_3_mlp_gate_proj": (8, 8)}, {}, "Anima"),
        ({"text_encoders.qwen3_06b.transformer.model.layers.0.self_attn.q_proj": (8, 8)}, {}, "Anima"),
    ],
)
def test_files_of_other_trainers_are_named(
    layers: Mapping[str, tuple[int, int]], metadata: Mapping[str, str], model: str
) -> None:
    """By the names of their layers and, where PixArt and Sana have the same, by the width of the text."""
    assert check(layers_file(layers, metadata)).base_model == model


@pytest.mark.parametrize("name", ADAPTER_NAMES)
def test_layers_that_runs_leave_out_are_counted_and_said(name: str) -> None:
    layers = {"diffusion_model.blocks.0.mlp.layer1": (8, 8), name: (8, 8), "lora_te_layers_0_self_attn_q_proj": (8, 8)}
    report = check(layers_file(layers))
    assert report.parts == {"transformer": 1, "text adapter (llm_adapter)": 1, "text encoder (Qwen3)": 1}
    (problem,) = report.problems
    assert "1 layer of Anima's text adapter (llm_adapter) and 1 layer of Anima's text encoder (Qwen3)" in problem
    assert "leave them out" in problem


def test_a_run_continues_from_a_file_of_others_and_says_what_it_leaves_out(checkpoint: Path, tmp_path: Path) -> None:
    file = layers_file({f"{DIFFUSERS}.attn2.to_k": (32, 24), ADAPTER_NAMES[0]: (2, 2), "lora_unet_odd": (3, 3)})
    save_file(dict(file.state), tmp_path / "theirs.safetensors")
    config = TrainConfig(
        checkpoint=str(checkpoint), precision="fp32", continue_from=str(tmp_path / "theirs.safetensors")
    )
    model = StandaloneHost(None, None, tmp_path, "cpu").load_layers(config)
    adapter = create_adapter(model, config.replace(train_text_encoder=False))
    assert list(adapter.layers) == ["lora_unet_blocks_0_cross_attn_k_proj"]
    adapter.remove()
    first, second = [problem.message for problem in continued_file_problems(config, model.spec)]
    assert first == (
        "the file has 1 layer of Anima's text adapter (llm_adapter), not trained here and missing from "
        "this run's files."
    )
    assert second == "this model lacks 1 key or layer of the file: lora_unet_odd."


def test_an_anima_file_on_another_model_is_refused_by_name(tmp_path: Path) -> None:
    file = layers_file({f"{DIFFUSERS}.attn1.to_q": (64, 64), f"{DIFFUSERS}.attn2.to_k": (64, 24)})
    model = StandaloneHost(None, None, tmp_path, "cpu").load_layers(TrainConfig(precision="fp32"))
    with pytest.raises(AdapterError, match=r"is for Anima, but the model is SD1\. Choose an Anima checkpoint"):
        convert(file, model, to="diff")


def test_a_file_in_diffusers_spelling_is_converted_and_merged(checkpoint: Path, tmp_path: Path) -> None:
    model = StandaloneHost(None, None, tmp_path, "cpu").load_layers(
        TrainConfig(checkpoint=str(checkpoint), precision="fp32")
    )
    file = layers_file({f"{DIFFUSERS}.attn2.to_k": (32, 24)})
    made = convert(file, model, to="diff")
    both = merge([(file, 1.0), (file, 0.5)], model, to="diff")
    assert not made.left_out and not both.left_out
    name = "lora_unet_blocks_0_cross_attn_k_proj.diff"
    assert torch.equal(made.state[name], torch.full((32, 24), 2.0))
    assert torch.equal(both.state[name], torch.full((32, 24), 3.0))
