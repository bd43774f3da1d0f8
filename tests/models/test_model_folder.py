"""Models as folders in diffusers' layout: read as the same weights in a single file, or refused by name."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib_lora_train.core.errors import ModelError
from lib_lora_train.models.architecture import Architecture
from lib_lora_train.models.checkpoint import load_checkpoint, load_vae, model_hash
from lib_lora_train.models.checkpoint_hints import tokenizer_folder
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.loading import ModelChoice, load_model
from lib_lora_train.models.model_files import read_checkpoint_info
from lib_lora_train.models.noise_schedule import FlowSchedule
from tests.stand_ins.model_folders import CLASSES, edit_json, same_weights, write_index, write_model_folder
from tests.stand_ins.tiny_models import alphas_of, write_tiny_checkpoint

CPU = torch.device("cpu")


def load(path: Path, vae: Path | None = None) -> DiffusionModel:
    return load_model(ModelChoice(path, vae), CPU)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD1 in fp32; copy it before changing it."""
    home = tmp_path_factory.mktemp("folder")
    return write_model_folder(home / "tiny-v1.5", load(write_tiny_checkpoint(home / "tiny.safetensors", "sd1")))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / folder.name))


@pytest.mark.parametrize("architecture", ["sd1", "sd2", "sdxl"])
def test_a_folder_is_the_same_model_as_the_single_file(architecture: Architecture, tmp_path: Path) -> None:
    single = load(write_tiny_checkpoint(tmp_path / "tiny.safetensors", architecture, shallow=False))
    path = write_model_folder(tmp_path / "model", single, prediction_type=single.spec.prediction_type)
    found = load(path)
    assert same_weights(found, single)
    assert found.spec.unet == single.spec.unet and found.spec.vae == single.spec.vae
    assert found.spec.prediction_type == single.spec.prediction_type
    assert found.spec.scale_factor == single.spec.scale_factor
    ours = [dict(encoder.config) for encoder in found.spec.text_encoders]
    assert ours == [dict(encoder.config) for encoder in single.spec.text_encoders]


def test_variants_and_split_files_are_read(tmp_path: Path) -> None:
    single = load(write_tiny_checkpoint(tmp_path / "tiny.safetensors", "sd1"))
    for number, variant in enumerate((None, "fp16", "ema")):
        path = write_model_folder(tmp_path / f"split{number}", single, shard="2MB", variant=variant)
        assert len(list((path / "unet").glob("*.safetensors"))) > 1
        assert same_weights(load(path), single)
        path = write_model_folder(tmp_path / f"whole{number}", single, variant=variant)
        assert same_weights(load(path), single)


def test_files_without_a_variant_come_first_then_fp16(copy: Path) -> None:
    unet = copy / "unet" / "diffusion_pytorch_model.safetensors"
    for variant in ("bf16", "fp16", "non_ema"):
        shutil.copy(unet, unet.with_name(f"diffusion_pytorch_model.{variant}.safetensors"))
    hashes = [model_hash(copy)]
    for name in ("", ".fp16", ".bf16"):
        unet.with_name(f"diffusion_pytorch_model{name}.safetensors").unlink()
        hashes.append(model_hash(copy))
    assert len(set(hashes)) == 4  # another file was chosen each time


def test_older_names_of_the_vaes_attention_are_read(copy: Path, folder: Path) -> None:
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in load_file(file).items():
        new = next((new for new in older if f"attentions.0.{new}." in name), "")
        tensors[name.replace(f".{new}.", f".{older[new]}.") if new else name] = tensor
    save_file(tensors, file)
    assert same_weights(load(copy), load(folder))


def test_flat_names_of_newer_transformers_are_read(copy: Path, folder: Path) -> None:
    file = copy / "text_encoder" / "model.safetensors"
    flat = {name.removeprefix("text_model."): tensor for name, tensor in load_file(file).items()}
    for names in (flat, {f"text_model.{name}": tensor for name, tensor in flat.items()}):
        save_file(names, file)
        assert same_weights(load(copy), load(folder))


