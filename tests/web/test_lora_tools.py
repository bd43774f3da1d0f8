"""The Tools panel: files are checked and converted, and nothing is overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lib_lora_train.adapters.files.lora_file import read_adapter, write_adapter
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import AdapterError, LoraTrainError
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.web.lora_tools import LoraToolsSession

_LAYER = "lora_unet_mid_block_attentions_0_proj_in"


def write_lora(path: Path, *, value: float = 0.01) -> Path:
    """A LoRA of rank 4 on one layer of a made-up model."""
    state = {
        f"{_LAYER}.lora_down.weight": torch.full((4, 32, 1, 1), value),
        f"{_LAYER}.lora_up.weight": torch.full((32, 4, 1, 1), 0.5),
        f"{_LAYER}.alpha": torch.tensor(4.0),
    }
    write_adapter(path, state, metadata={"ss_output_name": "small"}, precision="fp32")
    return path


def test_a_good_file_is_described(tmp_path: Path) -> None:
    answer = LoraToolsSession().check({"file": f'"{write_lora(tmp_path / "small.safetensors")}"'})
    assert answer["facts"][0].startswith("small.safetensors: lora")
    assert any("rank: 4 × 1" in line for line in answer["facts"])
    assert (answer["problems"], answer["broken"]) == ([], False)


def test_a_broken_file_is_reported(tmp_path: Path) -> None:
    answer = LoraToolsSession().check({"file": str(write_lora(tmp_path / "a.safetensors", value=float("nan")))})
    assert answer["broken"]
    assert "NaN" in answer["problems"][0]


@pytest.mark.parametrize("file", ["", "  ", "nowhere.safetensors", "a.ckpt"])
def test_a_path_that_is_not_a_lora_file_is_an_error(file: str) -> None:
    for action in LoraToolsSession().actions().values():
        with pytest.raises(AdapterError):
            action({"file": file})


def test_an_invalid_rank_and_an_existing_output_are_errors_before_anything_is_loaded(tmp_path: Path) -> None:
    file = write_lora(tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match="'many' is not a valid rank"):
        LoraToolsSession().convert({"file": str(file), "rank": "many"})
    existing = write_lora(tmp_path / "a-rank8.safetensors")
    before = existing.read_bytes()
    with pytest.raises(LoraTrainError, match="already exists"):
        LoraToolsSession().convert({"file": str(file), "rank": "8"})
    assert existing.read_bytes() == before


def test_a_lora_is_converted_to_its_exact_difference(tmp_path: Path) -> None:
    """On the embedded model: up @ down, as alpha equals the rank; fp16 keeps 11 bits, 2⁻¹¹ relative."""
    unet = StandaloneHost(None, None, tmp_path).load_model(TrainConfig(precision="fp32")).unet
    name, layer = next((n, m) for n, m in unet.named_modules() if n.endswith("attn1.to_q"))
    key = "lora_unet_" + name.replace(".", "_")
    generator = torch.Generator().manual_seed(1)
    down, up = (torch.randn(shape, generator=generator) for shape in ((4, layer.in_features), (layer.out_features, 4)))
    state = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(4.0)}
    file = tmp_path / "a.safetensors"
    write_adapter(file, state, metadata={"ss_sd_model_hash": "0123abcd"}, precision="fp32")
    answer = LoraToolsSession().convert({"file": str(file), "to": "diff"})
    assert (Path(answer["path"]).name, answer["left_out"]) == ("a-diff.safetensors", [])
    assert answer["warnings"] == []  # the difference of a LoRA is the same on every model
    assert 0 < answer["error"] < 2**-11, "includes the loss of rounding to 16 bits"
    torch.testing.assert_close(
        read_adapter(Path(answer["path"])).state[f"{key}.diff"].float(), up @ down, rtol=2**-10, atol=1e-4
    )
