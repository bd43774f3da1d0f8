"""Projections computed together equal the same layers computed one by one, and only what is alike is joined."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_lora_train.adapters.dropout import DropoutRates
from lib_lora_train.adapters.inject import Adapter, inject
from lib_lora_train.adapters.joint_lora import JointProjections, join_layers
from lib_lora_train.adapters.registry import AdapterSpec
from lib_lora_train.models.lean_modules import AttentionProcessor, use_lean_modules
from tests.stand_ins.adapters_model import TinyModel, tiny_model, trained

# Sums of up to 128 products of fp32 numbers, relative to their norm: 128 × 2⁻²⁴.
ANOTHER_ORDER = 128 * 2.0**-24


def lean_model(dtype: torch.dtype = torch.float32) -> TinyModel:
    """The tiny model with the UNet's modules as they are trained."""
    model = tiny_model(dtype)
    use_lean_modules(model.unet)
    return model


def attentions(model: TinyModel) -> list[Any]:
    """The attentions whose projections are joined."""
    processors = ((module, getattr(module, "processor", None)) for module in model.unet.modules())
    return [module for module, processor in processors if isinstance(processor, JointProjections)]


def relative(value: Tensor, exact: Tensor) -> float:
    return float((value.detach().double() - exact.double()).norm() / exact.double().norm())


@pytest.mark.parametrize("names", [("to_q", "to_k", "to_v"), ("to_k", "to_v")])
@pytest.mark.parametrize("needs_input_grad", [True, False])
def test_joint_layers_equal_the_formula_in_float64(names: tuple[str, ...], needs_input_grad: bool) -> None:
    model = lean_model()
    adapter = trained(model, AdapterSpec(rank=2, alpha=1.0))
    attention = next(a for a in attentions(model) if a.to_q.base_layer.in_features == a.to_k.base_layer.in_features)
    layers = [getattr(attention, name) for name in names]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, layers[0].base_layer.in_features, generator=generator).requires_grad_(needs_input_grad)
    pulls = [torch.randn(2, 5, layers[0].base_layer.out_features, generator=generator) for _ in layers]
    joint = join_layers(layers)
    assert joint is not None and joint.is_usable
    outputs = joint(x)
    sum((output * pull).sum() for output, pull in zip(outputs, pulls, strict=True)).backward()  # type: ignore[union-attr]

    exact_x = x.detach().double().requires_grad_()
    for layer, output, pull in zip(layers, outputs, pulls, strict=True):
        down, up = (value.double().requires_grad_() for value in layer.slices.values(torch.float32))
        exact = exact_x @ layer.base_layer.weight.double().t() + 0.5 * (exact_x @ down.t()) @ up.t()
        (exact * pull).sum().backward()
        assert relative(output, exact.detach()) < ANOTHER_ORDER
        for name, leaf in (("down", down), ("up", up)):
            assert leaf.grad is not None
            assert relative(layer.slices.buffer.gradient(layer.slices.positions[name]), leaf.grad) < ANOTHER_ORDER
    if needs_input_grad:
        assert x.grad is not None and exact_x.grad is not None
        assert relative(x.grad, exact_x.grad) < ANOTHER_ORDER
    adapter.remove()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_whole_model_learns_the_same_with_joint_projections_as_without(
    dtype: torch.dtype, checkpointing: bool
) -> None:
    gradients, outputs = [], []
    for is_joint in (True, False):
        model = lean_model(dtype)
        adapter = trained(model)
        assert len(attentions(model)) == 8
        if not is_joint:
            for attention in attentions(model):
                attention.set_processor(AttentionProcessor())
        if checkpointing:
            model.unet.train()
            model.unet.enable_gradient_checkpointing()
        with adapter.training(DropoutRates(), 1):
            output = model.predict()
            output.float().pow(2).sum().backward()
        outputs.append(output.detach())
        gradients.append(torch.cat([p.grad for group in adapter.groups.values() for p in group]))
    # In fp32 sums of another order; in bf16 (2⁻⁸) a few roundings in a row, which the two ways place differently.
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    assert relative(outputs[0], outputs[1]) < tolerance
    assert relative(gradients[0], gradients[1]) < tolerance


def test_layers_are_called_one_by_one_where_hooks_may_listen() -> None:
    model = lean_model()
    adapter = trained(model)
    seen: list[int] = []
    for attention in attentions(model):
        attention.to_k.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        model.predict()
    assert len(seen) == 8
    with adapter.training(DropoutRates(dropout=0.5), 1):
        model.predict()
    assert len(seen) == 16


def test_only_layers_that_are_alike_are_joined() -> None:
    assert _joined(AdapterSpec(rank=2, alpha=1.0)) == 8
    assert _joined(AdapterSpec(family="loha", rank=2, alpha=1.0)) == 0
    assert _joined(AdapterSpec(rank=2, alpha=1.0, unet=False)) == 0


def _joined(spec: AdapterSpec) -> int:
    model = lean_model()
    inject(model, spec, seed=1)
    return len(attentions(model))


def test_layers_of_other_ranks_buffers_or_kinds_cannot_be_joined() -> None:
    first, second = _attention_of(AdapterSpec(rank=2, alpha=1.0)), _attention_of(AdapterSpec(rank=2, alpha=1.0))
    other_rank = _attention_of(AdapterSpec(rank=4, alpha=2.0))
    assert join_layers([first.to_k, first.to_v])
    assert not join_layers([first.to_k, second.to_v])  # another buffer
    assert not join_layers([first.to_k, other_rank.to_v])
    assert not join_layers([first.to_k, first.to_out[0]])  # it has a bias
    assert not join_layers([first.to_k, nn.Linear(4, 4)])


def test_a_layer_that_peft_switched_off_is_not_joined() -> None:
    attention = _attention_of(AdapterSpec(rank=2, alpha=1.0))
    joint = join_layers([attention.to_k, attention.to_v])
    assert joint is not None and joint.is_usable
    attention.to_v._disable_adapters = True
    assert not joint.is_usable


def _attention_of(spec: AdapterSpec) -> Any:
    model = lean_model()
    inject(model, spec, seed=1)
    return attentions(model)[0]


def test_removing_the_adapter_restores_the_processors() -> None:
    model = lean_model()
    adapter: Adapter = trained(model)
    adapter.remove()
    assert attentions(model) == []
    assert any(type(getattr(module, "processor", None)) is AttentionProcessor for module in model.unet.modules())
