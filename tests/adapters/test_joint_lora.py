"""Projections computed together equal the same layers computed one by one, and only what is alike is joined."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_lora_train.adapters.dropout import DropoutRates
from lib_lora_train.adapters.inject import Adapter, inject
from lib_lora_train.adapters.joint_lora import JointLayers, JointProjections, join_layers
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
@pytest.mark.parametrize("strength", [1.0, 4.0])  # with alpha / rank = 0.5: a scale below 1 and one of 2
def test_joint_layers_equal_the_formula_in_float64(
    names: tuple[str, ...], needs_input_grad: bool, strength: float
) -> None:
    model = lean_model()
    adapter = trained(model, AdapterSpec(rank=2, alpha=1.0))
    attention = next(a for a in attentions(model) if a.to_q.base_layer.in_features == a.to_k.base_layer.in_features)
    layers = [getattr(attention, name) for name in names]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, layers[0].base_layer.in_features, generator=generator).requires_grad_(needs_input_grad)
    pulls = [torch.randn(2, 5, layers[0].base_layer.out_features, generator=generator) for _ in layers]
    joint = join_layers(layers)
    assert joint is not None and joint.is_usable
    joint.switch.strength = strength
    outputs = joint(x)
    sum((output * pull).sum() for output, pull in zip(outputs, pulls, strict=True)).backward()  # type: ignore[union-attr]

    exact_x = x.detach().double().requires_grad_()
    for layer, output, pull in zip(layers, outputs, pulls, strict=True):
        down, up = (value.double().requires_grad_() for value in layer.slices.values(torch.float32))
        exact = exact_x @ layer.base_layer.weight.double().t() + 0.5 * strength * (exact_x @ down.t()) @ up.t()
        (exact * pull).sum().backward()
        assert relative(output, exact.detach()) < ANOTHER_ORDER
        for name, leaf in (("down", down), ("up", up)):
            assert leaf.grad is not None
            assert relative(layer.slices.buffer.gradient(layer.slices.positions[name]), leaf.grad) < ANOTHER_ORDER
    if needs_input_grad:
        assert x.grad is not None and exact_x.grad is not None
        assert relative(x.grad, exact_x.grad) < ANOTHER_ORDER
    adapter.remove()


def test_a_pass_joins_three_projections_over_one_input_and_two_over_text(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lean_model()
    adapter = trained(model)
    joined: list[int] = []

    def count(joint: JointLayers, x: Tensor) -> tuple[Tensor, ...]:
        joined.append(len(joint.layers))
        return call(joint, x)

    call = JointLayers.__call__
    monkeypatch.setattr(JointLayers, "__call__", count)
    with adapter.training(DropoutRates(), 1):
        model.predict()
    assert joined == [3, 2] * 4


def test_another_context_of_the_same_width_is_not_taken_for_the_input() -> None:
    model = lean_model()
    adapter = trained(model)
    attention = attentions(model)[0]
    assert attention.processor.of_one_input is not None
    x, context = (torch.randn(1, 5, attention.to_q.base_layer.in_features) for _ in range(2))
    projected = attention.processor.project(attention, x, context)
    layers = (attention.to_q, attention.to_k, attention.to_v)
    for found, layer, given in zip(projected, layers, (x, context, context), strict=True):
        assert relative(found, layer(given).detach()) < ANOTHER_ORDER
    adapter.remove()


def test_weights_are_kept_for_the_backward_pass_only_if_it_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a gradient of the input none is, and fp8 weights are cast again rather than kept."""
    attention = _attention_of(AdapterSpec(rank=2, alpha=1.0))
    joint = join_layers([attention.to_k, attention.to_v])
    assert joint is not None
    width = attention.to_k.base_layer.in_features
    shape, gradients = attention.to_k.base_layer.weight.shape, []
    weights, casts = joint.weights(), list[int]()

    def cast() -> list[Tensor]:
        casts.append(1)
        return weights

    monkeypatch.setattr(joint, "weights", cast)
    for is_fp8, needs_input_grad, expected in [(False, True, 2), (False, False, 0), (True, True, 0)]:
        casts.clear()
        monkeypatch.setattr("lib_lora_train.adapters.joint_lora.is_fp8", lambda _, answer=is_fp8: answer)
        x = torch.arange(3.0 * width).view(1, 3, width).requires_grad_(needs_input_grad)
        outputs, kept = _saved_shapes(joint, x)
        assert kept.count(shape) == expected
        sum(output.sum() for output in outputs).backward()  # type: ignore[union-attr]
        assert len(casts) == (2 if is_fp8 else 1)
        gradients.append(x.grad)
    assert gradients[0] is not None and gradients[1] is None
    assert torch.equal(gradients[0], gradients[2])  # type: ignore[arg-type]  # the same products of the same weights


def _saved_shapes(joint: JointLayers, x: Tensor) -> tuple[tuple[Tensor, ...], list[torch.Size]]:
    """The outputs, and the shapes of the tensors that autograd keeps."""
    kept: list[torch.Size] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        return joint(x), kept


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
    narrow, wide = (found[1] for found in _text_attentions_by_width())
    assert not join_layers([narrow.to_k, wide.to_k])  # as many inputs, but more outputs
    assert not join_layers([first.to_k, first.to_out[0]])  # it has a bias
    assert not join_layers([first.to_k, nn.Linear(4, 4)])


def _text_attentions_by_width() -> tuple[tuple[int, Any], tuple[int, Any]]:
    """The narrowest and the widest attention over text of one model, with their widths."""
    model = lean_model()
    inject(model, AdapterSpec(rank=2, alpha=1.0), seed=1)
    over_text = [a for a in attentions(model) if a.processor.of_one_input is None]
    widths = sorted(((a.to_k.base_layer.out_features, a) for a in over_text), key=lambda pair: pair[0])
    return widths[0], widths[-1]


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
