"""The text encoders of a checkpoint, from the names and shapes of their tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lib_lora_train.core.errors import ModelError
from lib_lora_train.core.wording import count
from lib_lora_train.models.architecture import TEXT_PREFIXES, Architecture, CheckpointHints, Shapes, TextEncoderSpec
from lib_lora_train.models.tensor_shapes import shape_of

# CLIP ViT-L, OpenCLIP ViT-H and OpenCLIP ViT-bigG: the only text encoders of the three architectures.
_TEXT_HEADS = {768: 12, 1024: 16, 1280: 20}
_CLIP_VOCABULARY = 49408
SD2_TEXT_LAYERS = 23
"""SD2 was trained on the layer before the last of 24; converters leave out the last, which never runs."""
_TEXT_LAYERS = {768: 12, 1024: SD2_TEXT_LAYERS, 1280: 32}


@dataclass(frozen=True)
class _Layout:
    """The names of a text encoder's tensors."""

    name: Literal["clip", "open_clip"]
    root: str
    tokens: str
    positions: str
    layer: str
    mlp: str


_LAYOUTS = (
    _Layout(
        name="clip",
        root="transformer.text_model.",
        tokens="embeddings.token_embedding.weight",
        positions="embeddings.position_embedding.weight",
        layer="encoder.layers.",
        mlp="mlp.fc1.weight",
    ),
    _Layout(
        name="open_clip",
        root="model.",
        tokens="token_embedding.weight",
        positions="positional_embedding",
        layer="transformer.resblocks.",
        mlp="mlp.c_fc.weight",
    ),
)
_Kind = Literal["CLIP-L", "OpenCLIP-H", "OpenCLIP-G"]
_KINDS: Mapping[Architecture, tuple[tuple[_Kind, str], ...]] = {
    "sd1": (("CLIP-L", TEXT_PREFIXES[0]),),
    "sd2": (("OpenCLIP-H", TEXT_PREFIXES[0]),),
    "sdxl": (("CLIP-L", TEXT_PREFIXES[1]), ("OpenCLIP-G", TEXT_PREFIXES[2])),
}


def infer_text_encoders(
    shapes: Shapes, architecture: Architecture, hints: CheckpointHints
) -> tuple[TextEncoderSpec, ...]:
    """The text encoders in the webuis' order; ModelError for one that is missing or of an unknown kind."""
    kinds = enumerate(_KINDS[architecture])
    return tuple(_text_encoder(shapes, prefix, kind, hints.text_heads[i : i + 1]) for i, (kind, prefix) in kinds)


def _text_encoder(shapes: Shapes, prefix: str, kind: _Kind, heads: tuple[int, ...]) -> TextEncoderSpec:
    layout = next((layout for layout in _LAYOUTS if prefix + layout.root + layout.tokens in shapes), None)
    if layout is None:
        raise ModelError(f"The text encoder {prefix[:-1]} is missing or not a CLIP model that SD1, SD2 or SDXL uses.")
    root, is_open, projects = prefix + layout.root, kind != "CLIP-L", kind == "OpenCLIP-G"
    vocabulary, width = shapes[root + layout.tokens]
    end = min(vocabulary, _CLIP_VOCABULARY) - 1  # tokens that were added, as for textual inversion, come after it
    pattern = re.compile(re.escape(root + layout.layer) + r"(\d+)\.")
    layers = 1 + max(int(found[1]) for name in shapes if (found := pattern.match(name)))
    if kind == "OpenCLIP-H":
        layers = min(layers, SD2_TEXT_LAYERS)
    if layers != _TEXT_LAYERS.get(width, layers):
        raise ModelError(
            f"The text encoder {prefix[:-1]} has {layers} of its {count(_TEXT_LAYERS[width], 'layer')}. The file was "
            "not written or converted completely; choose another copy of it."
        )
    config = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shape_of(shapes, f"{root}{layout.layer}0.{layout.mlp}")[0],
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0] if heads else _text_heads(width),
        "max_position_embeddings": shape_of(shapes, root + layout.positions)[0],
        "hidden_act": "gelu" if is_open else "quick_gelu",
        "projection_dim": _projection_width(shapes, prefix, width),
        "bos_token_id": end - 1,
        "eos_token_id": end,
        "pad_token_id": 0 if is_open else end,
    }
    start = root if layout.name == "open_clip" else root.removesuffix("text_model.")
    return TextEncoderSpec(
        layout.name,
        start,
        config,
        projects,
        pad_token=0 if is_open else end,
        has_linear_projection=f"{prefix}model.text_projection" not in shapes,
    )


def _text_heads(width: int) -> int:
    if width in _TEXT_HEADS:
        return _TEXT_HEADS[width]
    raise ModelError(
        f"The text encoder is {width} wide, unlike any published model, so its number of attention heads is unknown. "
        "Put its config.json in the tokenizer folder beside the checkpoint."
    )


def _projection_width(shapes: Shapes, prefix: str, width: int) -> int:
    """Output width of the text projection: rows of a Linear weight, columns of OpenCLIP's matrix."""
    matrix = shapes.get(f"{prefix}model.text_projection")
    if matrix:
        return matrix[-1]
    names = (f"{prefix}transformer.text_projection.weight", f"{prefix}model.text_projection.weight")
    return next((shapes[name][0] for name in names if name in shapes), width)
