"""A checkpoint written again holds the same model, but for what was asked for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import LoraTrainError, ModelError, OutputError
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.lora_tools.checkpoint_changes import CheckpointChanges
from lib_lora_train.lora_tools.convert_checkpoint import ConvertedCheckpoint, convert_checkpoint
from tests.stand_ins.tiny_models import tiny_tensors

POSITIONS = "cond_stage_model.transformer.text_model.embeddings.position_ids"
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
SCHEDULE = "alphas_cumprod"


@pytest.fixture(scope="module")
def model() -> dict[str, Tensor]:
    """A tiny SD1 in fp32 with its noise schedule and position ids."""
    tensors = dict(tiny_tensors("sd1", shallow=True))
    return {**tensors, SCHEDULE: torch.linspace(1, 0, 1000), POSITIONS: torch.arange(77)[None]}


def write(tmp_path: Path, tensors: dict[str, Tensor], name: str = "model.ckpt") -> Path:
    """A file as trainers write it."""
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, {"modelspec.title": "tiny"})
    else:
        torch.save({"state_dict": tensors, "global_step": 7}, path)
    return path


def converted(source: Path, **changes: Any) -> tuple[dict[str, Tensor], ConvertedCheckpoint]:
    """The tensors of the new file, and the report."""
    path = source.with_name("new.safetensors")
    path.unlink(missing_ok=True)
    written = convert_checkpoint(source, path, CheckpointChanges(**changes))
    assert written.size_bytes == path.stat().st_size
    return load_file(path), written


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.safetensors"])
def test_a_pickle_becomes_safetensors_with_the_same_tensors(
    tmp_path: Path, model: dict[str, Tensor], name: str
) -> None:
    new, written = converted(write(tmp_path, model, name))
    assert new.keys() == model.keys() and written.notes == ()
    assert all(new[key].dtype == tensor.dtype and torch.equal(new[key], tensor) for key, tensor in model.items())


def test_the_new_file_is_trained_on_as_the_old_one(tmp_path: Path, tiny_checkpoint: Path) -> None:
    shutil.copytree(tiny_checkpoint.parent / "tokenizer", tmp_path / "tokenizer")
    source = write(tmp_path, load_file(tiny_checkpoint))
    shutil.copy(tiny_checkpoint.with_suffix(".yaml"), source.with_suffix(".yaml"))
    _, written = converted(source)
    models = [
        StandaloneHost(None, None, tmp_path).load_layers(TrainConfig(checkpoint=str(path)))
        for path in (tiny_checkpoint, written.path)
    ]
    old, new = (model.unet.state_dict() for model in models)
    assert models[0].spec.text_encoders == models[1].spec.text_encoders
    assert all(torch.equal(new[name], tensor) for name, tensor in old.items())


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_weights_are_rounded_and_the_noise_schedule_is_not(
    tmp_path: Path, model: dict[str, Tensor], precision: str, dtype: torch.dtype
) -> None:
    new, _ = converted(write(tmp_path, model), precision=precision)
    for key, tensor in model.items():
        expected = tensor if key in (SCHEDULE, POSITIONS) else tensor.to(dtype)
        assert new[key].dtype == expected.dtype and torch.equal(new[key], expected), key


def test_all_weights_of_a_vae_alone_are_rounded(tmp_path: Path) -> None:
    new, _ = converted(write(tmp_path, {"encoder.conv_in.weight": torch.ones(2, 2)}, "a.vae.pt"), precision="fp16")
    assert new["encoder.conv_in.weight"].dtype == torch.float16


def test_values_that_fp16_cannot_hold_are_refused(tmp_path: Path, model: dict[str, Tensor]) -> None:
    source = write(tmp_path, {**model, FIRST: model[FIRST] + 7e4})
    with pytest.raises(ModelError, match=rf"{FIRST} has values up to 7e\+04, and fp16 ends at 65504. Choose bf16"):
        converted(source, precision="fp16")
    assert list(tmp_path.iterdir()) == [source]
    assert converted(source, precision="bf16")[0][FIRST].isfinite().all()
    infinite = write(tmp_path, {**model, FIRST: model[FIRST] + float("inf")})
    assert converted(infinite, precision="fp16")[0][FIRST].isinf().all(), "what was broken before is not our loss"


def test_ema_weights_are_left_out_or_used_or_kept(tmp_path: Path, model: dict[str, Tensor]) -> None:
    """ldm's LitEma names its copies like the weights without dots."""
    ema = {"model_ema.diffusion_modelinput_blocks00weight": 2 * model[FIRST], "model_ema.decay": torch.tensor(0.999)}
    loss = {"first_stage_model.loss.logvar": torch.ones(1)}
    source = write(tmp_path, {**model, **ema, **loss})
    new, written = converted(source)
    assert new.keys() == model.keys() and written.notes == ("What only trainers need was left out: 0.1 MiB.",)
    with pytest.raises(ModelError, match="EMA weights for a part of its UNet only: model"):
        converted(source, ema="use")
    ema |= {_ema(name): 2 * tensor for name, tensor in model.items() if name.startswith("model.")}
    source = write(tmp_path, {**model, **ema, **loss})
    new, written = converted(source, ema="use")
    assert torch.equal(new[FIRST], 2 * model[FIRST]) and new.keys() == model.keys()
    assert "The UNet is that of the EMA weights." in written.notes
    assert converted(source, ema="keep")[0].keys() == model.keys() | ema.keys()
    with pytest.raises(ModelError, match="has no EMA weights"):
        converted(write(tmp_path, model), ema="use")


def _ema(name: str) -> str:
    return "model_ema." + name.removeprefix("model.").replace(".", "")


