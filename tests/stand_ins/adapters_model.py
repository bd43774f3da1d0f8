"""A whole model for adapter tests: SD1's topology, tiny."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from lib_lora_train.adapters.inject import inject
from lib_lora_train.adapters.registry import AdapterSpec

SPEC = AdapterSpec(rank=2, alpha=1.0)
# Relative to a gradient's norm. A product of matrices that is added to what stands there (`addmm_`) may begin its sums
# with that or add it at the end, as the processor's library likes: 32 terms (2 × 4 × 4 latents), each rounded to 2⁻²⁴.
ADDED_IN_ANOTHER_ORDER = 32 * 2.0**-24


@dataclass(frozen=True)
class TinyModel:
    """What an adapter needs to know of a model."""

    unet: Any
    text_encoders: tuple[nn.Module, ...]
    spec: Any

    def predict(self) -> Any:
        """The UNet's answer to fixed inputs, through the text encoder."""
        generator = torch.Generator().manual_seed(3)
        dtype = next(self.unet.parameters()).dtype
        latents = torch.randn(2, 4, 4, 4, generator=generator).to(dtype)
        tokens = torch.arange(2 * 7).view(2, 7)
        hidden = self.text_encoders[0](tokens).last_hidden_state
        return self.unet(latents, torch.tensor([9, 500]), hidden).sample


def tiny_model(dtype: torch.dtype = torch.float32) -> TinyModel:
    """SD1's topology with two levels, one residual block each, and tiny widths; always the same weights."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
    )
    config = CLIPTextConfig(
        vocab_size=99,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    encoder = CLIPTextModel(config)
    return TinyModel(unet.to(dtype), (encoder.to(dtype),), SimpleNamespace(architecture="sd1"))


def trained(model: TinyModel, spec: AdapterSpec = SPEC, *, seed: int = 1) -> Any:
    """An adapter on `model` with random, non-zero numbers everywhere."""
    adapter = inject(model, spec, seed=seed)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for (parameter,) in adapter.groups.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return adapter


def use_plain_formula(layer: Any, weights: dict[str, Tensor]) -> None:
    """Let `layer` compute with `weights` as ordinary autograd leaves."""
    base = layer.base_layer

    def forward(x: Tensor) -> Tensor:
        diff = layer.family.diff_weight(weights, layer.options, base.weight)
        change: Tensor
        if isinstance(base, nn.Conv2d):
            change = nn.functional.conv2d(x, diff, None, base.stride, base.padding, base.dilation)
        else:
            change = nn.functional.linear(x, diff)
        output: Tensor = base(x) + change
        return output

    layer.forward = forward
