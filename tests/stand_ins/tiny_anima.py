"""A tiny random Anima: the transformer under its original names, a VAE and a text encoder for the host to own.

Names and shapes are written down from the published checkpoint's layout, not from our own name tables, so that a
mistake there shows.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

PREFIX = "model.diffusion_model."
TEXT_WIDTH = 24


@dataclass(frozen=True)
class Sizes:
    """The published model has 28 blocks, 2048 wide with 16 heads, text of 1024 and modulation over 256."""

    blocks: int = 2
    width: int = 32
    heads: int = 2
    text: int = TEXT_WIDTH
    modulation: int = 8


PUBLISHED = Sizes(blocks=28, width=2048, heads=16, text=1024, modulation=256)


def transformer_shapes(sizes: Sizes) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every parameter of the transformer with its shape, without a prefix."""
    width, head = sizes.width, sizes.width // sizes.heads
    yield "x_embedder.proj.1.weight", (width, 4 * 17)
    yield "t_embedder.1.linear_1.weight", (width, width)
    yield "t_embedder.1.linear_2.weight", (3 * width, width)
    yield "t_embedding_norm.weight", (width,)
    for number in range(sizes.blocks):
        block = f"blocks.{number}"
        for kind, context in (("self_attn", width), ("cross_attn", sizes.text)):
            yield f"{block}.{kind}.q_proj.weight", (width, width)
            yield f"{block}.{kind}.k_proj.weight", (width, context)
            yield f"{block}.{kind}.v_proj.weight", (width, context)
            yield f"{block}.{kind}.output_proj.weight", (width, width)
            yield f"{block}.{kind}.q_norm.weight", (head,)
            yield f"{block}.{kind}.k_norm.weight", (head,)
        yield f"{block}.mlp.layer1.weight", (4 * width, width)
        yield f"{block}.mlp.layer2.weight", (width, 4 * width)
        for part in ("self_attn", "cross_attn", "mlp"):
            yield f"{block}.adaln_modulation_{part}.1.weight", (sizes.modulation, width)
            yield f"{block}.adaln_modulation_{part}.2.weight", (3 * width, sizes.modulation)
    yield "final_layer.adaln_modulation.1.weight", (sizes.modulation, width)
    yield "final_layer.adaln_modulation.2.weight", (2 * width, sizes.modulation)
    yield "final_layer.linear.weight", (4 * 16, width)


def transformer_tensors(sizes: Sizes = Sizes(), *, seed: int = 0, prefix: str = PREFIX) -> dict[str, Tensor]:
    """Its random weights, float32; every layer passes its signal on at about its size."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in transformer_shapes(sizes):
        noise = torch.randn(shape, generator=generator)
        tensors[prefix + name] = 1 + 0.1 * noise if len(shape) == 1 else noise / shape[1] ** 0.5
    return tensors


def adapter_tensors(*, prefix: str = PREFIX) -> dict[str, Tensor]:
    """The text adapter that a checkpoint holds beside the transformer; only its names matter here."""
    return {f"{prefix}llm_adapter.blocks.0.cross_attn.q_proj.weight": torch.zeros(2, 2)}


class TinyVideoVae(nn.Module):
    """A VAE as the host's: images and latents have an axis for frames, and `encode` returns the mean alone."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.encoder = nn.Conv3d(3, 16, (1, 8, 8), stride=(1, 8, 8))
        self.decoder = nn.ConvTranspose3d(16, 3, (1, 8, 8), stride=(1, 8, 8))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)

    def encode(self, x: Tensor) -> Tensor:
        """(B, 3, 1, H, W) in [-1, 1] → (B, 16, 1, h, w)."""
        encoded: Tensor = self.encoder(x)
        return encoded

    def decode(self, z: Tensor) -> Tensor:
        """(B, 16, 1, h, w) → (B, 3, 1, H, W)."""
        decoded: Tensor = self.decoder(z)
        return decoded


class TinyTextEngine:
    """A text encoder as the host's: one condition per prompt, padded with zeros to 512 tokens of `TEXT_WIDTH`.

    A prompt with brackets leaves a note in `infotext`, and its words count double.
    """

    def __init__(self, infotext: dict[str, str] | None = None) -> None:
        self.text_encoder = nn.Embedding(257, TEXT_WIDTH)
        self.infotext = {} if infotext is None else infotext
        self.calls: list[str] = []
        with torch.no_grad():
            weight = torch.randn(self.text_encoder.weight.shape, generator=torch.Generator().manual_seed(5))
            self.text_encoder.weight.copy_(weight)

    class t5_tokenizer:
        """Words as tokens."""

        @staticmethod
        def convert_ids_to_tokens(ids: Sequence[str]) -> list[str]:
            return [f"▁{word}" for word in ids]

    def tokenize(self, texts: list[str]) -> tuple[list[list[str]], list[list[str]]]:
        """Qwen's and T5's ids; here words."""
        return [list(text) for text in texts], [text.split() for text in texts]

    def __call__(self, prompts: Sequence[str]) -> list[Tensor]:
        """(1, 512, D) each."""
        self.calls += prompts
        return [self._encode(prompt) for prompt in prompts]

    def _encode(self, prompt: str) -> Tensor:
        is_emphasised = bool(re.search(r"(?<!\\)\(", prompt))
        if is_emphasised:
            self.infotext["Emphasis"] = "Original"
        words = [int(hashlib.sha256(word.encode()).hexdigest()[:2], 16) for word in prompt.replace("\\", "").split()]
        states = self.text_encoder(torch.tensor([*words, 256])) * (2 if is_emphasised else 1)
        return nn.functional.pad(states, (0, 0, 0, max(0, 512 - len(states))))[None]
