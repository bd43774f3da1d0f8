"""What a webui's settings and defaults decide about sampling, so that a sample is the image the webui would make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    import torch

NoiseSource: TypeAlias = "torch.device | Literal['cpu', 'philox']"
"""Where normal noise comes from: PyTorch's generator on this device, or `sampling.philox`."""


@dataclass(frozen=True)
class SamplerOptions:
    """What the name of a sampler leaves open.

    `eta_noise_seed_delta` is added to the seed of all noise but the initial one (the webuis' ENSD). `eta_ancestral`,
    `eta_ddim`: how much fresh noise Euler a and DDIM add, 0…1. `quantize_timesteps`: where the Euler samplers' levels
    lie between two timesteps, the UNet gets the nearer one. `skip_early_cond`: up to this fraction of the steps the
    negative prompt and the CFG scale have no effect; None for never. `flow_shift`: the shift of σ for rectified flow,
    None for the model's usual one.
    """

    noise_source: NoiseSource = "cpu"
    eta_noise_seed_delta: int = 0
    eta_ancestral: float = 1.0
    eta_ddim: float = 0.0
    quantize_timesteps: bool = False
    skip_early_cond: float | None = None
    flow_shift: float | None = None

    def is_guided(self, index: int, steps: int) -> bool:
        """Whether step `index` of `steps`, from 0, uses the negative prompt and the CFG scale."""
        return self.skip_early_cond is None or index / steps > self.skip_early_cond
