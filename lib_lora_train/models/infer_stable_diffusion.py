"""Identifies an SD1, SD2 or SDXL from the names and shapes of its tensors.

In ldm's single-file layout the shapes show everything about the networks, except the number of attention heads and what
the UNet predicts. Those follow rules that hold for all published models, or come from `CheckpointHints` (files beside
the checkpoint, metadata, the user).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from lib_lora_train.config.architecture_titles import TITLES
from lib_lora_train.core.errors import ModelError
from lib_lora_train.core.wording import count
from lib_lora_train.models.architecture import (
    SCALE_FACTORS,
    TEXT_PREFIXES,
    UNET_PREFIX,
    VAE_PREFIX,
    Architecture,
    CheckpointHints,
    ModelSpec,
    PredictionType,
    Shapes,
    add_text_model_prefix,
)
from lib_lora_train.models.file_kinds import refuse_other_kinds
from lib_lora_train.models.infer_text_encoders import infer_text_encoders
from lib_lora_train.models.tensor_shapes import first_shape, shape_of

_CHOOSE_TEXT_TO_IMAGE = "Choose a text-to-image SDXL or SD checkpoint."
_REFINER_VECTOR = 2560


def infer_stable_diffusion(shapes: Shapes, hints: CheckpointHints) -> ModelSpec:
    """The model with tensors of these names and shapes.

    "rectified" in an SDXL file's path takes precedence over the other hints, these over the marker tensors `v_pred` and
    `ztsnr`, these over the hints from metadata, and these over the architecture's default (SD2: v, as in its 768 px
    models; SD1 and SDXL: epsilon). Rectified flow always ends in pure noise and has no zero-terminal SNR.

    ModelError, saying what it is instead, if it is not an SD1, SD2 or SDXL text-to-image model.
    """
    shapes = add_text_model_prefix(shapes)
    refuse_other_kinds(shapes)
    architecture = _architecture(shapes)
    _refuse_incomplete(shapes, architecture)
    marked: PredictionType | None = "v_prediction" if "v_pred" in shapes else None
    is_named = architecture == "sdxl" and hints.path_says_rectified
    named: PredictionType | None = "rectified_flow" if is_named else None
    known = named or hints.prediction_type or marked or hints.metadata_prediction_type
    default: PredictionType = "v_prediction" if architecture == "sd2" else "epsilon"
    marked_snr = True if "ztsnr" in shapes else None
    said = (hints.zero_terminal_snr, marked_snr, hints.metadata_zero_terminal_snr, False)
    zero_terminal_snr = next(value for value in said if value is not None)
    encoders = infer_text_encoders(shapes, architecture, hints)
    pooled = encoders[-1].config["projection_dim"] if architecture == "sdxl" else 0
    return ModelSpec(
        architecture=architecture,
        prediction_type=known or default,
        zero_terminal_snr=zero_terminal_snr and known != "rectified_flow",
        scale_factor=hints.scale_factor or SCALE_FACTORS[architecture],
        unet=_unet_config(shapes, hints, pooled),
        vae=infer_vae_config(shapes),
        text_encoders=encoders,
        resolution=hints.resolution or 0,
        is_prediction_known=known is not None,
        is_named_rectified=is_named,
        notes=_contradictions(hints, marked, known or default),
    )


def _contradictions(hints: CheckpointHints, marked: PredictionType | None, used: PredictionType) -> tuple[str, ...]:
    """A sentence if .yaml, tensors and metadata disagree on what the UNet predicts, or use unknown words; else ()."""
    said = {
        "the .yaml beside the checkpoint": hints.prediction_type,
        "its marker tensor v_pred": marked,
        "its metadata": hints.metadata_prediction_type,
    }
    claims = [f"{where} says {value}" for where, value in said.items() if value]
    if hints.unknown_prediction:
        claims.append(f"its metadata or .yaml says {hints.unknown_prediction!r}, which is not known here")
    elif len({value for value in said.values() if value}) < 2:
        return ()
    text = ", but ".join(claims)
    return (f"{text[0].upper()}{text[1:]}. {used} is used; set prediction_type if samples turn into noise.",)


def _architecture(shapes: Shapes) -> Architecture:
    has_attention_at_start = f"{UNET_PREFIX}input_blocks.1.1.proj_in.weight" in shapes
    vector = shapes.get(f"{UNET_PREFIX}label_emb.0.0.weight")
    if vector is None:
        if not has_attention_at_start:
            raise ModelError("The UNet has no attention on its first level, so it is not SD1, SD2 or SDXL.")
        return "sd1" if len(shapes[f"{UNET_PREFIX}input_blocks.1.1.proj_in.weight"]) == 4 else "sd2"
    if has_attention_at_start:
        raise ModelError(f"This is an SD2-unclip model, which cannot be trained. {_CHOOSE_TEXT_TO_IMAGE}")
    # The refiner has only OpenCLIP-G, as its first text encoder, and no size of the target image among its inputs.
    if any(name.startswith("conditioner.embedders.0.model.") for name in shapes) or vector[1] == _REFINER_VECTOR:
        raise ModelError(f"This is an SDXL refiner, which cannot be trained. {_CHOOSE_TEXT_TO_IMAGE}")
    return "sdxl"


# --- incomplete and special checkpoints -------------------------------------------------------------


def _refuse_incomplete(shapes: Shapes, architecture: Architecture) -> None:
    """ModelError that names everything the checkpoint lacks."""
    has_vae = any(name.startswith(VAE_PREFIX) for name in shapes)
    has_text = any(name.startswith(TEXT_PREFIXES) for name in shapes)
    if not has_text:
        lacks = "no text encoder" if has_vae else "no text encoder and no VAE"
        raise ModelError(
            f"This is only the UNet of {TITLES[architecture]}: it has {lacks}. Choose a complete checkpoint."
        )
    if not has_vae:
        raise ModelError("The checkpoint contains no VAE. Choose a VAE file for it.")


def _refuse_distilled(unet: Shapes) -> None:
    """ModelError for UNets from which blocks were removed; the webuis' LoRA names do not fit them."""
    has_two_layers = not any(name.startswith("input_blocks.2.0.op.") for name in unet)
    if has_two_layers and any(name.startswith("middle_block.1.") for name in unet):
        return
    if "label_emb.0.0.weight" not in unet:
        what = "a distilled SD (BK-SDM, Segmind small-sd or tiny-sd)"
    elif has_two_layers:
        depth = max(_depth(unet, f"input_blocks.{index}.1.") for index in range(12))
        what = {4: "SSD-1B", 2: "Segmind Vega"}.get(depth, "a distilled SDXL")
    else:
        what = "KOALA, a distilled SDXL"
    raise ModelError(f"This is {what}, which has fewer blocks and cannot be trained. Choose the full model.")


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
    in_channels = shape_of(unet, "input_blocks.0.0.weight")[1]
    if in_channels != 4:
        kind = {8: "an instruct-pix2pix", 9: "an inpainting"}.get(in_channels, "a special")
        raise ModelError(f"This is {kind} model ({count(in_channels, 'input channel')}). Choose a text-to-image model.")
    _refuse_distilled(unet)
    levels = _unet_levels(unet)
    channels = tuple(level.channels for level in levels)
    has_attention = [level.depth > 0 for level in levels]
    linear = len(first_shape(unet, r"\.1\.proj_in\.weight$")) == 2
    config: dict[str, Any] = {
        "in_channels": in_channels,
        "out_channels": shape_of(unet, "out.2.weight")[0],
        "block_out_channels": channels,
        "layers_per_block": levels[0].layers,
        "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in has_attention),
        "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(has_attention)),
        "transformer_layers_per_block": _depths(unet, levels),
        "cross_attention_dim": first_shape(unet, r"attn2\.to_k\.weight$")[1],
        "use_linear_projection": linear,
        "attention_head_dim": _unet_heads(channels, linear, hints),
    }
    if pooled:
        total = shape_of(unet, "label_emb.0.0.weight")[1]
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
        levels[-1].channels = shape_of(unet, f"{block}0.in_layers.2.weight")[0]
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


