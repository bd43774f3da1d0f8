"""A file that today's kohya_ss GUI saves from its default form has no key that is unknown here, and loses nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.core.errors import ConfigError
from lib_lora_train.formats.kohya.importer import from_gui
from lib_lora_train.formats.kohya.read_files import read_settings
from tests.paths import KOHYA_FILES

FORM = (KOHYA_FILES / "form_fields.txt").read_text(encoding="utf-8").split()
"""The names of the fields in the form of kohya_ss 45088f0 (July 2026)."""

VALUES: dict[str, Any] = {
    "LoRA_type": "Standard",
    "LyCORIS_preset": "full",
    "pretrained_model_name_or_path": "/models/base.safetensors",
    "train_data_dir": "/fox/img",
    "save_model_as": "safetensors",
    "save_precision": "fp16",
    "output_name": "last",
    "max_resolution": "512,512",
    "learning_rate": 0.0001,
    "unet_lr": 0.0001,
    "text_encoder_lr": 0.0001,
    "lr_scheduler": "cosine",
    "lr_warmup": 10,
    "train_batch_size": 1,
    "epoch": 1,
    "save_every_n_epochs": 1,
    "cache_latents": True,
    "caption_extension": ".txt",
    "enable_bucket": True,
    "min_bucket_reso": 256,
    "max_bucket_reso": 2048,
    "max_train_steps": 1600,
    "lr_scheduler_num_cycles": 1,
    "lr_scheduler_power": 1,
    "optimizer": "AdamW8bit",
    "max_grad_norm": 1.0,
    "mixed_precision": "fp16",
    "num_cpu_threads_per_process": 2,
    "num_processes": 1,
    "num_machines": 1,
    "dynamo_backend": "no",
    "dynamo_mode": "default",
    "xformers": "xformers",
    "prior_loss_weight": 1.0,
    "keep_tokens": 0,
    "clip_skip": 1,
    "gradient_accumulation_steps": 1,
    "max_token_length": 75,
    "bucket_no_upscale": True,
    "bucket_reso_steps": 64,
    "noise_offset_type": "Original",
    "multires_noise_discount": 0.3,
    "loss_type": "l2",
    "huber_schedule": "snr",
    "huber_c": 0.1,
    "huber_scale": 1,
    "max_timestep": 1000,
    "network_dim": 8,
    "network_alpha": 1,
    "conv_dim": 1,
    "conv_alpha": 1,
    "factor": -1,
    "unit": 1,
    "sample_sampler": "euler_a",
    "blocks_to_swap": 0,
    "guidance_scale": 3.5,
    "model_prediction_type": "sigma_scaled",
    "timestep_sampling": "sigma",
    "weighting_scheme": "logit_normal",
    "anima_timestep_sampling": "sigmoid",
    "hunyuan_vae_chunk_size": 16,
}


def _saved() -> dict[str, Any]:
    """The default form as the GUI saves it: fields without a value of their own are 0, off or empty."""
    return {name: VALUES.get(name, 0 if name.endswith(("steps", "epochs", "rate", "ratio")) else "") for name in FORM}


def test_no_field_of_the_form_is_unknown() -> None:
    imported = from_gui(dict.fromkeys(FORM, "some text"))
    assert [ignored.key for ignored in imported.ignored if "is not a known setting" in ignored.reason] == []


def test_the_default_form_loses_nothing() -> None:
    imported = from_gui(_saved())
    assert [(ignored.key, ignored.reason) for ignored in imported.ignored if not ignored.is_harmless] == []
    assert [str(problem) for problem in imported.problems] == []


@pytest.mark.parametrize(
    ("values", "tab"),
    [
        ({"token_string": "zorp", "init_word": "fox", "num_vectors_per_token": 4}, "Textual Inversion"),
        ({"full_path": True, "create_caption": True, "image_folder": "/fox"}, "Finetuning"),
        ({"no_token_padding": False, "learning_rate_te": 1e-5}, "Dreambooth"),
    ],
)
def test_files_of_other_tabs_are_refused_by_name(tmp_path: Path, values: dict[str, Any], tab: str) -> None:
    shared = {"max_resolution": "512,512", "optimizer": "AdamW8bit", "epoch": 4, "train_batch_size": 2}
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({**shared, **values}), encoding="utf-8")
    with pytest.raises(ConfigError, match=f"is from the {tab} tab of kohya's GUI"):
        read_settings(path)
    path.write_text(json.dumps({**shared, **values, "LoRA_type": "Standard", "network_dim": 8}), encoding="utf-8")
    assert read_settings(path).config.rank == 8
