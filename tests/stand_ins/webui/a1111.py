"""A1111 1.10: its modules, its model and how LoRAs change it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_lora_train.models.architecture import UNET_PREFIX
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
)


class A1111World:
    """`modules` and the built-in LoRA extension `networks` of A1111 1.10."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lora_dir: Path) -> None:
        self.queue_lock = QueueLock()
        self.lora_dir = lora_dir
        self.loaded: list[str] = []
        self.listed = 0
        self.model_data = SimpleNamespace(sd_model=None)
        self.txt2img = Txt2Img(self)
        self.selected = 0
        self.switch_to(0)
        self.shared: Any = shared_module(lora_dir, sd_model=self.model, state=self.txt2img.state)
        install(
            monkeypatch,
            module_of("modules"),
            module_of("modules.call_queue", queue_lock=self.queue_lock),
            module_of("modules.devices", device=torch.device("cpu")),
            module_of(
                "modules.sd_models",
                model_data=self.model_data,
                send_model_to_device=self._send_to_device,
                select_checkpoint=lambda: checkpoint(self.selected),
            ),
            *self.txt2img.modules(),
            self.shared,
            module_of(
                "networks",
                load_networks=self._load_networks,
                network_apply_weights=self._apply_weights,
                list_available_networks=self._list,
                available_networks=self.txt2img.available,
            ),
        )

    @property
    def model(self) -> Any:
        return self.model_data.sd_model

    def select(self, seed: int) -> None:
        """Select it in the drop-down; the next generation loads it."""
        self.selected = seed

    def switch_to(self, seed: int, *, in_place: bool = False) -> None:
        """Load another checkpoint, into new objects while the old ones go to meta, or into the same storage."""
        self.selected = seed
        tensors = tiny_tensors("sd1", seed=seed)
        if in_place:
            with torch.no_grad():
                for name, parameter in self._by_ldm_name().items():
                    parameter.copy_(tensors[name])
            self.model.sd_checkpoint_info = checkpoint(seed)
            return
        if self.model is not None:
            self.model.to("meta")
        self.model_data.sd_model = self._build(tensors, seed)

    def _build(self, tensors: Mapping[str, Tensor], seed: int) -> Any:
        model: Any = Node({self._name(name): tensor.clone() for name, tensor in tensors.items()})
        model.sd_checkpoint_info = checkpoint(seed)
        model.loaded_vae_file = None
        model.parameterization, model.scale_factor, model.lowvram = "eps", 0.18215, False
        model.alphas_cumprod_original = alphas()
        model.model.diffusion_model.num_heads, model.model.diffusion_model.num_head_channels = 8, -1
        text_heads(model.cond_stage_model.wrapped)
        for name, module in model.named_modules():
            if any(f"{name}.weight".endswith(ending) for ending in LORA_LAYERS):
                module.network_layer_name, module.network_current_names = name, ()
        return model

    def store(self, dtype: torch.dtype | None) -> None:
        """The setting *FP8 weight*: the matrices are converted in place, or loaded from the file again."""
        from_file = tiny_tensors("sd1", seed=self.selected)
        for name, parameter in self._by_ldm_name().items():
            if dtype and parameter.ndim > 1 and name.startswith(UNET_PREFIX):
                parameter.data = parameter.data.to(dtype)
            elif dtype is None:
                parameter.data = from_file[name].clone()

    def use_vae(self, vae: str) -> None:
        """Select another VAE, which is loaded at once."""
        self.model.loaded_vae_file = vae or None

    def _name(self, ldm: str) -> str:
        """The webui wraps the text encoder and its token embedding."""
        inner = ldm.replace(TEXT_PREFIX, f"{TEXT_PREFIX}wrapped.")
        return inner.replace("token_embedding.", "token_embedding.wrapped.")

    def _by_ldm_name(self) -> dict[str, Tensor]:
        return {name.replace(".wrapped", ""): p for name, p in self.model.named_parameters()}

    def weights(self) -> str:
        return fingerprint([self.model])

    def generate(self, lora: str = "") -> str:
        """An image; LoRAs are merged into the layers and stay there afterwards."""
        with self.queue_lock:
            return self.generate_unlocked(lora)

    def generate_unlocked(self, lora: str) -> str:
        if Path(self.model.sd_checkpoint_info.filename) != Path(checkpoint(self.selected).filename):
            self.switch_to(self.selected)
        self._load_networks([lora] if lora else [])
        for module in self.model.modules():
            if hasattr(module, "network_layer_name"):
                self._apply_weights(module)
        return self.weights()

    def unload(self) -> None:
        """Move all weights, without the lock, so possibly during a training step."""
        for parameter in self.model.parameters():
            moved = parameter.data.clone()
            parameter.data = moved

    def _send_to_device(self, model: Any) -> None:
        assert model is self.model

    def _load_networks(self, names: list[str]) -> None:
        self.loaded = list(names)

    def _apply_weights(self, module: Any) -> None:
        """Restore weights from the backup into the same storage, then merge the LoRAs; each layer records its LoRAs."""
        if module.network_current_names == tuple(self.loaded):
            return
        with torch.no_grad():
            if not hasattr(module, "network_weights_backup"):
                module.network_weights_backup = module.weight.detach().clone()
            module.weight.copy_(module.network_weights_backup)
            for name in self.loaded:
                module.weight.add_(delta(name, module.weight))
        module.network_current_names = tuple(self.loaded)

    def _list(self) -> None:
        self.listed += 1
        self.txt2img.available.update(listed_loras(self.shared.cmd_opts))
