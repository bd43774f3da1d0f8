"""reForge and Forge Classic as hosts: Forge's patchers, in the package ldm_patched."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from lib_lora_train.core.errors import ModelError
from lib_lora_train.hosts.webui.forge import Forge
from lib_lora_train.models.architecture import PredictionType
from lib_lora_train.sampling.sampler_options import SamplerOptions

_OTHERS = {"EDM", "CONST", "X0", "ModelSamplingContinuousEDM", "ModelSamplingDiscreteEDM", "StableCascadeSampling"}
"""Classes of ldm_patched.modules.model_sampling that are not trained here, some of them derived from EPS."""


class LdmPatched(Forge):
    """See `hosts.webui.Webui`."""

    name = "reForge"

    def _find_memory(self) -> Any:
        from ldm_patched.modules import model_management

        return model_management

    def load(self) -> None:
        """Reading the attribute loads the checkpoint that is chosen at the top of the page."""
        _ = self._shared.sd_model

    def is_chosen(self) -> bool:
        """A generation first loads the checkpoint that the settings name."""
        loaded = self._models.model_data.sd_model.sd_checkpoint_info
        return bool(self._models.select_checkpoint().filename == loaded.filename)

    def _prediction(self, model: Any, network: Any) -> tuple[PredictionType, bool]:
        """What the schedule's own class says: it is changed for a .yaml beside the file, and `model_type` is not."""
        names = {kind.__name__ for kind in type(network.model_sampling).__mro__}
        if "EPS" not in names or names & _OTHERS:
            kind = next(iter(sorted(names & _OTHERS)), type(network.model_sampling).__name__)
            raise ModelError(f"The loaded model predicts {kind}, which is not trained here. Load an SD or SDXL model.")
        terminal = getattr(network.model_sampling, "zsnr", False) or getattr(model, "ztsnr", False)
        return ("v_prediction" if "V_PREDICTION" in names else "epsilon"), bool(terminal)

    def _alphas_cumprod(self, network: Any) -> Tensor | None:
        """ᾱ = 1 / (σ² + 1); only σ is kept."""
        sigmas: Tensor = network.model_sampling.sigmas
        return 1 / (sigmas.double() ** 2 + 1)

    def _scale_factor(self, objects: Any) -> float:
        return float(objects.unet.model.latent_format.scale_factor)

    def _more_files(self) -> tuple[str, ...]:
        file = getattr(self._models.model_data.sd_model, "loaded_vae_file", None)
        return (str(file),) if file else ()

    def _heads(self, encoder: Any) -> int:
        """Some have transformers' text model; another's keeps no configuration, but its attention layers know."""
        config = getattr(encoder.transformer, "config", None)
        if config is not None:
            return int(config.num_attention_heads)
        return int(next(module.heads for module in encoder.modules() if hasattr(module, "heads")))


class ForgeClassic(LdmPatched):
    """See `hosts.webui.Webui`."""

    name = "Forge Classic"

    @property
    def sampler_habits(self) -> SamplerOptions:
        """As reForge's, but the first step is drawn without guidance even where the setting for that is 0."""
        habits = super().sampler_habits
        return replace(habits, unguided_share=habits.unguided_share or 0.0)
