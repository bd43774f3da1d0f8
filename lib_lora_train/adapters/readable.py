"""A trained adapter in the form that a webui reads, if it misreads the one that was trained.

Each layer is checked by itself, against the table in `config/family_support.py`, so a file that continues another one,
or whose layers differ, is right too. LoKr with a core is written without it: w1 ⊗ tucker(t2, w2_a, w2_b) = w1 ⊗ w2.
Every other form is written as the full difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lib_lora_train.adapters.adapted_layer import AdaptedLayer
from lib_lora_train.adapters.families.base import base_weight
from lib_lora_train.adapters.families.dora import MAGNITUDE, RowDora
from lib_lora_train.adapters.families.glora import KernelGlora
from lib_lora_train.adapters.families.ia3 import KernelIa3
from lib_lora_train.adapters.families.loha import tucker
from lib_lora_train.adapters.files.conversion import ConversionBuilder, Converted, add_bias
from lib_lora_train.adapters.files.decode import parse_state
from lib_lora_train.adapters.registry import NORM
from lib_lora_train.config.family_support import (
    DORA_FORMS,
    OUTPUT_DORA_FORMS,
    TUCKER_FORMS,
    readable_form,
    rotation_form,
)

_CORES = {"mid", "t1", "t2"}  # the tensors that only a layer with Tucker has


def form_of_layer(layer: AdaptedLayer) -> str:
    """The form in which the layer is saved, a key of `config.family_support.FORMS`."""
    if layer.family is NORM:
        return "full_norm"
    name, weights = layer.family.NAME, layer.slices.positions
    if isinstance(layer.family, (KernelGlora, KernelIa3)):
        return f"{name}_conv"
    if name in ("oft", "boft"):
        return rotation_form(name, is_bounded=layer.options.constraint > 0, is_rescaled="rescale" in weights)
    if MAGNITUDE in weights:
        return (OUTPUT_DORA_FORMS if isinstance(layer.family, RowDora) else DORA_FORMS)[name]
    if not _CORES.isdisjoint(weights):
        return TUCKER_FORMS[name]
    return "lokr_full" if {"w1", "w2"} <= set(weights) else name


def layers_to_rewrite(layers: Mapping[str, AdaptedLayer], program: str) -> dict[str, str]:
    """The layers that the program misreads, by name, with the form that it reads; {} if it reads all of them."""
    forms = {key: form_of_layer(layer) for key, layer in layers.items()}
    readable = {key: readable_form(program, form) for key, form in forms.items()}
    return {key: form for key, form in readable.items() if form != forms[key]}


def count_file_values(layers: Mapping[str, AdaptedLayer], program: str) -> int:
    """The number of values in a file that the program reads; the model's weights must be there."""
    rewritten = layers_to_rewrite(layers, program)
    return sum(
        base_weight(layer.base_layer).numel()
        if rewritten.get(key) == "full"
        else sum(size.numel() for size in layer.state_shapes().values())
        for key, layer in layers.items()
    )


@torch.no_grad()
def rewrite_layer(builder: ConversionBuilder, key: str, layer: AdaptedLayer, form: str) -> list[str]:
    """Add the layer to the builder in this form, "" for as it is; what the form cannot hold."""
    if not form:
        builder.add_layer(key, layer.state())
        return []
    diff = layer.diff_weight().cpu()
    if form == "lokr":
        builder.add_layer(
            key, lokr_without_core(layer.state()), diff, update_of=lambda stored: _update(key, stored, layer)
        )
        return []
    tensors = {"diff": diff}
    left_out = add_bias(key, tensors, layer.diff_bias(), "diff")
    builder.add_layer(key, tensors, diff)
    return left_out


def rewrite_adapter(
    layers: Mapping[str, AdaptedLayer], program: str, precision: str, *, after_layer: Callable[[], None]
) -> Converted:
    """An adapter's layers in forms that the program reads; `after_layer` is called when no weights are in use."""
    builder, left_out = ConversionBuilder(precision), list[str]()
    rewritten = layers_to_rewrite(layers, program)
    for key, layer in layers.items():
        left_out += rewrite_layer(builder, key, layer, rewritten.get(key, ""))
        after_layer()
    return builder.build(left_out)


def _update(key: str, stored: Mapping[str, Tensor], layer: AdaptedLayer) -> Tensor:
    """ΔW of the tensors that are written for the layer."""
    parsed = parse_state({f"{key}.{ending}": tensor for ending, tensor in stored.items()}).layers[key]
    return parsed.diff_weight(base_weight(layer.base_layer).detach().cpu())


def lokr_without_core(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A layer's tensors by ending, with the product of its core and both matrices as w2."""
    core, a, b = (state.pop(f"lokr_{name}") for name in ("t2", "w2_a", "w2_b"))
    big = tucker(core, a, b)
    if "lokr_w1" in state:  # with both matrices whole, alpha has no effect
        big = big * (state["alpha"] / core.shape[0])
    return {**state, "lokr_w2": big}
