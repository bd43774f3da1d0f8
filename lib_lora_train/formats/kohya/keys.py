"""The settings of kohya's tools beyond the names that our parameters declare.

Names and defaults are those of sd-scripts and the kohya_ss GUI. A key that one of our parameters declares as its
`kohya=` name is imported whatever this module says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ALIASES: Mapping[str, str] = {
    "max_resolution": "resolution",
    "optimizer": "optimizer_type",
    "batch_size": "train_batch_size",
    "caption_extention": "caption_extension",
    "alpha": "network_alpha",
    "dim": "network_dim",
    "lora_network_weights": "network_weights",
    "constrain": "constraint",
}
"""Other names of an sd-scripts argument: the GUI's, those in dataset files, and old spellings."""

METADATA_NAMES: Mapping[str, str] = {
    "optimizer": "optimizer_type",
    "batch_size_per_device": "train_batch_size",
    "num_epochs": "max_train_epochs",
    "debiased_estimation": "debiased_estimation_loss",
}
"""`ss_` keys of a LoRA file, without the prefix, that differ from the argument's name."""

_ALWAYS_ABSENT: Mapping[str, Any] = {"train_batch_size": 1, "keep_tokens": 0, "keep_tokens_separator": ""}
GUI_ABSENT: Mapping[str, Any] = {
    **_ALWAYS_ABSENT,
    "network_dim": 8,
    "network_alpha": 1,
    "max_bucket_reso": 2048,
    "bucket_no_upscale": True,
    "max_token_length": 75,
    "mixed_precision": "fp16",
}
GUI_WARMUP = 10  # percent, unless the rate is constant
DATASET_ABSENT: Mapping[str, Any] = {**_ALWAYS_ABSENT, "enable_bucket": False}
SCRIPT_ABSENT: Mapping[str, Any] = {
    **DATASET_ABSENT,
    "max_token_length": 75,
    "caption_extension": ".caption",
    "network_dim": 4,
    "network_alpha": 1,
    "learning_rate": 2e-6,
    "lr_scheduler": "constant",
}
"""kohya's defaults for missing keys, if they change the result and differ from ours."""

SCRIPT_STEPS = 1600  # sd-scripts' max_train_steps if neither steps nor epochs are given

DEFAULTS: Mapping[str, Any] = {
    # images and captions
    "face_crop_aug_range": "",
    "train_inpainting": False,
    "conditioning_data_dir": "",
    "resize_interpolation": "",
    "caption_separator": ",",
    "secondary_separator": "",
    "token_warmup_min": 1,
    "token_warmup_step": 0,
    "validation_seed": "",
    "validate_every_n_steps": "",
    "validate_every_n_epochs": "",
    "max_validation_steps": "",
    # training
    "lr_scheduler_num_cycles": 1,
    "lr_scheduler_power": 1,
    "lr_scheduler_args": "",
    "lr_scheduler_type": "",
    "lr_decay_steps": 0,
    "stop_text_encoder_training": 0,
    "fp8_base_unet": False,
    "fused_backward_pass": False,
    "resume": "",
    "save_state": False,
    "save_state_on_train_end": False,
    "initial_epoch": "",
    "initial_step": "",
    "skip_until_initial_step": False,
    # noise and loss
    "loss_type": "l2",
    "huber_schedule": "snr",
    "huber_c": 0.1,
    "noise_offset_random_strength": False,
    "adaptive_noise_scale": 0,
    "multires_noise_iterations": 0,
    "multires_noise_discount": 0.3,
    "ip_noise_gamma": 0,
    "ip_noise_gamma_random_strength": False,
    "scale_v_pred_loss_like_noise_pred": False,
    "v_pred_like_loss": 0,
    "debiased_estimation_loss": False,
    "min_timestep": 0,
    "max_timestep": 1000,
    # network
    "base_weights": "",
    "base_weights_multiplier": "",
    "network_multiplier": 1,
    "network_dropout": 0,
    "rank_dropout": 0,
    "module_dropout": 0,
    "scale_weight_norms": 0,
    "loraplus_text_encoder_lr_ratio": 0,
    "loraplus_unet_lr_ratio": 0,
    "block_lr": "",
    "block_lr_zero_threshold": "",
    "down_lr_weight": "",
    "mid_lr_weight": "",
    "up_lr_weight": "",
    "block_dims": "",
    "block_alphas": "",
    "conv_block_dims": "",
    "conv_block_alphas": "",
    # output and samples
    "save_every_n_steps": 0,
    "save_last_n_epochs": 0,
    "save_last_n_epochs_state": 0,
    "save_last_n_steps": 0,
    "save_last_n_steps_state": 0,
    "save_n_epoch_ratio": 0,
    "save_as_bool": False,
    "sample_at_first": False,
}
"""Keys that are not supported yet, with the value at which they do nothing in kohya's tools."""