def infer_vae_config(shapes: Shapes) -> dict[str, Any]:
    """The VAE's diffusers config; ModelError if it is not a VAE for SD1, SD2 or SDXL."""
    vae = {name[len(VAE_PREFIX) :]: shape for name, shape in shapes.items() if name.startswith(VAE_PREFIX)}
    levels = 1 + max((int(n.split(".")[2]) for n in vae if n.startswith("encoder.down.")), default=-1)
    if levels == 0:
        raise ModelError("The VAE is not in ldm's layout (no encoder.down.…). Choose a single-file VAE for SD or SDXL.")
    latent_channels = shape_of(vae, "decoder.conv_in.weight")[1]
    if latent_channels != 4:
        raise ModelError(
            f"The VAE has {count(latent_channels, 'latent channel')} (those of Flux and SD3 have 16), but SD1, SD2 "
            "and SDXL need 4. Choose the VAE of the checkpoint's own kind."
        )
    layers = sum(re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", name) is not None for name in vae)
    return {
        "in_channels": shape_of(vae, "encoder.conv_in.weight")[1],
        "out_channels": shape_of(vae, "decoder.conv_out.weight")[0],
        "latent_channels": latent_channels,
        "block_out_channels": tuple(shape_of(vae, f"encoder.down.{i}.block.0.conv1.weight")[0] for i in range(levels)),
        "layers_per_block": layers,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "norm_num_groups": 32,
    }
