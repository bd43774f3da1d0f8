"""Cross-attention of the UNet, recorded while it runs: how much each location attends to each token of the prompt.

The queries and keys are read from the outputs of the layers that make them, and the probabilities are computed again
beside the UNet. So adapters on these layers count, any attention processor may be in use, and the UNet's output is the
same, bit by bit, with and without recording.

B: images of the pass; H: attention heads; N: locations of a layer, h × w; T: tokens of the prompt, 77·n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lib_lora_train.core.image_sizes import LATENT_CELL_PX
from lib_lora_train.models.diffusion_model import DiffusionModel

_OBJECT_SIDE = 16  # locations per side of an image at the model's own resolution


@dataclass(frozen=True, eq=False)
class AttentionLayer:
    """A cross-attention layer of diffusers; `shows_objects` if it is one of the few that the sharper maps are from."""

    module: Any
    shows_objects: bool


def attention_layers(model: DiffusionModel) -> tuple[AttentionLayer, ...]:
    """The cross-attention of all downward and upward blocks, which are those that DAAM takes.

    Objects are in the upward level with about 16 × 16 locations (Hertz et al. 2022, "Prompt-to-Prompt"; Chefer et al.
    2023, "Attend-and-Excite"): `up_blocks.1` of SD1 and SD2, `up_blocks.0` of SDXL (32 × 32, its coarsest).
    """
    unet = model.require_unet("Heat maps")
    finest = len(unet.up_blocks) - 1
    side = model.spec.own_resolution / LATENT_CELL_PX
    distances = {
        level: abs(math.log2(side / 2 ** (finest - level) / _OBJECT_SIDE))
        for level, block in enumerate(unet.up_blocks)
        if getattr(block, "attentions", None)
    }
    of_objects = min(distances, key=distances.__getitem__)
    blocks = [(block, False) for block in unet.down_blocks]
    blocks += [(block, level == of_objects) for level, block in enumerate(unet.up_blocks)]
    return tuple(
        AttentionLayer(transformer.attn2, shows_objects)
        for block, shows_objects in blocks
        for attention in getattr(block, "attentions", None) or ()
        for transformer in attention.transformer_blocks
    )


@dataclass(frozen=True)
class LevelKey:
    """The layers whose probabilities are added up: those of one grid, and of one kind."""

    height: int
    width: int
    shows_objects: bool


@dataclass(eq=False)
class Level:
    """`probabilities` (T, h, w) float32: the sum over `count` passes, layers and heads."""

    probabilities: Tensor
    count: int


@dataclass(eq=False)
class AttentionRecorder:
    """Adds up the attention of one prompt over any number of passes.

    `size`: height and width of the latents.
    """

    layers: Sequence[AttentionLayer]
    size: tuple[int, int]
    levels: dict[LevelKey, Level] = field(default_factory=dict)

    @contextmanager
    def recording(self, images: int) -> Iterator[None]:
        """Inside, passes of the UNet are recorded: the first `images` of the batch, which have the prompt."""
        with ExitStack() as hooks:
            for layer in self.layers:
                query: list[Tensor] = []
                hooks.callback(layer.module.to_q.register_forward_hook(_keeping(query)).remove)
                add = self._adding(layer, query, images)
                hooks.callback(layer.module.to_k.register_forward_hook(add).remove)
            yield

    def result(self) -> Mapping[LevelKey, Level]:
        """What was recorded, on the processor."""
        return {key: Level(level.probabilities.cpu(), level.count) for key, level in self.levels.items()}

    def _adding(self, layer: AttentionLayer, query: list[Tensor], images: int) -> Callable[..., None]:
        """A hook for the layer that makes the keys, which every attention processor calls after that of the queries."""

        def add(_module: nn.Module, _inputs: object, keys: Tensor) -> None:
            probabilities = attention_probabilities(layer.module, query.pop()[:images], keys[:images])
            self._add(layer, probabilities, images * layer.module.heads)

        return add

    def _add(self, layer: AttentionLayer, probabilities: Tensor, count: int) -> None:
        height, width = grid_of(probabilities.shape[1], self.size)
        key = LevelKey(height, width, layer.shows_objects)
        maps = probabilities.view(-1, height, width)
        level = self.levels.get(key)
        if level is None:
            self.levels[key] = Level(maps, count)
        else:
            level.probabilities += maps
            level.count += count


def _keeping(values: list[Tensor]) -> Callable[..., None]:
    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        values[:] = [output]

    return keep


@torch.no_grad()
def attention_probabilities(attention: Any, query: Tensor, keys: Tensor) -> Tensor:
    """(T, N) float32: softmax(q·kᵀ·scale) over the tokens, summed over images and heads.

    `query` (B, N, H·d), `keys` (B, T, H·d), in any float dtype. One image at a time, as all heads of a large image
    take tens of MB.
    """
    total: Tensor | None = None
    for q, k in zip(query, keys, strict=True):
        q, k = (x.float().unflatten(-1, (attention.heads, -1)).transpose(0, 1) for x in (q, k))  # (H, N or T, d)
        probabilities = (q @ k.transpose(1, 2) * attention.scale).softmax(-1).sum(0).T  # (T, N)
        total = probabilities if total is None else total + probabilities
    assert total is not None
    return total.contiguous()


def grid_of(locations: int, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a layer with this many locations, for latents of `size`: each level halves, rounding up."""
    height, width = size
    while height * width > locations:
        height, width = -(-height // 2), -(-width // 2)
    assert height * width == locations, (locations, size)
    return height, width