FULL_PRECISIONS: Mapping[str, str] = {"full_fp16": "fp16", "full_bf16": "bf16"}
"""Switches that store the LoRA's weights in 16 bits → our `lora_precision`."""

MODEL_SWITCHES: Mapping[str, tuple[str, str]] = {
    "v_parameterization": ("prediction_type", "v_prediction"),
    "zero_terminal_snr": ("zero_terminal_snr", "on"),
}
"""Switches that describe the checkpoint, with our parameter and value; off leaves it to the checkpoint."""

FOLDER_SWITCHES: Mapping[str, Mapping[str, Any]] = {
    "flip_aug": {"flip": True},
    "random_crop": {"random_crop": True},
    "color_aug": {"colour_jitter": 0.1},
    "alpha_mask": {"use_masks": True},
    "masked_loss": {"use_masks": True},
}
"""Switches for all images that are settings of the folder here, with their meaning."""

OTHER_NETWORK_DEFAULTS: Mapping[str, Any] = {
    "conv_dim": 1,
    "conv_alpha": 1,
    "LyCORIS_preset": "full",
    "preset": "full",
    "factor": -1,
    "unit": 1,
    "train_on_input": False,
    "constraint": 0,
    "bypass_mode": False,
    "dora_wd": False,
    "use_cp": False,
    "use_tucker": False,
    "rs_lora": False,
    "full_matrix": False,
    "use_scalar": False,
    "rank_dropout_scale": False,
    "rescaled": False,
    "train_norm": False,
    "decompose_both": False,
}
"""Keys of LoCon and the LyCORIS families; the GUI writes them for every LoRA."""

_ONE_PROCESS = "training runs in one process, without accelerate"
_SHOWN_HERE = "the run is shown in the page, the terminal and events.jsonl"
_SAVES_MEMORY = "memory-efficient attention is always on"
_OTHER_MODELS = "it is for models other than SD1, SD2 and SDXL"
_ENCODED_ONCE = "images and captions are always encoded ahead and cached"
_BY_ITSELF = "it is detected from the checkpoint"

NOT_NEEDED: Mapping[str, str] = {
    **dict.fromkeys(("v2", "sdxl", "model_list"), _BY_ITSELF),
    **dict.fromkeys(
        (
            "cache_latents",
            "cache_info",
            "vae_batch_size",
            "sdxl_cache_text_encoder_outputs",
            "cache_text_encoder_outputs",
            "cache_text_encoder_outputs_to_disk",
            "skip_cache_check",
        ),
        _ENCODED_ONCE,
    ),
    **dict.fromkeys(("sdxl_no_half_vae", "no_half_vae"), "the VAE's precision is chosen automatically"),
    **dict.fromkeys(("xformers", "sdpa", "mem_eff_attn", "split_attn"), _SAVES_MEMORY),
    **dict.fromkeys(
        ("max_data_loader_n_workers", "persistent_data_loader_workers", "lowram", "highvram", "lowvram"),
        "no data is loaded during training",
    ),
    **dict.fromkeys(
        (
            "logging_dir",
            "log_with",
            "log_prefix",
            "log_tracker_name",
            "log_tracker_config",
            "log_config",
            "use_wandb",
            "wandb_api_key",
            "wandb_run_name",
            "console_log_level",
            "console_log_file",
            "console_log_simple",
        ),
        _SHOWN_HERE,
    ),
    **dict.fromkeys(
        (
            "num_processes",
            "num_machines",
            "num_cpu_threads_per_process",
            "multi_gpu",
            "gpu_ids",
            "main_process_port",
            "extra_accelerate_launch_args",
            "ddp_timeout",
            "ddp_gradient_as_bucket_view",
            "ddp_static_graph",
            "deepspeed",
        ),
        _ONE_PROCESS,
    ),
    **dict.fromkeys(
        ("learning_rate_te", "learning_rate_te1", "learning_rate_te2"), "it is for kohya's full fine-tuning"
    ),
    **dict.fromkeys(
        (
            "ae",
            "apply_t5_attn_mask",
            "blocks_to_swap",
            "clip_g",
            "clip_l",
            "discrete_flow_shift",
            "double_blocks_to_swap",
            "cfm_lambda",
            "enable_all_linear",
            "flow_uniform_base_pixels",
            "guidance_scale",
            "img_attn_dim",
            "img_mlp_dim",
            "img_mod_dim",
            "in_dims",
            "logit_mean",
            "logit_std",
            "mode_scale",
            "model_prediction_type",
            "single_blocks_to_swap",
            "single_dim",
            "single_mod_dim",
            "split_mode",
            "split_qkv",
            "t5xxl",
            "t5xxl_lr",
            "t5xxl_max_token_length",
            "sigmoid_scale",
            "timestep_sampling",
            "train_blocks",
            "train_double_block_indices",
            "train_single_block_indices",
            "txt_attn_dim",
            "txt_mlp_dim",
            "txt_mod_dim",
            "weighting_scheme",
            "cpu_offload_checkpointing",
            "clip_g_dropout_rate",
            "enable_scaled_pos_embed",
            "model_type",
            "pos_emb_random_crop_rate",
            "save_clip",
            "save_t5xxl",
            "show_timesteps",
            "show_timesteps_resolution",
            "t5_dropout_rate",
            "t5xxl_device",
            "t5xxl_dtype",
            "train_lora_ggpo",
            "train_t5xxl",
        ),
        _OTHER_MODELS,
    ),
    **dict.fromkeys(("async_upload", "resume_from_huggingface", "save_state_to_huggingface"), "nothing is uploaded"),
    **dict.fromkeys(("mem_eff_save", "disable_mmap_load_safetensors"), "reading and writing files takes little memory"),
    "dim_from_weights": "the rank is always taken from the file",
    "save_model_as": "LoRA files are always .safetensors",
    "headless": "it only controls kohya's tools",
    "print_only": "it only controls kohya's tools",
    "output_config": "it only controls kohya's tools",
    "config_file": "it only controls kohya's tools",
    "tokenizer_cache_dir": "the tokenisers are included",
    "no_metadata": "settings are always stored in the LoRA file, without paths",
}
"""Why a key is not needed here."""

