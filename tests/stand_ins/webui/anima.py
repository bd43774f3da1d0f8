"""Forge Neo with an Anima loaded: a transformer under its original names, a video VAE and a Qwen text engine."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.stand_ins.tiny_anima import PREFIX, TinyTextEngine, TinyVideoVae, transformer_tensors
from tests.stand_ins.webui.forge import ForgeObjects
from tests.stand_ins.webui.modules import module_of
from tests.stand_ins.webui.neo import NeoWorld
from tests.stand_ins.webui.weights import Node, under

LORA_LAYERS = ("self_attn.q_proj.weight", "mlp.layer2.weight")


class Anima(SimpleNamespace):
    """The webui's class of such a model; its name is all that tells it apart."""


class AnimaWorld(NeoWorld):
    """Every parameter is an inference tensor, also those of the text engine, which notes weights for the infotext."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lora_dir: Path) -> None:
        super().__init__(monkeypatch, lora_dir)
        self.shared.opts.data_labels["emphasis"] = SimpleNamespace(default="Original")

    def _memory(self) -> list[ModuleType]:
        self.infotext: dict[str, str] = {}
        arguments = SimpleNamespace(last_extra_generation_params=self.infotext)
        return [*super()._memory(), module_of("backend.args", dynamic_args=arguments)]

    @property
    def parts(self) -> list[nn.Module]:
        objects = self.model.forge_objects_original
        return [objects.unet.model.diffusion_model, objects.vae.first_stage_model, self.engine.text_encoder]

    @property
    def engine(self) -> TinyTextEngine:
        """The loaded model's text engine."""
        engine: TinyTextEngine = self.model.text_processing_engine_anima
        return engine

    def _reload(self) -> None:
        if self.model_data.forge_hash == str(self.model_data.forge_loading_parameters):
            return
        self.model_data.forge_hash = str(self.model_data.forge_loading_parameters)
        tensors = transformer_tensors(seed=self.selected)
        with torch.inference_mode():
            unet: Any = Node(under(tensors, PREFIX))
            vae, engine = _inference(TinyVideoVae()), TinyTextEngine(self.infotext)
            _inference(engine.text_encoder)
        predictor = SimpleNamespace(prediction_type="const", shift=3.0, multiplier=1.0)
        vae.latent_format = SimpleNamespace(scale_factor=1.0)
        objects = ForgeObjects(
            unet=SimpleNamespace(model=SimpleNamespace(diffusion_model=unet, predictor=predictor)),
            clip=SimpleNamespace(cond_stage_model=SimpleNamespace(qwen3_06b=engine.text_encoder), patcher=object()),
            vae=SimpleNamespace(first_stage_model=vae, patcher=object()),
        )
        self._hold(objects, Anima, text_processing_engine_anima=engine)

    def _lora_layers(self) -> list[Any]:
        return [
            module
            for part in self.parts
            for name, module in part.named_modules()
            if f"{name}.weight".endswith(LORA_LAYERS)
        ]

    def _merge_lora(self, lora: str) -> None:
        for module in self._lora_layers() if lora else ():
            weight: Tensor = module.weight
            self.backups[module, "weight"] = weight.data.clone()
            module.weight = nn.Parameter(weight + 0.01, requires_grad=False)


def _inference(module: Any) -> Any:
    """The module with inference tensors as its parameters."""
    with torch.inference_mode():
        for name, parameter in list(module.named_parameters()):
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, nn.Parameter(parameter.detach().clone(), requires_grad=False))
    return module
