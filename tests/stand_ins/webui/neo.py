"""Forge Neo: Forge's patchers with ComfyUI's memory management and quantised checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_lora_train.models.architecture import UNET_PREFIX
from tests.stand_ins.webui.forge import ForgeWorld
from tests.stand_ins.webui.modules import module_of
from tests.stand_ins.webui.quantized import PackedTensor
from tests.stand_ins.webui.weights import LORA_LAYERS, checkpoint, delta, under


class LowVramPatch:
    """A LoRA on a layer that stayed on the CPU: its weight is not changed, but computed with each time."""

    def __init__(self, lora: str) -> None:
        self.lora = lora

    def __call__(self, weight: Tensor) -> Tensor:
        return weight + delta(self.lora, weight)


def flow_predictor(**values: Any) -> SimpleNamespace:
    """Neo's predictor of rectified flow, with 1000·σ as the UNet's time; those of other flows have no multiplier."""
    return SimpleNamespace(**{"prediction_type": "const", "multiplier": 1000, "shift": 1.0, **values})


class NeoWorld(ForgeWorld):
    """`modules`, `backend` and `modules_forge` of Forge Neo.

    With `is_quantized`, a checkpoint's matrices are packed, and each has its `input_scale` as a second parameter. With
    `is_short_of_memory`, a LoRA is applied to layers by `LowVramPatch`, and layers move with each generation.
    """

    is_quantized = False
    packing = "int8"
    """How a quantised checkpoint is packed, one of `quantized.FORMATS`."""
    is_short_of_memory = False
    flow: Any = None
    """The model's predictor, if it is a flow; see `flow_predictor`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lora_dir: Path) -> None:
        super().__init__(monkeypatch, lora_dir)
        self.shared.opts.data_labels["CLIP_stop_at_last_layers"] = SimpleNamespace(default=2)

    def _memory(self) -> list[ModuleType]:
        version = module_of("modules_forge.forge_version", version="neo", release="2.26")
        return [*super()._memory(), module_of("modules_forge"), version]

    def select(self, seed: int, *, vae: str = "") -> None:
        """Neo selects by an object, which is the checkpoint's information."""
        super().select(seed, vae=vae)
        self.model_data.forge_loading_parameters["checkpoint_info"] = checkpoint(seed)

    def _set_up(self, tensors: Mapping[str, Tensor], unet: Any, clip: Any, vae: Any) -> None:
        super()._set_up(tensors, unet, clip, vae)
        vae.config, vae.latent_format = {}, SimpleNamespace(scale_factor=0.18215)
        self.model.use_shift = self.flow is not None
        if self.flow is not None:
            self.model.forge_objects_original.unet.model.predictor = self.flow

    def _unet_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self.is_quantized:
            return super()._unet_tensors(tensors)
        unet = {name: tensor.bfloat16() for name, tensor in under(tensors, UNET_PREFIX).items()}
        packed = {name: PackedTensor.pack(tensor, self.packing) for name, tensor in unet.items() if tensor.ndim == 2}
        scales = {f"{name.removesuffix('.weight')}.input_scale": torch.ones(1) for name in packed}
        return {**unet, **packed, **scales}

    def _merge_lora(self, lora: str) -> None:
        if not self.is_short_of_memory:
            super()._merge_lora(lora)
            return
        self.unload()
        for module in self._lora_layers() if lora else ():
            module.weight_function = [LowVramPatch(lora)]

    def _load_models(self, patchers: list[Any]) -> None:
        super()._load_models(patchers)
        for module in self._lora_layers() if hasattr(self.model, "forge_objects_original") else ():
            module.weight_function = []

    def _lora_layers(self) -> list[Any]:
        return [
            module
            for part in self.parts
            for name, module in part.named_modules()
            if any(f"{name}.weight".endswith(ending) for ending in LORA_LAYERS)
        ]

    def weights(self) -> str:
        """The image also shows the LoRAs that are applied while computing."""
        patches = [patch.lora for module in self._lora_layers() for patch in getattr(module, "weight_function", ())]
        return super().weights() + "".join(sorted(patches))

    def unload(self) -> None:
        """Move all weights; quantised ones are wrapped again."""
        with torch.inference_mode():
            for module in (module for part in self.parts for module in part.modules()):
                for name, parameter in list(module._parameters.items()):
                    if parameter is not None:
                        module._parameters[name] = nn.Parameter(parameter.data.clone(), requires_grad=False)
