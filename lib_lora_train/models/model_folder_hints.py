"""What the configs in a folder in diffusers' layout say about the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib_lora_train.core.errors import ModelError
from lib_lora_train.core.image_sizes import LATENT_CELL_PX
from lib_lora_train.models.architecture import CheckpointHints
from lib_lora_train.models.model_folder import TEXT_PARTS, ModelFolder, read_json
from lib_lora_train.models.other_models import NEEDS_SD
from lib_lora_train.models.prediction_words import path_says_rectified, prediction_of

_SCHEDULE: Mapping[str, Any] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
}
"""Stable Diffusion's noise schedule, in diffusers' words."""


def read_folder_hints(folder: ModelFolder) -> CheckpointHints:
    """The hints in the configs of scheduler, UNet, VAE and text encoders; ModelError for a noise schedule of others.

    The scheduler decides, as the .yaml beside a single file does.
    """
    scheduler = read_json(folder.path / "scheduler" / "scheduler_config.json")
    unet = read_json(folder.path / "unet" / "config.json")
    _refuse_other_schedules(folder.path, scheduler)
    is_flow = _is_flow(scheduler)
    word = str(scheduler.get("prediction_type") or "")
    prediction = "rectified_flow" if is_flow else prediction_of(word) if word else None
    if word and not prediction:
        raise ModelError(
            f"{folder.path.name}: Its scheduler_config.json says that it predicts {word!r}, which cannot be trained. "
            "Only epsilon, v_prediction and rectified flow can."
        )
    snr = scheduler.get("rescale_betas_zero_snr")
    heads, head_dim = _attention(unet)
    side = unet.get("sample_size")
    scale = read_json(folder.path / "vae" / "config.json").get("scaling_factor")
    return CheckpointHints(
        path_says_rectified=path_says_rectified(folder.path),
        prediction_type=prediction,
        zero_terminal_snr=None if snr is None else bool(snr),
        resolution=side * LATENT_CELL_PX if isinstance(side, int) and side > 0 else None,
        scale_factor=float(scale) if isinstance(scale, (int, float)) and scale > 0 else None,
        unet_heads=heads,
        unet_head_dim=head_dim,
        text_heads=_text_heads(folder),
    )


def folder_tokenizer(path: Path) -> Path | None:
    """The folder's own tokenizer; None if it has none in CLIP's format."""
    tokenizer = path / "tokenizer"
    return tokenizer if (tokenizer / "vocab.json").is_file() else None


def _is_flow(scheduler: Mapping[str, Any]) -> bool:
    """Whether a scheduler is one of rectified flow: any step from image to noise is a timestep."""
    return str(scheduler.get("_class_name", "")).startswith("FlowMatch") or bool(scheduler.get("use_flow_sigmas"))


def _refuse_other_schedules(path: Path, scheduler: Mapping[str, Any]) -> None:
    name = str(scheduler.get("_class_name", ""))
    if name.startswith("EDM"):
        raise ModelError(f"{path.name}: Its scheduler is a {name}, whose noise schedule is not supported. {NEEDS_SD}")
    if _is_flow(scheduler):
        return
    other = [f"{key} {scheduler[key]}" for key, usual in _SCHEDULE.items() if scheduler.get(key, usual) != usual]
    other += ["trained_betas"] if scheduler.get("trained_betas") else []
    if other:
        raise ModelError(
            f"{path.name}: Its scheduler_config.json has another noise schedule than Stable Diffusion's "
            f"({', '.join(other)}), which is not supported. {NEEDS_SD}"
        )


def _attention(unet: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """(heads on every level, width of a head), one of them; diffusers calls the number of heads attention_head_dim."""
    heads, widths = unet.get("num_attention_heads") or unet.get("attention_head_dim"), unet.get("block_out_channels")
    if isinstance(heads, int):
        return heads, None
    if not isinstance(heads, list) or not isinstance(widths, list) or len(heads) != len(widths) or 0 in heads:
        return None, None
    if len(set(heads)) == 1:
        return int(heads[0]), None
    dims = {width // number for width, number in zip(widths, heads, strict=True)}
    return None, dims.pop() if len(dims) == 1 else None


def _text_heads(folder: ModelFolder) -> tuple[int, ...]:
    """The heads of the text encoders, as far as their configs say."""
    found = []
    for part in TEXT_PARTS:
        if part in folder.files:
            heads = read_json(folder.path / part / "config.json").get("num_attention_heads")
            if not isinstance(heads, int):
                break
            found.append(heads)
    return tuple(found)
