"""Identifies a checkpoint's model (SD1, SD2 or SDXL) from the names and shapes of its tensors.

In ldm's single-file layout the shapes show everything about the networks, except the number of attention heads and what
the UNet predicts. Those follow rules that hold for all published models, or come from `CheckpointHints` (files beside
the checkpoint, metadata, the user).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from lib_lora_train.core.errors import ModelError

Architecture = Literal["sd1", "sd2", "sdxl"]
PredictionType = Literal["epsilon", "v_prediction"]
Shapes = Mapping[str, tuple[int, ...]]

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIXES = ("cond_stage_model.", "conditioner.embedders.0.", "conditioner.embedders.1.")

SCALE_FACTORS: Mapping[str, float] = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025}

# CLIP ViT-L, OpenCLIP ViT-H and OpenCLIP ViT-bigG: the only text encoders of the three architectures.
_TEXT_HEADS = {768: 12, 1024: 16, 1280: 20}


@dataclass(frozen=True)
class CheckpointHints:
    """What shapes do not show; None if unknown.

    `text_heads` has one number per text encoder; `unet_heads` is the number of heads on every level, `unet_head_dim`
    the width of one head.
    """

    prediction_type: PredictionType | None = None
    zero_terminal_snr: bool | None = None
    scale_factor: float | None = None
    unet_heads: int | None = None
    unet_head_dim: int | None = None
    text_heads: tuple[int, ...] = ()


@dataclass(frozen=True)
class TextEncoderSpec:
    """One text encoder: where its tensors are, and its transformers config.

    `layout` "clip" has transformers' names, "open_clip" has q, k and v in one tensor. `pad_token` is what the webuis
    fill a chunk with after its end token.
    """

    layout: Literal["clip", "open_clip"]
    prefix: str
    config: Mapping[str, Any]
    has_projection: bool
    pad_token: int


@dataclass(frozen=True)
class ModelSpec:
    """A whole model as data: `unet` and `vae` are diffusers configs, text encoders in webui order."""

    architecture: Architecture
    prediction_type: PredictionType
    zero_terminal_snr: bool
    scale_factor: float
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoders: tuple[TextEncoderSpec, ...]


_Value = TypeVar("_Value")
_FLAT_CLIP = re.compile(
    r"^((?:cond_stage_model|conditioner\.embedders\.\d)\.transformer\.)(?=embeddings|encoder|final_layer_norm)"
)


def add_text_model_prefix(named: Mapping[str, _Value]) -> dict[str, _Value]:
    """The same values, with the `text_model.` that old SD1 files and transformers 5 omit from CLIP's names."""
    return {_FLAT_CLIP.sub(r"\1text_model.", name): value for name, value in named.items()}


def infer_spec(
    shapes: Shapes,
    *,
    prediction_type: PredictionType | None = None,
    zero_terminal_snr: bool | None = None,
    hints: CheckpointHints | None = None,
) -> ModelSpec:
    """The model with tensors of these names and shapes.

    An explicit `prediction_type` takes precedence over the hints, these over the marker tensors `v_pred` and `ztsnr`,
    these over the architecture's default (SD2: v, as in its 768 px models; SD1 and SDXL: epsilon).

    ModelError, saying what it is instead, if it is not an SD1, SD2 or SDXL text-to-image model.
    """
    hints = hints or CheckpointHints()
    shapes = add_text_model_prefix(shapes)
    refuse_non_checkpoints(shapes)
    _refuse_incomplete(shapes)
    architecture = _architecture(shapes)
    prediction_type = prediction_type or hints.prediction_type or ("v_prediction" if "v_pred" in shapes else None)
    default: PredictionType = "v_prediction" if architecture == "sd2" else "epsilon"
    if zero_terminal_snr is None:
        zero_terminal_snr = "ztsnr" in shapes if hints.zero_terminal_snr is None else hints.zero_terminal_snr
    encoders = _text_encoders(shapes, architecture, hints)
    pooled = encoders[-1].config["projection_dim"] if architecture == "sdxl" else 0
    return ModelSpec(
        architecture=architecture,
        prediction_type=prediction_type or default,
        zero_terminal_snr=zero_terminal_snr,
        scale_factor=hints.scale_factor or SCALE_FACTORS[architecture],
        unet=_unet_config(shapes, hints, pooled),
        vae=_vae_config(shapes),
        text_encoders=encoders,
    )


def _architecture(shapes: Shapes) -> Architecture:
    proj_in = shapes.get(f"{UNET_PREFIX}input_blocks.1.1.proj_in.weight")
    if f"{UNET_PREFIX}label_emb.0.0.weight" in shapes:
        if any(name.startswith("conditioner.embedders.1.") for name in shapes):
            return "sdxl"
        what = "SDXL refiner" if any(name.startswith("conditioner.") for name in shapes) else "SD2-unclip model"
        raise ModelError(f"This is an {what}, which cannot be trained. Choose a text-to-image SDXL or SD checkpoint.")
    if proj_in is None:
        raise ModelError("The UNet has no attention on its first level, so it is not SD1, SD2 or SDXL.")
    return "sd1" if len(proj_in) == 4 else "sd2"


