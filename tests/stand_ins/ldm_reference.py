"""The forward passes of ldm, sgm and open_clip as plain functions on a checkpoint's own tensors.

A second, independent reading of the same weights: no module, no name table and no config of the
product is used, only the tensors' names and the number of attention heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class Weights:
    """Tensors below one name."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str = "") -> None:
        self._tensors = tensors
        self._prefix = prefix

    def __truediv__(self, name: str | int) -> Weights:
        return Weights(self._tensors, f"{self._prefix}{name}.")

    def __contains__(self, name: str) -> bool:
        return any(key.startswith(f"{self._prefix}{name}") for key in self._tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._prefix + name]

    def count(self) -> int:
        """How many numbered children there are."""
        front = len(self._prefix)
        numbers = {key[front:].split(".")[0] for key in self._tensors if key.startswith(self._prefix)}
        return sum(number.isdigit() for number in numbers)

    def linear(self, x: Tensor) -> Tensor:
        x = x @ self["weight"].mT
        return x + self["bias"] if "bias" in self else x

    def conv(self, x: Tensor, stride: int = 1, padding: int = 1) -> Tensor:
        kernel = self["weight"].shape[-1]
        return F.conv2d(x, self["weight"], self["bias"], stride, padding if kernel == 3 else 0)

    def group_norm(self, x: Tensor, eps: float) -> Tensor:
        return F.group_norm(x, 32, self["weight"], self["bias"], eps)

    def layer_norm(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self["weight"], self["bias"], 1e-5)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Softmax attention written out; (B, N, C) each."""
    q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    scores = scores if mask is None else scores + mask
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def sinusoid(values: Tensor, width: int) -> Tensor:
    """ldm's timestep_embedding: cosines first."""
    half = width // 2
    angles = values[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half) / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


# --- UNet -----------------------------------------------------------------------------------------


def unet(
    tensors: Mapping[str, Tensor], x: Tensor, timesteps: Tensor, context: Tensor, heads: Sequence[int], **vector: Tensor
) -> Tensor:
    """openaimodel.UNetModel; `heads` per level from the top; SDXL also pooled= (B, P) and sizes= (B, 6)."""
    w = Weights(tensors, "model.diffusion_model.")
    base = w["input_blocks.0.0.weight"].shape[0]
    emb = _mlp(w / "time_embed", sinusoid(timesteps, base).to(x.dtype))
    if vector:
        width = (w["label_emb.0.0.weight"].shape[1] - vector["pooled"].shape[1]) // 6
        sizes = sinusoid(vector["sizes"].flatten(), width).to(x.dtype).view(len(x), -1)
        emb = emb + _mlp(w / "label_emb" / 0, torch.cat([vector["pooled"], sizes], dim=1))
    skips = []
    level = 0
    for index in range((w / "input_blocks").count()):
        block = w / "input_blocks" / index
        if "0.op" in block:
            level += 1
        x = _unet_block(block, x, emb, context, heads[level])
        skips.append(x)
    middle = w / "middle_block"
    x = _res(middle / 0, x, emb)
    x = _transformer(middle / 1, x, context, heads[level])
    x = _res(middle / 2, x, emb)
    for index in range((w / "output_blocks").count()):
        block = w / "output_blocks" / index
        x = _unet_block(block, torch.cat([x, skips.pop()], dim=1), emb, context, heads[level])
        level -= "1.conv" in block or "2.conv" in block
    return (w / "out" / 2).conv(F.silu((w / "out" / 0).group_norm(x, 1e-5)))


def _mlp(w: Weights, x: Tensor) -> Tensor:
    return (w / 2).linear(F.silu((w / 0).linear(x)))


def _unet_block(w: Weights, x: Tensor, emb: Tensor, context: Tensor, heads: int) -> Tensor:
    for part in range(w.count()):
        layer = w / part
        if "op" in layer:
            x = (layer / "op").conv(x, stride=2)
        elif "conv" in layer:
            x = (layer / "conv").conv(F.interpolate(x, scale_factor=2.0))
        elif "in_layers" in layer:
            x = _res(layer, x, emb)
        elif "proj_in" in layer:
            x = _transformer(layer, x, context, heads)
        else:
            x = layer.conv(x)
    return x


def _res(w: Weights, x: Tensor, emb: Tensor) -> Tensor:
    h = (w / "in_layers" / 2).conv(F.silu((w / "in_layers" / 0).group_norm(x, 1e-5)))
    h = h + (w / "emb_layers" / 1).linear(F.silu(emb))[:, :, None, None]
    h = (w / "out_layers" / 3).conv(F.silu((w / "out_layers" / 0).group_norm(h, 1e-5)))
    return h + ((w / "skip_connection").conv(x) if "skip_connection" in w else x)


def _transformer(w: Weights, x: Tensor, context: Tensor, heads: int) -> Tensor:
    is_conv = w["proj_in.weight"].dim() == 4
    h = (w / "norm").group_norm(x, 1e-6)
    h = (w / "proj_in").conv(h).flatten(2).mT if is_conv else (w / "proj_in").linear(h.flatten(2).mT)
    for number in range((w / "transformer_blocks").count()):
        block = w / "transformer_blocks" / number
        h = h + _cross(block / "attn1", (block / "norm1").layer_norm(h), None, heads)
        h = h + _cross(block / "attn2", (block / "norm2").layer_norm(h), context, heads)
        value, gate = (block / "ff.net.0.proj").linear((block / "norm3").layer_norm(h)).chunk(2, dim=-1)
        h = h + (block / "ff.net.2").linear(value * F.gelu(gate))
    if is_conv:
        return x + (w / "proj_out").conv(h.mT.reshape(x.shape))
    return x + (w / "proj_out").linear(h).mT.reshape(x.shape)


