"""Forge Neo as a host: Forge's patchers, with ComfyUI's memory management, quantised checkpoints and other settings."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lib_lora_train.core.errors import AdapterError
from lib_lora_train.core.safetensors_header import read_header
from lib_lora_train.hosts.host import GeneratedImage, GenerationRequest, GenerationWatch
from lib_lora_train.hosts.webui.anima_parts import AnimaPromptEncoder, AnimaVae
from lib_lora_train.hosts.webui.forge import Forge, tensors_of
from lib_lora_train.hosts.webui.loaded_model import ModelFacts
from lib_lora_train.models.architecture import UNET_PREFIX, CheckpointHints

_SDXL_CLIP_SKIP = 2
"""The layer before the last, with which SDXL is trained everywhere; Neo would apply another number to SDXL too."""

_USUAL_SHIFT = 3.0
_ANIMA = "Anima"
"""The webui's class of such a model."""
_DECODERS = ("decoder.conv_in.weight", "decoder.conv1.weight")
"""A weight of every VAE: of images, and of videos such as Anima's."""
_ANIMA_ENCODER = "qwen3_06b"


class ForgeNeo(Forge):
    """Implements `hosts.webui.webui.Webui`."""

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

    def _refuse_other(self, kind: str) -> None:
        """Anima can be trained here, the one webui that loads it."""
        if kind != _ANIMA:
            super()._refuse_other(kind)

    def _facts(self, model: Any, objects: Any) -> ModelFacts:
        if type(model).__name__ != _ANIMA:
            return super()._facts(model, objects)
        return ModelFacts(
            hints=CheckpointHints(prediction_type="rectified_flow"),
            alphas_cumprod=None,
            why_copied=self._why_copied(objects.unet.model),
            vae=AnimaVae(lambda: self._models.model_data.sd_model.forge_objects_original.vae.first_stage_model),
            prompt_encoder=AnimaPromptEncoder(
                lambda: self._models.model_data.sd_model.text_processing_engine_anima,
                emphasis=lambda: str(self._shared.opts.emphasis),
                without_traces=_unchanged_infotext,
            ),
        )

    def _tensors(self, objects: Any) -> Mapping[str, Tensor]:
        """Of an Anima only the transformer: its VAE and text encoder are used where they are."""
        if hasattr(objects.clip.cond_stage_model, _ANIMA_ENCODER):
            return tensors_of({UNET_PREFIX: objects.unet.model.diffusion_model})
        return super()._tensors(objects)

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


@contextmanager
def _unchanged_infotext() -> Iterator[None]:
    """Afterwards the webui's notes for the infotext of its next image are as they were."""
    from backend.args import dynamic_args

    notes: dict[str, Any] = dynamic_args.last_extra_generation_params
    before = dict(notes)
    try:
        yield
    finally:
        notes.clear()
        notes.update(before)


@functools.lru_cache(maxsize=32)
def _has_decoder(file: Path) -> bool:
    try:
        return any(name.endswith(_DECODERS) for name in read_header(file).entries)
    except AdapterError:
        return False