# --- other kinds of files -----------------------------------------------------------------------

_OTHER_KINDS: tuple[tuple[str, str], ...] = (
    (
        r"(lora_(up|down|A|B)\b|\.hada_w|\.lokr_w|\.oft_|lora_unet_)",
        "a LoRA, not a checkpoint. Choose the model it was made for.",
    ),
    (r"^(emb_params|string_to_param|clip_[lg]$)", "a textual-inversion embedding, not a checkpoint."),
    (r"^(control_model\.|input_hint_block|zero_convs)", "a ControlNet, not a checkpoint."),
    (r"(double_blocks\.|joint_blocks\.)", "a Flux or SD3 model. Only SD 1.x, SD 2.x and SDXL can be trained."),
    (r"^(edm_mean|edm_vpred)", "an EDM model (Playground, CosXL). Its noise schedule is not supported."),
    (r"^(down_blocks|up_blocks|mid_block)\.", "a UNet in diffusers' layout. Choose the single-file (ldm) checkpoint."),
)


def refuse_non_checkpoints(shapes: Iterable[str]) -> None:
    """ModelError, saying what the file is, if these are not the names of an SD checkpoint's tensors."""
    names = list(shapes)
    for pattern, what in _OTHER_KINDS:
        if any(re.search(pattern, name) for name in names):
            raise ModelError(f"This is {what}")
    if any(name.startswith(UNET_PREFIX) for name in names):
        return
    if any(name.startswith((VAE_PREFIX, "encoder.conv_in")) for name in names):
        raise ModelError("This is a VAE, not a checkpoint. Select it as the VAE, and choose a checkpoint.")
    raise ModelError("This is not a Stable Diffusion checkpoint: it has no UNet in the single-file (ldm) layout.")


def _refuse_incomplete(shapes: Shapes) -> None:
    if not any(name.startswith(VAE_PREFIX) for name in shapes):
        raise ModelError("The checkpoint contains no VAE. Choose a VAE file for it.")
    if not any(name.startswith(TEXT_PREFIXES) for name in shapes):
        raise ModelError("The checkpoint has no text encoder, only a UNet. Choose a complete checkpoint.")


# --- UNet ---------------------------------------------------------------------------------------


@dataclass
class _Level:
    """One resolution level of the UNet's downward path; `depth` is its number of transformer blocks."""

    channels: int = 0
    layers: int = 0
    depth: int = 0


def _unet_config(shapes: Shapes, hints: CheckpointHints, pooled: int) -> dict[str, Any]:
    """The UNet's diffusers config; `pooled` is the width of SDXL's pooled text embedding, else 0."""
    unet = {name[len(UNET_PREFIX) :]: shape for name, shape in shapes.items() if name.startswith(UNET_PREFIX)}
    in_channels = _shape(unet, "input_blocks.0.0.weight")[1]
    if in_channels != 4:
        kind = {8: "an instruct-pix2pix", 9: "an inpainting"}.get(in_channels, "a special")
        raise ModelError(f"This is {kind} model ({in_channels} input channels). Choose a text-to-image model.")
    levels = _unet_levels(unet)
    channels = tuple(level.channels for level in levels)
    has_attention = [level.depth > 0 for level in levels]
    linear = len(_first(unet, r"\.1\.proj_in\.weight$")) == 2
    config: dict[str, Any] = {
        "in_channels": in_channels,
        "out_channels": _shape(unet, "out.2.weight")[0],
        "block_out_channels": channels,
        "layers_per_block": levels[0].layers,
        "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in has_attention),
        "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(has_attention)),
        "transformer_layers_per_block": _depths(unet, levels),
        "cross_attention_dim": _first(unet, r"attn2\.to_k\.weight$")[1],
        "use_linear_projection": linear,
        "attention_head_dim": _unet_heads(channels, linear, hints),
    }
    if pooled:
        total = _shape(unet, "label_emb.0.0.weight")[1]
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": (total - pooled) // 6,
            "projection_class_embeddings_input_dim": total,
        }
    return config


def _unet_levels(unet: Shapes) -> list[_Level]:
    levels = [_Level()]
    count = 1 + max(int(name.split(".")[1]) for name in unet if name.startswith("input_blocks."))
    for index in range(1, count):
        block = f"input_blocks.{index}."
        if f"{block}0.op.weight" in unet:
            levels.append(_Level())
            continue
        levels[-1].channels = _shape(unet, f"{block}0.in_layers.2.weight")[0]
        levels[-1].layers += 1
        levels[-1].depth = max(levels[-1].depth, _depth(unet, f"{block}1."))
    return levels


def _depth(unet: Shapes, prefix: str) -> int:
    """The number of transformer blocks of the attention at `prefix`."""
    pattern = re.compile(re.escape(prefix) + r"transformer_blocks\.(\d+)\.")
    return 1 + max((int(found[1]) for name in unet if (found := pattern.match(name))), default=-1)


