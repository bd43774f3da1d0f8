"""AUTOMATIC1111's webui 1.10 as a host: where its model is, and how its weights become pristine.

`modules` is the webui's own package; it exists only where the webui runs us.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib_lora_train.core.errors import HostError, ModelError
from lib_lora_train.hosts.webui.common import Relative, lora_networks, positive, without_wrappers
from lib_lora_train.hosts.webui.host import LoadedModel, ModelFacts
from lib_lora_train.models.architecture import TEXT_PREFIXES, UNET_PREFIX, VAE_PREFIX, Hints

_USED = (UNET_PREFIX, VAE_PREFIX, *TEXT_PREFIXES)


class A1111(Relative):
    """See `hosts.webui.Webui`."""

    name = "AUTOMATIC1111"

    def __init__(self) -> None:
        super().__init__()
        from modules import devices

        self._devices = devices

    @property
    def device(self) -> torch.device:
        """The webui's choice."""
        return torch.device(self._devices.device)

    def load(self) -> None:
        """Reading the attribute loads the checkpoint that is chosen at the top of the page."""
        if self._shared.sd_model is None:
            raise HostError("The webui could not load its checkpoint: its console says why. Choose another one.")

    def present(self) -> LoadedModel | None:
        """The model in memory, wherever its weights are."""
        model = self._models.model_data.sd_model
        if model is None:
            return None
        info = model.sd_checkpoint_info
        vae = getattr(model, "loaded_vae_file", None)
        return LoadedModel(
            identity=(str(info.filename), str(vae), type(model).__name__),
            path=Path(info.filename),
            sha256=info.sha256 or "",
            vae=Path(vae) if vae else None,
            facts=lambda: facts_of(model),
            tensors=lambda: tensors_of(model),
        )

    def is_chosen(self) -> bool:
        """A generation first loads the checkpoint that the settings name."""
        loaded = self._models.model_data.sd_model.sd_checkpoint_info
        return bool(self._models.select_checkpoint().filename == loaded.filename)

    def restore(self) -> None:
        """On the device, and every LoRA taken out of the layers it was written into.

        Which LoRAs the webui believes to be active says nothing about the layers: each one knows for itself.
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
    """ModelError for a model that is none of SD1, SD2, SDXL."""
    if getattr(model, "is_sd3", False):
        raise ModelError("The loaded model is SD3, which is not trained here. Load an SD1, SD2 or SDXL model.")
    terminal = bool(getattr(model, "ztsnr", False))
    return ModelFacts(
        hints=Hints(
            prediction_type="v_prediction" if model.parameterization == "v" else "epsilon",
            zero_terminal_snr=terminal,
            scale_factor=float(model.scale_factor),
            unet_heads=positive(model.model.diffusion_model, "num_heads"),
            unet_head_dim=positive(model.model.diffusion_model, "num_head_channels"),
            text_heads=tuple(_heads(encoder) for encoder in _text_encoders(model)),
        ),
        alphas_cumprod=None if terminal else getattr(model, "alphas_cumprod_original", None),
        why_copied="the webui moves the weights about (--medvram or --lowvram)" if model.lowvram else "",
    )


def tensors_of(model: Any) -> Mapping[str, Tensor]:
    """The model's parameters by ldm name; the modules around them are the webui's business."""
    named = ((without_wrappers(name), parameter) for name, parameter in model.named_parameters())
    return {name: parameter for name, parameter in named if name.startswith(_USED)}


def _text_encoders(model: Any) -> list[Any]:
    conditioner = getattr(model, "conditioner", None)
    if conditioner is None:
        return [model.cond_stage_model.wrapped]
    return [embedder.wrapped for embedder in conditioner.embedders if hasattr(embedder, "wrapped")]


def _heads(encoder: Any) -> int:
    """Attention heads of a transformers CLIP or of an open_clip text tower."""
    if hasattr(encoder, "model"):
        return int(encoder.model.transformer.resblocks[0].attn.num_heads)
    return int(encoder.transformer.config.num_attention_heads)
