"""The metadata of a LoRA file: kohya's `ss_*` keys, `modelspec.*`, and our settings as JSON.

All values are text, as safetensors requires; "None" means "not used", as in kohya's files. The webuis read the base
model's version, the tag frequencies and the titles; the rest is for people.
"""

from __future__ import annotations

import datetime
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from lib_lora_train.config.optimizer_catalog import CUSTOM
from lib_lora_train.config.train_config import CONFIG_KEY, TrainConfig, config_values, duration_in_steps
from lib_lora_train.dataset.captions import split_tags
from lib_lora_train.formats.kohya.keys import FULL_PRECISIONS
from lib_lora_train.formats.kohya.network_export import metadata_network
from lib_lora_train.formats.toml import PATH_SETTINGS
from lib_lora_train.models.base_metadata import base_metadata
from lib_lora_train.models.kinds.registry import kind_of

if TYPE_CHECKING:
    from lib_lora_train.dataset.plan import Plan
    from lib_lora_train.dataset.scan import ScannedConcept
    from lib_lora_train.models.diffusion_model import DiffusionModel

_PRECISIONS = {"torch.float16": "fp16", "torch.bfloat16": "bf16"}


@dataclass(frozen=True)
class RunFacts:
    """Values known only during the run. Times are seconds since 1970; `step` and `epoch` are those of this file.

    The hashes are those that webuis show: the checkpoint's and the VAE's 8-digit legacy hash, the VAE's sha256.
    """

    output_name: str
    epoch: int
    step: int
    started: float
    finished: float
    session_id: str = ""
    checkpoint_legacy_hash: str = ""
    vae_legacy_hash: str = ""
    vae_hash: str = ""


def run_metadata(config: TrainConfig, plan: Plan, model: DiffusionModel, run: RunFacts) -> dict[str, str]:
    """All metadata of one LoRA file except the two hashes, which `adapters.files.lora_file` computes."""
    values: dict[str, Any] = {
        **_run_keys(config, run),
        **_optimiser_keys(config, plan),
        **_network_keys(config),
        **_model_keys(config, model, run),
        **_noise_keys(config, model),
        **_data_keys(config, plan),
        **_bucket_keys(config, plan),
        **_modelspec_keys(config, plan, model, run),
        CONFIG_KEY: shareable_config(config),
    }
    return {key: _text(value) for key, value in values.items()}


def shareable_config(config: TrainConfig) -> dict[str, Any]:
    """Every setting as JSON-ready values for `read_config`, with paths reduced to their last part.

    LoRA files are shared, and paths may reveal names; the run folder keeps the full settings.
    """
    values = _without_folders(config_values(config))
    values["concepts"] = [_without_folders(concept) for concept in values.get("concepts", ())]
    return values


def _without_folders(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: path_name(value) if name in (*PATH_SETTINGS, "folder", "caption_file") else value
        for name, value in values.items()
    }


def path_name(path: str) -> str:
    """The file or folder name of a path from any system."""
    return PureWindowsPath(path).name if "\\" in path else PurePath(path).name


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)


def _run_keys(config: TrainConfig, run: RunFacts) -> dict[str, Any]:
    return {
        "ss_session_id": run.session_id,
        "ss_training_started_at": run.started,
        "ss_training_finished_at": run.finished,
        "ss_steps": run.step,
        "ss_epoch": run.epoch,
        "ss_output_name": run.output_name,
        "ss_training_comment": config.comment,
        "ss_seed": config.seed,
    }


def _optimiser_keys(config: TrainConfig, plan: Plan) -> dict[str, Any]:
    is_lora = config.method == "lora"
    optimizer = config.custom_optimizer if config.optimizer == CUSTOM else config.optimizer
    return {
        "ss_learning_rate": config.learning_rate,
        "ss_unet_lr": config.effective_unet_lr if is_lora and config.train_unet else None,
        "ss_text_encoder_lr": config.effective_text_encoder_lr if is_lora and config.train_text_encoder else None,
        "ss_optimizer": f"{optimizer}({config.optimizer_args})" if config.optimizer_args else optimizer,
        "ss_lr_scheduler": config.lr_schedule,
        "ss_lr_warmup_steps": duration_in_steps(config.warmup, plan.total_steps),
        "ss_max_grad_norm": config.max_grad_norm,
        "ss_gradient_checkpointing": config.gradient_checkpointing,
        "ss_fp8_base": config.fp8_base,
        **{f"ss_{name}": config.lora_precision == kind for name, kind in FULL_PRECISIONS.items()},
        "ss_gradient_accumulation_steps": config.gradient_accumulation,
        "ss_max_train_steps": plan.total_steps,
        "ss_num_epochs": plan.epochs,
        "ss_num_batches_per_epoch": plan.micro_batches_per_epoch,
    }


