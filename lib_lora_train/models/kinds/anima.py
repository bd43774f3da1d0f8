"""Anima: a transformer of Cosmos-Predict2's design (NVIDIA 2025) with Qwen-Image's VAE and a Qwen3 text encoder.

The host's own VAE and text encoder are used (`models.host_parts`), frozen; only the transformer is grafted. Latents are
(B, 16, h, w) everywhere; the transformer, made for videos, sees one frame. Names of layers are the original ones, as in
the checkpoint: `blocks.0.self_attn.q_proj` for diffusers' `transformer_blocks.0.attn1.to_q`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from lib_lora_train.models.architecture import UNET_PREFIX, CheckpointHints, ModelSpec, Shapes
from lib_lora_train.models.infer_anima import anima_tensors, infer_anima_spec, is_anima, require_text_adapter
from lib_lora_train.models.kinds.base import Network
from lib_lora_train.models.latent_format import LatentFormat
from lib_lora_train.models.ldm_names import Source
from lib_lora_train.models.unet_layers import kohya_key

if TYPE_CHECKING:
    from torch import Tensor

    from lib_lora_train.models.diffusion_model import DiffusionModel
    from lib_lora_train.models.text_encoding import TextCondition

_MEANS = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
_DEVIATIONS = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
LATENTS = LatentFormat(16, means=_MEANS, deviations=_DEVIATIONS)
"""The channels of Qwen-Image's and Wan 2.1's VAE, from its published config."""
TEXT_TOKENS = 512
"""Shorter prompts are padded with zeros to this length, which the model was trained with."""

_Value = TypeVar("_Value")
_TIMESTEPS = 1000
_OUTER = {
    "patch_embed.proj": "x_embedder.proj.1",
    "time_embed.norm": "t_embedding_norm",
    "time_embed.t_embedder": "t_embedder.1",
    "norm_out.linear_1": "final_layer.adaln_modulation.1",
    "norm_out.linear_2": "final_layer.adaln_modulation.2",
    "proj_out": "final_layer.linear",
}
_ATTENTIONS = {"attn1": "self_attn", "attn2": "cross_attn"}
_MODULATIONS = {"norm1": "self_attn", "norm2": "cross_attn", "norm3": "mlp"}
_IN_BLOCK = {
    **{f"{ours}.to_{part}": f"{theirs}.{part}_proj" for ours, theirs in _ATTENTIONS.items() for part in "qkv"},
    **{f"{ours}.norm_{part}": f"{theirs}.{part}_norm" for ours, theirs in _ATTENTIONS.items() for part in "qk"},
    **{f"{ours}.to_out.0": f"{theirs}.output_proj" for ours, theirs in _ATTENTIONS.items()},
    **{
        f"{n}.linear_{layer}": f"adaln_modulation_{part}.{layer}"
        for n, part in _MODULATIONS.items()
        for layer in (1, 2)
    },
    "ff.net.0.proj": "mlp.layer1",
    "ff.net.2": "mlp.layer2",
}
_BLOCK = re.compile(r"^transformer_blocks\.(\d+)\.(.+?)(\.weight|\.bias)?$")
_ATTENTION = re.compile(r"^transformer_blocks\.\d+\.attn[12]\.to_(q|k|v|out\.0)$")
_STANDARD = re.compile(r"^transformer_blocks\.\d+\.(attn[12]\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2))$")
_IN_BLOCKS = re.compile(r"^transformer_blocks\.\d+\.")


class Anima:
    """Implements `models.kinds.base.ModelKind`."""

    side_step = even_step = 16  # a patch of 2 × 2 latent cells of 8 px
    families: frozenset[str] | None = frozenset({"lora", "loha", "lokr", "full"})
    flow_shift = 3.0
    prompt_tokens: int | None = TEXT_TOKENS - 1  # and an end token
    has_unet_blocks = False
    has_vae = False
    needs_webui = (
        "This is an Anima, which is trained on the model that Forge Neo has loaded. Its VAE (Qwen-Image), text encoder "
        "(Qwen3) and T5 tokenizer are separate files, which this program cannot read yet. Load it there, and leave "
        "checkpoint, VAE and precision as they are."
    )

    def recognises(self, names: Collection[str]) -> bool:
        """By a layer that only Cosmos' transformers have."""
        return is_anima(names)

    def own_tensors(self, named: Mapping[str, _Value]) -> dict[str, _Value]:
        """The transformer's. The text adapter is required, but not among them: it belongs to the text encoder."""
        require_text_adapter(named)
        return anima_tensors(named)

    def infer_spec(self, shapes: Shapes, hints: CheckpointHints) -> ModelSpec:
        """From the transformer's shapes."""
        return infer_anima_spec(shapes, hints)

    def networks(self, spec: ModelSpec) -> Iterator[Network]:
        """The transformer."""
        from lib_lora_train.models import library_compat as compat

        module = compat.build_cosmos_transformer(spec.unet)
        yield Network("unet", UNET_PREFIX, module, lambda name: Source(original_name(name)))

    def latent_format(self, _spec: ModelSpec) -> LatentFormat:
        """Sixteen channels, each with its own mean and deviation."""
        return LATENTS

    def plain_weight(self, unet: Any) -> Tensor:
        """The norm of the time embedding."""
        weight: Tensor = unet.time_embed.norm.weight
        return weight

    def predict(
        self, model: DiffusionModel, noisy: Tensor, timesteps: Tensor, condition: TextCondition, _sizes: Tensor | None
    ) -> Tensor:
        """The transformer's prediction (B, 16, h, w); it takes the time as σ, from 0 to 1, and no size conditioning.

        The last input channel is the padding mask, zero everywhere: images fill their latents.
        """
        from torch import nn

        padded = nn.functional.pad(noisy.to(model.dtype), (0, 0, 0, 0, 0, 1))
        prediction: Tensor = model.unet(
            hidden_states=padded[:, :, None],
            timestep=(timesteps / _TIMESTEPS).float().to(model.device, non_blocking=True),
            encoder_hidden_states=condition.hidden,
        ).sample
        return prediction[:, :, 0]

    def is_target(self, name: str, targets: str) -> bool:
        """`attention`: q, k, v and out; `standard`: also the feed-forward layers, as sd-scripts' Anima trainer does.

        `all` adds the layers that modulate each block by the time, `full` those outside the blocks.
        """
        if targets == "attention":
            return bool(_ATTENTION.match(name))
        if targets == "standard":
            return bool(_STANDARD.match(name))
        return targets == "full" or bool(_IN_BLOCKS.match(name))

    def is_norm_target(self, _name: str, _targets: str) -> bool:
        """No norm is trained: those of the tokens have no weights, and webuis do not read those of q and k."""
        return False

    def lora_keys(self, names: Iterable[str]) -> Mapping[str, str]:
        """The original names, as in sd-scripts."""
        return {name: kohya_key(original_name(name)) for name in names}

    def lora_paths(self, names: Iterable[str]) -> Mapping[str, str]:
        """ComfyUI's prefix before the original names; see `adapters.files.spelling` for the reason."""
        return {kohya_key(original_name(name)): f"diffusion_model.{original_name(name)}" for name in names}

    def lora_aliases(self, names: Iterable[str]) -> Mapping[str, str]:
        """The original names, and diffusers'."""
        keys = self.lora_keys(names)
        diffusers = {kohya_key(name): key for name, key in keys.items()}
        return diffusers | {key: key for key in keys.values()}


def original_name(name: str) -> str:
    """diffusers' module or parameter name → the original one; KeyError for a name that no Anima has."""
    if found := _BLOCK.match(name):
        return f"blocks.{found[1]}.{_IN_BLOCK[found[2]]}{found[3] or ''}"
    for front, original in _OUTER.items():
        if name == front or name.startswith(f"{front}."):
            return original + name[len(front) :]
    raise KeyError(name)
