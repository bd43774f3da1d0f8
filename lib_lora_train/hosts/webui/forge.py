"""Forge as a host, and what its relatives built on ldm_patched share with it.

These webuis keep a model as "patchers": `forge_objects_original` holds the untouched ones. A LoRA is baked into the
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
from lib_lora_train.hosts.webui.common import Relative, positive, without_wrappers
from lib_lora_train.hosts.webui.host import LoadedModel, ModelFacts
from lib_lora_train.models.architecture import UNET_PREFIX, VAE_PREFIX, Hints, PredictionType
from lib_lora_train.sampling.sampler_options import SamplerOptions

_PREDICTIONS: Mapping[str, PredictionType] = {"epsilon": "epsilon", "v_prediction": "v_prediction"}
# Text encoders by the webui's name; a model with clip_g has two of them.
_ALONE = {"clip_l": "cond_stage_model.", "clip_h": "cond_stage_model."}
_OF_TWO = {"clip_l": "conditioner.embedders.0.", "clip_g": "conditioner.embedders.1."}
_ADDITIONAL = re.compile(r"'additional_modules': (\[.*?\]|\(.*?\)|None), 'unet_storage_dtype'")


class Forge(Relative):
    """See `hosts.webui.Webui`."""

    name = "Forge"

    def __init__(self) -> None:
        super().__init__()
        self._memory = self._find_memory()

    def _find_memory(self) -> Any:
        """The module that moves models between processor and graphics card."""
        from backend import memory_management

        return memory_management

    @property
    def device(self) -> torch.device:
        """The webui's choice."""
        return torch.device(self._memory.get_torch_device())

    @property
    def sampler_habits(self) -> SamplerOptions:
        """As the settings say, but the UNet gets whole timesteps in every case."""
        return replace(super().sampler_habits, has_whole_timesteps=True)

    def load(self) -> None:
        """The webui itself loads nothing before the first generation."""
        self._models.forge_model_reload()

    def present(self) -> LoadedModel | None:
        """The model in memory; a placeholder stands there until something was generated."""
        model = self._models.model_data.sd_model
        objects = getattr(model, "forge_objects_original", None)
        info = getattr(model, "sd_checkpoint_info", None)
        if objects is None or info is None:
            return None
        more = self._more_files()
        return LoadedModel(
            identity=(str(info.filename), *more, type(model).__name__),
            path=Path(info.filename),
            sha256=info.sha256 or "",
            vae=next((Path(name) for name in more if Path(name).parent.name.lower() == "vae"), None),
            facts=lambda: self._facts(model, objects),
            tensors=lambda: tensors_of(objects),
        )

    def is_chosen(self) -> bool:
        """A generation first loads what the drop-downs name, if that is not what was loaded last."""
        data = self._models.model_data
        return bool(str(data.forge_loading_parameters) == data.forge_hash)

    def _facts(self, model: Any, objects: Any) -> ModelFacts:
        network = objects.unet.model
        prediction, terminal = self._prediction(model, network)
        return ModelFacts(
            hints=Hints(
                prediction_type=prediction,
                zero_terminal_snr=terminal,
                scale_factor=self._scale_factor(objects),
                unet_heads=positive(network.diffusion_model, "num_heads"),
                unet_head_dim=positive(network.diffusion_model, "num_head_channels"),
                text_heads=tuple(self._heads(encoder) for encoder in _text_encoders(objects).values()),
            ),
            alphas_cumprod=None if terminal else self._alphas_cumprod(network),
            why_copied=self._why_copied(network),
        )

    def restore(self) -> None:
        """The original patchers loaded, which takes LoRAs out of the parameters; a generation starts from them anew."""
        model = self._models.model_data.sd_model
        original = model.forge_objects_original
        self._memory.load_models_gpu([original.unet, original.clip.patcher, original.vae.patcher])
        model.forge_objects = original.shallow_copy()
        model.forge_objects_after_applying_lora = original.shallow_copy()
        model.current_lora_hash = str([])

    # --- what the relatives have elsewhere -----------------------------------------------------
    def _prediction(self, model: Any, network: Any) -> tuple[PredictionType, bool]:
        """What the UNet predicts, and whether its schedule ends in pure noise."""
        return _known(network.predictor.prediction_type), bool(getattr(model.model_config, "ztsnr", False))

    def _alphas_cumprod(self, network: Any) -> Tensor | None:
        return getattr(network.predictor, "alphas_cumprod", None)

    def _scale_factor(self, objects: Any) -> float:
        return float(objects.vae.first_stage_model.config.scaling_factor)

    def _more_files(self) -> tuple[str, ...]:
        """VAE and text encoders loaded beside the checkpoint; what the drop-downs name may not be loaded yet.

        What was loaded is kept as the text of the parameters it was loaded with, and nowhere else.
        """
        loaded = _ADDITIONAL.search(self._models.model_data.forge_hash)
        try:
            names = ast.literal_eval(loaded[1]) if loaded else ()
        except (SyntaxError, ValueError):
            names = ()
        return tuple(str(name) for name in names or ())

    def _heads(self, encoder: Any) -> int:
        return int(encoder.transformer.config.num_attention_heads)

    def _why_copied(self, network: Any) -> str:
        stored = getattr(network, "storage_dtype", None)
        return f"the webui keeps the weights as {stored}" if isinstance(stored, str) else ""


def _known(prediction: str) -> PredictionType:
    if prediction not in _PREDICTIONS:
        raise ModelError(
            f"The loaded model predicts {prediction}, which is not trained here. Load an SD1, SD2 or SDXL model."
        )
    return _PREDICTIONS[prediction]


def tensors_of(objects: Any) -> Mapping[str, Tensor]:
    """The parameters of UNet, VAE and text encoders by ldm name."""
    parts = {UNET_PREFIX: objects.unet.model.diffusion_model, VAE_PREFIX: objects.vae.first_stage_model}
    parts.update(_text_encoders(objects))
    return {
        prefix + without_wrappers(name): parameter
        for prefix, module in parts.items()
        for name, parameter in module.named_parameters()
    }


def _text_encoders(objects: Any) -> dict[str, Any]:
    """ldm prefix → text encoder, in the webuis' order; HostError for encoders of other families."""
    clip = objects.clip.cond_stage_model
    prefixes = _OF_TWO if hasattr(clip, "clip_g") else _ALONE
    found = {prefix: getattr(clip, name) for name, prefix in prefixes.items() if hasattr(clip, name)}
    if not found:
        raise HostError("The loaded model has no CLIP text encoder. Load an SD1, SD2 or SDXL checkpoint.")
    return found
