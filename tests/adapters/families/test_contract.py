"""What every adapter family guarantees, on every kind of layer and in every dtype.

The reference is what the webuis compute from the saved keys (`webui_formulas`), in float64, differentiated by autograd.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lib_lora_train.adapters.adapted_layer import AdaptedLayer
from lib_lora_train.adapters.families.base import Family
from lib_lora_train.adapters.families.scalar import WithScalar
from lib_lora_train.adapters.files.lora_file import read_adapter, write_adapter
from lib_lora_train.config.family_catalog import families_forge_ignores
from tests.stand_ins.adapter_cases import CASES, LAYERS, TOLERANCE, every_dtype, every_pair, make, relative
from tests.stand_ins.webui_formulas import a1111_delta, forge_delta


def exact_leaves(layer: AdaptedLayer) -> dict[str, Tensor]:
    """The trained tensors in float64, as autograd leaves, by their short names."""
    return {name: tensor.double().requires_grad_() for name, tensor in layer.slices.fp32().items()}


# The tensors that a trained factor is multiplied into, by family; any in which ΔW is linear would do.
LINEAR_IN = {"lora": ("up",), "loha": ("w1_a",), "lokr": ("w1",), "glora": ("a2", "b2")}


def exact_state(layer: AdaptedLayer, leaves: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The file's tensors in float64, from `leaves`; a trained scalar is multiplied into other tensors."""
    weights = dict(leaves or exact_leaves(layer))
    factor = weights.pop("scalar", None)
    if factor is not None:
        linear = LINEAR_IN[layer.family.NAME]
        weights = {name: tensor * factor if name in linear else tensor for name, tensor in weights.items()}
    fixed = layer.family.fixed_state(layer.options)
    return {**{layer.family.STATE_KEYS[name]: tensor for name, tensor in weights.items()}, **fixed}


def reference(layer: AdaptedLayer, x: Tensor, state: dict[str, Tensor]) -> Tensor:
    """The layer with the webui's ΔW merged into its weight and bias, in float64."""
    base: Any = layer.base_layer
    weight = base.weight.detach().double()
    merged = weight + a1111_delta(state, weight)
    bias = None if base.bias is None else base.bias.detach().double()
    for ending in ("diff_b", "b_norm"):
        if ending in state:
            bias = state[ending] if bias is None else bias + state[ending]
    if isinstance(base, nn.Conv2d):
        return F.conv2d(x, merged, bias, base.stride, base.padding, base.dilation)
    if isinstance(base, nn.GroupNorm):
        return F.group_norm(x, base.num_groups, merged, bias, base.eps)
    if isinstance(base, nn.LayerNorm):
        return F.layer_norm(x, base.normalized_shape, merged, bias, base.eps)
    return F.linear(x, merged, bias)


