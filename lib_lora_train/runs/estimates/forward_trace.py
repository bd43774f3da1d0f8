"""Trace the forward passes of the UNet and the text encoders on sizes alone, from their configs.

The order of operations, the checkpoints and the names are those of diffusers' UNet2DConditionModel and transformers'
CLIPTextModel. Tests compare names, shapes and what autograd saves with the real modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lib_lora_train.runs.estimates.activation_trace import Activation, Trace


@dataclass(frozen=True)
class _Plan:
    """A UNet's widths and depths, level by level."""

    widths: tuple[int, ...]
    heads: tuple[int, ...]
    depths: tuple[int, ...]
    has_attention: tuple[bool, ...]
    layers: int
    is_linear: bool


def trace_unet(trace: Trace, config: Mapping[str, Any], *, positions: int, text: Activation) -> None:
    """Trace one sample of `positions` latent positions and the caption `text` (width, tokens) through the UNet.

    `config`: diffusers' arguments, as in `ModelSpec.unet`.
    """
    widths = tuple(config["block_out_channels"])
    plan = _Plan(
        widths,
        tuple(config["attention_head_dim"]),
        tuple(config["transformer_layers_per_block"]),
        tuple("CrossAttn" in kind for kind in config["down_block_types"]),
        config["layers_per_block"],
        config["use_linear_projection"],
    )
    time = _time(trace, config)
    x = trace.conv("conv_in", Activation(config["in_channels"], positions), widths[0])
    x, skips = _down(trace, x, time, text, plan)
    last = len(widths) - 1
    x = _resnet(trace, "mid_block.resnets.0", x, time, widths[last])
    x = _transformer(trace, "mid_block.attentions.0", x, text, plan, last)
    x = _resnet(trace, "mid_block.resnets.1", x, time, widths[last])
    x = _up(trace, x, skips, time, text, plan)
    x = trace.silu(trace.norm("conv_norm_out", x))
    trace.conv("conv_out", x, config["out_channels"])


def _time(trace: Trace, config: Mapping[str, Any]) -> Activation:
    """The embedding of the timestep and of SDXL's sizes."""
    width = config["block_out_channels"][0]
    time = trace.silu(trace.linear("time_embedding.linear_1", Activation(width, 1), 4 * width))
    time = trace.linear("time_embedding.linear_2", time, 4 * width)
    if config.get("addition_embed_type") == "text_time":
        added = Activation(config["projection_class_embeddings_input_dim"], 1)
        added = trace.silu(trace.linear("add_embedding.linear_1", added, 4 * width))
        time = trace.add(time, trace.linear("add_embedding.linear_2", added, 4 * width))
    return time


def _down(
    trace: Trace, x: Activation, time: Activation, text: Activation, plan: _Plan
) -> tuple[Activation, list[Activation]]:
    skips = [x]
    for level, width in enumerate(plan.widths):
        name = f"down_blocks.{level}"
        for number in range(plan.layers):
            x = _resnet(trace, f"{name}.resnets.{number}", x, time, width)
            if plan.has_attention[level]:
                x = _transformer(trace, f"{name}.attentions.{number}", x, text, plan, level)
            skips.append(x)
        if level < len(plan.widths) - 1:
            x = trace.conv(f"{name}.downsamplers.0.conv", x, width, positions=x.positions // 4)
            skips.append(x)
    return x, skips


def _up(
    trace: Trace,
    x: Activation,
    skips: list[Activation],
    time: Activation,
    text: Activation,
    plan: _Plan,
) -> Activation:
    for number, level in enumerate(reversed(range(len(plan.widths)))):
        name = f"up_blocks.{number}"
        for layer in range(plan.layers + 1):
            x = trace.cat([x, skips.pop()])
            x = _resnet(trace, f"{name}.resnets.{layer}", x, time, plan.widths[level])
            if plan.has_attention[level]:
                x = _transformer(trace, f"{name}.attentions.{layer}", x, text, plan, level)
        if level:
            larger = Activation(x.width, 4 * x.positions, x.requires_grad)
            x = trace.conv(f"{name}.upsamplers.0.conv", larger, x.width)
    return x


def _resnet(trace: Trace, name: str, x: Activation, time: Activation, width: int) -> Activation:
    with trace.checkpoint(x):
        hidden = trace.silu(trace.norm(f"{name}.norm1", x))
        hidden = trace.conv(f"{name}.conv1", hidden, width)
        shift = trace.linear(f"{name}.time_emb_proj", trace.silu(time), width)
        hidden = trace.add(hidden, shift)
        hidden = trace.silu(trace.norm(f"{name}.norm2", hidden))
        hidden = trace.conv(f"{name}.conv2", hidden, width)
        if x.width != width:
            x = trace.conv(f"{name}.conv_shortcut", x, width, kernel=1)
        return trace.add(x, hidden)


def _transformer(trace: Trace, name: str, x: Activation, text: Activation, plan: _Plan, level: int) -> Activation:
    width, kernel = plan.widths[level], 0 if plan.is_linear else 1
    hidden = trace.conv(f"{name}.proj_in", trace.norm(f"{name}.norm", x), width, kernel=kernel)
    for number in range(plan.depths[level]):
        hidden = _transformer_block(trace, f"{name}.transformer_blocks.{number}", hidden, text, plan.heads[level])
    return trace.add(trace.conv(f"{name}.proj_out", hidden, width, kernel=kernel), x)


def _transformer_block(trace: Trace, name: str, x: Activation, text: Activation, heads: int) -> Activation:
    with trace.checkpoint(x):
        normed = trace.norm(f"{name}.norm1", x)
        x = trace.add(_attention(trace, f"{name}.attn1", normed, normed, heads), x)
        normed = trace.norm(f"{name}.norm2", x)
        x = trace.add(_attention(trace, f"{name}.attn2", normed, text, heads), x)
        normed = trace.norm(f"{name}.norm3", x)
        inner = trace.geglu(trace.linear(f"{name}.ff.net.0.proj", normed, 8 * x.width))
        return trace.add(trace.linear(f"{name}.ff.net.2", inner, x.width), x)


def _attention(trace: Trace, name: str, x: Activation, context: Activation, heads: int) -> Activation:
    q = trace.linear(f"{name}.to_q", x, x.width, has_bias=False)
    k = trace.linear(f"{name}.to_k", context, x.width, has_bias=False)
    v = trace.linear(f"{name}.to_v", context, x.width, has_bias=False)
    return trace.linear(f"{name}.to_out.0", trace.attention(q, k, v, heads), x.width)


def trace_text_encoder(trace: Trace, config: Mapping[str, Any], *, tokens: int) -> Activation:
    """Trace a caption of `tokens` tokens through a text encoder; `config` as in `TextEncoderSpec`."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    x = Activation(width, tokens)
    for number in range(config["num_hidden_layers"]):
        name = f"encoder.layers.{number}"
        normed = trace.norm(f"{name}.layer_norm1", x)
        q, k, v = (trace.linear(f"{name}.self_attn.{part}_proj", normed, width) for part in "qkv")
        out = trace.attention(q, k, v, config["num_attention_heads"])
        x = trace.add(trace.linear(f"{name}.self_attn.out_proj", out, width), x)
        hidden = trace.linear(f"{name}.mlp.fc1", trace.norm(f"{name}.layer_norm2", x), inner)
        hidden = trace.quick_gelu(hidden) if config["hidden_act"] == "quick_gelu" else trace.silu(hidden)
        x = trace.add(trace.linear(f"{name}.mlp.fc2", hidden, width), x)
    return trace.norm("final_layer_norm", x)
