"""The plan checks the checkpoint as the start does, names what it is, and warns of settings that do not suit it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import ModelError
from lib_lora_train.hosts.host import checkpoint_target
from lib_lora_train.models.architecture import CheckpointHints
from lib_lora_train.models.infer_spec import infer_spec
from lib_lora_train.models.loading import ModelChoice, load_model
from lib_lora_train.models.model_files import describe_model, read_checkpoint_info
from lib_lora_train.runs.checks.checkpoint_check import CheckpointCheck, check_checkpoint, checkpoint_problems
from tests.stand_ins.tiny_models import full_shapes, tiny_tensors, write_tiny_checkpoint

FRONT = "first_stage_model."


def check(checkpoint: Path, **settings: object) -> CheckpointCheck:
    config = TrainConfig(checkpoint=str(checkpoint)).replace(**settings)
    return check_checkpoint(config, checkpoint_target(config))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that cannot be trained on, and one that can."""
    folder = tmp_path_factory.mktemp("models")
    good = write_tiny_checkpoint(folder / "good.safetensors", "sd1").read_bytes()
    (folder / "cut.safetensors").write_bytes(good[:-8])
    (folder / "image.safetensors").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 100)
    (folder / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 100)
    (folder / "quantised.gguf").write_bytes(b"GGUF\3\0\0\0" + b"x" * 100)
    (folder / "pickle.ckpt").write_bytes(b"PK\3\4")
    (folder / "empty.safetensors").touch()
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(4, 4)}, folder / "lora.safetensors")
    save_file({"model.diffusion_model.layers.0.attention.qkv.weight": torch.zeros(4, 4)}, folder / "z.safetensors")
    tensors = tiny_tensors("sd1")
    inpainting = {**tensors, "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(64, 9, 3, 3)}
    save_file(inpainting, folder / "inpainting.safetensors", {"text_heads": "4"})
    bare = {name: tensor for name, tensor in tensors.items() if not name.startswith(FRONT)}
    save_file(bare, folder / "no-vae.safetensors", {"text_heads": "4"})
    return folder


UNUSABLE = ("missing", "cut", "image", "image.png", "quantised.gguf", "pickle.ckpt", "empty", "lora", "z", "inpainting")


@pytest.mark.parametrize("name", [*UNUSABLE, "no-vae"])
def test_the_plan_refuses_a_checkpoint_with_the_sentence_of_the_start(name: str, files: Path) -> None:
    path = files / (name if "." in name else f"{name}.safetensors")
    with pytest.raises(ModelError) as refusal:
        load_model(ModelChoice(path), torch.device("cpu"))
    (problem,) = check(path).problems
    assert (problem.level, problem.where, problem.message) == ("error", "checkpoint", str(refusal.value))


def test_a_vae_that_does_not_fit_is_reported_at_the_vae(files: Path) -> None:
    (problem,) = check(files / "good.safetensors", vae=str(files / "lora.safetensors")).problems
    assert (problem.level, problem.where) == ("error", "vae")
    assert problem.message == "lora.safetensors is a LoRA, not a Stable Diffusion VAE. " + (
        "Choose a VAE file, or leave the VAE empty."
    )


def test_the_plan_names_what_was_detected(files: Path, tmp_path: Path) -> None:
    """Architecture, prediction type, zero-terminal SNR, own resolution, VAE and precision."""
    good = check(files / "good.safetensors")
    assert good.description == "good: SD1, predicts noise (epsilon), 512 px, its own VAE, fp16"
    assert (good.resolution, good.problems) == (512, ())
    marked = {**tiny_tensors("sdxl", shallow=True), "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    save_file({n: t.bfloat16() for n, t in marked.items()}, tmp_path / "xl.safetensors", {"text_heads": "4,4"})
    vae = {name: tensor for name, tensor in tiny_tensors("sd1").items() if name.startswith(FRONT)}
    save_file(vae, tmp_path / "vae.safetensors")
    info = read_checkpoint_info(tmp_path / "xl.safetensors", tmp_path / "vae.safetensors")
    expected = "xl: SDXL, predicts v with zero-terminal SNR, 1024 px, VAE vae.safetensors, bf16"
    assert info.description == expected


def test_a_replaced_file_is_read_again(files: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes((files / "lora.safetensors").read_bytes())
    assert check(path).problems
    path.write_bytes((files / "good.safetensors").read_bytes())
    assert not check(path).problems
    path.with_suffix(".yaml").write_text("model: {params: {parameterization: v}}")
    assert "predicts v" in check(path).description


def test_a_loaded_model_needs_no_readable_file(files: Path) -> None:
    """The webui may have loaded a pickle: its weights are in memory."""
    config = TrainConfig(checkpoint=str(files / "pickle.ckpt"))
    target = dataclasses.replace(checkpoint_target(config), is_loaded=True)
    assert check_checkpoint(config, target) == CheckpointCheck("pickle")


def test_settings_that_do_not_suit_the_model_are_warned_of() -> None:
    sdxl = infer_spec(full_shapes("sdxl"))

    def warned(**settings: object) -> list[str]:
        return [problem.where for problem in checkpoint_problems(sdxl, TrainConfig().replace(**settings))]

    assert warned(resolution=1024) == []
    assert warned(resolution=1024, clip_skip=2) == ["clip_skip"]
    snr = infer_spec(full_shapes("sdxl"), CheckpointHints(prediction_type="epsilon", zero_terminal_snr=True))
    problems = list(checkpoint_problems(snr, TrainConfig(resolution=1024)))
    assert [problem.where for problem in problems] == ["zero_terminal_snr"]
    assert not list(checkpoint_problems(snr, TrainConfig(resolution=1024, prediction_type="v_prediction")))


def test_contradictions_are_warned_of_until_the_user_decides() -> None:
    spec = dataclasses.replace(infer_spec(full_shapes("sdxl")), notes=("Two places disagree.",))
    assert [p.message for p in checkpoint_problems(spec, TrainConfig(resolution=1024))] == ["Two places disagree."]
    assert not list(checkpoint_problems(spec, TrainConfig(resolution=1024, prediction_type="epsilon")))


def test_an_sd2_file_that_does_not_say_what_it_predicts_is_described_so() -> None:
    assert "does not say; it is measured" in describe_model(infer_spec(full_shapes("sd2")))
