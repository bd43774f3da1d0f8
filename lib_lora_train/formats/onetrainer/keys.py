"""OneTrainer's keys that have no counterpart here: at which value they do nothing, and which are not needed.

Names and defaults are those of OneTrainer 23df383 (August 2026).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lib_lora_train.formats.kohya.import_state import AT_DEFAULT_THERE, EMPTY, NOT_NEEDED

DEFAULTS: Mapping[str, Any] = {
    "mse_strength": 1.0,
    "vb_loss_strength": 1.0,
    "huber_delta": 1.0,
    "loss_weight_strength": 5.0,
    "learning_rate_scaler": "NONE",
    "loss_scaler": "NONE",
    "unmasked_probability": 0.1,
    "unmasked_weight": 0.1,
    "bundle_additional_embeddings": True,
    "balancing_strategy": "REPEATS",
    "image_variations": 1,
    "text_variations": 1,
    "loss_weight": 1.0,
    "text.prompt_source": "sample",
    "text.tag_delimiter": ",",
    "text.tag_dropout_mode": "FULL",
    "text.tag_dropout_special_tags_mode": "NONE",
    "text.caps_randomize_mode": "capslock, title, first, random",
    "image.enable_crop_jitter": True,
    "image.resolution_override": "512",
}
"""Keys that are not supported, with the value at which they do nothing."""

_HANDLED_HERE = (
    *("debug", "workspace", "cache", "huggingface", "offline", "tensorboard", "validat", "multi_gpu", "device_"),
    *("gradient_reduce", "fused_gradient", "async_", "dataloader_", "train_device", "temp_device", "fallback_"),
    *(
        "enable_autocast",
        "only_cache",
        "latent_caching",
        "clear_cache",
        "attention_mechanism",
        "compile",
        "quantization",
    ),
    *("cloud", "secrets", "backup", "rolling_backup", "continue_last_backup", "prevent_overwrites", "include_train"),
    *("frames", "samples_to_tensorboard", "non_ema_sampling", "sample_", "save_filename", "save_skip", "__version"),
    *(
        "optimizer_defaults",
        "ema_update",
        "output_model_format",
        "custom_conditioning",
        "concept_stats",
        "seed",
        "name",
    ),
    *("quantization", "weight_dtype", "name", "oft_", "lokr_", "lora_"),
    *("preserve_embedding", "embedding", "additional_embeddings", "lora_decompose_norm", "lokr_vec", "model_type"),
)
"""Beginnings of names of settings that are not needed here, or are for other purposes than training a LoRA."""

_OTHER_PARTS = (
    *("prior.", "transformer.", "unconditional_transformer.", "text_encoder_3", "text_encoder_4", "effnet_encoder."),
    *("decoder", "vae.", "unet.", "text_encoder.", "text_encoder_2.", "text_encoder_sequence", "text_encoder_2_"),
    "optimizer.",
)


def why_not_read(name: str, value: Any) -> str:
    """Why a key that nothing has read is ignored."""
    if value in (None, False, "", 0, "NEVER", "NONE", "OFF") or value == [] or value == {}:
        return EMPTY
    if name in DEFAULTS and value == DEFAULTS[name]:
        return AT_DEFAULT_THERE
    if name.startswith((*_HANDLED_HERE, *_OTHER_PARTS)):
        return NOT_NEEDED
    if name.startswith("image.") and name.endswith(("max_strength", "max_angle")):
        return EMPTY
    return "is not supported"
