"""A diffusion model ready to train on: grafted modules, tokenizers and noise schedule in one value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from lib_lora_train.config.architecture_titles import TITLES
from lib_lora_train.core.errors import ModelError
from lib_lora_train.models import library_compat as compat
from lib_lora_train.models.architecture import VAE_PREFIX, ModelSpec, PredictionType
from lib_lora_train.models.fp8 import FP8_DTYPES
from lib_lora_train.models.graft import Graft, GraftRow, Slot, graft, rebind, release_weights
from lib_lora_train.models.kinds.base import ModelKind
from lib_lora_train.models.kinds.registry import kind_of
from lib_lora_train.models.latent_format import LatentFormat
from lib_lora_train.models.model_identity import ModelIdentity
from lib_lora_train.models.noise_schedule import (
    DiffusionSchedule,
    NoiseSchedule,
    rescale_zero_terminal_snr,
    schedule_for,
)
from lib_lora_train.models.prompt_encoder import PromptEncoder


@dataclass(frozen=True, eq=False)
class DiffusionModel:
    """Frozen diffusers and transformers modules, and everything needed to run them.

    Call the UNet as `unet(x, t, encoder_hidden_states=…, added_cond_kwargs=…).sample`. `file_hash` is the checkpoint
    file's sha256 (hex, "" if unknown), `path` the file; `report` has a row for each tensor; `note` is a sentence about
    the source of the weights, if the user needs it; `vae_hash` is the sha256 of a separate VAE file, "" without one.
    `prompt_encoder` is what encodes text where the host's own text encoders are used as a whole; None for CLIP's, which
    are in `text_encoders`. `device` and `dtype` are those of the UNet during a lease; between leases its parameters may
    be empty.
    """

    spec: ModelSpec
    unet: Any
    vae: Any
    text_encoders: tuple[nn.Module, ...]
    tokenizers: tuple[Any, ...]
    schedule: NoiseSchedule
    name: str
    file_hash: str
    path: Path | None = None
    report: tuple[GraftRow, ...] = ()
    slots: tuple[Slot, ...] = ()
    note: str = ""
    vae_hash: str = ""
    prompt_encoder: PromptEncoder | None = None
    device: torch.device = field(init=False)
    dtype: torch.dtype = field(init=False)

    def __post_init__(self) -> None:
        """Read device and dtype from a layer that no adapter replaces, while it has weights."""
        weight = self.kind.plain_weight(self.unet)
        object.__setattr__(self, "device", weight.device)
        object.__setattr__(self, "dtype", weight.dtype)

    @property
    def kind(self) -> ModelKind:
        """How models of this architecture are called and named."""
        return kind_of(self.spec.architecture)

    @property
    def latent_format(self) -> LatentFormat:
        """How the VAE's latents are scaled for the UNet."""
        return self.kind.latent_format(self.spec)

    def require_unet(self, what: str) -> Any:
        """The UNet; ModelError if the model has a transformer instead, from which `what` cannot be read."""
        if not self.kind.has_unet_blocks:
            title = TITLES[self.spec.architecture]
            raise ModelError(f"{what} cannot be read from {title}, only from the UNets of SD1, SD2 and SDXL.")
        return self.unet

    @property
    def identity(self) -> ModelIdentity:
        """Which model this is, to be saved with a run."""
        zero_terminal = "on" if self.spec.zero_terminal_snr else "off"
        return ModelIdentity(self.name, self.file_hash, self.vae_hash, self.spec.prediction_type, zero_terminal)

    def rebind(self, tensors: Mapping[str, Tensor]) -> int:
        """Point the parameters at the same checkpoint's tensors at their current place; returns how many changed."""
        moved = rebind(self.slots, tensors)
        if moved:
            for encoder in self.text_encoders:
                compat.create_position_ids(encoder, self.device)
        return moved

    def release_weights(self) -> None:
        """Release the checkpoint's tensors until the next `rebind`; converted copies are kept."""
        release_weights(self.slots)


def assemble(
    tensors: Mapping[str, Tensor],
    *,
    spec: ModelSpec,
    tokenizers: Sequence[Any],
    name: str,
    file_hash: str,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    path: Path | None = None,
) -> DiffusionModel:
    """The model on these ldm tensors, shared rather than copied, after at most one conversion.

    `dtype` and `device` None leave the tensors unchanged, but for fp8. The VAE is never converted to bfloat16, whose 8
    bits of precision would be visible in every image, but to float32. Errors as in `graft`.
    """
    converted = {key: _converted(key, tensor, dtype, device) for key, tensor in tensors.items()}
    grafted = graft(converted, spec)
    return model_from_graft(grafted, spec=spec, tokenizers=tokenizers, name=name, file_hash=file_hash, path=path)


