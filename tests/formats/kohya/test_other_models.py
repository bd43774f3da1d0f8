"""Settings for models that cannot be trained here are refused by name, and never become a LoRA for Stable Diffusion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lib_lora_train.core.errors import ConfigError
from lib_lora_train.formats.kohya.other_models import find_other_model
from lib_lora_train.formats.kohya.read_files import read_settings


@pytest.mark.parametrize(
    ("values", "model"),
    [
        ({"LoRA_type": "Flux1", "network_dim": 16}, "Flux"),
        ({"flux1_checkbox": True, "LoRA_type": "Standard"}, "Flux"),
        ({"sd3_checkbox": "true"}, "SD3"),
        ({"network_module": "networks.lora_flux"}, "Flux"),
        ({"network_module": "networks.lora_sd3"}, "SD3"),
        ({"network_module": "networks.lora_lumina"}, "Lumina"),
        ({"network_module": "networks.lora_anima"}, "Anima"),
        ({"network_module": "networks.lora_hunyuan_image"}, "HunyuanImage"),
        ({"ss_base_model_version": "flux1"}, "Flux"),
        ({"flux1_checkbox": False, "sd3_checkbox": False, "LoRA_type": "Standard", "sdxl": True}, ""),
        ({"network_module": "networks.lora_fa"}, ""),
        ({"network_module": "networks.lora", "ss_base_model_version": "sdxl_base_v1-0"}, ""),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base"}, ""),
    ],
)
def test_the_model_is_recognised(values: dict[str, Any], model: str) -> None:
    assert find_other_model(values) == model


def test_a_preset_for_flux_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "flux.json"
    path.write_text(json.dumps({"LoRA_type": "Flux1", "network_dim": 16, "flux1_checkbox": True}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"has settings for Flux\. Only those for SD1, SD2, SDXL and Anima"):
        read_settings(path)


def test_a_lora_for_flux_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "flux.safetensors"
    metadata = {"ss_base_model_version": "flux1", "ss_network_dim": "16"}
    save_file({"lora_unet_double_blocks_0_img_attn_proj.alpha": torch.ones(())}, str(path), metadata)
    with pytest.raises(ConfigError, match="Flux"):
        read_settings(path)
