"""A run on a folder in diffusers' layout trains what a run on the same weights in one file trains."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lib_lora_train.cli.main import main
from lib_lora_train.core.safetensors_header import Header, read_header
from lib_lora_train.models.architecture import Architecture
from lib_lora_train.models.checkpoint import model_hash
from tests.stand_ins.model_folders import write_model_folder
from tests.stand_ins.tiny_models import tiny_model, write_tiny_checkpoint


def _train(checkpoint: Path, home: Path, *more: str) -> int:
    images = home / "images"
    images.mkdir(parents=True)
    for number in range(2):
        Image.linear_gradient("L").convert("RGB").rotate(90 * number).resize((64, 64)).save(images / f"{number}.png")
        (images / f"{number}.txt").write_text("zorp, gradient", encoding="utf-8")
    flags = ["--folder", str(images), "--trigger", "zorp", "--ckpt", str(checkpoint), "--out", str(home), *more]
    sizes = ["--resolution", "64", "--min-bucket", "64", "--max-bucket", "64", "--rank", "2", "--epochs", "1"]
    only_training = ["--no-measure-steady-loss", "--no-measure-prompts", "--sample-every-n-epochs", "0"]
    return main(
        ["train", "--cpu", *flags, *sizes, *only_training, "--output-name", "fox", "--prediction-type", "epsilon"]
    )


def _lora(home: Path) -> tuple[Header, bytes]:
    """The header of the run's last LoRA, and the bytes of its tensors."""
    path = sorted((home / "models" / "Lora").glob("*.safetensors"))[-1]
    header = read_header(path)
    return header, path.read_bytes()[-header.data_bytes :]


@pytest.mark.parametrize("architecture", ["sd1", "sd2", "sdxl"])
def test_a_lora_from_a_folder_has_the_bytes_of_one_from_the_file(architecture: Architecture, tmp_path: Path) -> None:
    """Only the name and the hash of the model differ in the metadata, and what follows from them or the clock."""
    single = write_tiny_checkpoint(tmp_path / "tiny.safetensors", architecture, shallow=True)
    model = tiny_model(architecture, prediction_type="epsilon", zero_terminal_snr=False)
    for module in (model.unet, model.vae, *model.text_encoders):
        module.half()
    folder = write_model_folder(tmp_path / "tiny-v1.5", model, variant="fp16")
    for name, checkpoint in (("single", single), ("folder", folder)):
        assert _train(checkpoint, tmp_path / name) == 0
    one, tensors = _lora(tmp_path / "single")
    other, their_tensors = _lora(tmp_path / "folder")
    assert tensors == their_tensors and one.entries == other.entries
    differing = {key for key in {**one.metadata, **other.metadata} if one.metadata.get(key) != other.metadata.get(key)}
    assert {"ss_sd_model_name", "ss_new_sd_model_hash"} <= differing
    assert not {"ss_base_model_version", "ss_v2", "modelspec.prediction_type", "modelspec.architecture"} & differing
    assert other.metadata["ss_new_sd_model_hash"] == model_hash(folder)
    assert other.metadata["ss_sd_model_name"] == "tiny-v1.5" and other.metadata["ss_sd_model_hash"] == "None"


def test_a_run_on_a_folder_is_planned_and_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_model_folder(tmp_path / "tiny-v1.5", tiny_model("sd1"))
    assert _train(folder, tmp_path / "plan", "--dry-run") == 0
    assert "tiny-v1.5: SD1, predicts noise" in capsys.readouterr().out
    assert _train(folder, tmp_path / "run") == 0
    (run,) = (tmp_path / "run" / "outputs").glob("*-fox")
    assert main(["resume", "--cpu", str(run), "--more-epochs", "1"]) == 0
    moved = folder.rename(tmp_path / "elsewhere")
    assert main(["resume", "--cpu", str(run), "--more-epochs", "1", "--ckpt", str(moved)]) == 0
    write_model_folder(tmp_path / "other", tiny_model("sd1", seed=9))
    capsys.readouterr()
    assert main(["resume", "--cpu", str(run), "--more-epochs", "1", "--ckpt", str(tmp_path / "other")]) != 0
    assert "was started on" in capsys.readouterr().err