def _cross(w: Weights, x: Tensor, context: Tensor | None, heads: int) -> Tensor:
    source = x if context is None else context
    found = attention((w / "to_q").linear(x), (w / "to_k").linear(source), (w / "to_v").linear(source), heads)
    return (w / "to_out.0").linear(found)


# --- VAE ------------------------------------------------------------------------------------------


def vae_moments(tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Mean and log-variance (B, 8, h, w) of images (B, 3, H, W)."""
    w = Weights(tensors, "first_stage_model.")
    e = w / "encoder"
    x = (e / "conv_in").conv(x)
    for level in range((e / "down").count()):
        block = e / "down" / level
        for number in range((block / "block").count()):
            x = _vae_res(block / "block" / number, x)
        if "downsample" in block:
            x = (block / "downsample.conv").conv(F.pad(x, (0, 1, 0, 1)), stride=2, padding=0)
    x = (e / "conv_out").conv(F.silu((e / "norm_out").group_norm(_vae_middle(e / "mid", x), 1e-6)))
    return (w / "quant_conv").conv(x)


def vae_decode(tensors: Mapping[str, Tensor], z: Tensor) -> Tensor:
    """Images (B, 3, H, W) for unscaled latents (B, 4, h, w)."""
    w = Weights(tensors, "first_stage_model.")
    d = w / "decoder"
    x = _vae_middle(d / "mid", (d / "conv_in").conv((w / "post_quant_conv").conv(z)))
    for level in reversed(range((d / "up").count())):
        block = d / "up" / level
        for number in range((block / "block").count()):
            x = _vae_res(block / "block" / number, x)
        if "upsample" in block:
            x = (block / "upsample.conv").conv(F.interpolate(x, scale_factor=2.0))
    return (d / "conv_out").conv(F.silu((d / "norm_out").group_norm(x, 1e-6)))


def _vae_res(w: Weights, x: Tensor) -> Tensor:
    h = (w / "conv1").conv(F.silu((w / "norm1").group_norm(x, 1e-6)))
    h = (w / "conv2").conv(F.silu((w / "norm2").group_norm(h, 1e-6)))
    return h + ((w / "nin_shortcut").conv(x) if "nin_shortcut" in w else x)


def _vae_middle(w: Weights, x: Tensor) -> Tensor:
    x = _vae_res(w / "block_1", x)
    a = w / "attn_1"
    h = (a / "norm").group_norm(x, 1e-6)
    q, k, v = ((a / part).conv(h).flatten(2).mT for part in "qkv")
    x = x + (a / "proj_out").conv(attention(q, k, v, 1).mT.reshape(x.shape))
    return _vae_res(w / "block_2", x)


# --- text encoders --------------------------------------------------------------------------------


def clip_states(tensors: Mapping[str, Tensor], prefix: str, ids: Tensor, heads: int) -> list[Tensor]:
    """Hidden states of transformers' CLIP-L (quick GELU) before the final norm, embeddings first."""
    w = Weights(tensors, prefix)
    x = w["embeddings.token_embedding.weight"][ids] + w["embeddings.position_embedding.weight"]
    states = [x]
    for number in range((w / "encoder.layers").count()):
        layer = w / "encoder.layers" / number
        h = (layer / "layer_norm1").layer_norm(x)
        q, k, v = ((layer / f"self_attn.{part}_proj").linear(h) for part in "qkv")
        x = x + (layer / "self_attn.out_proj").linear(attention(q, k, v, heads, _causal(ids)))
        h = (layer / "mlp.fc1").linear((layer / "layer_norm2").layer_norm(x))
        x = x + (layer / "mlp.fc2").linear(h * torch.sigmoid(1.702 * h))
        states.append(x)
    return states


def open_clip_states(tensors: Mapping[str, Tensor], prefix: str, ids: Tensor, heads: int) -> list[Tensor]:
    """Hidden states of open_clip's text tower before ln_final, embeddings first."""
    w = Weights(tensors, prefix)
    x = w["token_embedding.weight"][ids] + w["positional_embedding"]
    states = [x]
    for number in range((w / "transformer.resblocks").count()):
        block = w / "transformer.resblocks" / number
        h = (block / "ln_1").layer_norm(x)
        q, k, v = F.linear(h, block["attn.in_proj_weight"], block["attn.in_proj_bias"]).chunk(3, dim=-1)
        x = x + (block / "attn.out_proj").linear(attention(q, k, v, heads, _causal(ids)))
        x = x + (block / "mlp.c_proj").linear(F.gelu((block / "mlp.c_fc").linear((block / "ln_2").layer_norm(x))))
        states.append(x)
    return states


def _causal(ids: Tensor) -> Tensor:
    return torch.full((ids.shape[-1],) * 2, float("-inf")).triu(1)