def test_what_is_no_checkpoint_is_named(tmp_path: Path, model: dict[str, Tensor]) -> None:
    vae = write(tmp_path, {"encoder.conv_in.weight": torch.ones(2), "loss.logvar": torch.ones(1)}, "vae.pt")
    assert list(converted(vae)[0]) == ["encoder.conv_in.weight"]
    for name, tensors, message in [
        ("lora.pt", {"lora_unet_x.lora_down.weight": torch.ones(2, 2)}, "lora.pt: This is a LoRA"),
        ("ti.pt", {"emb_params": torch.ones(2, 2)}, "ti.pt: This is a textual-inversion embedding"),
        ("ema.ckpt", {"model_ema.x": torch.ones(2)}, "has EMA weights alone"),
    ]:
        with pytest.raises(ModelError, match=message):
            converted(write(tmp_path, tensors, name))
    with pytest.raises(ModelError, match="has no UNet, so it needs no VAE"):
        converted(vae, vae=vae)
    with pytest.raises(ModelError, match="is a folder"):
        converted(tmp_path)


def test_a_file_in_8_bit_is_widened_unless_it_has_scales(tmp_path: Path, model: dict[str, Tensor]) -> None:
    small = {**model, FIRST: model[FIRST].to(torch.float8_e4m3fn)}
    for name in ("model.ckpt", "model.safetensors"):
        new, _ = converted(write(tmp_path, small, name), precision="fp16")
        assert new[FIRST].dtype == torch.float16 and torch.equal(new[FIRST], small[FIRST].half())
        assert converted(write(tmp_path, small, name))[0][FIRST].dtype == torch.float8_e4m3fn
    scaled = write(tmp_path, {**small, FIRST.replace("weight", "scale_weight"): torch.ones(1)})
    with pytest.raises(ModelError, match="stored in 8 bit or less with scales"):
        converted(scaled, precision="fp16")


def test_the_ending_is_not_trusted(tmp_path: Path, model: dict[str, Tensor]) -> None:
    renamed = write(tmp_path, model).rename(tmp_path / "model.safetensors")
    assert converted(renamed)[0].keys() == model.keys()


def test_rounded_position_ids_are_put_right(tmp_path: Path, model: dict[str, Tensor]) -> None:
    """Mergers that average all tensors leave such ids behind, and the text encoder reads other positions."""
    wrong = torch.arange(77.0)[None]
    wrong[0, 3:5] += 0.4
    new, written = converted(write(tmp_path, {**model, POSITIONS: wrong}))
    assert new[POSITIONS].dtype == torch.int64 and torch.equal(new[POSITIONS], torch.arange(77)[None])
    assert written.notes == ("2 position ids of the text encoder put right.",)


@pytest.mark.parametrize("name", ["other.safetensors", "other.vae.pt"])
def test_a_vae_replaces_the_own_one(tmp_path: Path, model: dict[str, Tensor], name: str) -> None:
    vae = {key.removeprefix("first_stage_model."): 3 * tensor for key, tensor in model.items() if "first_stage" in key}
    path = write(tmp_path, {**vae, "loss.logvar": torch.ones(1)}, name)
    new, written = converted(write(tmp_path, model), vae=path, precision="fp16")
    for key, tensor in model.items():
        factor = 3 if key.startswith("first_stage_model.") else 1
        expected = tensor if key in (SCHEDULE, POSITIONS) else (factor * tensor).half()
        assert torch.equal(new[key], expected), key
    assert new.keys() == model.keys() and written.notes == (f"The VAE is that of {name}.",)


def test_metadata_and_the_yaml_come_along(tmp_path: Path, model: dict[str, Tensor]) -> None:
    source = write(tmp_path, model, "model.safetensors")
    save_file(load_file(source), source, {"modelspec.title": "tiny", "modelspec.hash_sha256": "0xabc"})
    source.with_suffix(".yaml").write_text("model: {}")
    _, written = converted(source)
    with safe_open(str(written.path), framework="pt") as file:
        assert file.metadata() == {"modelspec.title": "tiny"}, "the hash was that of the old file"
    assert written.path.with_suffix(".yaml").read_text() == "model: {}"


def test_nothing_is_overwritten_and_nothing_half_written(
    tmp_path: Path, model: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path, model)
    source.with_suffix(".yaml").write_text("mine")
    (tmp_path / "new.yaml").write_text("theirs")
    for path, existing in ((source, source), (tmp_path / "new.safetensors", tmp_path / "new.yaml")):
        with pytest.raises(LoraTrainError, match=f"{existing.name} already exists"):
            convert_checkpoint(source, path, CheckpointChanges())
    (tmp_path / "new.yaml").unlink()
    monkeypatch.setattr("os.fsync", _full)
    with pytest.raises(OutputError, match="No space left"):
        convert_checkpoint(source, tmp_path / "new.safetensors", CheckpointChanges())
    assert sorted(one.name for one in tmp_path.iterdir()) == ["model.ckpt", "model.yaml"]


def _full(_file: int) -> None:
    raise OSError(28, "No space left on device")


def test_unknown_choices_are_named() -> None:
    for values, message in [({"precision": "fp8"}, "'fp8' is not a precision"), ({"ema": "x"}, "'x' is not a choice")]:
        with pytest.raises(LoraTrainError, match=message):
            CheckpointChanges(**values).check()  # type: ignore[arg-type]


def test_the_name_tells_what_changed(tmp_path: Path) -> None:
    assert CheckpointChanges().name == ""
    assert CheckpointChanges("fp16", tmp_path / "kl-f8.vae.pt", "use").name == "fp16-kl-f8-ema"
