"""What A1111 and every webui that descends from it have in common, in the same places and under the same names."""

from __future__ import annotations

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lib_lora_train.hosts.host import GeneratedImage, GenerationRequest
from lib_lora_train.hosts.webui import interrogators, upscaling
from lib_lora_train.hosts.webui import txt2img as painting
from lib_lora_train.hosts.webui.options import results_folder, sampler_habits
from lib_lora_train.sampling.sampler_options import SamplerOptions

_WRAPPER = re.compile(r"\.wrapped(?=\.)")


class Relative(ABC):
    """The common half of `hosts.webui.Webui`. The objects of `modules` are found once, at the script's load."""

    def __init__(self) -> None:
        from modules import call_queue, sd_models, shared

        self._shared, self._models, self._queue = shared, sd_models, call_queue

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The webui's choice."""

    @property
    def queue_lock(self) -> AbstractContextManager[Any]:
        """A FIFO lock that generations take; unloading and reloading the model do not."""
        lock: AbstractContextManager[Any] = self._queue.queue_lock
        return lock

    @property
    def sampler_habits(self) -> SamplerOptions:
        """As the settings say."""
        return sampler_habits(self._shared, self.device)

    @property
    def lora_dir(self) -> Path:
        """`--lora-dir`, and the sub-folder of the settings."""
        return results_folder(self._shared)

    def show_loras(self) -> None:
        """What the list's own refresh button does."""
        networks = lora_networks()
        if networks is not None:
            networks.list_available_networks()

    def sampler_names(self) -> tuple[str, ...]:
        """The samplers of the webui's drop-down."""
        return painting.sampler_names()

    def paint(self, order: GenerationRequest, sampler: str) -> GeneratedImage:
        """One generation, as if a user had pressed *Generate*."""
        if order.lora:
            painting.require_lora(lora_networks(), order.lora)
        return painting.paint(order, sampler)

    def upscaler_names(self) -> tuple[str, ...]:
        """Those of the Extras tab that need no download."""
        return upscaling.upscaler_names()

    def upscale(self, image: Image.Image, size: tuple[int, int], upscaler: str) -> Image.Image:
        """As the Extras tab does it."""
        return upscaling.upscale(image, size, upscaler)

    def taggers(self) -> Mapping[str, interrogators.Turn]:
        """DeepBooru and BLIP, where the webui has them."""
        return interrogators.turns()


def lora_networks() -> Any:
    """The webui's built-in extension for LoRAs, None where it is switched off."""
    return sys.modules.get("networks")


def without_wrappers(name: str) -> str:
    """A parameter's name without the webui's own layer around text encoders and token embeddings."""
    return _WRAPPER.sub("", name)


def positive(module: Any, name: str) -> int | None:
    """A number above 0 that a UNet has as an attribute or in its config; -1 stands for "not used"."""
    value = getattr(module, name, None)
    if value is None:
        config = getattr(module, "config", None)
        value = config.get(name) if isinstance(config, Mapping) else None
    return int(value) if isinstance(value, int) and value > 0 else None
