"""What every adapter family promises, on every kind of layer and in every number format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lib_lora_train.adapters.file import read_adapter, write_adapter
from lib_lora_train.adapters.flat import FlatBuffer, Slices
from lib_lora_train.adapters.layers import AdaptedLayer, Switch
from lib_lora_train.adapters.lora import conv_lora, linear_lora
from lib_lora_train.adapters.registry import FAMILIES

RANK, ALPHA = 4, 3.0

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(24, 40), (2, 7, 24)),
    "linear_no_bias": (lambda: nn.Linear(24, 40, bias=False), (2, 7, 24)),
    "linear_rows": (lambda: nn.Linear(24, 40), (5, 24)),
    "conv1x1": (lambda: nn.Conv2d(24, 16, 1), (2, 24, 6, 5)),
    "conv3x3": (lambda: nn.Conv2d(24, 16, 3, padding=1), (2, 24, 6, 5)),
    "conv3x3_strided": (lambda: nn.Conv2d(24, 16, 3, stride=2, padding=1), (2, 24, 7, 6)),
    "conv3x3_valid_no_bias": (lambda: nn.Conv2d(24, 16, 3, stride=2, bias=False), (2, 24, 7, 6)),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Machine epsilons of the formats times a few roundings of sums of about 200 terms.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}

every_family = pytest.mark.parametrize("family", FAMILIES)
every_layer = pytest.mark.parametrize("kind", LAYERS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))


def make(
    family: str, kind: str, dtype: torch.dtype = torch.float32, *, trained: bool = True
) -> tuple[AdaptedLayer, Tensor]:
    """An adapted layer (with a non-zero update if `trained`) and an input for it, always the same ones."""
    torch.manual_seed(7)
    build, shape = LAYERS[kind]
    base = build().to(dtype).requires_grad_(False)
    weights = FAMILIES[family].init_weights(base, RANK, torch.Generator().manual_seed(1))
    if trained:
        weights = {name: torch.randn(tensor.shape) * 0.3 for name, tensor in weights.items()}
    buffer = FlatBuffer(list(weights.values()), torch.device("cpu"))
    slices = Slices(buffer, {name: position for position, name in enumerate(weights)})
    layer = AdaptedLayer(base, FAMILIES[family], slices, alpha=ALPHA, rank=RANK, switch=Switch())
    return layer, torch.randn(shape).to(dtype)


def plain_forward(layer: AdaptedLayer, x: Tensor, weights: dict[str, Tensor]) -> Any:
    """Base output plus the family's plain formula, differentiated by autograd."""
    output: Tensor = layer.base_layer(x)
    return output + layer.family.forward_delta(layer.base_layer, x, weights, layer.scale)


def relative(a: Tensor, b: Tensor) -> float:
    """Difference in units of the reference's norm."""
    return float((a.detach().double() - b.detach().double()).norm() / b.detach().double().norm())


def webui_delta(state: dict[str, Tensor], base_shape: torch.Size) -> Tensor:
    """ΔW as A1111 computes it (extensions-builtin/Lora, network_module_lora and network.calc_scale)."""
    up, down = state["lora_up.weight"].float(), state["lora_down.weight"].float()
    dim = down.shape[0]
    product = up.reshape(up.size(0), -1) @ down.reshape(down.size(0), -1)
    return product.reshape(base_shape) * (state["alpha"].item() / dim)


@every_dtype
@every_layer
@every_family
def test_fresh_adapter_changes_no_bit(family: str, kind: str, dtype: torch.dtype) -> None:
    layer, x = make(family, kind, dtype, trained=False)
    assert torch.equal(layer(x), layer.base_layer(x))


@every_layer
@every_family
def test_forward_equals_merged_weight(family: str, kind: str) -> None:
    layer, x = make(family, kind)
    expected = layer.base_layer(x.clone())
    layer.base_layer.weight.add_(layer.diff_weight())  # type: ignore[operator]
    merged = layer.base_layer(x)
    layer.base_layer.weight.sub_(layer.diff_weight())  # type: ignore[operator]
    assert relative(layer(x), merged) < TOLERANCE[torch.float32]
    assert relative(expected, merged) > 1e-2, "the update must be large enough to be seen"


@every_dtype
@every_layer
@every_family
def test_forward_and_gradients_equal_autograd_of_plain_formula(family: str, kind: str, dtype: torch.dtype) -> None:
    layer, x = make(family, kind, dtype)
    weights = {name: tensor.detach().clone().requires_grad_() for name, tensor in layer.slices.named().items()}
    x_plain, x_fused = x.clone().requires_grad_(), x.clone().requires_grad_()
    plain = plain_forward(layer, x_plain, {name: tensor.to(dtype) for name, tensor in weights.items()})
    fused = layer(x_fused)
    pull = torch.randn(plain.shape).to(dtype)
    plain.backward(pull)
    fused.backward(pull)
    tolerance = TOLERANCE[dtype]
    assert relative(fused, plain) < tolerance
    assert x_plain.grad is not None and x_fused.grad is not None
    assert relative(x_fused.grad, x_plain.grad) < tolerance
    for name, position in layer.slices.positions.items():
        gradient, expected = layer.slices.buffer.gradient(position), weights[name].grad
        assert gradient.dtype == torch.float32 and expected is not None
        assert relative(gradient, expected) < tolerance, name


