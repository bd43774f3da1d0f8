"""The leaner modules compute what diffusers' own do, and save gradients the detours."""

from __future__ import annotations

import copy
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from torch import Tensor

from lib_lora_train.models.lean_modules import AttentionProcessor, Geglu, use_lean_modules
from tests.stand_ins.adapters_model import tiny_model


def run(unet: Any) -> tuple[Tensor, Tensor]:
    """The prediction, and the gradient of its square for the input."""
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 4, 8, 8, generator=generator).requires_grad_()
    text = torch.randn(2, 7, 16, generator=generator)
    prediction = unet(latents, torch.tensor([9, 500]), text).sample
    prediction.pow(2).sum().backward()
    assert latents.grad is not None
    return prediction.detach(), latents.grad


def test_a_unet_with_lean_modules_equals_diffusers_own() -> None:
    theirs = tiny_model().unet
    ours = copy.deepcopy(theirs)
    names = [name for name, _ in ours.named_parameters()]
    use_lean_modules(ours)
    assert [name for name, _ in ours.named_parameters()] == names
    processors = [module.processor for module in ours.modules() if hasattr(module, "processor")]
    assert len(processors) == 8 and all(isinstance(processor, AttentionProcessor) for processor in processors)
    assert sum(isinstance(module, Geglu) for module in ours.modules()) == 4
    for value, exact in zip(run(ours), run(theirs), strict=True):
        # The same operations on the same numbers; the library may split its sums by how the memory lies.
        torch.testing.assert_close(value, exact, rtol=1e-5, atol=1e-6)


def test_geglu_has_the_gradient_of_its_formula_in_float64() -> None:
    torch.manual_seed(0)
    theirs = GEGLU(6, 5).double()
    ours = Geglu(theirs.proj)
    x = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.equal(ours(x), theirs(x))
    assert torch.autograd.gradcheck(ours, (x,))


def test_attention_that_does_more_keeps_its_processor() -> None:
    unet = tiny_model().unet
    first = next(module for module in unet.modules() if hasattr(module, "processor"))
    first.rescale_output_factor = 2.0
    before = first.processor
    use_lean_modules(unet)
    assert first.processor is before
