"""Trace the forward pass of Anima's transformer on sizes alone; as `forward_trace` does for UNets.

The order of operations and the names are those of diffusers' CosmosTransformer3DModel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lib_lora_train.runs.estimates.activation_trace import Activation, Trace


def trace_transformer(
    trace: Trace, config: Mapping[str, Any], *, positions: int, text: Activation, is_half: bool
) -> None:
    """Trace one sample of `positions` latent cells and the caption `text` (width, tokens) through the transformer.

    `config`: diffusers' arguments, as in `ModelSpec.unet`. `is_half`: it computes in 16 bit, except for some norms.
    """
    heads, patch = config["num_attention_heads"], config["patch_size"]
    width, cells = heads * config["attention_head_dim"], patch[1] * patch[2]
    patches = positions // cells
    x = trace.linear("patch_embed.proj", Activation(config["in_channels"] * cells, patches), width, has_bias=False)
    time = Activation(width, 1)
    inner = trace.silu(trace.linear("time_embed.t_embedder.linear_1", time, width, has_bias=False))
    time = trace.add(time, trace.linear("time_embed.t_embedder.linear_2", inner, 3 * width, has_bias=False))
    time = Activation(width, 1, time.requires_grad)
    for number in range(config["num_layers"]):
        with trace.checkpoint(x):
            x = _block(trace, f"transformer_blocks.{number}", x, time, text, config, is_half=is_half)
    x, _ = _modulated(trace, "norm_out", x, time, 2 * width, config)
    trace.linear("proj_out", x, config["out_channels"] * cells, has_bias=False)


def _block(
    trace: Trace,
    name: str,
    x: Activation,
    time: Activation,
    text: Activation,
    config: Mapping[str, Any],
    *,
    is_half: bool,
) -> Activation:
    for number in (1, 2):
        hidden, gate = _modulated(trace, f"{name}.norm{number}", x, time, 3 * x.width, config)
        context = hidden if number == 1 else text
        hidden = _attention(trace, f"{name}.attn{number}", hidden, context, config, is_half=is_half)
        x = _gated(trace, x, hidden, gate)
    hidden, gate = _modulated(trace, f"{name}.norm3", x, time, 3 * x.width, config)
    inner = int(config["mlp_ratio"] * x.width)
    hidden = trace.silu(trace.linear(f"{name}.ff.net.0.proj", hidden, inner, has_bias=False))
    hidden = trace.linear(f"{name}.ff.net.2", hidden, x.width, has_bias=False)
    return _gated(trace, x, hidden, gate)


def _modulated(
    trace: Trace, name: str, x: Activation, time: Activation, outputs: int, config: Mapping[str, Any]
) -> tuple[Activation, Activation]:
    """A norm without weights, scaled and shifted by the time, which saves it if the scale is trained; and the gate."""
    low = trace.linear(f"{name}.linear_1", trace.silu(time), config["adaln_lora_dim"], has_bias=False)
    scale = trace.add(trace.linear(f"{name}.linear_2", low, outputs, has_bias=False), time)
    normed = trace.plain_norm(x)
    if scale.requires_grad:
        trace.save(normed)
    return Activation(x.width, x.positions, x.requires_grad or scale.requires_grad), scale


def _gated(trace: Trace, x: Activation, hidden: Activation, gate: Activation) -> Activation:
    """x + gate · hidden, which saves `hidden` if the gate is trained."""
    if gate.requires_grad:
        trace.save(hidden)
    return trace.add(x, Activation(x.width, x.positions, hidden.requires_grad or gate.requires_grad))


def _attention(
    trace: Trace, name: str, x: Activation, context: Activation, config: Mapping[str, Any], *, is_half: bool
) -> Activation:
    q, k, v = (
        trace.linear(f"{name}.to_{part}", source, x.width, has_bias=False)
        for part, source in zip("qkv", (x, context, context), strict=True)
    )
    q, k = (trace.rms_norm(value, is_half=is_half) for value in (q, k))
    out = trace.attention(q, k, v, config["num_attention_heads"])
    return trace.linear(f"{name}.to_out.0", out, x.width, has_bias=False)
