"""Stable Diffusion 1, 2 and XL: a UNet, a VAE with 4 latent channels, and one or two CLIP text encoders."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from lib_lora_train.models import unet_layers
from lib_lora_train.models.architecture import (
    UNET_PREFIX,
    VAE_PREFIX,
    Architecture,
    CheckpointHints,
    ModelSpec,
    Shapes,
    TextEncoderSpec,
)
from lib_lora_train.models.file_kinds import refuse_other_kinds
from lib_lora_train.models.infer_stable_diffusion import infer_stable_diffusion
from lib_lora_train.models.kinds.base import Network
from lib_lora_train.models.latent_format import LatentFormat
from lib_lora_train.models.ldm_names import Source, ldm_unet_name, ldm_vae_name, open_clip_source

if TYPE_CHECKING:
    from torch import Tensor

    from lib_lora_train.models.diffusion_model import DiffusionModel
    from lib_lora_train.models.text_encoding import TextCondition

_Value = TypeVar("_Value")
_LATENT_CHANNELS = 4
_EVEN_STEPS: Mapping[Architecture, int] = {"sdxl": 32}
"""SDXL halves a latent twice, SD1 and SD2 three times."""
_FLOW_SHIFTS: Mapping[Architecture, float] = {"sdxl": 3.0}
"""That of ComfyUI's node ModelSamplingSD3, with which rectified flows of SDXL are published."""


class StableDiffusion:
    """Implements `models.kinds.base.ModelKind`."""

    side_step = 8
    families: frozenset[str] | None = None
    prompt_tokens: int | None = None
    has_unet_blocks = True
    has_vae = True
    needs_webui = ""

    def __init__(self, architecture: Architecture) -> None:
        self._architecture = architecture
        self.flow_shift = _FLOW_SHIFTS.get(architecture, 1.0)
        self.even_step = _EVEN_STEPS.get(architecture, 64)

    def recognises(self, _names: Collection[str]) -> bool:
        """Every checkpoint that no other kind recognises; `own_tensors` says what it is instead."""
        return True

    def own_tensors(self, named: Mapping[str, _Value]) -> dict[str, _Value]:
        """All of them."""
        refuse_other_kinds(named)
        return dict(named)

    def infer_spec(self, shapes: Shapes, hints: CheckpointHints) -> ModelSpec:
        """SD1, SD2 or SDXL, by their shapes."""
        return infer_stable_diffusion(shapes, hints)

    def networks(self, spec: ModelSpec) -> Iterator[Network]:
        """UNet, VAE and text encoders."""
        from lib_lora_train.models import library_compat as compat

        unet_name = unet_name_mapper(spec)
        yield Network("unet", UNET_PREFIX, compat.build_unet(spec.unet), lambda name: Source(unet_name(name)))
        yield vae_network(spec.vae, spec.scale_factor)
        for number, encoder in enumerate(spec.text_encoders, start=1):
            module = compat.build_text_encoder(encoder.config, encoder.has_projection)
            yield Network(f"text_encoder_{number}", encoder.prefix, module, _text_source(encoder))

    def latent_format(self, spec: ModelSpec) -> LatentFormat:
        """Four channels, scaled by one factor."""
        return LatentFormat(_LATENT_CHANNELS, spec.scale_factor)

    def plain_weight(self, unet: Any) -> Tensor:
        """The last norm's: it is trained, but never replaced by another module's."""
        weight: Tensor = unet.conv_norm_out.weight
        return weight

    def predict(
        self, model: DiffusionModel, noisy: Tensor, timesteps: Tensor, condition: TextCondition, sizes: Tensor | None
    ) -> Tensor:
        """The UNet's prediction (B, 4, h, w); SDXL needs `sizes` (Podell et al. 2023, section 2.2)."""
        added = None
        if condition.pooled is not None:
            assert sizes is not None, "SDXL needs the size conditioning"
            added = {"text_embeds": condition.pooled, "time_ids": sizes.to(model.device)}
        times = timesteps.float() if timesteps.is_floating_point() else timesteps  # MPS has no float64
        prediction: Tensor = model.unet(
            noisy.to(model.dtype),
            times.to(model.device, non_blocking=True),
            encoder_hidden_states=condition.hidden,
            added_cond_kwargs=added,
        ).sample
        return prediction

    def is_target(self, name: str, targets: str) -> bool:
        """Whether the preset `targets` includes the UNet layer called `name`."""
        return unet_layers.is_unet_target(name, targets)

    def is_norm_target(self, name: str, targets: str) -> bool:
        """Whether the preset includes the block of the UNet norm called `name`."""
        return unet_layers.is_norm_target(name, targets)

    def lora_keys(self, names: Iterable[str]) -> Mapping[str, str]:
        """diffusers' block names for SD1 and SD2, ldm's for SDXL."""
        return unet_layers.unet_keys(names, architecture=self._architecture)

    def lora_paths(self, _names: Iterable[str]) -> Mapping[str, str]:
        """Files have kohya's names, which every program reads."""
        return {}

    def lora_aliases(self, names: Iterable[str]) -> Mapping[str, str]:
        """diffusers' and ldm's names, whichever the architecture's files usually have."""
        names = tuple(names)
        keys = self.lora_keys(names)
        ldm = unet_layers.ldm_layer_names(names)
        key = unet_layers.kohya_key
        return {key(name): keys[name] for name in names} | {key(ldm[name]): keys[name] for name in names}


def unet_name_mapper(spec: ModelSpec) -> Callable[[str], str]:
    """A function from diffusers module or parameter names to ldm's for this model's UNet."""
    layers = spec.unet["layers_per_block"]
    has_attention = tuple("CrossAttn" in kind for kind in spec.unet["up_block_types"])
    return lambda name: ldm_unet_name(name, layers, has_attention)


def vae_network(config: Mapping[str, Any], scale_factor: float) -> Network:
    """The VAE with this diffusers config."""
    from lib_lora_train.models import library_compat as compat

    levels = len(config["block_out_channels"])
    vae = compat.build_vae(config, scale_factor)
    return Network("vae", VAE_PREFIX, vae, lambda name: Source(ldm_vae_name(name, levels)))


def _text_source(encoder: TextEncoderSpec) -> Callable[[str], Source]:
    from lib_lora_train.models import library_compat as compat

    if encoder.layout == "open_clip":
        return lambda name: open_clip_source(
            compat.without_text_model_prefix(name), has_linear_projection=encoder.has_linear_projection
        )

    def clip_source(name: str) -> Source:
        plain = compat.without_text_model_prefix(name)
        return Source(plain if plain.startswith("text_projection") else f"text_model.{plain}")

    return clip_source
