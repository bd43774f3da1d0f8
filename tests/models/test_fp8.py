"""fp8 layers, compared with plain layers whose weights were rounded to fp8 beforehand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_lora_train.adapters.inject import Adapter, inject
from lib_lora_train.adapters.registry import AdapterSpec
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.fp8 import Fp8Conv2d, Fp8Linear, is_fp8, store_in_fp8
from lib_lora_train.models.loading import ModelChoice, load_model
from tests.stand_ins.tiny_models import tiny_model

CPU = torch.device("cpu")


def unet_inputs(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    width = tiny_model("sd1").unet.config.cross_attention_dim
    return {
        "sample": torch.randn(2, 4, 8, 8, generator=generator).to(dtype),
        "timestep": torch.tensor([10, 700]),
        "encoder_hidden_states": torch.randn(2, 77, width, generator=generator).to(dtype),
    }


def rounded(unet: nn.Module) -> nn.Module:
    """A copy with plain layers, with each weight that fp8 would store rounded by PyTorch's cast."""
    smaller, plain = copy.deepcopy(unet), copy.deepcopy(unet)
    store_in_fp8(smaller)
    for name, layer in smaller.named_modules():
        if is_fp8(layer):
            weight: Any = plain.get_submodule(name).weight
            with torch.no_grad():
                weight.copy_(weight.to(torch.float8_e4m3fn).to(weight.dtype))
    return plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_layers_match_layers_with_rounded_weights(dtype: torch.dtype) -> None:
    unet = copy.deepcopy(tiny_model("sd1").unet).to(dtype)
    plain = rounded(unet)
    store_in_fp8(unet)
    assert torch.equal(unet(**unet_inputs(dtype)).sample, plain(**unet_inputs(dtype)).sample)


def test_fp8_weights_take_one_byte_each() -> None:
    unet = copy.deepcopy(tiny_model("sd1").unet).half()
    before = sum(p.numel() * p.element_size() for p in unet.parameters())
    saved = store_in_fp8(unet)
    after = sum(t.numel() * t.element_size() for t in (*unet.parameters(), *unet.buffers()))
    assert before - after == saved
    assert saved > 0.45 * before  # nearly all of a UNet is matrices
    kinds = {type(layer) for layer in unet.modules() if is_fp8(layer)}
    assert kinds == {Fp8Linear, Fp8Conv2d}


def test_first_and_last_unet_layers_are_not_converted() -> None:
    unet = copy.deepcopy(tiny_model("sd1").unet)
    store_in_fp8(unet)
    assert not any(is_fp8(layer) for layer in (unet.conv_in, unet.conv_out, *unet.time_embedding.modules()))


def test_a_layer_out_of_fp8_range_is_not_converted() -> None:
    large = nn.Linear(4, 4).requires_grad_(False)
    large.weight[0, 0] = 500.0
    net = nn.Sequential(nn.Linear(4, 4), large)
    store_in_fp8(net)
    assert is_fp8(net[0]) and not is_fp8(net[1])


def learnt(unet: nn.Module, targets: str) -> tuple[Tensor, int]:
    """The gradient of a LoRA on the UNet, and the bytes saved for the backward pass."""
    adapter = lora_on(unet, targets)
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = unet(**unet_inputs()).sample.square().mean()
    loss.backward()
    return torch.cat([p.grad for group in adapter.groups.values() for p in group if p.grad is not None]), kept


def lora_on(unet: nn.Module, targets: str) -> Adapter:
    model = tiny_model("sd1")
    own = DiffusionModel(model.spec, unet, model.vae, (), (), model.schedule, "tiny", "")
    spec = AdapterSpec(rank=4, alpha=2.0, targets=targets, unet=True, text_encoder=False)
    adapter = inject(own, spec, seed=1)
    state = adapter.state()
    generator = torch.Generator().manual_seed(2)
    adapter.load_state(
        {k: v if "alpha" in k else 0.1 * torch.randn(v.shape, generator=generator) for k, v in state.items()}
    )
    return adapter


@pytest.mark.parametrize("targets", ["standard", "all"])
def test_lora_gradients_match_those_on_rounded_weights(targets: str) -> None:
    plain = rounded(tiny_model("sd1").unet)
    smaller = copy.deepcopy(tiny_model("sd1").unet)
    store_in_fp8(smaller)
    expected, kept_whole = learnt(plain, targets)
    found, kept = learnt(smaller, targets)
    assert torch.equal(found, expected)
    assert expected.abs().max() > 0
    if targets == "all":  # then each layer's weight is made again in the backward pass instead of being kept
        assert kept < kept_whole


def test_fp8_option_converts_the_loaded_unet(tiny_checkpoint: Path) -> None:
    model = load_model(ModelChoice(tiny_checkpoint, fp8=True), CPU)
    assert any(is_fp8(layer) for layer in model.unet.modules())
    assert "8 bit" in model.note and model.slots == ()
    assert model.dtype == torch.float32
    assert not any(is_fp8(layer) for layer in model.vae.modules())
