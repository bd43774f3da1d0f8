"""The shift of the drawn timesteps that grows with the size of the image.

A large image is still recognised in noise that hides a small one, so it needs more noise (Esser et al. 2024, "Scaling
Rectified Flow Transformers", section 5.3.2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from lib_lora_train.config.settings.noise import FLUX_SHIFT, QWEN_SHIFT
from lib_lora_train.config.train_config import TrainConfig

_PX_PER_TOKEN = 16  # a patch of 2 × 2 latent cells of 8 px
_LINES: Mapping[str, tuple[float, float, float, float]] = {
    FLUX_SHIFT: (256, 0.5, 4096, 1.15),
    QWEN_SHIFT: (256, 0.5, 8192, 0.9),
}
"""(tokens, μ) at two places: those of the schedulers that Flux and Qwen-Image are published with."""


def shift_for(config: TrainConfig, height: int, width: int) -> float:
    """The shift of an image whose latent has this size: `timestep_shift` times e^μ, with μ linear in its tokens.

    Black Forest Labs 2024, flux/sampling.py (`get_schedule`); two shifts after each other are one, their product.
    """
    return config.timestep_shift * _by_tokens(config.resolution_shift, (height // 2) * (width // 2))


def usual_shift(config: TrainConfig) -> float:
    """The shift of a square image of the training resolution."""
    return config.timestep_shift * _by_tokens(config.resolution_shift, (config.resolution // _PX_PER_TOKEN) ** 2)


def _by_tokens(law: str, tokens: int) -> float:
    if law not in _LINES:
        return 1.0
    low, low_mu, high, high_mu = _LINES[law]
    return math.exp(low_mu + (tokens - low) * (high_mu - low_mu) / (high - low))
