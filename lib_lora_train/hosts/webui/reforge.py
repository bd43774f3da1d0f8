"""reForge and Forge Classic as hosts: Forge's patchers, in the package ldm_patched."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from lib_lora_train.hosts.webui.common import CommonWebui
from lib_lora_train.hosts.webui.forge import Forge, unsupported_prediction
from lib_lora_train.models.architecture import PredictionType
from lib_lora_train.sampling.sampler_options import SamplerOptions

_UNSUPPORTED = {"EDM", "CONST", "X0", "ModelSamplingContinuousEDM", "ModelSamplingDiscreteEDM", "StableCascadeSampling"}
"""Classes of ldm_patched.modules.model_sampling that are not supported, some of them derived from EPS."""


class LdmPatched(Forge):
    """Implements `hosts.webui.webui.Webui`."""

    name = "reForge"

    def _find_memory(self) -> Any:
        from ldm_patched.modules import model_management

        return model_management

    def load(self) -> None:
        """Load the checkpoint selected at the top of the page, by reading the attribute."""
        _ = self._shared.sd_model

    other_selection = CommonWebui.other_selection  # selecting works as in A1111, not as in Forge

    def _prediction(self, model: Any, network: Any) -> tuple[PredictionType, bool]:
        """Prediction type and zero-terminal SNR, from the schedule's class, which is all a .yaml file changes."""
        names = {kind.__name__ for kind in type(network.model_sampling).__mro__}
        if "EPS" not in names or names & _UNSUPPORTED:
            kind = next(iter(sorted(names & _UNSUPPORTED)), type(network.model_sampling).__name__)
            raise unsupported_prediction(kind)
        terminal = getattr(network.model_sampling, "zsnr", False) or getattr(model, "ztsnr", False)
        return ("v_prediction" if "V_PREDICTION" in names else "epsilon"), bool(terminal)

    def _alphas_cumprod(self, network: Any) -> Tensor | None:
        """ᾱ = 1 / (σ² + 1); the webui stores only σ."""
        sigmas: Tensor = network.model_sampling.sigmas
        return 1 / (sigmas.double() ** 2 + 1)

    def _scale_factor(self, objects: Any) -> float:
        return float(objects.unet.model.latent_format.scale_factor)

    def _extra_files(self) -> tuple[str, ...]:
        file = getattr(self._models.model_data.sd_model, "loaded_vae_file", None)
        return (str(file),) if file else ()

    def _heads(self, encoder: Any) -> int:
        """From transformers' config or, for text models without one, from an attention layer."""
        config = getattr(encoder.transformer, "config", None)
        if config is not None:
            return int(config.num_attention_heads)
        return int(next(module.heads for module in encoder.modules() if hasattr(module, "heads")))


class ForgeClassic(LdmPatched):
    """Implements `hosts.webui.webui.Webui`."""

    name = "Forge Classic"

    @property
    def sampler_options(self) -> SamplerOptions:
        """As in reForge, but the first step is always sampled without guidance, even if the setting for that is 0."""
        options = super().sampler_options
        return replace(options, skip_early_cond=options.skip_early_cond or 0.0)