def model_from_graft(
    grafted: Graft,
    *,
    spec: ModelSpec,
    tokenizers: Sequence[Any],
    name: str,
    file_hash: str,
    path: Path | None = None,
) -> DiffusionModel:
    """The model with these grafted modules and its architecture's noise schedule."""
    return DiffusionModel(
        spec=spec,
        unet=grafted.unet,
        vae=grafted.vae,
        text_encoders=grafted.text_encoders,
        tokenizers=tuple(tokenizers),
        schedule=schedule_for(spec),
        name=name,
        file_hash=file_hash,
        path=path,
        report=grafted.report,
        slots=grafted.slots,
    )


def _converted(key: str, tensor: Tensor, dtype: torch.dtype | None, device: torch.device | str | None) -> Tensor:
    """The tensor in `dtype` on `device`; plain fp8, in which nothing can be computed, becomes fp16 as in the webuis."""
    if dtype is None and tensor.dtype in FP8_DTYPES:
        dtype = torch.float16
    if dtype is not None and tensor.is_floating_point():
        if dtype == torch.bfloat16 and key.startswith(VAE_PREFIX):
            dtype = torch.float32
        tensor = tensor.to(dtype)
    return tensor if device is None else tensor.to(device)


@dataclass(frozen=True)
class ModelOverrides:
    """What the user sets where the file or the webui does not say, or is wrong; "auto" leaves it to them."""

    prediction_type: str = "auto"
    zero_terminal_snr: str = "auto"


NO_OVERRIDES = ModelOverrides()
_PREDICTION_TYPES: Mapping[str, PredictionType] = {name: name for name in get_args(PredictionType)}


def with_overrides(model: DiffusionModel, overrides: ModelOverrides) -> DiffusionModel:
    """The model with the user's prediction type and zero-terminal SNR; the same object if they change nothing.

    The owner's schedule is kept, and rescaled if needed; undoing a rescaling returns to the architecture's schedule,
    and so does a change to or from rectified flow, which has no zero-terminal SNR.
    """
    spec = model.spec
    if overrides.prediction_type != "auto":
        spec = replace(spec, prediction_type=_PREDICTION_TYPES[overrides.prediction_type])
    if overrides.zero_terminal_snr != "auto":
        spec = replace(spec, zero_terminal_snr=overrides.zero_terminal_snr == "on")
    if spec.prediction_type == "rectified_flow":
        spec = replace(spec, zero_terminal_snr=False)
    return model if spec == model.spec else replace(model, spec=spec, schedule=_schedule_for(spec, model))


def _schedule_for(spec: ModelSpec, model: DiffusionModel) -> NoiseSchedule:
    """The model's schedule, changed to what `spec` says."""
    theirs, usual = model.schedule, schedule_for(spec)
    if not (isinstance(theirs, DiffusionSchedule) and isinstance(usual, DiffusionSchedule)):
        return usual
    if spec.zero_terminal_snr and not model.spec.zero_terminal_snr:
        return replace(usual, alphas_cumprod=rescale_zero_terminal_snr(theirs.alphas_cumprod))
    if model.spec.zero_terminal_snr and not spec.zero_terminal_snr:
        return usual
    return replace(theirs, prediction_type=spec.prediction_type)


def looks_like_v_prediction(unet: Any) -> bool:
    """Whether the weights behave like a v-prediction model's; for SD2, whose two kinds have the same shapes.

    The webuis' test: for an input of 0.5 everywhere at the last timestep (almost pure noise), an epsilon model returns
    about the input, a v model values far below it.
    """
    parameter = next(unet.parameters())
    x = torch.full((1, 4, 8, 8), 0.5, dtype=parameter.dtype, device=parameter.device)
    text = torch.full((1, 2, unet.config.cross_attention_dim), 0.5, dtype=x.dtype, device=x.device)
    with torch.no_grad():
        output = unet(x, torch.tensor([999], device=x.device), encoder_hidden_states=text).sample
    return bool((output - x).float().mean() < -1.0)
