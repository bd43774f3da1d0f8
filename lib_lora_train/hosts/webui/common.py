"""What A1111 and all webuis derived from it share, in the same places and under the same names."""

from __future__ import annotations

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lib_lora_train.hosts.host import GeneratedImage, GenerationRequest, GenerationWatch
from lib_lora_train.hosts.webui import interrogators, txt2img, upscaling
from lib_lora_train.hosts.webui.embeddings import embedding_folder, refresh_embeddings, require_embedding
from lib_lora_train.hosts.webui.options import lora_folder, lora_folders
from lib_lora_train.hosts.webui.sampling_settings import sampler_options
from lib_lora_train.sampling.sampler_options import SamplerOptions

_WRAPPER = re.compile(r"\.wrapped(?=\.)")


class CommonWebui(ABC):
    """The common half of `hosts.webui.webui.Webui`. The webui's modules are imported once, when the host is made."""

    def __init__(self) -> None:
        from modules import call_queue, sd_models, shared

        self._shared, self._models, self._queue = shared, sd_models, call_queue

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device the webui computes on."""

    @property
    def queue_lock(self) -> AbstractContextManager[Any]:
        """A FIFO lock that generations take; unloading and reloading the model do not."""
        lock: AbstractContextManager[Any] = self._queue.queue_lock
        return lock

    @property
    def sampler_options(self) -> SamplerOptions:
        """How the webui samples, from its settings."""
        return replace(sampler_options(self._shared, self.device), flow_shift=self.flow_shift)

    @property
    def flow_shift(self) -> float | None:
        """The shift with which the webui draws the loaded model, if that is a rectified flow; only Forge Neo can."""
        return None

    @property
    def lora_dir(self) -> Path:
        """`--lora-dir`, with the sub-folder from the settings."""
        return lora_folder(self._shared)

    @property
    def lora_dirs(self) -> tuple[Path, ...]:
        """`--lora-dir`, and Forge Neo's `--lora-dirs`."""
        return lora_folders(self._shared)

    @property
    def embedding_dir(self) -> Path:
        """`--embeddings-dir`."""
        return embedding_folder(self._shared)

    def lora_file(self, name: str) -> Path | None:
        """By the list of the built-in extension, where the last of several files of a name counts."""
        return txt2img.listed_lora(lora_networks(), name)

    @property
    def clip_skip(self) -> int:
        """The setting with which the webui generates, 0 if it has none."""
        return int(getattr(self._shared.opts, "CLIP_stop_at_last_layers", 0) or 0)

    @property
    def applies_clip_skip_to_sdxl(self) -> bool:
        """Only Forge Neo does."""
        return False

    def selected_checkpoint(self) -> Path | None:
        """None: these webuis load a checkpoint as soon as it is selected."""
        return None

    def other_selection(self) -> str:
        """A generation loads the selected checkpoint first; another VAE or precision is loaded when it is selected."""
        loaded = self._models.model_data.sd_model.sd_checkpoint_info
        return "" if self._models.select_checkpoint().filename == loaded.filename else "checkpoint"

    def checkpoint_files(self) -> tuple[Path, ...]:
        """The checkpoints of the drop-down at the top of the page, as it was last refreshed."""
        listed = dict(getattr(self._models, "checkpoints_list", {}))
        return tuple(dict.fromkeys(Path(info.filename) for info in listed.values()))

    def refresh_loras(self) -> None:
        """Rescan the LoRA folder, as the list's refresh button does, and Forge's embeddings."""
        networks = lora_networks()
        if networks is not None:
            networks.list_available_networks()
        refresh_embeddings(self._models.model_data.sd_model)

    def sampler_names(self) -> tuple[str, ...]:
        """The samplers in the webui's drop-down."""
        return txt2img.sampler_names()

    def generate(self, request: GenerationRequest, sampler: str, watch: GenerationWatch | None) -> GeneratedImage:
        """One image, as if a user had pressed *Generate*."""
        if request.lora:
            txt2img.require_lora(lora_networks(), request.lora, request.lora_file)
        if request.embedding:
            require_embedding(self._models.model_data.sd_model, request.embedding.stem)
        return txt2img.generate(request, sampler, watch, flow_shift=self.flow_shift)

    def upscaler_names(self) -> tuple[str, ...]:
        """The upscalers of the Extras tab that need no download."""
        return upscaling.upscaler_names()

    def upscale(self, image: Image.Image, size: tuple[int, int], upscaler: str) -> Image.Image:
        """The enlarged image, as the Extras tab makes it."""
        return upscaling.upscale(image, size, upscaler)

    def taggers(self) -> Mapping[str, interrogators.TaggerSession]:
        """DeepBooru and BLIP, if the webui has them."""
        return interrogators.find_taggers()


def lora_networks() -> Any:
    """The module of the webui's built-in LoRA extension, None if that is disabled."""
    return sys.modules.get("networks")


def without_wrappers(name: str) -> str:
    """A parameter's name without the webui's wrappers around text encoders and token embeddings."""
    return _WRAPPER.sub("", name)


def positive_attribute(module: Any, name: str) -> int | None:
    """The UNet's attribute or config value `name` if it is above 0, else None; -1 means "not used"."""
    value = getattr(module, name, None)
    if value is None:
        config = getattr(module, "config", None)
        value = config.get(name) if isinstance(config, Mapping) else None
    return int(value) if isinstance(value, int) and value > 0 else None
