"""reForge, and Forge Classic, which is derived from it."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lib_lora_train.models.architecture import VAE_PREFIX
from tests.stand_ins.webui.forge import ForgeWorld
from tests.stand_ins.webui.modules import module_of
from tests.stand_ins.webui.txt2img import ClassicTxt2Img, Txt2Img
from tests.stand_ins.webui.weights import TEXT_PREFIX, Node, alphas, checkpoint, under


class EPS:
    """`ldm_patched.modules.model_sampling.EPS`."""


class V_PREDICTION(EPS):
    """Derived from EPS, as in the original."""


class EDM(V_PREDICTION):
    """Derived from both, as in the original."""


class LoadingShared(ModuleType):
    """`modules.shared`, where reading an attribute loads the checkpoint."""

    load: Any

    @property
    def sd_model(self) -> None:
        self.load()


class ReforgeWorld(ForgeWorld):
    """`modules` and `ldm_patched` of reForge: Forge's patchers, loaded without inference mode, σ instead of ᾱ.

    `prediction` is the schedule's class; `model_type` stays as detected from the file.
    """

    prediction: type = EPS

    def _sd_models(self) -> ModuleType:
        selected = lambda: checkpoint(self.selected)  # noqa: E731
        return module_of("modules.sd_models", model_data=self.model_data, select_checkpoint=selected)

    def _memory(self) -> list[ModuleType]:
        memory = {"get_torch_device": lambda: torch.device("cpu"), "load_models_gpu": self._load_models}
        names = ("ldm_patched", "ldm_patched.modules")
        self.shared.load = self._reload
        del self.shared.sd_model
        self.shared.__class__ = LoadingShared
        return [*map(module_of, names), module_of("ldm_patched.modules.model_management", **memory)]

    def _network(self, unet: Any) -> Any:
        unet.num_heads, unet.num_head_channels = 8, -1
        sampling = type("ModelSampling", (self.prediction,), {})()
        sampling.sigmas = (1 / alphas() - 1) ** 0.5
        return SimpleNamespace(
            diffusion_model=unet,
            model_sampling=sampling,
            model_type=SimpleNamespace(name="EPS"),
            latent_format=SimpleNamespace(scale_factor=0.18215),
        )

    def _set_up(self, tensors: Mapping[str, Tensor], unet: Any, clip: Any, vae: Any) -> None:
        plain = {name.replace("embedding.weight", "embedding.wrapped.weight") if "token" in name else name: tensor
                 for name, tensor in under(tensors, TEXT_PREFIX).items()}  # fmt: skip
        super()._set_up(tensors, Node(self._unet_tensors(tensors)), Node(plain), Node(under(tensors, VAE_PREFIX)))
        self.model.loaded_vae_file = next(iter(self.model_data.forge_loading_parameters["additional_modules"]), None)


class ClassicWorld(ReforgeWorld):
    """Forge Classic, which is derived from reForge."""

    def _make_txt2img(self) -> Txt2Img:
        return ClassicTxt2Img(self)