def _network_keys(config: TrainConfig) -> dict[str, Any]:
    if config.method != "lora":
        return {"ss_network_module": None}
    module, arguments = metadata_network(config)
    ratios = {
        "loraplus_unet_lr_ratio": config.loraplus_unet_ratio,
        "loraplus_text_encoder_lr_ratio": config.loraplus_text_encoder_ratio,
    }
    arguments.update({name: str(ratio) for name, ratio in ratios.items() if ratio})
    return {
        "ss_network_module": module,
        "ss_network_dim": config.rank,
        "ss_network_alpha": config.effective_alpha,
        "ss_network_dropout": config.network_dropout or None,
        "ss_network_args": arguments,
        "ss_scale_weight_norms": config.scale_weight_norms or None,
    }


def _model_keys(config: TrainConfig, model: DiffusionModel, run: RunFacts) -> dict[str, Any]:
    return {
        **base_metadata(model.spec, kind="lora" if config.method == "lora" else "textual-inversion"),
        "ss_sd_model_name": model.path.name if model.path else model.name,
        "ss_sd_model_hash": run.checkpoint_legacy_hash or None,
        "ss_new_sd_model_hash": model.file_hash or None,
        "ss_vae_name": path_name(config.vae) or None,
        "ss_vae_hash": run.vae_legacy_hash or None,
        "ss_new_vae_hash": run.vae_hash or None,
        "ss_clip_skip": config.clip_skip if kind_of(model.spec.architecture).has_unet_blocks else None,
        "ss_max_token_length": config.max_token_length if kind_of(model.spec.architecture).has_unet_blocks else None,
        "ss_mixed_precision": _PRECISIONS.get(str(model.dtype), "no"),
    }


def _noise_keys(config: TrainConfig, model: DiffusionModel) -> dict[str, Any]:
    has_bound = config.loss_type in ("huber", "smooth_l1")
    return {
        "ss_noise_offset": config.noise_offset or None,
        "ss_noise_offset_random_strength": config.noise_offset_random_strength,
        "ss_multires_noise_iterations": config.multires_noise_iterations or None,
        "ss_multires_noise_discount": config.multires_noise_discount if config.multires_noise_iterations else None,
        "ss_adaptive_noise_scale": config.adaptive_noise_scale or None,
        "ss_zero_terminal_snr": model.spec.zero_terminal_snr,
        "ss_ip_noise_gamma": config.ip_noise_gamma or None,
        "ss_ip_noise_gamma_random_strength": config.ip_noise_gamma_random_strength,
        "ss_min_snr_gamma": config.min_snr_gamma or None,
        "ss_debiased_estimation": config.debiased_estimation,
        "ss_scale_v_pred_loss_like_noise_pred": config.scale_v_pred_loss_like_noise_pred,
        "ss_v_pred_like_loss": config.v_pred_like_loss or None,
        "ss_loss_type": config.loss_type,
        "ss_huber_schedule": config.huber_schedule if has_bound else None,
        "ss_huber_c": config.huber_c if has_bound else None,
        "ss_huber_scale": config.huber_scale if has_bound else None,
        "ss_prior_loss_weight": config.prior_loss_weight,
    }