def pull_on(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """A random direction of the output; its norm would not do, since rotations do not change it."""
    return torch.randn(layer.base_layer(x).shape)


@every_dtype
@every_pair
def test_a_new_adapter_leaves_the_output_bit_identical(case: str, kind: str, dtype: torch.dtype) -> None:
    layer, x = make(case, kind, dtype, trained=False)
    assert torch.equal(layer(x), layer.base_layer(x))


@every_pair
def test_the_update_of_a_new_adapter_is_exactly_zero(case: str, kind: str) -> None:
    layer, _ = make(case, kind, trained=False)
    assert float(layer.diff_weight().abs().max()) == 0.0


@every_dtype
@every_pair
def test_forward_and_gradients_equal_autograd_of_the_webuis_formula(case: str, kind: str, dtype: torch.dtype) -> None:
    layer, x = make(case, kind, dtype)
    leaves = exact_leaves(layer)
    state = exact_state(layer, leaves)
    x_exact, x_ours = x.double().requires_grad_(), x.clone().requires_grad_()
    expected, ours = reference(layer, x_exact, state), layer(x_ours)
    pull = torch.randn(expected.shape).to(dtype)
    torch.autograd.backward(expected, pull.double())
    ours.backward(pull)
    tolerance = TOLERANCE[dtype]
    assert relative(expected, layer.base_layer(x)) > 1e-2, "the update must be large enough to be seen"
    assert relative(ours, expected) < tolerance
    assert x_ours.grad is not None and x_exact.grad is not None
    assert relative(x_ours.grad, x_exact.grad) < tolerance
    for name, position in layer.slices.positions.items():
        gradient, exact = layer.slices.buffer.gradient(position), leaves[name].grad
        assert gradient.dtype == torch.float32 and exact is not None
        if name == "scalar":
            assert float((gradient - exact).abs()) < tolerance * factors_terms(layer, leaves)
        else:
            assert relative(gradient, exact) < 2 * tolerance, name


def factors_terms(layer: AdaptedLayer, leaves: dict[str, Tensor]) -> float:
    """‖w‖ ‖∂L/∂w‖ / |c|: how large the terms are whose sum ⟨w, ∂L/∂w⟩ / c is the gradient of the factor c of w.

    They may cancel (to 0.2% in these cases), so that roundings are small beside them, but not beside their sum.
    """
    total = 0.0
    for name in LINEAR_IN[layer.family.NAME]:
        weight = leaves[name]
        assert weight.grad is not None
        total += float(weight.detach().norm() * weight.grad.norm())
    return total / float(leaves["scalar"].detach().abs())


@every_pair
def test_half_strength_is_half_the_webuis_update(case: str, kind: str) -> None:
    layer, x = make(case, kind)
    weight: Any = layer.base_layer.weight
    layer.switch.strength = 0.5
    half = layer(x)
    layer.switch.strength = 0.0
    base = layer(x)
    state = {key: tensor.detach() for key, tensor in exact_state(layer).items()}
    whole = reference(layer, x.double(), state)
    assert weight.requires_grad is False
    assert relative(half - base, (whole - base.double()) / 2) < 2e-5  # the difference of two rounded outputs


@every_dtype
@every_pair
def test_half_strength_and_its_gradients_are_those_of_half_the_update(case: str, kind: str, dtype: torch.dtype) -> None:
    """(base + webui's formula) / 2 in float64 and its autograd, for the input and every tensor."""
    layer, x = make(case, kind, dtype)
    layer.switch.strength = 0.5
    leaves = exact_leaves(layer)
    x_exact, x_ours = x.double().requires_grad_(), x.clone().requires_grad_()
    whole = reference(layer, x_exact, exact_state(layer, leaves))
    expected = (whole + copy.deepcopy(layer.base_layer).double()(x_exact)) / 2
    ours = layer(x_ours)
    pull = torch.randn(expected.shape).to(dtype)
    torch.autograd.backward(expected, pull.double())
    ours.backward(pull)
    tolerance = TOLERANCE[dtype]
    assert relative(ours, expected) < tolerance
    assert x_ours.grad is not None and x_exact.grad is not None
    assert relative(x_ours.grad, x_exact.grad) < tolerance
    for name, position in layer.slices.positions.items():
        exact = leaves[name].grad
        assert exact is not None
        if name == "scalar":
            error = float((layer.slices.buffer.gradient(position) - exact).abs())
            assert error < tolerance * factors_terms(layer, leaves)
        else:
            assert relative(layer.slices.buffer.gradient(position), exact) < 2 * tolerance, name


@every_pair
def test_a1111_reads_our_update_from_the_file(case: str, kind: str, tmp_path: Path) -> None:
    layer, _ = make(case, kind)
    write_adapter(tmp_path / "a.safetensors", layer.state(), metadata={}, precision="fp32")
    state = {key: _exact(tensor) for key, tensor in read_adapter(tmp_path / "a.safetensors").state.items()}
    weight: Any = layer.base_layer.weight
    assert relative(layer.diff_weight(), a1111_delta(state, weight.double())) < 1e-6


@every_pair
def test_forge_reads_our_update_except_in_known_cases(case: str, kind: str) -> None:
    layer, _ = make(case, kind)
    state = {key: _exact(tensor) for key, tensor in layer.state().items()}
    weight: Any = layer.base_layer.weight
    found = forge_delta(state, weight.double())
    if found is None:
        has_kernel = weight.dim() == 4 and weight.shape[-1] > 1
        is_known = CASES[case].family in families_forge_ignores() or (case == "lokr_tucker" and has_kernel)
        assert is_known, "Forge has no formula for this file: see config/family_support.py"
    else:
        assert CASES[case].family not in families_forge_ignores(), "Forge reads it: see config/family_support.py"
        assert relative(layer.diff_weight(), found) < 1e-6


def _exact(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() and tensor.dim() else tensor


@every_pair
def test_norm_equals_the_norm_of_the_update(case: str, kind: str) -> None:
    layer, _ = make(case, kind)
    assert float(layer.diff_norm()) == pytest.approx(float(layer.diff_weight().norm()), rel=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@every_pair
def test_saved_loaded_and_saved_again_is_byte_equal(case: str, kind: str, precision: str, tmp_path: Path) -> None:
    layer, _ = make(case, kind)
    again, _ = make(case, kind, trained=False)
    metadata = {"ss_output_name": "n", "ss_steps": "3", "modelspec.title": "ü"}
    for name, adapted in (("first", layer), ("second", again)):
        if name == "second":
            again.load_state(read_adapter(tmp_path / "first.safetensors").state)
        write_adapter(tmp_path / f"{name}.safetensors", adapted.state(), metadata=metadata, precision=precision)
    assert (tmp_path / "first.safetensors").read_bytes() == (tmp_path / "second.safetensors").read_bytes()


@every_pair
def test_input_without_gradient_still_trains(case: str, kind: str) -> None:
    layer, x = make(case, kind)
    (layer(x) * pull_on(layer, x)).sum().backward()
    assert all(float(layer.slices.buffer.gradient(n).norm()) > 0 for n in layer.slices.positions.values())


@every_pair
def test_a_new_adapter_learns(case: str, kind: str) -> None:
    layer, x = make(case, kind, trained=False)
    (layer(x) * pull_on(layer, x)).sum().backward()
    gradient = layer.slices.buffer.parameter.grad
    assert gradient is not None and float(gradient.norm()) > 0 and bool(gradient.isfinite().all())


@every_pair
def test_a_frozen_group_passes_gradients_but_gets_none(case: str, kind: str) -> None:
    layer, x = make(case, kind)
    layer.slices.buffer.parameter.requires_grad_(False)
    x.requires_grad_()
    layer(x).square().sum().backward()
    assert x.grad is not None and layer.slices.buffer.parameter.grad is None


@every_dtype
@every_pair
def test_checkpointing_gives_the_same_gradients(case: str, kind: str, dtype: torch.dtype) -> None:
    layer, x = make(case, kind, dtype)
    parameter: Any = layer.slices.buffer.parameter
    layer(x).float().square().sum().backward()
    expected = parameter.grad.clone()
    parameter.grad = None
    checkpoint(layer, x, use_reentrant=False).float().square().sum().backward()
    assert torch.equal(parameter.grad, expected)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 8, 3, groups=2),
        nn.Conv2d(8, 8, 3, padding_mode="circular"),
        nn.Conv2d(8, 8, 3, padding="same"),
        nn.BatchNorm2d(8),
        nn.LayerNorm(8, elementwise_affine=False),
    ],
    ids=["grouped", "circular", "named padding", "batch norm", "no affine"],
)
def test_unsupported_layers_are_rejected(case: str, layer: nn.Module) -> None:
    assert not CASES[case].mathematics.fits(layer)


