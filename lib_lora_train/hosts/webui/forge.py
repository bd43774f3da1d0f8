"""Forge as a host, and what reForge and Forge Classic share with it.

These webuis keep a model as "patchers"; `forge_objects_original` holds the unpatched ones. A LoRA is merged into the
parameters and stays there after a generation, and parameters are inference tensors.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib_lora_train.core.errors import HostError, ModelError
from lib_lora_train.hosts.webui.common import CommonWebui, positive_attribute, without_wrappers
from lib_lora_train.hosts.webui.loaded_model import LoadedModel, ModelFacts, ModelIdentity, dtype_name, stored_as
from lib_lora_train.models.architecture import UNET_PREFIX, VAE_PREFIX, CheckpointHints, PredictionType
from lib_lora_train.models.other_models import NEEDS_SD, find_by_word, with_article
from lib_lora_train.models.quantized import is_quantized
from lib_lora_train.sampling.sampler_options import SamplerOptions

_FLOW_TIMESTEPS = 1000
_PREDICTIONS: Mapping[str, PredictionType] = {"epsilon": "epsilon", "v_prediction": "v_prediction"}
# ldm prefix of each text encoder, by the webui's name; a model with clip_g has two text encoders.
_SINGLE_ENCODER = {"clip_l": "cond_stage_model.", "clip_h": "cond_stage_model."}
_TWO_ENCODERS = {"clip_l": "conditioner.embedders.0.", "clip_g": "conditioner.embedders.1."}
_DROP_DOWNS = {
    "checkpoint_info": "checkpoint",
    "additional_modules": "VAE or text encoder",
    "unet_storage_dtype": "setting of Diffusion in Low Bits",
}
_ONLY_FOR_QUANTISED = (".input_scale", ".weight_scale", ".weight_scale_2", ".comfy_quant")
"""Parameters beside a quantised weight, which has its scales inside, too."""
_ADDITIONAL_MODULES = re.compile(r"'additional_modules': (\[.*?\]|\(.*?\)|None), 'unet_storage_dtype'")


class Forge(CommonWebui):
    """Implements `hosts.webui.webui.Webui`."""

    name = "Forge"

    def __init__(self) -> None:
        super().__init__()
        self._memory = self._find_memory()

    def _find_memory(self) -> Any:
        """The module that moves models between CPU and GPU."""
        from backend import memory_management

        return memory_management

    @property
    def device(self) -> torch.device:
        """The device the webui computes on."""
        return torch.device(self._memory.get_torch_device())

    @property
    def sampler_options(self) -> SamplerOptions:
        """How the webui samples, from its settings; Forge always passes whole timesteps to the UNet."""
        return replace(super().sampler_options, quantize_timesteps=True)

    def load(self) -> None:
        """Load the selected checkpoint, which Forge otherwise does at the first generation."""
        self._models.forge_model_reload()

    def loaded_model(self) -> LoadedModel | None:
        """The model in memory; before the first generation there is only a placeholder."""
        model = self._models.model_data.sd_model
        objects = getattr(model, "forge_objects_original", None)
        info = getattr(model, "sd_checkpoint_info", None)
        if objects is None or info is None:
            return None
        extra_files = self._extra_files()
        return LoadedModel(
            identity=ModelIdentity(
                str(info.filename), extra_files, _stored_as(objects.unet.model), type(model).__name__
            ),
            path=Path(info.filename),
            sha256=info.sha256 or "",
            vae=next((Path(name) for name in extra_files if self._is_vae(Path(name))), None),
            text_encoders=tuple(Path(name) for name in extra_files if not self._is_vae(Path(name))),
            is_quantized=any(is_quantized(parameter) for parameter in objects.unet.model.diffusion_model.parameters()),
            facts=lambda: self._facts(model, objects),
            tensors=lambda: self._tensors(objects),
        )

    def selected_checkpoint(self) -> Path | None:
        """The checkpoint of the drop-down, which Forge loads with the next generation."""
        selected = getattr(self._models.model_data, "forge_loading_parameters", None) or {}
        name = getattr(selected.get("checkpoint_info"), "filename", None)
        return Path(name) if name else None

    def other_selection(self) -> str:
        """Which drop-down does not show what was loaded last; a generation loads their choices first."""
        data = self._models.model_data
        selected, loaded = data.forge_loading_parameters, data.forge_hash
        if str(selected) == loaded:
            return ""
        changed = (label for key, label in _DROP_DOWNS.items() if f"{key!r}: {selected.get(key)!r}" not in loaded)
        return next(changed, "model")

    def _facts(self, model: Any, objects: Any) -> ModelFacts:
        network = objects.unet.model
        self._refuse_other(type(model).__name__)
        prediction, terminal = self._prediction(model, network)
        return ModelFacts(
            hints=CheckpointHints(
                prediction_type=prediction,
                zero_terminal_snr=terminal,
                scale_factor=self._scale_factor(objects),
                unet_heads=positive_attribute(network.diffusion_model, "num_heads"),
                unet_head_dim=positive_attribute(network.diffusion_model, "num_head_channels"),
                text_heads=tuple(self._heads(encoder) for encoder in _text_encoders(objects).values()),
            ),
            alphas_cumprod=None if terminal else self._alphas_cumprod(network),
            why_copied=self._why_copied(network),
        )

    def restore_weights(self) -> None:
        """Load the original patchers, which removes LoRAs from the parameters; the next generation starts from them."""
        model = self._models.model_data.sd_model
        original = model.forge_objects_original
        self._memory.load_models_gpu([original.unet, original.clip.patcher, original.vae.patcher])
        model.forge_objects = original.shallow_copy()
        model.forge_objects_after_applying_lora = original.shallow_copy()
        model.current_lora_hash = str([])

    def _refuse_other(self, kind: str) -> None:
        """ModelError if the webui's class of the model is that of another kind than can be trained in it."""
        other = find_by_word(kind)
        if other:
            raise ModelError(f"The loaded model is {with_article(other)} model. {NEEDS_SD} Load one of these.")

    # --- overridden for Forge Neo, reForge and Forge Classic ------------------------------------
    def _is_vae(self, file: Path) -> bool:
        """Whether a file loaded beside the checkpoint is a VAE, which Forge finds in a folder of that name."""
        return file.parent.name.lower() == "vae"

    def _prediction(self, model: Any, network: Any) -> tuple[PredictionType, bool]:
        """What the UNet predicts, and whether its schedule ends in pure noise."""
        return _supported_prediction(network.predictor), bool(getattr(model.model_config, "ztsnr", False))

    def _alphas_cumprod(self, network: Any) -> Tensor | None:
        return getattr(network.predictor, "alphas_cumprod", None)

    def _scale_factor(self, objects: Any) -> float:
        return float(objects.vae.first_stage_model.config.scaling_factor)

    def _extra_files(self) -> tuple[str, ...]:
        """VAE and text encoder files loaded beside the checkpoint; those in the drop-downs may not be loaded yet.

        Forge records what it loaded only as the text of the loading parameters.
        """
        loaded = _ADDITIONAL_MODULES.search(self._models.model_data.forge_hash)
        try:
            names = ast.literal_eval(loaded[1]) if loaded else ()
        except (SyntaxError, ValueError):
            names = ()
        return tuple(str(name) for name in names or ())

    def _tensors(self, objects: Any) -> Mapping[str, Tensor]:
        """The live tensors by ldm name."""
        return tensors_of(
            {
                UNET_PREFIX: objects.unet.model.diffusion_model,
                VAE_PREFIX: objects.vae.first_stage_model,
                **_text_encoders(objects),
            }
        )

    def _heads(self, encoder: Any) -> int:
        return int(encoder.transformer.config.num_attention_heads)

    def _why_copied(self, network: Any) -> str:
        stored = getattr(network, "storage_dtype", None)
        return f"the webui keeps the weights as {stored}" if isinstance(stored, str) else ""