def _data_keys(config: TrainConfig, plan: Plan) -> dict[str, Any]:
    concepts = plan.dataset.concepts
    train = [concept for concept in concepts if not concept.is_regularisation]
    regularisation = [concept for concept in concepts if concept.is_regularisation]
    return {
        "ss_num_train_images": sum(concept.image_count * concept.repeats for concept in train),
        "ss_num_reg_images": sum(concept.image_count * concept.repeats for concept in regularisation),
        "ss_dataset_dirs": _folders(train),
        "ss_reg_dataset_dirs": _folders(regularisation),
        "ss_tag_frequency": _tag_frequency(plan),
        "ss_caption_dropout_rate": config.caption_dropout,
        "ss_caption_dropout_every_n_epochs": config.caption_dropout_every_n_epochs,
        "ss_caption_tag_dropout_rate": config.tag_dropout,
        "ss_shuffle_caption": config.shuffle_captions,
        "ss_keep_tokens": config.keep_tokens,
        "ss_cache_latents": True,
        "ss_color_aug": any(concept.settings.colour_jitter for concept in train),
        "ss_flip_aug": any(concept.settings.flip for concept in train),
        "ss_random_crop": any(concept.settings.random_crop for concept in train),
        "ss_masked_loss": any(concept.settings.use_masks for concept in train),
        "ss_batch_size_per_device": config.batch_size,
        "ss_total_batch_size": config.batch_size * config.gradient_accumulation,
    }


def _bucket_keys(config: TrainConfig, plan: Plan) -> dict[str, Any]:
    buckets = {
        str(number): {"resolution": [bucket.width, bucket.height], "count": bucket.sample_count}
        for number, bucket in enumerate(plan.buckets)
    }
    errors = [
        abs(item.image.width / item.image.height - placement.width / placement.height)
        for item, placement in zip(plan.dataset.items, plan.placements, strict=True)
    ]
    width, height = config.resolution_size
    mean_error = sum(errors) / max(len(errors), 1)
    return {
        "ss_resolution": f"({width}, {height})",
        "ss_enable_bucket": config.enable_buckets,
        "ss_bucket_no_upscale": config.bucket_no_upscale,
        "ss_min_bucket_reso": config.min_bucket,
        "ss_max_bucket_reso": config.max_bucket,
        "ss_bucket_info": {"buckets": buckets, "mean_img_ar_error": mean_error} if config.enable_buckets else None,
    }


def _folder_key(concept: ScannedConcept) -> str:
    """kohya's folder name `N_words`, also for a plain folder with its own repeats."""
    return concept.name if re.match(r"\d+_", concept.name) else f"{concept.repeats}_{concept.name}"


def _folders(concepts: list[ScannedConcept]) -> dict[str, Any]:
    """Folder → repeats and number of images; folders of the same name are combined."""
    folders: dict[str, Any] = {}
    for concept in concepts:
        entry = folders.setdefault(_folder_key(concept), {"n_repeats": concept.repeats, "img_count": 0})
        entry["img_count"] += concept.image_count
    return folders


def _tag_frequency(plan: Plan) -> dict[str, dict[str, int]]:
    """Folder → tag → number of images (without repeats), most frequent first."""
    counts: dict[str, Counter[str]] = {}
    for item in plan.dataset.items:
        tags = [tag.lower() for tag in split_tags(item.caption, brackets="")]
        folder = _folder_key(plan.dataset.concepts[item.concept])
        counts.setdefault(folder, Counter()).update(tags)
    return {folder: dict(counter.most_common()) for folder, counter in counts.items()}


def _modelspec_keys(config: TrainConfig, plan: Plan, model: DiffusionModel, run: RunFacts) -> dict[str, Any]:
    """The fields of the ModelSpec standard, https://github.com/Stability-AI/ModelSpec."""
    finished = datetime.datetime.fromtimestamp(run.finished, datetime.timezone.utc)
    triggers = [concept.trigger for concept in plan.dataset.concepts if concept.trigger]
    is_whole = (config.min_timestep, config.max_timestep) == (0, 1000)
    optional = {
        "modelspec.description": config.comment,
        "modelspec.timestep_range": "" if is_whole else f"{config.min_timestep},{config.max_timestep}",
        "modelspec.trigger_phrase": ", ".join(dict.fromkeys(triggers)),
    }
    return {
        "modelspec.title": run.output_name,
        "modelspec.date": finished.replace(microsecond=0, tzinfo=None).isoformat(),
        "modelspec.resolution": "{}x{}".format(*config.resolution_size),
        **({"modelspec.encoder_layer": config.clip_skip} if kind_of(model.spec.architecture).has_unet_blocks else {}),
        **{key: value for key, value in optional.items() if value},
    }