def _depths(unet: Shapes, levels: list[_Level]) -> tuple[int, ...]:
    """Transformer blocks per level; the last entry is the middle block's if the last level has no attention.

    diffusers uses the last level's number for the middle block.
    """
    depths = [max(1, level.depth) for level in levels]
    if levels[-1].depth == 0:
        depths[-1] = max(1, _depth(unet, "middle_block.1."))
    return tuple(depths)


def _unet_heads(channels: tuple[int, ...], linear: bool, hints: CheckpointHints) -> tuple[int, ...]:
    """Heads per level (diffusers' `attention_head_dim`): 8 in SD1; in SD2 and SDXL each head is 64 wide."""
    if hints.unet_heads:
        return (hints.unet_heads,) * len(channels)
    if hints.unet_head_dim or linear:
        return tuple(max(1, width // (hints.unet_head_dim or 64)) for width in channels)
    return (8,) * len(channels)


# --- VAE ----------------------------------------------------------------------------------------


def _vae_config(shapes: Shapes) -> dict[str, Any]:
    vae = {name[len(VAE_PREFIX) :]: shape for name, shape in shapes.items() if name.startswith(VAE_PREFIX)}
    count = 1 + max((int(n.split(".")[2]) for n in vae if n.startswith("encoder.down.")), default=-1)
    if count == 0:
        raise ModelError("The VAE is not in ldm's layout (no encoder.down.…). Choose a single-file VAE for SD or SDXL.")
    layers = sum(re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", name) is not None for name in vae)
    return {
        "in_channels": _shape(vae, "encoder.conv_in.weight")[1],
        "out_channels": _shape(vae, "decoder.conv_out.weight")[0],
        "latent_channels": _shape(vae, "decoder.conv_in.weight")[1],
        "block_out_channels": tuple(_shape(vae, f"encoder.down.{i}.block.0.conv1.weight")[0] for i in range(count)),
        "layers_per_block": layers,
        "down_block_types": ("DownEncoderBlock2D",) * count,
        "up_block_types": ("UpDecoderBlock2D",) * count,
        "norm_num_groups": 32,
    }


# --- text encoders ------------------------------------------------------------------------------


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


def _text_encoders(shapes: Shapes, architecture: Architecture, hints: CheckpointHints) -> tuple[TextEncoderSpec, ...]:
    """The text encoders in the webuis' order; ModelError for one that is missing or of an unknown kind."""
    kinds = enumerate(_KINDS[architecture])
    return tuple(_text_encoder(shapes, prefix, kind, hints.text_heads[i : i + 1]) for i, (kind, prefix) in kinds)


def _text_encoder(shapes: Shapes, prefix: str, kind: _Kind, heads: tuple[int, ...]) -> TextEncoderSpec:
    layout = next((layout for layout in _LAYOUTS if prefix + layout.root + layout.tokens in shapes), None)
    if layout is None:
        raise ModelError(f"The text encoder {prefix[:-1]} is missing or not a CLIP model that SD1, SD2 or SDXL uses.")
    root, is_open, projects = prefix + layout.root, kind != "CLIP-L", kind == "OpenCLIP-G"
    vocabulary, width = shapes[root + layout.tokens]
    pattern = re.compile(re.escape(root + layout.layer) + r"(\d+)\.")
    layers = 1 + max(int(found[1]) for name in shapes if (found := pattern.match(name)))
    if layout.name == "open_clip" and not projects:
        layers -= 1  # SD2 was trained on the layer before the last; the last one is in the file but never runs
    config = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": _shape(shapes, f"{root}{layout.layer}0.{layout.mlp}")[0],
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0] if heads else _text_heads(width),
        "max_position_embeddings": _shape(shapes, root + layout.positions)[0],
        "hidden_act": "gelu" if is_open else "quick_gelu",
        "projection_dim": _projection_width(shapes, prefix, width),
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": 0 if is_open else vocabulary - 1,
    }
    start = root if layout.name == "open_clip" else root.removesuffix("text_model.")
    return TextEncoderSpec(layout.name, start, config, projects, pad_token=0 if is_open else vocabulary - 1)


def _text_heads(width: int) -> int:
    if width in _TEXT_HEADS:
        return _TEXT_HEADS[width]
    raise ModelError(
        f"The text encoder is {width} wide, unlike any published model, so its number of attention heads is unknown. "
        "Put its config.json in the tokenizer folder beside the checkpoint."
    )


def _projection_width(shapes: Shapes, prefix: str, width: int) -> int:
    """Output width of the text projection: rows of a Linear weight, columns of OpenCLIP's matrix."""
    rows = shapes.get(f"{prefix}transformer.text_projection.weight", (width,))
    return shapes.get(f"{prefix}model.text_projection", rows)[-1 if f"{prefix}model.text_projection" in shapes else 0]


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise ModelError(f"The checkpoint is damaged or of an unknown kind: {name} is missing. Choose another one.")
    return shapes[name]


def _first(shapes: Shapes, pattern: str) -> tuple[int, ...]:
    """The shape of the first tensor whose name matches the pattern."""
    for name, shape in shapes.items():
        if re.search(pattern, name):
            return shape
    raise ModelError(f"The checkpoint is damaged or of an unknown kind: nothing matches {pattern}. Choose another one.")