@pytest.mark.parametrize("scale", [1.0, 0.75])
@every_layer
def test_lora_gradients_pass_numerical_check(kind: str, scale: float) -> None:
    layer, x = make("lora", kind)
    base: Any = layer.base_layer.double()
    down, up = (tensor.double().requires_grad_() for tensor in layer.slices.named().values())
    apply: Any = conv_lora if isinstance(base, nn.Conv2d) else linear_lora
    inputs = (x.double()[:1].requires_grad_(), down, up)
    assert torch.autograd.gradcheck(lambda *tensors: apply(*tensors, base, scale=scale), inputs, fast_mode=True)


@every_layer
def test_lora_equals_peft(kind: str) -> None:
    layer, x = make("lora", kind)
    holder = nn.Sequential(layer.base_layer)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"])
    peft_layer: Any = inject_adapter_in_model(config, holder)[0]
    down, up = peft_layer.lora_A["default"].weight, peft_layer.lora_B["default"].weight
    with torch.no_grad():
        down.copy_(layer.slices.named()["down"])
        up.copy_(layer.slices.named()["up"])
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


@every_layer
@every_family
def test_norm_equals_norm_of_difference(family: str, kind: str) -> None:
    layer, _ = make(family, kind)
    assert float(layer.diff_norm()) == pytest.approx(float(layer.diff_weight().norm()), rel=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@every_layer
@every_family
def test_saved_loaded_and_saved_again_is_byte_equal(family: str, kind: str, precision: str, tmp_path: Path) -> None:
    layer, _ = make(family, kind)
    again, _ = make(family, kind, trained=False)
    metadata = {"ss_output_name": "n", "ss_steps": "3", "modelspec.title": "ü"}
    for name, adapted in (("first", layer), ("second", again)):
        if name == "second":
            again.load_state(read_adapter(tmp_path / "first.safetensors").state)
        write_adapter(tmp_path / f"{name}.safetensors", adapted.state(), metadata=metadata, precision=precision)
    assert (tmp_path / "first.safetensors").read_bytes() == (tmp_path / "second.safetensors").read_bytes()


@every_layer
@every_family
def test_webui_formula_on_the_file_gives_our_difference(family: str, kind: str, tmp_path: Path) -> None:
    layer, _ = make(family, kind)
    write_adapter(tmp_path / "a.safetensors", layer.state(), metadata={}, precision="fp32")
    state = dict(read_adapter(tmp_path / "a.safetensors").state)
    weight: Any = layer.base_layer.weight
    assert relative(webui_delta(state, weight.shape), layer.diff_weight()) < 1e-6


@every_layer
@every_family
def test_input_without_gradient_still_trains(family: str, kind: str) -> None:
    layer, x = make(family, kind)
    layer(x).square().sum().backward()
    assert all(float(layer.slices.buffer.gradient(n).norm()) > 0 for n in layer.slices.positions.values())


@every_layer
@every_family
def test_frozen_group_passes_gradients_on_and_gets_none(family: str, kind: str) -> None:
    layer, x = make(family, kind)
    layer.slices.buffer.parameter.requires_grad_(False)
    x.requires_grad_()
    layer(x).square().sum().backward()
    assert x.grad is not None and layer.slices.buffer.parameter.grad is None


@every_dtype
@every_layer
@every_family
def test_checkpointing_gives_the_same_gradients(family: str, kind: str, dtype: torch.dtype) -> None:
    layer, x = make(family, kind, dtype)
    parameter: Any = layer.slices.buffer.parameter
    layer(x).float().square().sum().backward()
    expected = parameter.grad.clone()
    parameter.grad = None
    checkpoint(layer, x, use_reentrant=False).float().square().sum().backward()
    assert torch.equal(parameter.grad, expected)


def test_lora_keeps_only_input_and_rank_size_product_for_backward() -> None:
    layer, x = make("lora", "linear")
    saved: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(x)
    known = {x.data_ptr(), *(tensor.data_ptr() for tensor in layer.slices.named().values())}
    extra = [tensor.shape for tensor in saved if tensor.data_ptr() not in known]
    assert extra == [torch.Size([14, RANK])]


def test_lora_down_starts_uniform_within_kaimings_bound() -> None:
    conv = nn.Conv2d(32, 16, 3)
    down = FAMILIES["lora"].init_weights(conv, 64, torch.Generator().manual_seed(0))["down"]
    bound = 1 / (32 * 9) ** 0.5
    assert down.shape == (64, 32, 3, 3)
    assert 0.99 * bound < float(down.abs().max()) <= bound
    assert float(down.std()) == pytest.approx(bound / 3**0.5, rel=0.02)  # 18,432 draws: 0.5 % standard error


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3, padding_mode="circular"), nn.LayerNorm(8)]
)
def test_lora_declines_layers_it_cannot_express(layer: nn.Module) -> None:
    assert not FAMILIES["lora"].fits(layer)