def test_the_scheduler_says_what_the_model_predicts(copy: Path) -> None:
    config = copy / "scheduler" / "scheduler_config.json"
    edit_json(config, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    spec = read_checkpoint_info(copy).spec
    assert (spec.prediction_type, spec.zero_terminal_snr, spec.is_prediction_known) == ("v_prediction", True, True)
    edit_json(config, prediction_type="epsilon", rescale_betas_zero_snr=False)
    spec = read_checkpoint_info(copy).spec
    assert (spec.prediction_type, spec.zero_terminal_snr) == ("epsilon", False)
    assert float(alphas_of(load(copy))[-1]) > 0


def test_configs_say_resolution_scale_and_heads(copy: Path) -> None:
    edit_json(copy / "unet" / "config.json", sample_size=96, attention_head_dim=[2, 4, 2, 2])
    edit_json(copy / "vae" / "config.json", scaling_factor=0.5)
    edit_json(copy / "text_encoder" / "config.json", num_attention_heads=8)
    spec = read_checkpoint_info(copy).spec
    assert (spec.own_resolution, spec.scale_factor) == (768, 0.5)
    assert tuple(spec.unet["attention_head_dim"]) == (2, 4, 2, 2)
    assert spec.text_encoders[0].config["num_attention_heads"] == 8


def test_added_tokens_leave_begin_and_end_where_they_were(copy: Path) -> None:
    file = copy / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("token_embedding.weight"))
    save_file({**tensors, name: torch.cat([tensors[name], torch.ones(3, tensors[name].shape[1])])}, file)
    config = load(copy).spec.text_encoders[0].config
    assert (config["vocab_size"], config["bos_token_id"], config["eos_token_id"]) == (49411, 49406, 49407)


def test_a_folder_keeps_its_whole_name_and_its_own_tokenizer(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(copy).name == read_checkpoint_info(copy).name == "tiny-v1.5"
    assert tokenizer_folder(copy) == copy / "tokenizer"
    monkeypatch.chdir(copy)
    assert read_checkpoint_info(Path()).name == "tiny-v1.5"
    cached = copy.parent / "models--someone--fox-xl" / "snapshots" / "0a1b2c"
    shutil.copytree(copy, cached)
    assert read_checkpoint_info(cached).name == "fox-xl"


def test_the_hash_of_a_folder_is_that_of_its_weights(copy: Path, folder: Path) -> None:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors"))
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert model_hash(folder) == model_hash(copy) == load(copy).file_hash == expected
    edit_json(copy / "model_index.json", _diffusers_version="9")
    assert model_hash(copy) == expected
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)
    assert model_hash(copy) != expected


@pytest.mark.parametrize("what", ["vae", "vae/diffusion_pytorch_model.safetensors", ""])
def test_a_vae_in_diffusers_layout_replaces_the_checkpoints(copy: Path, what: str, tmp_path: Path) -> None:
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(file).items()}, file)
    single = write_tiny_checkpoint(tmp_path / "tiny.safetensors", "sd1")
    model = load(single, copy / what)
    assert torch.equal(model.vae.encoder.conv_in.weight, load_file(file)["encoder.conv_in.weight"])
    assert model.vae_hash and load_vae(copy / what).keys() == load_vae(single).keys()
    assert read_checkpoint_info(single, copy / what).spec.vae == model.spec.vae


def test_a_changed_file_in_the_folder_is_read_again(copy: Path) -> None:
    before = read_checkpoint_info(copy).spec.prediction_type
    edit_json(copy / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    assert (before, read_checkpoint_info(copy).spec.prediction_type) == ("epsilon", "v_prediction")


# --- folders that are refused ---------------------------------------------------------------------


def _without(name: str) -> Callable[[Path], object]:
    return lambda path: shutil.rmtree(path / name) if (path / name).is_dir() else (path / name).unlink()


def _renamed(name: str, new: str) -> Callable[[Path], object]:
    return lambda path: (path / name).rename(path / new)


def _edited(name: str, **values: Any) -> Callable[[Path], object]:
    return lambda path: edit_json(path / name, **values)


def _cut(path: Path) -> None:
    file = path / "unet" / "diffusion_pytorch_model.safetensors"
    os.truncate(file, file.stat().st_size // 2)


def _with_guidance_embedding(path: Path) -> None:
    file = path / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(file), "time_embedding.cond_proj.weight": torch.zeros(2, 2)}, file)


UNET, TEXT = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
SCHEDULER = "scheduler/scheduler_config.json"
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no UNet": (_without("unet"), r"tiny-v1\.5 is not a whole model: unet is missing"),
    "no text encoder": (_without("text_encoder"), "text_encoder is missing"),
    "no VAE weights": (_without("vae/diffusion_pytorch_model.safetensors"), "vae has no diffusion_pytorch_model"),
    "no index": (_without("model_index.json"), "model_index.json is missing"),
    "broken index": (lambda path: (path / "model_index.json").write_text("{"), "model_index.json is damaged"),
    "pickles": (_renamed(UNET, "unet/diffusion_pytorch_model.bin"), "unet/diffusion_pytorch_model.bin is a pickle"),
    "Flax": (_renamed(TEXT, "text_encoder/flax_model.msgpack"), r"text_encoder has no .* \(only flax_model.msgpack"),
    "half a file": (_cut, r"unet/diffusion_pytorch_model\.safetensors is truncated"),
    "EDM": (_edited(SCHEDULER, _class_name="EDMEulerScheduler"), "EDMEulerScheduler.*not supported"),
    "other betas": (_edited(SCHEDULER, beta_end=0.014), r"another noise schedule.*beta_end 0\.014"),
    "sample": (_edited(SCHEDULER, prediction_type="sample"), "predicts 'sample'"),
    "LCM": (_with_guidance_embedding, r"unet has tensors.*time_embedding\.cond_proj\.weight"),
    "another text encoder": (
        _edited("model_index.json", text_encoder=["diffusers", "ChatGLMModel"]),
        "text_encoder has the class ChatGLMModel",
    ),
}


