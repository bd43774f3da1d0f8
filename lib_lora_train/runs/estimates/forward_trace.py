"""The UNet and the text encoders run through on sizes alone (`tape`), from their configs as `family` gives them.

The order of operations, and where checkpoints stand, are those of diffusers' UNet2DConditionModel and transformers'
CLIPTextModel; names are theirs. Tests hold both against the real modules: names, shapes, and what autograd keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lib_lora_train.runs.estimates.activation_trace import Tape, Value


@dataclass(frozen=True)
class _Plan:
    """A UNet's widths and depths, level by level."""

    widths: tuple[int, ...]
    heads: tuple[int, ...]
    depths: tuple[int, ...]
    has_attention: tuple[bool, ...]
    layers: int
    is_linear: bool


def run_unet(tape: Tape, config: Mapping[str, Any], *, places: int, text: Value) -> None:
    """One sample of `places` latent positions and the caption `text` (width and tokens) through the UNet.

    `config`: diffusers' arguments, as `ModelSpec.unet` has them.
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
    time = _time(tape, config)
    x = tape.conv("conv_in", Value(config["in_channels"], places), widths[0])
    x, skips = _down(tape, x, time, text, plan)
    last = len(widths) - 1
    x = _resnet(tape, "mid_block.resnets.0", x, time, widths[last])
    x = _transformer(tape, "mid_block.attentions.0", x, text, plan, last)
    x = _resnet(tape, "mid_block.resnets.1", x, time, widths[last])
    x = _up(tape, x, skips, time, text, plan)
    x = tape.silu(tape.norm("conv_norm_out", x))
    tape.conv("conv_out", x, config["out_channels"])


def _time(tape: Tape, config: Mapping[str, Any]) -> Value:
    """The embedding of the timestep, and of SDXL's sizes."""
    width = config["block_out_channels"][0]
    time = tape.silu(tape.linear("time_embedding.linear_1", Value(width, 1), 4 * width))
    time = tape.linear("time_embedding.linear_2", time, 4 * width)
    if config.get("addition_embed_type") == "text_time":
        added = Value(config["projection_class_embeddings_input_dim"], 1)
        added = tape.silu(tape.linear("add_embedding.linear_1", added, 4 * width))
        time = tape.add(time, tape.linear("add_embedding.linear_2", added, 4 * width))
    return time


def _down(tape: Tape, x: Value, time: Value, text: Value, plan: _Plan) -> tuple[Value, list[Value]]:
    skips = [x]
    for level, width in enumerate(plan.widths):
        name = f"down_blocks.{level}"
        for number in range(plan.layers):
            x = _resnet(tape, f"{name}.resnets.{number}", x, time, width)
            if plan.has_attention[level]:
                x = _transformer(tape, f"{name}.attentions.{number}", x, text, plan, level)
            skips.append(x)
        if level < len(plan.widths) - 1:
            x = tape.conv(f"{name}.downsamplers.0.conv", x, width, places=x.places // 4)
            skips.append(x)
    return x, skips


def _up(tape: Tape, x: Value, skips: list[Value], time: Value, text: Value, plan: _Plan) -> Value:
    for number, level in enumerate(reversed(range(len(plan.widths)))):
        name = f"up_blocks.{number}"
        for layer in range(plan.layers + 1):
            x = tape.cat([x, skips.pop()])
            x = _resnet(tape, f"{name}.resnets.{layer}", x, time, plan.widths[level])
            if plan.has_attention[level]:
                x = _transformer(tape, f"{name}.attentions.{layer}", x, text, plan, level)
        if level:
            larger = Value(x.width, 4 * x.places, x.learns)
            x = tape.conv(f"{name}.upsamplers.0.conv", larger, x.width)
    return x


def _resnet(tape: Tape, name: str, x: Value, time: Value, width: int) -> Value:
    with tape.again(x):
        hidden = tape.silu(tape.norm(f"{name}.norm1", x))
        hidden = tape.conv(f"{name}.conv1", hidden, width)
        shift = tape.linear(f"{name}.time_emb_proj", tape.silu(time), width)
        hidden = tape.add(hidden, shift)
        hidden = tape.silu(tape.norm(f"{name}.norm2", hidden))
        hidden = tape.conv(f"{name}.conv2", hidden, width)
        if x.width != width:
            x = tape.conv(f"{name}.conv_shortcut", x, width, kernel=1)
        return tape.add(x, hidden)


def _transformer(tape: Tape, name: str, x: Value, text: Value, plan: _Plan, level: int) -> Value:
    width, kernel = plan.widths[level], 0 if plan.is_linear else 1
    hidden = tape.conv(f"{name}.proj_in", tape.norm(f"{name}.norm", x), width, kernel=kernel)
    for number in range(plan.depths[level]):
        hidden = _transformer_block(tape, f"{name}.transformer_blocks.{number}", hidden, text, plan.heads[level])
    return tape.add(tape.conv(f"{name}.proj_out", hidden, width, kernel=kernel), x)


def _transformer_block(tape: Tape, name: str, x: Value, text: Value, heads: int) -> Value:
    with tape.again(x):
        normed = tape.norm(f"{name}.norm1", x)
        x = tape.add(_attention(tape, f"{name}.attn1", normed, normed, heads), x)
        normed = tape.norm(f"{name}.norm2", x)
        x = tape.add(_attention(tape, f"{name}.attn2", normed, text, heads), x)
        normed = tape.norm(f"{name}.norm3", x)
        inner = tape.gated(tape.linear(f"{name}.ff.net.0.proj", normed, 8 * x.width))
        return tape.add(tape.linear(f"{name}.ff.net.2", inner, x.width), x)


def _attention(tape: Tape, name: str, x: Value, context: Value, heads: int) -> Value:
    q = tape.linear(f"{name}.to_q", x, x.width, has_bias=False)
    k = tape.linear(f"{name}.to_k", context, x.width, has_bias=False)
    v = tape.linear(f"{name}.to_v", context, x.width, has_bias=False)
    return tape.linear(f"{name}.to_out.0", tape.attention(q, k, v, heads), x.width)


def run_text_encoder(tape: Tape, config: Mapping[str, Any], *, tokens: int) -> Value:
    """One caption of `tokens` tokens through a text encoder; `config` as `TextEncoderSpec` has it."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    x = Value(width, tokens)
    for number in range(config["num_hidden_layers"]):
        name = f"encoder.layers.{number}"
        normed = tape.norm(f"{name}.layer_norm1", x)
        q, k, v = (tape.linear(f"{name}.self_attn.{part}_proj", normed, width) for part in "qkv")
        out = tape.attention(q, k, v, config["num_attention_heads"])
        x = tape.add(tape.linear(f"{name}.self_attn.out_proj", out, width), x)
        hidden = tape.linear(f"{name}.mlp.fc1", tape.norm(f"{name}.layer_norm2", x), inner)
        hidden = tape.quick_gelu(hidden) if config["hidden_act"] == "quick_gelu" else tape.silu(hidden)
        x = tape.add(tape.linear(f"{name}.mlp.fc2", hidden, width), x)
    return tape.norm("final_layer_norm", x)