def test_every_case_is_tested_on_a_layer_it_fits() -> None:
    kinds = {kind for kind in LAYERS if "norm" not in kind}
    linear = {kind for kind in kinds if "conv" not in kind}
    for case in CASES:
        fitting = {kind for kind in kinds if CASES[case].mathematics.fits(LAYERS[kind][0]())}
        assert fitting in ([set()] if case == "norm" else [linear, kinds]), "fits() is for all convolutions or for none"


@every_pair
def test_a_family_says_whether_its_update_depends_on_the_models_weights(case: str, kind: str) -> None:
    layer, _ = make(case, kind)
    base: Any = layer.base_layer.weight
    weights = layer.slices.fp32()
    other = layer.family.diff_weight(weights, layer.options, base * 2 + 1)
    depends = not torch.equal(other, layer.diff_weight())
    assert depends == layer.family.DEPENDS_ON_MODEL, f"set DEPENDS_ON_MODEL = {depends} in the family"


@every_pair
def test_the_shape_of_the_update_is_known_without_the_model(case: str, kind: str) -> None:
    """As `check` needs it; a kernel may be flat."""
    layer, _ = make(case, kind)
    if layer.family.DEPENDS_ON_MODEL:
        return
    base: Any = layer.base_layer.weight
    weights = layer.family.file_weights(layer.slices.fp32())
    shape = plain(layer.family).update_shape(weights)
    assert (*shape[:1], math.prod(shape)) == (base.shape[0], base.numel()), (
        f"{shape}: use the names o, i, *k and n of families/layouts.py in LAYOUTS, or override update_shape"
    )
    meta = torch.empty(shape, device="meta")
    norm = plain(layer.family).diff_norm(weights, layer.options, meta)
    assert float(norm) == pytest.approx(float(layer.diff_norm()), rel=1e-5)


def plain(family: Family) -> Family:
    """The family that a file of this one has: without a trained scalar, which is multiplied in."""
    return family.inner if isinstance(family, WithScalar) else family