@pytest.mark.parametrize(
    "said", [{"_class_name": "FlowMatchEulerDiscreteScheduler"}, {"use_flow_sigmas": True}], ids=["class", "sigmas"]
)
def test_a_flow_scheduler_makes_the_model_a_rectified_flow(said: dict[str, object], copy: Path) -> None:
    _edited(SCHEDULER, **said)(copy)
    assert read_checkpoint_info(copy).spec.prediction_type == "rectified_flow"
    assert isinstance(load(copy).schedule, FlowSchedule)


@pytest.mark.parametrize("what", REFUSED)
def test_a_folder_that_cannot_be_used_is_refused_by_name(what: str, copy: Path) -> None:
    spoil, sentence = REFUSED[what]
    spoil(copy)
    with pytest.raises(ModelError, match=sentence):
        read_checkpoint_info(copy)
    with pytest.raises(ModelError, match=sentence):
        load(copy)


@pytest.mark.parametrize(
    ("pipeline", "name"),
    [
        ("FluxPipeline", "a Flux model"),
        ("Flux2Pipeline", "a Flux.2 model"),
        ("StableDiffusion3Pipeline", "an SD3 model"),
        ("StableDiffusion3Img2ImgPipeline", "an SD3 model"),
        ("PixArtSigmaPipeline", "a PixArt model"),
        ("QwenImagePipeline", "a Qwen-Image model"),
        ("ZImagePipeline", "a Z-Image model"),
        ("Lumina2Pipeline", "a Lumina model"),
        ("ChromaPipeline", "a Chroma model"),
        ("SanaPipeline", "a Sana model"),
        ("KolorsPipeline", "a Kolors model"),
        ("HunyuanDiTPipeline", "a Hunyuan-DiT model"),
        ("AnimateDiffPipeline", "an AnimateDiff model"),
        ("BrandNewPipeline", "a BrandNew model"),
    ],
)
def test_a_folder_with_another_model_is_refused_by_its_name(pipeline: str, name: str, tmp_path: Path) -> None:
    write_index(tmp_path, {"_class_name": pipeline, "transformer": ["diffusers", "X"], "vae": CLASSES["vae"]})
    with pytest.raises(ModelError, match=f"This is {name}"):
        read_checkpoint_info(tmp_path)


def test_a_part_of_a_model_leads_to_the_whole_one(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"only a part of a model.*Choose.*tiny-v1\.5\.$"):
        read_checkpoint_info(folder / "unet")
    with pytest.raises(ModelError, match=r"is a folder, not a model\. Choose the model in it.*tiny-v1\.5"):
        read_checkpoint_info(folder.parent)
    alone = shutil.copytree(folder / "unet", tmp_path / "alone")
    with pytest.raises(ModelError, match="only UNet2DConditionModel of a model"):
        read_checkpoint_info(Path(alone))
    for file in ("model_index.json", UNET, TEXT):
        with pytest.raises(ModelError, match=r"only a part of a model.*tiny-v1\.5\.$"):
            read_checkpoint_info(folder / file)


def test_what_may_not_be_read_is_an_error_with_a_reason(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(ModelError, match=r"tiny-v1\.5 cannot be read: Permission denied"):
        load_checkpoint(copy)
    with pytest.raises(ModelError, match=r"tiny\.safetensors cannot be read: Permission denied"):
        load_checkpoint(copy.parent / "tiny.safetensors")
    with pytest.raises(ModelError, match="vae cannot be read: Permission denied"):
        load_vae(copy / "vae")


def test_the_list_of_a_split_file_cannot_name_files_elsewhere(copy: Path) -> None:
    (copy / UNET).rename(copy / "elsewhere.safetensors")
    listed = {"weight_map": {"conv_in.weight": "../elsewhere.safetensors"}}
    (copy / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(listed), encoding="utf-8")
    with pytest.raises(ModelError, match="which is not in unet"):
        load_checkpoint(copy)
    listed = {"weight_map": {"conv_in.weight": "diffusion_pytorch_model-00001-of-00002.safetensors"}}
    (copy / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(listed), encoding="utf-8")
    with pytest.raises(ModelError, match="unet lacks diffusion_pytorch_model-00001-of-00002"):
        load_checkpoint(copy)


def test_an_index_with_a_class_of_another_kind_is_refused_for_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": 5, "unet": 5}', encoding="utf-8")
    with pytest.raises(ModelError, match="names no UNet"):
        read_checkpoint_info(tmp_path)
