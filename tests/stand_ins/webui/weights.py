"""The weights of a webui's model, and what stands for an image: a hash of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

TEXT_PREFIX = "cond_stage_model."


LORA_LAYERS = ("attn1.to_q.weight", "attn2.to_v.weight", "fc1.weight")  # the layers that the webui's LoRAs change


class Node(nn.Module):
    """A module with the given parameters, nested by their dotted names."""

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        super().__init__()
        inner: dict[str, dict[str, Tensor]] = {}
        for name, tensor in named.items():
            first, _, rest = name.partition(".")
            if rest:
                inner.setdefault(first, {})[rest] = tensor
            else:
                self.register_parameter(first, nn.Parameter(tensor))
        for first, below in inner.items():
            self.add_module(first, Node(below))


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor.clone() for name, tensor in tensors.items() if name.startswith(prefix)}


def text_heads(encoder: Any) -> None:
    """Give the encoder a config as transformers' text encoders have."""
    encoder.transformer.config = SimpleNamespace(num_attention_heads=4)


def fingerprint(modules: Iterable[nn.Module]) -> str:
    """A hash of all weights, which stands for the image."""
    digest = hashlib.sha256()
    for module in modules:
        for parameter in module.parameters():
            packed = getattr(parameter, "_qdata", parameter)
            digest.update(packed.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def delta(name: str, weight: Tensor) -> Tensor:
    """What the LoRA woken `name` adds to a weight."""
    return torch.full_like(weight, 0.01 * (1 + sum(map(ord, name)) % 7))


def alphas() -> Tensor:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return torch.cumprod(1 - betas, 0)


def checkpoint(seed: int) -> SimpleNamespace:
    return SimpleNamespace(filename=f"/models/checkpoint-{seed}.safetensors", sha256=f"{seed:064}")
