"""Validation of optimisers, learning rates and saved files."""

from __future__ import annotations

from typing import Any

import pytest

from lib_lora_train.config.optimizer_catalog import OPTIMIZER_CATALOG
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.config.validation.validate import validate

BASE = TrainConfig(concepts=(Concept("/images", trigger="zok"),), sample_prompts=("zok",), text_encoder_lr=5e-5)
CUSTOM = {"optimizer": "Custom", "custom_optimizer": "torch.optim.RAdam"}
PRODIGY = {"optimizer": "Prodigy", "learning_rate": 1.0, "text_encoder_lr": None}
DADAPT = {**PRODIGY, "optimizer": "DAdaptAdam"}
FREE = {"optimizer": "AdamWScheduleFree", "lr_schedule": "constant"}
ADAFACTOR = {"optimizer": "Adafactor", "lr_schedule": "adafactor"}


def found(**values: Any) -> dict[str, str]:
    """Setting → level of its problem."""
    return {problem.where: problem.level for problem in validate(BASE.replace(**values))}


def test_usual_settings_have_no_problems() -> None:
    assert found() == {}
    assert found(**FREE) == {}
    assert found(**PRODIGY) == {}
    assert found(**DADAPT) == {}
    assert found(**CUSTOM, optimizer_args="whatever=3") == {}


@pytest.mark.parametrize(
    ("values", "where", "level"),
    [
        ({**PRODIGY, "learning_rate": 1e-4}, "learning_rate", "warning"),
        ({**DADAPT, "learning_rate": 1e-4}, "learning_rate", "warning"),
        ({**PRODIGY, "warmup": 0.1}, "warmup", "warning"),
        ({**DADAPT, "warmup": 0.1}, "warmup", "hint"),
        ({**DADAPT, "text_encoder_lr": 0.5}, "text_encoder_lr", "hint"),
        ({**PRODIGY, "lr_schedule": "cosine_with_restarts", "lr_cycles": 3}, "lr_schedule", "warning"),
        ({**PRODIGY, "loraplus_unet_ratio": 4.0}, "loraplus_unet_ratio", "warning"),
        ({**FREE, "lr_schedule": "cosine"}, "lr_schedule", "warning"),
        ({**FREE, "ema_decay": 0.99}, "ema_decay", "warning"),
        ({"ema_decay": 0.999, "max_steps": 200}, "ema_decay", "warning"),
        ({"ema_decay": 1.0}, "ema_decay", "error"),
        ({"lr_schedule": "adafactor"}, "lr_schedule", "error"),
        ({"optimizer": "Adafactor", "optimizer_args": "relative_step=True"}, "optimizer_args", "error"),
        ({**ADAFACTOR, "optimizer_args": "relative_step=False"}, "optimizer_args", "error"),
        ({"optimizer": "Adafactor", "optimizer_args": "warmup_init=True"}, "optimizer_args", "error"),
        ({"optimizer": "Adafactor", "optimizer_args": "scale_parameter=True"}, "optimizer_args", "warning"),
        ({**ADAFACTOR}, "learning_rate", "hint"),
        ({**ADAFACTOR, "warmup": 0.1}, "warmup", "hint"),
        ({"optimizer": "Lion", "learning_rate": 1e-3}, "learning_rate", "warning"),
        ({"optimizer": "Lion", "optimizer_args": "eps=1e-8"}, "optimizer_args", "error"),
        ({"optimizer": "CAME", "optimizer_args": "betas=0.9,0.99"}, "optimizer_args", "error"),
        ({"optimizer": "Custom"}, "custom_optimizer", "error"),
        ({"custom_optimizer": "torch.optim.RAdam"}, "custom_optimizer", "hint"),
        ({"loraplus_unet_ratio": 200.0}, "loraplus_unet_ratio", "warning"),
        ({"batch_size": 4}, "learning_rate", "hint"),
        ({"batch_size": 2, "gradient_accumulation": 2}, "learning_rate", "hint"),
        ({"train_text_encoder": False, "stop_text_encoder": 0.5}, "stop_text_encoder", "hint"),
        ({"train_unet": False, "stop_text_encoder": 0.5}, "stop_text_encoder", "warning"),
        ({"max_steps": 100, "stop_text_encoder": 200}, "stop_text_encoder", "hint"),
        ({"train_text_encoder": False, "text_encoder_2_lr": 1e-5}, "text_encoder_2_lr", "hint"),
        ({"save_from_epoch": 20}, "save_from_epoch", "hint"),
        ({"keep_last_step_files": 2}, "keep_last_step_files", "hint"),
        ({"keep_last_epochs": 2}, "keep_last_epochs", "hint"),
        ({"save_state": False}, "save_state", "hint"),
    ],
)
def test_a_problematic_combination_is_reported(values: dict[str, Any], where: str, level: str) -> None:
    assert found(**values).get(where) == level


def test_high_learning_rates_are_accepted_for_tiny_models() -> None:
    assert found(learning_rate=5e-3)["learning_rate"] == "warning"
    assert "learning_rate" not in found(learning_rate=5e-3, resolution=128, min_bucket=64)


def test_large_batches_get_a_hint_with_the_scaled_learning_rate() -> None:
    (hint,) = (problem for problem in validate(BASE.replace(batch_size=8)) if problem.where == "learning_rate")
    assert "8 images per step the guides go up to 0.0008" in hint.message


def test_the_arguments_of_the_guides_are_allowed() -> None:
    args = "decouple=True weight_decay=0.01 d_coef=0.8 use_bias_correction=True safeguard_warmup=True betas=0.9,0.99"
    assert "optimizer_args" not in found(**PRODIGY, optimizer_args=args)
    assert "optimizer_args" not in found(optimizer="CAME", optimizer_args="betas=0.9,0.999,0.9999 eps=1e-30,1e-16")


@pytest.mark.parametrize("kind", [name for name in OPTIMIZER_CATALOG if name != "Custom"])
def test_no_optimiser_has_a_warning_at_its_usual_learning_rate(kind: str) -> None:
    rate = OPTIMIZER_CATALOG[kind].usual_lr
    values = {"optimizer": kind, "learning_rate": rate, "text_encoder_lr": None, "lr_schedule": "constant"}
    assert [level for level in found(**values).values() if level != "hint"] == []
