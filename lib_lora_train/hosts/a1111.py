"""AUTOMATIC1111's webui 1.10 as a host: where its model is, and how its weights become pristine.

`modules` is the webui's own package; it exists only where the webui runs us.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib_lora_train.errors import HostError, ModelError
from lib_lora_train.hosts.page import noise_device, results_folder
from lib_lora_train.hosts.webui import LoadedModel, ModelFacts
from lib_lora_train.models.family import TEXT_PREFIXES, UNET_PREFIX, VAE_PREFIX, Hints

_USED = (UNET_PREFIX, VAE_PREFIX, *TEXT_PREFIXES)
_WRAPPER = re.compile(r"\.wrapped(?=\.)")  # the webui's own layer around text encoders and token embeddings


class A1111:
    """See `hosts.webui.Webui`. The objects of `modules` are the webui's, found once, at the script's load."""

    name = "AUTOMATIC1111"

    def __init__(self) -> None:
        from modules import call_queue, devices, sd_models, shared

        self._shared, self._models, self._devices = shared, sd_models, devices
        self._queue = call_queue

    @property
    def queue_lock(self) -> AbstractContextManager[Any]:
        """A FIFO lock; the webui's jobs and the checkpoint switch take it, unload and reload do not."""
        lock: AbstractContextManager[Any] = self._queue.queue_lock
        return lock

    @property
    def device(self) -> torch.device:
        """The webui's choice."""
        return torch.device(self._devices.device)

    @property
    def noise_device(self) -> torch.device:
        """Settings → random number generator source; "NV" is computed on the processor and not imitated here."""
        return noise_device(self._shared, self.device)

    @property
    def lora_dir(self) -> Path:
        """`--lora-dir`, and the sub-folder of the settings."""
        return results_folder(self._shared)

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

    def restore(self) -> None:
        """On the device, and every LoRA taken out of the layers it was written into.

        Which LoRAs the webui believes to be active says nothing about the layers: each one knows for itself.
        """
        model = self._models.model_data.sd_model
        self._models.send_model_to_device(model)
        networks: Any = sys.modules.get("networks")  # the webui's built-in extension for LoRAs
        patched = [module for module in model.modules() if getattr(module, "network_current_names", ())]
        if networks is None or not patched:
            return
        with torch.no_grad():
            networks.load_networks([])
            for module in patched:
                networks.network_apply_weights(module)

    def show_loras(self) -> None:
        """What the list's own refresh button does."""
        networks: Any = sys.modules.get("networks")
        if networks is not None:
            networks.list_available_networks()


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
            unet_heads=_positive(model.model.diffusion_model, "num_heads"),
            unet_head_dim=_positive(model.model.diffusion_model, "num_head_channels"),
            text_heads=tuple(_heads(encoder) for encoder in _text_encoders(model)),
        ),
        alphas_cumprod=None if terminal else getattr(model, "alphas_cumprod_original", None),
        why_copied="the webui moves the weights about (--medvram or --lowvram)" if model.lowvram else "",
    )


def tensors_of(model: Any) -> Mapping[str, Tensor]:
    """The model's parameters by ldm name; the modules around them are the webui's business."""
    named = ((_WRAPPER.sub("", name), parameter) for name, parameter in model.named_parameters())
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


def _positive(module: Any, name: str) -> int | None:
    value = getattr(module, name, None)
    return int(value) if isinstance(value, int) and value > 0 else None
