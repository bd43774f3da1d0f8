"""Forge: its modules, its patchers and how they merge LoRAs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_lora_train.models.architecture import UNET_PREFIX, VAE_PREFIX
from tests.stand_ins.tiny_models import tiny_tensors
from tests.stand_ins.webui.modules import install, module_of
from tests.stand_ins.webui.queue_lock import QueueLock
from tests.stand_ins.webui.settings import listed_loras, shared_module
from tests.stand_ins.webui.txt2img import Txt2Img
from tests.stand_ins.webui.weights import (
    LORA_LAYERS,
    TEXT_PREFIX,
    Node,
    alphas,
    checkpoint,
    delta,
    fingerprint,
    text_heads,
    under,
)


class ForgeObjects(SimpleNamespace):
    """Patchers of UNet, VAE and text encoder."""

    def shallow_copy(self) -> ForgeObjects:
        return ForgeObjects(**vars(self))


class ForgeWorld:
    """`modules` and `backend` of Forge: nothing is loaded at first; every parameter is an inference tensor."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lora_dir: Path) -> None:
        self.queue_lock = QueueLock()
        self.listed = 0
        self.lora_dir = lora_dir
        self.txt2img = self._make_txt2img()
        self.backups: dict[tuple[nn.Module, str], Tensor] = {}
        self.model_data = SimpleNamespace(sd_model=SimpleNamespace(cond_stage_model=None), forge_hash="")
        self.select(0)
        self.shared: Any = shared_module(lora_dir, sd_model=None, state=self.txt2img.state)
        install(
            monkeypatch,
            module_of("modules"),
            module_of("modules.call_queue", queue_lock=self.queue_lock),
            self._sd_models(),
            module_of("modules.devices"),
            *self.txt2img.modules(),
            self.shared,
            module_of("networks", list_available_networks=self._list, available_networks=self.txt2img.available),
            *self._memory(),
        )

    @property
    def model(self) -> Any:
        return self.model_data.sd_model

    def _make_txt2img(self) -> Txt2Img:
        return Txt2Img(self)

    def _sd_models(self) -> ModuleType:
        return module_of("modules.sd_models", model_data=self.model_data, forge_model_reload=self._reload)

    def _memory(self) -> list[ModuleType]:
        memory = {"get_torch_device": lambda: torch.device("cpu"), "load_models_gpu": self._load_models}
        return [module_of("backend"), module_of("backend.memory_management", **memory)]

    @property
    def parts(self) -> list[nn.Module]:
        objects = self.model.forge_objects_original
        return [objects.unet.model.diffusion_model, objects.clip.cond_stage_model.clip_l, objects.vae.first_stage_model]

    def select(self, seed: int, *, vae: str = "") -> None:
        """Select it in the drop-downs; the next generation loads it."""
        self.selected = seed
        modules = [vae] if vae else []
        selected = {"checkpoint_info": seed, "additional_modules": modules, "unet_storage_dtype": None}
        self.model_data.forge_loading_parameters = selected

    def store(self, dtype: torch.dtype | None) -> None:
        """*Diffusion in Low Bits*: the next generation loads the model again, with matrices of this dtype."""
        self.model_data.forge_loading_parameters = {
            **self.model_data.forge_loading_parameters, "unet_storage_dtype": dtype
        }  # fmt: skip
        self.generate()

    def use_vae(self, vae: str) -> None:
        """Select another VAE; the next generation loads it."""
        self.select(self.selected, vae=vae)
        self.generate()

    def switch_to(self, seed: int, *, in_place: bool = False) -> None:
        """Load another checkpoint, as a new model; Forge never overwrites the old one."""
        assert not in_place
        self.select(seed)
        if hasattr(self.model, "forge_objects_original"):
            self.generate()

    def _reload(self) -> None:
        if self.model_data.forge_hash == str(self.model_data.forge_loading_parameters):
            return
        self.model_data.forge_hash = str(self.model_data.forge_loading_parameters)
        tensors = tiny_tensors("sd1", seed=self.selected)
        with torch.inference_mode():
            unet: Any = Node(self._unet_tensors(tensors))
            clip: Any = Node(under(tensors, TEXT_PREFIX))
            vae: Any = Node(under(tensors, VAE_PREFIX))
        self._set_up(tensors, unet, clip, vae)

    def _unet_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        dtype = self.model_data.forge_loading_parameters["unet_storage_dtype"]
        unet = under(tensors, UNET_PREFIX)
        return {name: tensor.to(dtype) if dtype and tensor.ndim > 1 else tensor for name, tensor in unet.items()}

    def _set_up(self, tensors: Mapping[str, Tensor], unet: Any, clip: Any, vae: Any) -> None:
        unet.config = {"num_heads": 8, "num_head_channels": -1}
        text_heads(clip)
        vae.config = SimpleNamespace(scaling_factor=0.18215)
        objects = ForgeObjects(
            unet=SimpleNamespace(model=self._network(unet)),
            clip=SimpleNamespace(cond_stage_model=SimpleNamespace(clip_l=clip), patcher=object()),
            vae=SimpleNamespace(first_stage_model=vae, patcher=object()),
        )
        self._hold(objects)

    def _hold(self, objects: ForgeObjects, kind: type[SimpleNamespace] = SimpleNamespace, **more: Any) -> None:
        """Make these the loaded model, an object of the webui's class `kind` with `more` attributes."""
        self.backups.clear()
        self.model_data.sd_model = kind(
            seed=self.selected,
            sd_checkpoint_info=checkpoint(self.selected),
            model_config=SimpleNamespace(),
            forge_objects_original=objects,
            forge_objects=objects.shallow_copy(),
            forge_objects_after_applying_lora=objects.shallow_copy(),
            current_lora_hash=str([]),
            **more,
        )

    def _network(self, unet: Any) -> Any:
        predictor = SimpleNamespace(prediction_type="epsilon", alphas_cumprod=alphas())
        return SimpleNamespace(diffusion_model=unet, predictor=predictor)

    def weights(self) -> str:
        return fingerprint(self.parts)

    def generate(self, lora: str = "") -> str:
        """An image; LoRAs are merged as new inference-mode parameters and stay until other LoRAs are requested."""
        with self.queue_lock:
            return self.generate_unlocked(lora)

    def generate_unlocked(self, lora: str) -> str:
        with torch.inference_mode():
            self._reload()
            wanted = str([lora]) if lora else str([])
            if self.model.current_lora_hash != wanted:
                self._load_models([])
                self._merge_lora(lora)
                self.model.current_lora_hash = wanted
            return self.weights()

    def _merge_lora(self, lora: str) -> None:
        for part in self.parts if lora else ():
            for name, module in part.named_modules():
                if any(f"{name}.weight".endswith(ending) for ending in LORA_LAYERS):
                    weight: Tensor = module.weight
                    self.backups[module, "weight"] = weight.data.clone()
                    module.weight = nn.Parameter(weight + delta(lora, weight), requires_grad=False)

    def _load_models(self, patchers: list[Any]) -> None:
        """Load the original patchers, which removes LoRAs, as new inference tensors."""
        with torch.inference_mode():
            for (module, name), backup in self.backups.items():
                setattr(module, name, nn.Parameter(backup.clone(), requires_grad=False))
        self.backups.clear()

    def unload(self) -> None:
        """Move all weights, as memory management does."""
        with torch.inference_mode():
            for part in self.parts:
                for module in part.modules():
                    for name, parameter in list(module._parameters.items()):
                        if parameter is not None:
                            module._parameters[name] = nn.Parameter(parameter.data.clone(), requires_grad=False)

    def _list(self) -> None:
        self.listed += 1
        self.txt2img.available.update(listed_loras(self.shared.cmd_opts))
