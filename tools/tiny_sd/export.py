"""The single-file checkpoint: diffusers weights under Stable Diffusion 1's ldm key names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .models import TEXT_CONFIG

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer.text_model."
LEVELS, RES_BLOCKS = 4, 2

_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def _split_leaf(key: str) -> tuple[str, str]:
    stem, _, leaf = key.rpartition(".")
    return stem, leaf


def _unet_block(path: str) -> tuple[str, str]:
    """('down_blocks.1.resnets.0.norm1') -> ('input_blocks.4.0', 'norm1')."""
    parts = path.split(".")
    if parts[0] == "mid_block":
        index = 1 if parts[1] == "attentions" else 2 * int(parts[2])
        return f"middle_block.{index}", ".".join(parts[3:])
    side, level, kind, index = parts[0], int(parts[1]), parts[2], int(parts[3])
    rest = ".".join(parts[4:])
    if side == "down_blocks":
        first = 1 + level * (RES_BLOCKS + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + RES_BLOCKS}.0", "op"
        return f"input_blocks.{first + index}.{int(kind == 'attentions')}", rest
    block = level * (RES_BLOCKS + 1)
    if kind == "upsamplers":
        # The first level of the way up has no attention, so its upsampler sits one place earlier.
        return f"output_blocks.{block + RES_BLOCKS}.{1 if level == 0 else 2}", "conv"
    return f"output_blocks.{block + index}.{int(kind == 'attentions')}", rest


def unet_key(key: str) -> str:
    """ldm name (without prefix) of a diffusers UNet key."""
    stem, leaf = _split_leaf(key)
    if stem in _UNET_ENDS:
        return f"{_UNET_ENDS[stem]}.{leaf}"
    block, rest = _unet_block(stem)
    return f"{block}.{_RESNET.get(rest, rest)}.{leaf}"


_VAE_RULES: tuple[tuple[str, str], ...] = (
    (r"conv_norm_out", "norm_out"),
    (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"conv_shortcut", "nin_shortcut"),
)


def vae_key(key: str) -> str:
    """ldm name (without prefix) of a diffusers AutoencoderKL key; decoder levels count down."""
    for pattern, replacement in _VAE_RULES:
        key = re.sub(pattern, replacement, key)
    for kind, name in (("resnets", "block"), ("upsamplers", "upsample")):
        key = re.sub(
            rf"up_blocks\.(\d)\.{kind}\.(\d)",
            lambda m, name=name: (  # type: ignore[misc]
                f"up.{LEVELS - 1 - int(m[1])}.{name}" + (f".{m[2]}" if name == "block" else "")
            ),
            key,
        )
    return key


def text_key(key: str) -> str:
    """Key below ``text_model.`` of a transformers CLIPTextModel key (any transformers version)."""
    return key.removeprefix("text_model.")


Weights = Mapping[str, torch.Tensor]


def to_single_file(unet: Weights, vae: Weights, text: Weights) -> dict[str, torch.Tensor]:
    """All weights as float16 under ldm names; VAE attention becomes 1 × 1 convolutions."""
    tensors = {UNET_PREFIX + unet_key(key): value for key, value in unet.items()}
    for key, value in vae.items():
        name = vae_key(key)
        is_attention = "attn_1" in name and value.ndim == 2
        tensors[VAE_PREFIX + name] = value[:, :, None, None] if is_attention else value
    tensors |= {TEXT_PREFIX + text_key(key): value for key, value in text.items() if "position_ids" not in key}
    return {name: value.detach().half().contiguous() for name, value in tensors.items()}


def from_single_file(path: Path, unet: Weights, vae: Weights, text: Weights) -> tuple[dict[str, torch.Tensor], ...]:
    """float32 diffusers/transformers weights (UNet, VAE, text) for models with these keys."""
    tensors = load_file(path)

    def pick(weights: Weights, name_of: dict[str, str]) -> dict[str, torch.Tensor]:
        return {
            key: tensors[name_of[key]].float().reshape(value.shape)
            for key, value in weights.items()
            if "position_ids" not in key
        }

    return (
        pick(unet, {key: UNET_PREFIX + unet_key(key) for key in unet}),
        pick(vae, {key: VAE_PREFIX + vae_key(key) for key in vae}),
        pick(text, {key: TEXT_PREFIX + text_key(key) for key in text}),
    )


YAML = """\
# Shapes of tiny-sd, in the form A1111 reads beside a checkpoint (SD1's classes, few channels).
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    num_timesteps_cond: 1
    timesteps: 1000
    first_stage_key: jpg
    cond_stage_key: txt
    image_size: 16
    channels: 4
    cond_stage_trainable: false
    conditioning_key: crossattn
    monitor: val/loss_simple_ema
    scale_factor: 0.18215
    use_ema: false
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        image_size: 16
        in_channels: 4
        out_channels: 4
        model_channels: 64
        attention_resolutions: [4, 2, 1]
        num_res_blocks: 2
        channel_mult: [1, 2, 1, 1]
        num_heads: 8
        use_spatial_transformer: true
        transformer_depth: 1
        context_dim: 64
        use_checkpoint: false
        legacy: false
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        monitor: val/rec_loss
        ddconfig:
          double_z: true
          z_channels: 4
          resolution: 128
          in_channels: 3
          out_ch: 3
          ch: 64
          ch_mult: [1, 1, 1, 1]
          num_res_blocks: 2
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
      params:
        version: tokenizer   # a folder: config.json of the text encoder and CLIP's tokenizer files
"""


def write_text_config(folder: Path) -> None:
    """Write the text encoder's ``config.json`` beside the tokenizer files."""
    config = {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        **TEXT_CONFIG,
        "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def save_single_file(path: Path, tensors: dict[str, torch.Tensor], *, note: str) -> None:
    """Write the checkpoint and its ``.yaml``, each whole or not at all."""
    metadata = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.implementation": "sgm",
        "modelspec.title": "tiny-sd",
        "modelspec.resolution": "128x128",
        "modelspec.prediction_type": "epsilon",
        "modelspec.license": "Apache-2.0; trained on Fluent Emoji (Microsoft, MIT)",
        "modelspec.description": note,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".safetensors.tmp")
    save_file(tensors, temporary, metadata)
    temporary.chmod(0o644)  # save_file leaves it readable by its owner only
    temporary.replace(path)
    config = path.with_suffix(".yaml")
    config.with_suffix(".yaml.tmp").write_text(YAML, encoding="utf-8")
    config.with_suffix(".yaml.tmp").replace(config)
