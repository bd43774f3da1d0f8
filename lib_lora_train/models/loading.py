"""Checkpoint file → diffusion model on a device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lib_lora_train.core.errors import ModelError
from lib_lora_train.models.architecture import infer_spec
from lib_lora_train.models.checkpoint import load_checkpoint, load_vae, replace_vae, shapes_of
from lib_lora_train.models.checkpoint_hints import read_hints, tokenizer_folder
from lib_lora_train.models.diffusion_model import (
    NO_OVERRIDES,
    DiffusionModel,
    ModelOverrides,
    assemble,
    looks_like_v_prediction,
    with_overrides,
)
from lib_lora_train.models.embedded import EMBEDDED_CHECKPOINT
from lib_lora_train.models.fp8 import store_in_eight_bit
from lib_lora_train.models.noise_schedule import schedule_for
from lib_lora_train.models.text_encoding import load_tokenizer

if TYPE_CHECKING:
    from lib_lora_train.config.train_config import TrainConfig

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class ModelChoice:
    """Which model to load, and how; None means the embedded tiny model, and the checkpoint's own VAE."""

    checkpoint: Path | None = None
    vae: Path | None = None
    precision: str = "auto"
    eight_bit: bool = False
    told: ModelOverrides = NO_OVERRIDES


def load_model(choice: ModelChoice, device: torch.device) -> DiffusionModel:
    """The chosen model on `device`, without network; raises ModelError for files that cannot be used."""
    path = choice.checkpoint or EMBEDDED_CHECKPOINT
    file = load_checkpoint(path)
    tensors = file.tensors if choice.vae is None else replace_vae(file.tensors, load_vae(choice.vae))
    hints = read_hints(path, file.metadata)
    try:
        spec = infer_spec(shapes_of(tensors), hints=hints)
        model = assemble(
            tensors,
            spec=spec,
            tokenizers=[tokenizer_of(file.path)] * len(spec.text_encoders),
            name=path.stem,
            file_hash=file.hash,
            dtype=_dtype(choice.precision, device),
            device=device,
            path=path,
        )
    except ModelError as reason:
        raise ModelError(f"{path.name}: {reason}") from reason
    if spec.family == "sd2" and hints.prediction_type is None:
        model = _with_measured_prediction(model)
    model = with_overrides(model, choice.told)
    return _in_eight_bit(model) if choice.eight_bit else model


def _in_eight_bit(model: DiffusionModel) -> DiffusionModel:
    """The model with its UNet stored in 8 bit; nothing else holds on to the weights it had."""
    saved = store_in_eight_bit(model.unet) / 2**20
    return replace(model, slots=(), note=f"The UNet is stored in 8 bit, which saves {saved:.0f} MiB.")


def _with_measured_prediction(model: DiffusionModel) -> DiffusionModel:
    """SD2's two kinds, 512 px (epsilon) and 768 px (v), differ in nothing that a file says."""
    spec = replace(model.spec, prediction_type="v_prediction" if looks_like_v_prediction(model.unet) else "epsilon")
    return replace(model, spec=spec, schedule=schedule_for(spec))


def tokenizer_of(checkpoint: Path) -> Any:
    """The checkpoint's own tokenizer, else the embedded one: all three families share CLIP's vocabulary."""
    return load_tokenizer(tokenizer_folder(checkpoint) or EMBEDDED_CHECKPOINT.parent / "tokenizer")


def _dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """None, the file's own, for "auto" on a graphics card; processors compute 16 bit slowly or not at all."""
    if precision == "auto":
        return torch.float32 if device.type == "cpu" else None
    if precision not in _DTYPES:
        raise ModelError(f"precision {precision!r} is not one of auto, {', '.join(_DTYPES)}.")
    return _DTYPES[precision]


def model_overrides(config: TrainConfig) -> ModelOverrides:
    """What the settings say of the model."""
    return ModelOverrides(config.prediction_type, config.zero_terminal_snr)
