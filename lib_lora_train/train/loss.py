"""The loss as pure functions, in sd-scripts' order: mean per sample, prior weight, SNR weight, mean over the batch.

B: samples of a micro-batch; γ: `min_snr_gamma`; SNR = ᾱ / (1 − ᾱ) of the schedule in use, so after a
zero-terminal rescale the weights belong to the rescaled schedule.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lib_lora_train.models.family import PredictionType


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample, (B,) float32 at least; the difference is taken in that precision.

    `prediction` and `target` are (B, C, h, w): the noise (Ho et al. 2020, eq. 14) or v (Salimans & Ho 2022).
    """
    precise = torch.promote_types(prediction.dtype, torch.float32)
    return (prediction.to(precise) - target.to(precise)).square().flatten(1).mean(dim=1)


def min_snr_weight(snr: Tensor, gamma: float, prediction_type: PredictionType) -> Tensor:
    """min(SNR, γ) / SNR for noise, min(SNR, γ) / (SNR + 1) for v; shape and dtype of `snr`. 1 for γ = 0.

    Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", section 3.4: all
    predictions weigh an x₀ error by min(SNR, γ). SNR 0 (a zero-terminal schedule's last timestep) gives
    the limit, 1, for noise, and 0 for v.
    """
    if not gamma:
        return torch.ones_like(snr)
    if prediction_type == "epsilon":
        return (gamma / snr).clamp(max=1.0)
    return snr.clamp(max=gamma) / (snr + 1.0)


def weighted_sum(losses: Tensor, weights: Tensor) -> Tensor:
    """Sum over the micro-batch of each sample's loss times its weights' product, 0-d.

    Divide by the samples of the whole optimiser step: several micro-batches then equal one large batch.
    """
    return (losses * weights.to(losses.device, losses.dtype)).sum()


def sample_weights(prior: Tensor, snr: Tensor, *, gamma: float, prediction_type: PredictionType) -> Tensor:
    """Each sample's whole weight, (B,) float64: prior loss weight (1 for training pictures) × SNR weight."""
    return prior.double() * min_snr_weight(snr.double(), gamma, prediction_type)
