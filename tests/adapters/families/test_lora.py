"""LoRA beyond the contract of all families: its fused Function, PEFT's definition, memory and initial weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from lib_lora_train.adapters.dropout import DropoutRates, DropoutState
from lib_lora_train.adapters.families.base import is_plain_conv, is_wide_conv
from lib_lora_train.adapters.families.lora import conv_lora, drop_activations, is_pointwise, linear_lora, pointwise_lora
from lib_lora_train.adapters.families.options import Options
from lib_lora_train.adapters.max_norm import delta_norms
from lib_lora_train.adapters.registry import FAMILIES
from tests.stand_ins.adapter_cases import ALPHA, RANK, TOLERANCE, every_layer, make, relative


def function_for(base: Any) -> Any:
    """The fused Function that serves a base layer."""
    if not isinstance(base, nn.Conv2d):
        return linear_lora
    return pointwise_lora if is_pointwise(base) else conv_lora


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_1x1_convolution_by_matrix_products_equals_the_one_by_convolutions(batch: int, memory_format: Any) -> None:
    layer, _ = make("lora", "conv1x1")
    base: Any = layer.base_layer
    assert is_pointwise(base)
    tensors = layer.slices.fp32()
    results = []
    for apply in (pointwise_lora, conv_lora):
        x = torch.randn(batch, base.in_channels, 5, 3, generator=torch.Generator().manual_seed(1))
        x = x.to(memory_format=memory_format).requires_grad_()
        down, up = (tensor.clone().requires_grad_() for tensor in tensors.values())
        output = apply(x, down, up, base, scale=0.75)
        output.square().sum().backward()  # type: ignore[no-untyped-call]
        results.append((output.detach(), x.grad, down.grad, up.grad))
    for products, convolutions in zip(*results, strict=True):
        torch.testing.assert_close(products, convolutions, rtol=1e-5, atol=1e-5)  # sums in another order


@pytest.mark.parametrize("scale", [1.0, 0.75, 2.0, 0.0])
@every_layer
def test_lora_gradients_pass_numerical_check(kind: str, scale: float) -> None:
    layer, x = make("lora", kind)
    base: Any = layer.base_layer.double()
    down, up = (tensor.double().requires_grad_() for tensor in layer.slices.fp32().values())
    apply = function_for(base)
    inputs = (x.double()[:1].requires_grad_(), down, up)
    assert torch.autograd.gradcheck(lambda *tensors: apply(*tensors, base, scale=scale), inputs, fast_mode=True)


@pytest.mark.parametrize("only", ["x", "down", "up"])
@pytest.mark.parametrize("kind", ["linear", "conv1x1", "conv3x3_strided"])
def test_a_tensor_gets_its_gradient_if_no_other_needs_one(kind: str, only: str) -> None:
    layer, x = make("lora", kind)
    base: Any = layer.base_layer.double()
    tensors = {"x": x.double(), **{name: tensor.double() for name, tensor in layer.slices.fp32().items()}}
    apply = function_for(base)
    found: list[Tensor] = []
    for names in (list(tensors), [only]):
        inputs = {name: tensor.detach().clone().requires_grad_(name in names) for name, tensor in tensors.items()}
        apply(inputs["x"], inputs["down"], inputs["up"], base, scale=0.75).square().sum().backward()
        gradient = inputs[only].grad
        assert gradient is not None
        found.append(gradient)
    assert torch.equal(found[0], found[1])


@every_layer
def test_lora_equals_peft(kind: str) -> None:
    layer, x = make("lora", kind)
    holder = nn.Sequential(layer.base_layer)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"])
    peft_layer: Any = inject_adapter_in_model(config, holder)[0]
    down, up = peft_layer.lora_A["default"].weight, peft_layer.lora_B["default"].weight
    with torch.no_grad():
        down.copy_(layer.slices.fp32()["down"])
        up.copy_(layer.slices.fp32()["up"])
    x_peft, x_ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    theirs, ours = peft_layer(x_peft), layer(x_ours)
    pull = torch.randn(theirs.shape)
    theirs.backward(pull)
    ours.backward(pull)
    tolerance = TOLERANCE[torch.float32]
    assert relative(ours, theirs) < tolerance
    assert x_ours.grad is not None and x_peft.grad is not None
    assert relative(x_ours.grad, x_peft.grad) < tolerance
    assert relative(layer.slices.buffer.gradient(0), down.grad) < tolerance
    assert relative(layer.slices.buffer.gradient(1), up.grad) < tolerance


def test_lora_saves_only_input_and_rank_size_product() -> None:
    layer, x = make("lora", "linear")
    saved: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(x)
    known = {x.data_ptr(), *(tensor.data_ptr() for tensor in layer.slices.fp32().values())}
    extra = [tensor.shape for tensor in saved if tensor.data_ptr() not in known]
    assert extra == [torch.Size([14, RANK])]


def test_lora_down_starts_uniform_within_kaimings_bound() -> None:
    conv = nn.Conv2d(32, 16, 3)
    down = FAMILIES["lora"].init_weights(conv, Options(rank=64), torch.Generator().manual_seed(0))["down"]
    bound = 1 / (32 * 9) ** 0.5
    assert down.shape == (64, 32, 3, 3)
    assert 0.99 * bound < float(down.abs().max()) <= bound
    assert float(down.std()) == pytest.approx(bound / 3**0.5, rel=0.02)  # 18,432 draws: 0.5% standard error


@pytest.mark.parametrize("seed", range(8))
def test_the_norm_of_an_update_whose_ranks_cancel_is_zero_and_not_nan(seed: int) -> None:
    """u·(a d) − (a u)·d = 0. For half of the seeds, rounding makes the square of the norm a little less than 0."""
    generator = torch.Generator().manual_seed(seed)
    u, d, a = (torch.randn(size, generator=generator, dtype=torch.float64) for size in ((40, 1), (1, 24), (1,)))
    double = {"down": torch.cat([a * d, -d]), "up": torch.cat([u, a * u], dim=1)}
    u, d, a = u.float(), d.float(), a.float()
    single = {"down": torch.cat([a * d, -d]), "up": torch.cat([u, a * u], dim=1)}
    layer, _ = make("lora", "linear")
    with torch.no_grad():
        for name, tensor in layer.slices.tensors().items():
            tensor.zero_()
            tensor[: single[name].shape[0], : single[name].shape[1]] = single[name]
    scale = float(u.norm() * d.norm() * a.abs())
    assert 0 <= float(FAMILIES["lora"].diff_norm(double, Options(rank=2), torch.empty(40, 24))) < 1e-7 * scale
    assert 0 <= float(delta_norms([layer])) < 2e-3 * scale  # the root of float32's 6e-8, times a few


def test_only_kernels_larger_than_1x1_are_wide() -> None:
    """kohya's conv_dim and Tucker's form are for these."""
    kernels = {(1, 1): False, (3, 3): True, (1, 3): True, (3, 1): True, (2, 2): True}
    assert {kernel: is_wide_conv(nn.Conv2d(4, 4, kernel)) for kernel in kernels} == kernels
    assert not is_wide_conv(nn.Linear(4, 4))


def test_convolutions_are_adapted_unless_they_are_grouped() -> None:
    assert {groups: is_plain_conv(nn.Conv2d(4, 4, 3, groups=groups)) for groups in (1, 2, 4)} == {
        1: True,
        2: False,
        4: False,
    }


def hidden_after_dropout(kind: str, rates: DropoutRates, draw: int) -> tuple[Tensor, Tensor]:
    """The rank-size activations with and without dropout, (B, positions, r): up copies rank n to output n."""
    layer, x = make("lora", kind)
    tensors = layer.slices.tensors()
    with torch.no_grad():
        tensors["up"].zero_()
        tensors["up"][:RANK].flatten(1).fill_diagonal_(1.0)
    axis = 1 if kind.startswith("conv") else -1
    found = []
    for state in (None, DropoutState(rates, 1, (draw,))):
        layer.switch.dropout = state
        change = (layer(x) - layer.base_layer(x)).detach().movedim(axis, -1)[..., :RANK]
        found.append(change.reshape(len(x), -1, RANK))
    return found[1], found[0]


@pytest.mark.parametrize("kind", ["linear", "conv1x1", "conv3x3"])
def test_lora_rank_dropout_drops_whole_ranks_of_a_sample(kind: str) -> None:
    """At all positions alike, and what is left is divided by 1 − p."""
    masks = []
    for draw in range(5):
        found, whole = hidden_after_dropout(kind, DropoutRates(rank_dropout=0.4), draw)
        masks.append((found.abs() > 1e-5).any(dim=1, keepdim=True))  # (B, 1, r)
        torch.testing.assert_close(found, whole * masks[-1] / 0.6, rtol=1e-4, atol=1e-4)  # from rounded outputs
    assert any(sample.any() and not sample.all() for mask in masks for sample in mask), "not all ranks of a sample"
    assert any(not torch.equal(mask[0], mask[1]) for mask in masks)


@pytest.mark.parametrize("kind", ["linear", "conv1x1", "conv3x3"])
def test_lora_dropout_drops_single_activations(kind: str) -> None:
    found, whole = hidden_after_dropout(kind, DropoutRates(dropout=0.4), 0)
    kept = found.abs() > 1e-5
    assert kept.any(dim=1).all() and not kept.all(dim=1).any()
    torch.testing.assert_close(found, whole * kept / 0.6, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rates", [DropoutRates(dropout=0.4), DropoutRates(rank_dropout=0.4)], ids=str)
def test_lora_drops_the_share_that_is_set(rates: DropoutRates) -> None:
    """Of 4,000 draws of an activation, or of a rank; five standard errors are 0.039."""
    ones = torch.ones(1000, 1, 4)
    kept = drop_activations(ones, DropoutState(rates, 1, (0,)).for_layer("a layer"), -1) > 0
    assert float(kept.float().mean()) == pytest.approx(0.6, abs=0.039)