NOT_NEEDED_PREFIXES: Mapping[str, str] = {
    "anima_": _OTHER_MODELS,
    "dynamo_": _ONE_PROCESS,
    "flux1_": _OTHER_MODELS,
    "flux_": _OTHER_MODELS,
    "ggpo_": _OTHER_MODELS,
    "huggingface_": "nothing is uploaded",
    "hunyuan_": _OTHER_MODELS,
    "lumina_": _OTHER_MODELS,
    "metadata_": "title and trigger are written automatically",
    "sd3_": _OTHER_MODELS,
}

FACTS = (
    "session_id",
    "training_started_at",
    "training_finished_at",
    "steps",
    "epoch",
    "num_batches_per_epoch",
    "num_train_images",
    "num_reg_images",
    "num_validation_images",
    "total_batch_size",
    "tag_frequency",
    "bucket_info",
    "reg_dataset_dirs",
    "base_model_version",
    "sd_model_hash",
    "new_sd_model_hash",
    "vae_hash",
    "new_vae_hash",
    "sd_scripts_commit_hash",
    "lowram",
    "is_dreambooth",
    "img_count",
)
"""Metadata keys, without `ss_`, that describe the run and are not settings."""

LYCORIS_PRESETS: Mapping[str, tuple[str, bool]] = {
    "full": ("full", True),
    "full-lin": ("standard", True),
    "attn-mlp": ("standard", True),
    "attn-only": ("attention", True),
    "unet-only": ("full", False),
    "unet-transformer-only": ("standard", False),
}
"""LyCORIS presets → the `targets` with the same layers, and whether they include the text encoder."""

IA3_PRESETS: Mapping[str, tuple[str, bool]] = {
    "ia3": ("standard", True),
    "full-lin": ("all", True),
    "attn-mlp": ("all", True),
    "unet-transformer-only": ("all", False),
}
"""The same for (IA)³, where they differ: our `standard` is the layers of its paper, `all` every linear layer."""

SAMPLERS: Mapping[str, str] = {"k_euler": "Euler", "k_euler_a": "Euler a"}
PRECISIONS: Mapping[str, str] = {"no": "fp32", "float": "fp32"}
MIXED_PRECISIONS: Mapping[str, str] = {"fp32": "no", "auto": "fp16"}
"""Our `precision` → kohya's `mixed_precision`, where they differ."""

NOT_IN_GUI = (
    *("alpha_mask", "caption_prefix", "caption_separator", "caption_suffix", "caption_tag_dropout_rate"),
    *("enable_wildcard", "full_matrix", "keep_tokens_separator", "lr_decay_steps", "lr_scheduler_min_lr_ratio"),
    *("lr_scheduler_timescale", "rs_lora", "secondary_separator", "token_warmup_min", "token_warmup_step"),
    *("validation_split", "zero_terminal_snr"),
)
"""Settings of sd-scripts that we have too and for which the kohya_ss GUI has no field."""
