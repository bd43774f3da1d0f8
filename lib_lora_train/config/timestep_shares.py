"""How the drawn timesteps are distributed, in closed form, for square images of the training resolution."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import NormalDist

from lib_lora_train.config.resolution_shift import usual_shift
from lib_lora_train.config.train_config import TrainConfig

TIMESTEPS = 1000


def timestep_shares(config: TrainConfig, parts: int) -> tuple[float, ...]:
    """The share of all draws in each of `parts` equal ranges of the timesteps, from noise-free to pure noise.

    The settings must be valid: `min_timestep` is below `max_timestep`.
    """
    below = [share_below(config, TIMESTEPS * number / parts) for number in range(parts + 1)]
    return tuple(after - before for before, after in pairwise(below))


def share_below(config: TrainConfig, timestep: float) -> float:
    """The share of the draws below a timestep.

    A drawn share u of the range is shifted to s·u / (1 + (s − 1)·u), and is uniform or the sigmoid of a normal number.
    """
    place = (timestep - config.min_timestep) / (config.max_timestep - config.min_timestep)
    if not 0 < place < 1:
        return min(max(place, 0.0), 1.0)
    shift = usual_shift(config)
    share = place / (shift - (shift - 1.0) * place)
    if config.timestep_sampling == "uniform":
        return share
    return NormalDist(config.sigmoid_mean, config.sigmoid_scale).cdf(math.log(share / (1.0 - share)))


def timestep_at(config: TrainConfig, share: float) -> float:
    """The timestep below which this share (in (0, 1)) of the draws is."""
    if config.timestep_sampling != "uniform":
        share = 1.0 / (1.0 + math.exp(-NormalDist(config.sigmoid_mean, config.sigmoid_scale).inv_cdf(share)))
    shift = usual_shift(config)
    place = shift * share / (1.0 + (shift - 1.0) * share)
    return config.min_timestep + place * (config.max_timestep - config.min_timestep)
