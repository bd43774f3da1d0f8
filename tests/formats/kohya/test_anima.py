"""Settings of sd-scripts' Anima trainer, with the account of what was taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.config.validation.validate import validate
from lib_lora_train.formats.kohya.importer import Imported, from_script
from lib_lora_train.formats.kohya.read_files import read_settings

MODULE = {"network_module": "networks.lora_anima"}
EXAMPLE = """
pretrained_model_name_or_path = "models/anima-preview.safetensors"
qwen3 = "models/qwen_3_06b_base.safetensors"
vae = "models/qwen_image_vae.safetensors"
output_name = "my_anima_lora"
network_module = "networks.lora_anima"
network_dim = 8
network_alpha = 4
network_args = ["loraplus_unet_lr_ratio=4", "train_llm_adapter=False"]
learning_rate = 1e-4
optimizer_type = "AdamW8bit"
lr_scheduler = "constant"
timestep_sampling = "shift"
discrete_flow_shift = 3.0
sigmoid_scale = 1.2
max_train_epochs = 10
mixed_precision = "bf16"
gradient_checkpointing = true
cache_latents = true
cache_text_encoder_outputs = true
vae_chunk_size = 64
vae_disable_cache = true
min_snr_gamma = 5
attn_mode = "flash"
qwen3_max_token_length = 512
"""
TIMESTEPS = ("timestep_sampling", "sigmoid_mean", "sigmoid_scale", "timestep_shift", "resolution_shift")


def drawn(imported: Imported) -> tuple[Any, ...]:
    return tuple(getattr(imported.config, name) for name in TIMESTEPS)


def lost(imported: Imported) -> set[str]:
    """The keys whose loss changes something."""
    return {one.key for one in imported.ignored if not one.is_harmless}


def test_a_whole_file_becomes_our_settings(tmp_path: Path) -> None:
    path = tmp_path / "anima.toml"
    path.write_text(EXAMPLE, encoding="utf-8")
    imported = read_settings(path)
    config = imported.config
    assert (config.rank, config.alpha, config.learning_rate, config.epochs) == (8, 4.0, 1e-4, 10)
    assert (config.family, config.targets, config.train_text_encoder) == ("lora", "standard", False)
    assert (config.checkpoint, config.vae, config.precision) == ("", "", "auto"), "those of the loaded model"
    assert config.loraplus_unet_ratio == 4.0 and config.gradient_checkpointing
    assert drawn(imported) == ("sigmoid", 0.0, 1.2, 3.0, "off")
    assert config.min_snr_gamma == TrainConfig().min_snr_gamma
    assert lost(imported) == {"pretrained_model_name_or_path"}
    assert any("load in Forge Neo" in one.reason for one in imported.ignored)
    errors = [p for p in validate(config) if p.level == "error" and not p.where.startswith("concepts")]
    assert not errors


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, ("sigmoid", 0.0, 1.0, 1.0, "off")),  # their default
        ({"timestep_sampling": "uniform", "sigmoid_scale": 2}, ("uniform", 0.0, 1.0, 1.0, "off")),
        ({"timestep_sampling": "sigmoid", "discrete_flow_shift": 3}, ("sigmoid", 0.0, 1.0, 1.0, "off")),
        ({"timestep_sampling": "shift", "discrete_flow_shift": "2.5"}, ("sigmoid", 0.0, 1.0, 2.5, "off")),
        ({"timestep_sampling": "flux_shift", "sigmoid_scale": 1.5}, ("sigmoid", 0.0, 1.5, 1.0, "flux")),
        ({"timestep_sampling": "sigma", "discrete_flow_shift": 3}, ("uniform", 0.0, 1.0, 3.0, "off")),
        (
            {"timestep_sampling": "sigma", "weighting_scheme": "logit_normal", "logit_mean": 0.5, "logit_std": 1.5},
            ("sigmoid", -0.5, 1.5, 1.0, "off"),
        ),
    ],
)
def test_the_draws_of_sigma_are_the_same(values: dict[str, Any], expected: tuple[Any, ...]) -> None:
    imported = from_script({**MODULE, **values})
    assert drawn(imported) == expected
    assert not lost(imported)


def test_the_mean_of_a_logit_normal_density_changes_its_sign() -> None:
    """sd-scripts draws an index into timesteps that fall from 1000: a high index has little noise."""
    falling = torch.linspace(1000, 1, 1000)
    indices = (torch.sigmoid(torch.randn(20_000, generator=torch.Generator().manual_seed(0)) + 0.5) * 1000).long()
    theirs = float(falling[indices].mean()) / 1000
    config = from_script(
        {**MODULE, "timestep_sampling": "sigma", "weighting_scheme": "logit_normal", "logit_mean": 0.5}
    )
    ours = torch.sigmoid(torch.randn(20_000, generator=torch.Generator().manual_seed(1)) + config.config.sigmoid_mean)
    assert abs(float(ours.mean()) - theirs) < 0.01


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"network_args": ["train_llm_adapter=True"]}, "network_args: train_llm_adapter"),
        ({"timestep_sampling": "sigma", "weighting_scheme": "mode"}, "weighting_scheme"),
        ({"timestep_sampling": "sigma", "weighting_scheme": "cosmap"}, "weighting_scheme"),
        ({"blocks_to_swap": 20}, "blocks_to_swap"),
        ({"t5_max_token_length": 256}, "t5_max_token_length"),
    ],
)
def test_what_has_no_counterpart_is_named(values: dict[str, Any], key: str) -> None:
    assert lost(from_script({**MODULE, **values})) == {key}


@pytest.mark.parametrize(
    "values",
    [{"qwen3": "a.safetensors"}, {"LoRA_type": "Anima"}, {"network_module": "lycoris.kohya", "qwen3": "a"}],
    ids=str,
)
def test_anima_is_recognised_by_any_of_its_signs(values: dict[str, Any]) -> None:
    imported = from_script({**values, "timestep_sampling": "flux_shift"})
    assert imported.config.resolution_shift == "flux" and not imported.config.train_text_encoder


def test_training_the_text_encoder_is_said_to_be_left_out() -> None:
    hints = [p.message for p in from_script(MODULE).problems if p.where == "train_text_encoder"]
    assert hints and "Qwen3" in hints[0]
    quiet = from_script({**MODULE, "network_train_unet_only": True})
    assert not [p for p in quiet.problems if p.where == "train_text_encoder"]


def test_the_metadata_of_a_file_is_imported(tmp_path: Path) -> None:
    path = tmp_path / "theirs.safetensors"
    metadata = {
        "ss_base_model_version": "anima_preview",
        "ss_network_module": "networks.lora_anima",
        "ss_network_dim": "16",
        "ss_network_alpha": "8",
        "ss_timestep_sampling": "shift",
        "ss_discrete_flow_shift": "3.0",
        "ss_sigmoid_scale": "1.0",
        "ss_weighting_scheme": "uniform",
        "ss_learning_rate": "0.0001",
    }
    save_file({"diffusion_model.blocks.0.mlp.layer1.lora_A.weight": torch.zeros(2, 2)}, path, metadata)
    imported = read_settings(path)
    assert (imported.config.rank, imported.config.alpha, imported.config.train_unet) == (16, 8.0, True)
    assert drawn(imported) == ("sigmoid", 0.0, 1.0, 3.0, "off")


def test_settings_for_other_models_are_read_as_before() -> None:
    imported = from_script({"network_module": "networks.lora", "timestep_sampling": "shift", "noise_offset": 0.05})
    assert drawn(imported)[0] == "uniform" and imported.config.noise_offset == 0.05
    assert not lost(from_script({"network_module": "networks.lora", "blocks_to_swap": 18}))
