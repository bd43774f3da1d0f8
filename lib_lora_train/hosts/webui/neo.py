"""Forge Neo as a host: Forge's patchers, with ComfyUI's memory management, quantised checkpoints and other settings."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

from lib_lora_train.core.errors import AdapterError
from lib_lora_train.core.safetensors_header import read_header
from lib_lora_train.hosts.host import GeneratedImage, GenerationRequest, GenerationWatch
from lib_lora_train.hosts.webui.forge import Forge

_SDXL_CLIP_SKIP = 2
"""The layer before the last, with which SDXL is trained everywhere; Neo would apply another number to SDXL too."""

_USUAL_SHIFT = 3.0


class ForgeNeo(Forge):
    """Implements `hosts.webui.host.Webui`."""

    def __init__(self) -> None:
        super().__init__()
        from modules_forge import forge_version

        self.name = f"Forge Neo {getattr(forge_version, 'release', '')}".strip()

    def generate(self, request: GenerationRequest, sampler: str, watch: GenerationWatch | None) -> GeneratedImage:
        """One image, as if a user had pressed *Generate*."""
        if getattr(self._models.model_data.sd_model, "is_sdxl", False):
            request = replace(request, clip_skip=_SDXL_CLIP_SKIP)
        return super().generate(request, sampler, watch)

    @property
    def flow_shift(self) -> float | None:
        """That of the preset in use, with which the page starts, also where its slider is hidden."""
        if not getattr(self._models.model_data.sd_model, "use_shift", False):
            return None
        opts = self._shared.opts
        return float(getattr(opts, f"{getattr(opts, 'forge_preset', '')}_t2i_dcfg", None) or _USUAL_SHIFT)

    def _scale_factor(self, objects: Any) -> float:
        """From the latent format: the VAE's config need not say it."""
        return float(objects.vae.first_stage_model.latent_format.scale_factor)

    @property
    def applies_clip_skip_to_sdxl(self) -> bool:
        """Neo uses *Clip Skip* for both text encoders of SDXL if it is above 2."""
        return True

    def _is_vae(self, file: Path) -> bool:
        """By the tensors in the file: `--vae-dirs` and `--text-encoder-dirs` may have any name."""
        return super()._is_vae(file) or _has_decoder(file)


@functools.lru_cache(maxsize=32)
def _has_decoder(file: Path) -> bool:
    try:
        return any(name.endswith("decoder.conv_in.weight") for name in read_header(file).entries)
    except AdapterError:
        return False
