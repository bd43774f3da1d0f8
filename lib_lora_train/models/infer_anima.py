"""Identifies an Anima transformer from the names and shapes of its tensors. Does not import PyTorch.

Its checkpoint holds the transformer and the adapter between text encoder and transformer; the VAE and the text encoder
are separate files. In a webui's memory the adapter belongs to the text encoder.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

from lib_lora_train.core.errors import ModelError
from lib_lora_train.core.wording import count
from lib_lora_train.models.architecture import UNET_PREFIX, CheckpointHints, ModelSpec, Shapes
from lib_lora_train.models.tensor_shapes import shape_of

_MARK = "blocks.0.mlp.layer1.weight"
_ADAPTER = "llm_adapter."
_PREFIXES = (UNET_PREFIX, "net.", "")
"""What names begin with in checkpoints: ComfyUI's and the webuis', the original, and without any prefix."""
_CHANNELS = 16
_VAE_WIDTHS = (96, 192, 384, 384)
_ROPE_SCALE = (1.0, 4.0, 4.0)
"""How far the positions' frequencies are stretched over time, height and width; the same for every published Anima."""
_PATCH = (1, 2, 2)
_Value = TypeVar("_Value")


def is_anima(names: Collection[str]) -> bool:
    """Whether a checkpoint with these tensors is an Anima."""
    return any(f"{prefix}{_MARK}" in names for prefix in _PREFIXES)


def anima_tensors(named: Mapping[str, _Value]) -> dict[str, _Value]:
    """The transformer's tensors under the webuis' names, without the text adapter's."""
    prefix = next(prefix for prefix in _PREFIXES if f"{prefix}{_MARK}" in named)
    plain = {name[len(prefix) :]: value for name, value in named.items() if name.startswith(prefix)}
    return {f"{UNET_PREFIX}{name}": value for name, value in plain.items() if not name.startswith(_ADAPTER)}


def require_text_adapter(names: Iterable[str]) -> None:
    """ModelError for a checkpoint without the adapter: Cosmos-Predict2, from which Anima was made, has none."""
    if not any(_ADAPTER in name for name in names):
        raise ModelError(
            "This transformer has no text adapter (llm_adapter), without which no caption reaches it: it is a Cosmos "
            "model, or part of an Anima. Choose a complete Anima checkpoint."
        )


def infer_anima_spec(shapes: Shapes, hints: CheckpointHints) -> ModelSpec:
    """The model with a transformer of these shapes; ModelError if they are not those of an Anima."""
    unet = {name[len(UNET_PREFIX) :]: shape for name, shape in anima_tensors(shapes).items()}
    return ModelSpec(
        architecture="anima",
        prediction_type="rectified_flow",
        zero_terminal_snr=False,
        scale_factor=1.0,
        unet=_transformer_config(unet),
        vae={"block_out_channels": _VAE_WIDTHS},
        text_encoders=(),
        resolution=hints.resolution or 0,
    )


def _transformer_config(unet: Shapes) -> dict[str, Any]:
    """diffusers' arguments. The padding mask is one of the channels: diffusers would resize it with torchvision."""
    width, inputs = shape_of(unet, "x_embedder.proj.1.weight")
    cells = _PATCH[1] * _PATCH[2]
    if inputs != cells * (_CHANNELS + 1):
        raise ModelError(
            f"The transformer has {count(inputs // cells - 1, 'input channel')}, but an Anima has {_CHANNELS}: this is "
            "another Cosmos model. Choose an Anima checkpoint."
        )
    (head,) = shape_of(unet, "blocks.0.self_attn.q_norm.weight")
    return {
        "in_channels": _CHANNELS + 1,
        "out_channels": _CHANNELS,
        "num_attention_heads": width // head,
        "attention_head_dim": head,
        "num_layers": 1 + max(int(found[1]) for name in unet if (found := re.match(r"blocks\.(\d+)\.", name))),
        "mlp_ratio": shape_of(unet, "blocks.0.mlp.layer1.weight")[0] / width,
        "text_embed_dim": shape_of(unet, "blocks.0.cross_attn.k_proj.weight")[1],
        "adaln_lora_dim": shape_of(unet, "blocks.0.adaln_modulation_self_attn.1.weight")[0],
        "patch_size": _PATCH,
        "rope_scale": _ROPE_SCALE,
        "concat_padding_mask": False,
        "extra_pos_embed_type": None,
    }
