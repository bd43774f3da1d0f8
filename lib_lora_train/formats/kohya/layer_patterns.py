"""kohya's regular expressions for layers as `layer_ranks` and `layer_lr_weights`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lib_lora_train.config.layer_patterns import REGEX_PREFIX, LayerRule, parse_layer_ranks, parse_layer_weights
from lib_lora_train.formats.kohya.import_state import PARAMETERS, ImportState, parse_literal, parse_number
from lib_lora_train.models.layer_matching import fits

_TEXT_LAYERS = tuple(
    f"text_model.encoder.layers.{number}.{part}"
    for number in range(32)
    for part in (*(f"self_attn.{name}_proj" for name in "qkv"), "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
)
_UNET_LAYERS = tuple(
    f"{place}.transformer_blocks.{number}.{part}"
    for place in ("input_blocks.4.1", "input_blocks.8.1", "middle_block.1", "output_blocks.0.1", "output_blocks.5.1")
    for number in range(10)
    for part in (
        *(f"attn{kind}.{name}" for kind in "12" for name in ("to_q", "to_k", "to_v", "to_out.0")),
        *("ff.net.0.proj", "ff.net.2"),
    )
)
"""Typical names, to find out which part of the model a pattern is for."""


def import_layer_patterns(state: ImportState) -> None:
    """exclude_patterns, include_patterns and network_reg_dims as ranks, network_reg_lrs as factors of the rate."""
    ranks = [*_excluded(state), *_ranks(state)]
    if ranks:
        _set(state, "layer_ranks", ranks)
    weights = list(_weights(state))
    if weights:
        _set(state, "layer_lr_weights", weights)


def _set(state: ImportState, name: str, lines: list[str]) -> None:
    """The lines that can be read; the others are ignored one by one."""
    parse = parse_layer_ranks if name == "layer_ranks" else parse_layer_weights
    kept = []
    for line in lines:
        try:
            parse([line])
            kept.append(line)
        except ValueError as reason:
            state.ignore_nested("network_args", line, "", f"is invalid: {reason}")
    state.values[name] = tuple(kept)


def _excluded(state: ImportState) -> Iterator[str]:
    """A layer is left out if it fits a pattern to exclude and none to include."""
    excluded, included = (_patterns(state.pop(name)) for name in ("exclude_patterns", "include_patterns"))
    kept = f"(?!(?:{'|'.join(included)})$)" if included else ""
    for pattern in excluded:
        yield f"{REGEX_PREFIX}{kept}(?:{pattern}) = 0"


def _patterns(raw: Any) -> list[str]:
    found = parse_literal(raw)
    if found is None:
        return []
    return [str(pattern) for pattern in found] if isinstance(found, (list, tuple)) else [str(found).strip("'\"")]


def _pairs(raw: Any) -> Iterator[tuple[str, float]]:
    """`pattern=number,pattern=number`."""
    for pair in str(raw or "").split(","):
        pattern, _, value = pair.partition("=")
        number = parse_number(value)
        if pattern.strip() and number is not None:
            yield pattern.strip(), number


def _ranks(state: ImportState) -> Iterator[str]:
    """Layers with a rank keep network_alpha there, and so another scale."""
    rank = state.values.get("rank", PARAMETERS["rank"].default)
    alpha = state.values.get("alpha") or rank
    for pattern, number in _pairs(state.pop("network_reg_dims")):
        yield f"{REGEX_PREFIX}{pattern} = {number:g}" + (f"/{alpha:g}" if number else "")


def _weights(state: ImportState) -> Iterator[str]:
    general = parse_number(state.value("learning_rate")) or PARAMETERS["learning_rate"].default
    unet = state.values.get("unet_lr") or general
    text = state.values.get("text_encoder_lr") or general
    for pattern, rate in _pairs(state.pop("network_reg_lrs")):
        is_text, is_unet = _fits(pattern, _TEXT_LAYERS), _fits(pattern, _UNET_LAYERS)
        if is_text and is_unet and text != unet and state.values.get("train_text_encoder", True):
            what = f"{pattern} = {rate:g} in network_reg_lrs is for the UNet and for text encoders, whose rates differ"
            state.warn("layer_lr_weights", f"{what}; text encoders get {rate / unet * text:g}.")
        base = text if is_text and not is_unet else unet
        yield f"{REGEX_PREFIX}{pattern} = {rate / base:.10g}"


def _fits(pattern: str, names: tuple[str, ...]) -> bool:
    try:
        return fits(LayerRule(f"{REGEX_PREFIX}{pattern}", 0), names)
    except ValueError:  # no regular expression, or one that does not end
        return False
