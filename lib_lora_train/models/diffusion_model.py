"""A diffusion model ready to train on: grafted modules, tokenizers and noise schedule in one value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib_lora_train.models import library_compat as compat
from lib_lora_train.models.architecture import FAMILY_NAMES, VAE_PREFIX, ModelSpec, PredictionType
from lib_lora_train.models.graft import Graft, GraftRow, Slot, follow, graft, let_go
from lib_lora_train.models.noise_schedule import NoiseSchedule, rescale_zero_terminal_snr, schedule_for


@dataclass(frozen=True, eq=False)
class DiffusionModel:
    """Frozen diffusers and transformers modules, and everything needed to run them.

    `unet` answers `unet(x, t, encoder_hidden_states=…, added_cond_kwargs=…).sample`. `file_hash` is the
    checkpoint file's sha256 (hex, "" if unknown), `path` the file; `report` says what became of each tensor,
    `note` what the user should know of where the weights come from. `device` and `dtype` are the UNet's while
    it is lent; between turns its parameters may be empty.
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
    device: torch.device = field(init=False)
    dtype: torch.dtype = field(init=False)

    def __post_init__(self) -> None:
        """Read both from a layer that no adapter replaces, while it is there."""
        weight = self.unet.conv_norm_out.weight
        object.__setattr__(self, "device", weight.device)
        object.__setattr__(self, "dtype", weight.dtype)

    def follow(self, tensors: Mapping[str, Tensor]) -> int:
        """Let the parameters follow the same checkpoint's tensors to where they lie now; see `graft.follow`."""
        moved = follow(self.slots, tensors)
        if moved:
            for encoder in self.text_encoders:
                compat.renew_position_ids(encoder, self.device)
        return moved

    def let_go(self) -> None:
        """Keep nothing of the given tensors alive until the next `follow`; converted copies stay."""
        let_go(self.slots)


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
    """The model on these ldm tensors: shared where they lie, after at most one conversion.

    `dtype` and `device` None leave the tensors as and where they are. The VAE is never brought to bfloat16,
    whose 8 bits of precision would show in every image: it stays in float32 then. Errors as `graft`.
    """
    converted = {key: _converted(key, tensor, dtype, device) for key, tensor in tensors.items()}
    grafted = graft(converted, spec)
    return model_on(grafted, spec=spec, tokenizers=tokenizers, name=name, file_hash=file_hash, path=path)


def model_on(
    grafted: Graft,
    *,
    spec: ModelSpec,
    tokenizers: Sequence[Any],
    name: str,
    file_hash: str,
    path: Path | None = None,
) -> DiffusionModel:
    """The model of these grafted modules, with its family's noise schedule."""
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
    if dtype is not None and tensor.is_floating_point():
        if dtype == torch.bfloat16 and key.startswith(VAE_PREFIX):
            dtype = torch.float32
        tensor = tensor.to(dtype)
    return tensor if device is None else tensor.to(device)


@dataclass(frozen=True)
class ModelOverrides:
    """What the user says of a model, where neither the file nor the webui does; "auto" leaves it to them."""

    prediction_type: str = "auto"
    zero_terminal_snr: str = "auto"


NO_OVERRIDES = ModelOverrides()


def with_overrides(model: DiffusionModel, told: ModelOverrides) -> DiffusionModel:
    """The model with the user's word on what it predicts and how its noise schedule ends; itself where that is nothing.

    The schedule keeps the owner's numbers and is rescaled; only a rescaled one becomes the family's own again.
    """
    spec, alphas = model.spec, model.schedule.alphas_cumprod
    if told.prediction_type != "auto":
        predicts: PredictionType = "v_prediction" if told.prediction_type == "v_prediction" else "epsilon"
        spec = replace(spec, prediction_type=predicts)
    if told.zero_terminal_snr != "auto":
        spec = replace(spec, zero_terminal_snr=told.zero_terminal_snr == "on")
    if spec == model.spec:
        return model
    if spec.zero_terminal_snr and not model.spec.zero_terminal_snr:
        alphas = rescale_zero_terminal_snr(alphas)
    elif model.spec.zero_terminal_snr and not spec.zero_terminal_snr:
        alphas = schedule_for(spec).alphas_cumprod
    return replace(model, spec=spec, schedule=NoiseSchedule(alphas, spec.prediction_type))


def looks_like_v_prediction(unet: Any) -> bool:
    """Whether the weights behave like a v model's; for SD2, whose two kinds have the same shapes.

    The webuis' own test: on an almost pure-noise input of 0.5 everywhere an epsilon model answers about the
    input, a v model far below it.
    """
    parameter = next(unet.parameters())
    x = torch.full((1, 4, 8, 8), 0.5, dtype=parameter.dtype, device=parameter.device)
    text = torch.full((1, 2, unet.config.cross_attention_dim), 0.5, dtype=x.dtype, device=x.device)
    with torch.no_grad():
        answer = unet(x, torch.tensor([999], device=x.device), encoder_hidden_states=text).sample
    return bool((answer - x).float().mean() < -1.0)


def describe_model(model: DiffusionModel) -> str:
    """A few lines for people: what the model is, where it lies, what of it is shared with its owner."""
    spec = model.spec
    predicts = "v" if spec.prediction_type == "v_prediction" else "epsilon"
    terminal = ", zero-terminal SNR" if spec.zero_terminal_snr else ""
    sizes: Counter[str] = Counter()
    for row in model.report:
        sizes[row.status] += row.bytes
    weights = " · ".join(
        f"{sizes[status] / 2**20:.0f} MiB {status}" for status in ("shared", "copied") if sizes[status]
    )
    parameters = sum(parameter.numel() for parameter in model.unet.parameters())
    return "\n".join(
        [
            f"{model.name} ({FAMILY_NAMES[spec.family]}, predicts {predicts}{terminal})",
            f"UNet {parameters / 1e6:.1f} M parameters, {_plain(model.dtype)} on {model.device}",
            f"VAE scale {spec.scale_factor}, {len(model.text_encoders)} text encoder(s)",
            f"weights {weights or 'none'}",
            f"sha256 {model.file_hash[:10] or 'unknown'}",
        ]
    )


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
