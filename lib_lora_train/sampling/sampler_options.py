"""How a webui draws, where its settings or its own ways decide it: a sample is then the image that it would draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    import torch

NoiseSource: TypeAlias = "torch.device | Literal['cpu', 'philox']"
"""Where normal noise comes from: PyTorch's generator on this device, or `train.philox`."""


@dataclass(frozen=True)
class SamplerOptions:
    """What a sampler's name leaves open.

    `eta_noise_seed_delta` is added to the seed for all noise but the start's (the webuis' "eta noise seed delta", ENSD).
    `eta_ancestral`, `eta_ddim`: how much fresh noise Euler a and DDIM add, 0…1. `quantize_timesteps`: the UNet is
    given the nearest whole timestep where the Euler samplers' levels lie between two. `skip_early_cond`: in these first
    parts of the steps, the end included, the negative prompt and the CFG scale have no effect; None for nowhere.
    """

    noise_source: NoiseSource = "cpu"
    eta_noise_seed_delta: int = 0
    eta_ancestral: float = 1.0
    eta_ddim: float = 0.0
    quantize_timesteps: bool = False
    skip_early_cond: float | None = None

    def is_guided(self, index: int, steps: int) -> bool:
        """Whether step `index` of `steps`, from 0, obeys the negative prompt and the CFG scale."""
        return self.skip_early_cond is None or index / steps > self.skip_early_cond
