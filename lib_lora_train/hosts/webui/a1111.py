"""AUTOMATIC1111's webui 1.10 as a host: where its model is, and how LoRAs are removed from its weights.

`modules` is the webui's own package and can be imported only inside the webui.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib_lora_train.core.errors import HostError, ModelError
from lib_lora_train.hosts.webui.common import CommonWebui, lora_networks, positive_attribute, without_wrappers
from lib_lora_train.hosts.webui.loaded_model import LoadedModel, ModelFacts, ModelIdentity, stored_as
from lib_lora_train.models.architecture import TEXT_PREFIXES, UNET_PREFIX, VAE_PREFIX, CheckpointHints

_USED = (UNET_PREFIX, VAE_PREFIX, *TEXT_PREFIXES)


class A1111(CommonWebui):
    """Implements `hosts.webui.webui.Webui`."""

    name = "AUTOMATIC1111"

    def __init__(self) -> None:
        super().__init__()
        from modules import devices

        self._devices = devices

    @property
    def device(self) -> torch.device:
        """The device the webui computes on."""
        return torch.device(self._devices.device)

    def load(self) -> None:
        """Load the checkpoint selected at the top of the page, by reading the attribute."""
        if self._shared.sd_model is None:
            raise HostError("The webui could not load its checkpoint; see its console. Select another one.")

    def loaded_model(self) -> LoadedModel | None:
        """The model in memory, on whatever device its weights are."""
        model = self._models.model_data.sd_model
        if model is None:
            return None
        info = model.sd_checkpoint_info
        vae = getattr(model, "loaded_vae_file", None)
        extra_files, weights = (str(vae),) if vae else (), stored_as(model.model.diffusion_model)
        return LoadedModel(
            identity=ModelIdentity(str(info.filename), extra_files, weights, type(model).__name__),
            path=Path(info.filename),
            sha256=info.sha256 or "",
            vae=Path(vae) if vae else None,
            facts=lambda: facts_of(model),
            tensors=lambda: tensors_of(model),
        )

    def restore_weights(self) -> None:
        """Move the model to the device and remove every LoRA from the layers it was merged into.

        Each layer records what was merged into it; the webui's list of active LoRAs is not reliable.
        """
        model = self._models.model_data.sd_model
        self._models.send_model_to_device(model)
        networks = lora_networks()
        patched = [module for module in model.modules() if getattr(module, "network_current_names", ())]
        if networks is None or not patched:
            return
        with torch.no_grad():
            networks.load_networks([])
            for module in patched:
                networks.network_apply_weights(module)


def facts_of(model: Any) -> ModelFacts:
    """What the webui knows of the model; ModelError unless it is SD1, SD2 or SDXL."""
    if getattr(model, "is_sd3", False):
        raise ModelError("The loaded model is SD3, which is not supported. Load an SD1, SD2 or SDXL model.")
    terminal = bool(getattr(model, "ztsnr", False))
    return ModelFacts(
        hints=CheckpointHints(
            prediction_type="v_prediction" if model.parameterization == "v" else "epsilon",
            zero_terminal_snr=terminal,
            scale_factor=float(model.scale_factor),
            unet_heads=positive_attribute(model.model.diffusion_model, "num_heads"),
            unet_head_dim=positive_attribute(model.model.diffusion_model, "num_head_channels"),
            text_heads=tuple(_heads(encoder) for encoder in _text_encoders(model)),
        ),
        alphas_cumprod=None if terminal else getattr(model, "alphas_cumprod_original", None),
        why_copied="the webui moves its weights between CPU and GPU (--medvram or --lowvram)" if model.lowvram else "",
    )


def tensors_of(model: Any) -> Mapping[str, Tensor]:
    """The model's parameters by ldm name."""
    named = ((without_wrappers(name), parameter) for name, parameter in model.named_parameters())
    return {name: parameter for name, parameter in named if name.startswith(_USED)}


def _text_encoders(model: Any) -> list[Any]:
    conditioner = getattr(model, "conditioner", None)
    if conditioner is None:
        return [model.cond_stage_model.wrapped]
    return [embedder.wrapped for embedder in conditioner.embedders if hasattr(embedder, "wrapped")]


def _heads(encoder: Any) -> int:
    """Number of attention heads of a transformers CLIP or an open_clip text encoder."""
    if hasattr(encoder, "model"):
        return int(encoder.model.transformer.resblocks[0].attn.num_heads)
    return int(encoder.transformer.config.num_attention_heads)
