"""Loads a checkpoint as a diffusion model on a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lib_lora_train.core.errors import ModelError, VaeError
from lib_lora_train.models.checkpoint import load_checkpoint, load_vae, model_hash, replace_vae, shapes_of
from lib_lora_train.models.checkpoint_hints import tokenizer_folder
from lib_lora_train.models.diffusion_model import (
    NO_OVERRIDES,
    DiffusionModel,
    ModelOverrides,
    assemble,
    looks_like_v_prediction,
    with_overrides,
)
from lib_lora_train.models.dtypes import DTYPES
from lib_lora_train.models.embedded import EMBEDDED_CHECKPOINT
from lib_lora_train.models.fp8 import store_in_fp8
from lib_lora_train.models.graft import check_vae
from lib_lora_train.models.infer_spec import infer_spec
from lib_lora_train.models.kinds.registry import kind_in
from lib_lora_train.models.noise_schedule import schedule_for
from lib_lora_train.models.text_encoding import load_tokenizer

if TYPE_CHECKING:
    from lib_lora_train.config.train_config import TrainConfig


@dataclass(frozen=True)
class ModelChoice:
    """Which model to load, and how.

    `checkpoint` None is the embedded tiny model, `vae` None the checkpoint's own VAE. `fp8` stores the UNet in 8 bit.
    """

    checkpoint: Path | None = None
    vae: Path | None = None
    precision: str = "auto"
    fp8: bool = False
    overrides: ModelOverrides = NO_OVERRIDES


def load_model(choice: ModelChoice, device: torch.device) -> DiffusionModel:
    """The chosen model on `device`, without network access; ModelError for what cannot be used.

    Of an Anima only the transformer is loaded, which suffices to work on LoRA files; see `require_trainable`.
    """
    path = choice.checkpoint or EMBEDDED_CHECKPOINT
    file = load_checkpoint(path)
    tensors = file.tensors
    if choice.vae is not None and kind_in(tensors).has_vae:
        tensors = replace_vae(tensors, load_fitting_vae(choice.vae))
    try:
        spec = infer_spec(shapes_of(tensors), hints=file.hints)
        model = assemble(
            tensors,
            spec=spec,
            tokenizers=[load_checkpoint_tokenizer(file.path)] * len(spec.text_encoders),
            name=file.name,
            file_hash=file.hash,
            dtype=_dtype(choice.precision, device),
            device=device,
            path=file.path,
        )
    except ModelError as reason:
        raise ModelError(f"{path.name}: {reason}") from reason
    if spec.architecture == "sd2" and not spec.is_prediction_known:
        model = _with_detected_prediction(model)
    model = with_overrides(model, choice.overrides)
    model = replace(model, vae_hash=model_hash(choice.vae) if choice.vae else "")
    return _with_fp8_unet(model) if choice.fp8 else model


def require_trainable(model: DiffusionModel) -> DiffusionModel:
    """The same model; ModelError for one without VAE and text encoder, which only a webui has."""
    if model.vae is None:
        raise ModelError(f"{model.name}: {model.kind.needs_webui}")
    return model


def load_fitting_vae(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a VAE in safetensors under ldm's names; VaeError, naming it, if it cannot be used."""
    return require_fitting_vae(path, load_vae(path))


def require_fitting_vae(path: Path, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors, which were read from `path`; VaeError, naming it, if they are not those of a whole VAE for SD."""
    try:
        check_vae(shapes_of(tensors))
    except ModelError as reason:
        raise VaeError(f"{path.name}: {reason}") from reason
    return tensors


def _with_fp8_unet(model: DiffusionModel) -> DiffusionModel:
    """The model with its UNet stored in 8 bit; the original weights are freed."""
    saved = store_in_fp8(model.unet) / 2**20
    return replace(model, slots=(), note=f"The UNet is stored in 8 bit, which saves {saved:.0f} MiB.")


def _with_detected_prediction(model: DiffusionModel) -> DiffusionModel:
    """The model with its UNet's prediction type: SD2's 512 px (epsilon) and 768 px (v) files look alike."""
    spec = replace(model.spec, prediction_type="v_prediction" if looks_like_v_prediction(model.unet) else "epsilon")
    spec = replace(spec, is_prediction_known=True)
    return replace(model, spec=spec, schedule=schedule_for(spec))


def load_checkpoint_tokenizer(checkpoint: Path) -> Any:
    """The checkpoint's own tokenizer, else the embedded one: SD1, SD2 and SDXL share CLIP's vocabulary."""
    return load_tokenizer(tokenizer_folder(checkpoint) or EMBEDDED_CHECKPOINT.parent / "tokenizer")


def _dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype to load in; None, the file's own, for "auto" on a GPU. CPUs compute 16 bit slowly or not at all."""
    if precision == "auto":
        return torch.float32 if device.type == "cpu" else None
    if precision not in DTYPES:
        raise ModelError(f"precision {precision!r} is not valid. Use auto, {', '.join(DTYPES)}.")
    return DTYPES[precision]


def overrides_from_config(config: TrainConfig) -> ModelOverrides:
    """The model overrides that the settings contain."""
    return ModelOverrides(config.prediction_type, config.zero_terminal_snr)
