"""Adapters in training: one flat parameter per group behaves like hundreds of matrices under autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from prodigyopt import Prodigy

from lib_lora_train.adapters.inject import inject
from lib_lora_train.adapters.registry import AdapterSpec
from tests.stand_ins.adapter_cases import relative
from tests.stand_ins.adapters_model import (
    ADDED_IN_ANOTHER_ORDER,
    SPEC,
    TinyModel,
    tiny_model,
    trained,
    use_plain_formula,
)


def test_training_changes_only_the_flat_parameters() -> None:
    model = tiny_model()
    base = {id(p): p.clone() for root in (model.unet, *model.text_encoders) for p in root.parameters()}
    adapter = inject(model, SPEC, seed=1)
    optimizer = torch.optim.AdamW([p for group in adapter.groups.values() for p in group], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model.predict().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] * 0.9
    for root in (model.unet, *model.text_encoders):
        for parameter in root.parameters():
            assert torch.equal(parameter, base[id(parameter)]) and parameter.grad is None


@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, Prodigy])
def test_one_flat_parameter_trains_like_separate_matrices(optimizer_class: Any) -> None:
    """Three steps of both; the references are leaves of the plain formula, with gradients by autograd."""
    model, reference = tiny_model(), tiny_model()
    adapter, other = trained(model, AdapterSpec(rank=2, alpha=1.0, text_encoder=False)), {}
    for key, layer in trained(reference, adapter.spec).layers.items():
        other[key] = {n: t.detach().clone().requires_grad_() for n, t in layer.slices.fp32().items()}
        use_plain_formula(layer, other[key])
    settings = {"lr": 1.0, "d0": 1e-2} if optimizer_class is Prodigy else {"lr": 1e-3}
    flat = optimizer_class(adapter.groups["unet"], **settings)
    many = optimizer_class([tensor for leaves in other.values() for tensor in leaves.values()], **settings)
    for _ in range(3):
        for trainee, optimizer in ((model, flat), (reference, many)):
            trainee.predict().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    start = trained(tiny_model(), adapter.spec).layers
    for key, layer in adapter.layers.items():
        for name, tensor in layer.slices.fp32().items():
            before = start[key].slices.fp32()[name]
            moved, expected = (tensor - before).flatten(), (other[key][name].detach() - before).flatten()
            # Adam's first steps depend on little but signs; only near-zero gradients may differ.
            assert float(torch.nn.functional.cosine_similarity(moved, expected, dim=0)) > 0.999


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_accumulate_and_are_zeroed_either_way(set_to_none: bool) -> None:
    model = tiny_model()
    adapter = trained(model)
    (parameter,) = adapter.groups["unet"]
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    model.predict().sum().backward()
    once = parameter.grad.clone()
    model.predict().sum().backward()
    assert relative(parameter.grad, 2 * once) < ADDED_IN_ANOTHER_ORDER
    optimizer.zero_grad(set_to_none=set_to_none)
    model.predict().sum().backward()
    assert torch.equal(parameter.grad, once)


def test_zeroing_between_forward_and_backward_loses_nothing() -> None:
    model = tiny_model()
    adapter = trained(model)
    (parameter,) = adapter.groups["unet"]
    model.predict().sum().backward()
    expected = parameter.grad.clone()
    prediction = model.predict()
    parameter.grad = None
    prediction.sum().backward()
    assert torch.equal(parameter.grad, expected)


def test_flat_gradient_equals_autograd_through_the_whole_model() -> None:
    """The reference replaces every adapted layer by its plain formula on leaf tensors."""
    model = tiny_model()
    adapter = trained(model, AdapterSpec(rank=2, alpha=1.0, targets="all"))
    model.predict().square().sum().backward()
    leaves = {
        key: {n: t.detach().clone().requires_grad_() for n, t in layer.slices.fp32().items()}
        for key, layer in adapter.layers.items()
    }
    for key, layer in adapter.layers.items():
        use_plain_formula(layer, leaves[key])
    model.predict().square().sum().backward()
    for key, layer in adapter.layers.items():
        for name, position in layer.slices.positions.items():
            expected = leaves[key][name].grad
            assert expected is not None
            # fp32 sums in another order through some forty layers.
            torch.testing.assert_close(layer.slices.buffer.gradient(position), expected, rtol=2e-3, atol=2e-5)


def test_checkpointed_model_gives_the_same_gradients() -> None:
    model = tiny_model()
    adapter = trained(model)
    (parameter,) = adapter.groups["unet"]
    model.predict().sum().backward()
    expected = parameter.grad.clone()
    parameter.grad = None
    model.unet.enable_gradient_checkpointing()
    model.unet.train()
    model.predict().sum().backward()
    # The same kernels on the same inputs; only the order of accumulation may differ.
    torch.testing.assert_close(parameter.grad, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_base_dtypes_train_fp32_weights(dtype: torch.dtype) -> None:
    reference, model = tiny_model(), tiny_model(dtype)
    expected, adapter = trained(reference), trained(model)
    reference.predict().float().sum().backward()
    model.predict().float().sum().backward()
    (ours,), (theirs,) = adapter.groups["unet"], expected.groups["unet"]
    assert ours.dtype == ours.grad.dtype == torch.float32
    similarity = torch.nn.functional.cosine_similarity(ours.grad, theirs.grad, dim=0)
    # bf16: some 500 roundings of 2⁻⁹ through forty layers and back are √500 · 2⁻⁹ = 4.4%, which is 1 − 0.001 as a
    # cosine; how many there are depends on the processor (3.9% with AVX2, 4.6% without), so twice that is allowed.
    assert float(similarity) > (0.998 if dtype == torch.bfloat16 else 1 - 1e-6)


def test_weights_are_cast_again_in_every_half_precision_forward() -> None:
    model = tiny_model(torch.bfloat16)
    adapter = trained(model)
    before = model.predict()
    for (parameter,) in adapter.groups.values():
        parameter.data.mul_(3)  # the way prodigyopt writes: no version counter changes
    assert not torch.equal(model.predict(), before)


def casts_of(model: TinyModel) -> int:
    """How many tensors (except scalars) one prediction casts to another dtype."""
    with torch.autograd.profiler.profile(record_shapes=True) as profile:
        model.predict()
    return sum(event.name == "aten::_to_copy" and event.input_shapes[0] != [] for event in profile.function_events)


def test_half_precision_forward_casts_once_per_group_and_fp32_never() -> None:
    for dtype, expected in ((torch.float32, 0), (torch.bfloat16, 2)):
        model = tiny_model(dtype)
        before = casts_of(model)
        adapter = trained(model)
        assert len(adapter.groups) == 2
        assert casts_of(model) - before == expected