def _stored_as(network: Any) -> str:
    """The format of the UNet's weights: as Forge says, which a LoRA in the weights does not change, or as they are."""
    stored = getattr(network, "storage_dtype", None)
    return stored_as(network.diffusion_model) if stored is None else dtype_name(stored)


def _supported_prediction(predictor: Any) -> PredictionType:
    """What the model predicts; "const" is a flow, of which only that with 1000·σ as the UNet's time is supported."""
    prediction = predictor.prediction_type
    if prediction == "const" and getattr(predictor, "multiplier", None) == _FLOW_TIMESTEPS:
        return "rectified_flow"
    if prediction not in _PREDICTIONS:
        raise unsupported_prediction(prediction)
    return _PREDICTIONS[prediction]


def unsupported_prediction(kind: str) -> ModelError:
    """The error for a model that predicts neither noise nor v."""
    return ModelError(f"The loaded model predicts {kind}, which is not supported. Load an SD1, SD2 or SDXL model.")


def tensors_of(networks: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The parameters of networks, under the ldm prefix of each."""
    return {
        prefix + without_wrappers(name): parameter
        for prefix, module in networks.items()
        for name, parameter in module.named_parameters()
        if not name.endswith(_ONLY_FOR_QUANTISED)
    }


def _text_encoders(objects: Any) -> dict[str, Any]:
    """ldm prefix → text encoder, in the webui's order; HostError if the model has no CLIP text encoder."""
    clip = objects.clip.cond_stage_model
    prefixes = _TWO_ENCODERS if hasattr(clip, "clip_g") else _SINGLE_ENCODER
    found = {prefix: getattr(clip, name) for name, prefix in prefixes.items() if hasattr(clip, name)}
    if not found:
        raise HostError("The loaded model has no CLIP text encoder. Load an SD1, SD2 or SDXL checkpoint.")
    return found
