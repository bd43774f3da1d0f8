"""LoRA beyond the contract of all families: its fused Function, PEFT's definition, memory and initial weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from lib_lora_train.adapters.families.lora import conv_lora, linear_lora
from lib_lora_train.adapters.families.options import Options
from lib_lora_train.adapters.registry import FAMILIES
from tests.stand_ins.adapter_cases import ALPHA, RANK, TOLERANCE, every_layer, make, relative


@pytest.mark.parametrize("scale", [1.0, 0.75])
@every_layer
def test_lora_gradients_pass_numerical_check(kind: str, scale: float) -> None:
    layer, x = make("lora", kind)
    base: Any = layer.base_layer.double()
    down, up = (tensor.double().requires_grad_() for tensor in layer.slices.fp32().values())
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
    assert float(down.std()) == pytest.approx(bound / 3**0.5, rel=0.02)  # 18,432 draws: 0.5 % standard error
