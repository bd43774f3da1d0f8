"""The loss as pure functions, in sd-scripts' order: mean per sample, prior weight, SNR weights, mean over the batch.

B: samples of a micro-batch; T: timesteps of the schedule; γ: `min_snr_gamma`; SNR = ᾱ / (1 − ᾱ) of the schedule in
use, so after a zero-terminal rescale the weights belong to the rescaled schedule; ((1 − σ) / σ)² for a flow.

With x₀ the image's latent, |noise error|² = SNR·|x₀ error|² and |v error|² = (SNR + 1)·|x₀ error|² (Salimans & Ho
2022, section 4). A flow's error is x₀'s divided by σ: |flow error|² = (√SNR + 1)²·|x₀ error|². A weight on the x₀
error, divided by these, is the weight for noise, v or flow: the same objective.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.config.validation.prediction import prediction_problems
from lib_lora_train.config.validation.validate import require_usable
from lib_lora_train.models.architecture import PredictionType

_MIN_SNR = 1 / 256  # Stable Diffusion's own schedule ends at 1/213; only a rescaled one goes below


@dataclass(frozen=True)
class LossOptions:
    """How errors are measured and weighted. The default is the mean squared error, all timesteps alike."""

    loss_type: str = "l2"
    huber_schedule: str = "snr"
    huber_c: float = 0.1
    huber_scale: float = 1.0
    min_snr_gamma: float = 0.0
    is_debiased: bool = False
    scale_v_like_noise: bool = False
    v_pred_like: float = 0.0


def loss_options(config: TrainConfig, prediction_type: PredictionType) -> LossOptions:
    """The options from the settings; ConfigError if one of them is for models that predict something else."""
    require_usable(prediction_problems(config, prediction_type))
    return LossOptions(
        loss_type=config.loss_type,
        huber_schedule=config.huber_schedule,
        huber_c=config.huber_c,
        huber_scale=config.huber_scale,
        min_snr_gamma=config.min_snr_gamma,
        is_debiased=config.debiased_estimation,
        scale_v_like_noise=config.scale_v_pred_loss_like_noise_pred,
        v_pred_like=config.v_pred_like_loss,
    )


# --- the error of a sample ----------------------------------------------------------------------


def sample_errors(
    prediction: Tensor,
    target: Tensor,
    loss_type: str = "l2",
    c: Tensor | None = None,
    *,
    masks: Tensor | None = None,
) -> Tensor:
    """Mean error of each sample, (B,) float32 at least; the difference is taken in that precision.

    `prediction` and `target` are (B, C, h, w): the noise (Ho et al. 2020, eq. 14) or v (Salimans & Ho 2022);
    `c` (B,), from `huber_bound`, is for huber and smooth_l1. With `masks` (B, 1, h, w) the mean is weighted by
    them: Σ m·error / (C·Σ m), so that a small mask counts as much as a large one; 0 for an empty mask.
    """
    precise = torch.promote_types(prediction.dtype, torch.float32)
    difference = prediction.to(precise) - target.to(precise)
    if loss_type in _BOUNDED:
        assert c is not None, loss_type
        bound = c.to(precise).to(difference.device, non_blocking=True).view(-1, 1, 1, 1)
        return _mean(_BOUNDED[loss_type](difference, bound), masks)
    return _mean(difference.abs() if loss_type == "l1" else difference.square(), masks)


def _mean(errors: Tensor, masks: Tensor | None) -> Tensor:
    """The mean of each sample, (B,), weighted by its mask if there is one."""
    if masks is None:
        return errors.flatten(1).mean(dim=1)
    weights = masks.to(errors.device, errors.dtype).expand_as(errors)
    area = weights.flatten(1).sum(dim=1)
    return (errors * weights).flatten(1).sum(dim=1) / area.clamp(min=torch.finfo(errors.dtype).tiny)


def huber(difference: Tensor, c: Tensor) -> Tensor:
    """2c (√(d² + c²) − c), elementwise: d² where |d| ≪ c and 2c·|d| where |d| ≫ c.

    The pseudo-Huber loss (Charbonnier et al. 1997). Written as a quotient, since the difference of the two roots
    loses all digits for small d in float32.
    """
    square = difference.square()
    return 2.0 * c * square / ((square + c.square()).sqrt() + c)


def smooth_l1(difference: Tensor, c: Tensor) -> Tensor:
    """2 (√(d² + c²) − c), elementwise: d²/c where |d| ≪ c and 2·|d| where |d| ≫ c: huber without the factor c."""
    square = difference.square()
    return 2.0 * square / ((square + c.square()).sqrt() + c)


_BOUNDED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"huber": huber, "smooth_l1": smooth_l1}


def huber_bound(options: LossOptions, snr: Tensor, progress: Tensor) -> Tensor:
    """c of each sample for huber and smooth_l1, (B,) float64; `progress` is timestep / T.

    constant: huber_c·scale. exponential: huber_c^progress·scale. snr: (1 − huber_c) / (1 + σ)² + huber_c with
    σ = 1/√SNR, written so that SNR 0 gives huber_c; it has no scale. The schedules are sd-scripts' (Khrapov et al.
    2024, "Improving Diffusion Models's Data-Corruption Resistance using Scheduled Pseudo-Huber Loss").
    """
    if options.huber_schedule == "constant":
        return torch.full_like(snr, options.huber_c * options.huber_scale, dtype=torch.float64)
    if options.huber_schedule == "exponential":
        return options.huber_scale * torch.exp(
            progress.double() * torch.tensor(options.huber_c, dtype=torch.float64).log()
        )
    ratio = snr.double()
    return (1.0 - options.huber_c) * ratio / (1.0 + ratio.sqrt()).square() + options.huber_c


# --- the weight of a timestep -------------------------------------------------------------------


def min_snr_weight(snr: Tensor, gamma: float, prediction_type: PredictionType) -> Tensor:
    """min(SNR, γ) / SNR for noise, / (SNR + 1) for v, / (√SNR + 1)² for a flow; shape and dtype of `snr`. 1 for γ = 0.

    Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", section 3.4: all
    predictions weigh an x₀ error by min(SNR, γ). SNR 0 (a zero-terminal schedule's last timestep) gives
    the limit, 1, for noise, and 0 for v. For a flow it is min((1 − σ)², γσ²).
    """
    if not gamma:
        return torch.ones_like(snr)
    if prediction_type == "epsilon":
        return (gamma / snr).clamp(max=1.0)
    return snr.clamp(max=gamma) / _error_per_image_error(snr, prediction_type)


def _error_per_image_error(snr: Tensor, prediction_type: PredictionType) -> Tensor:
    """|v error|² or |flow error|² divided by |x₀ error|²."""
    return (snr.sqrt() + 1.0).square() if prediction_type == "rectified_flow" else snr + 1.0


def debiased_weight(snr: Tensor, prediction_type: PredictionType) -> Tensor:
    """1 / √SNR for noise, √SNR / (SNR + 1) for v, √SNR / (√SNR + 1)² for a flow; shape and dtype of `snr`.

    Yu et al. 2023, "Debias the Training of Diffusion Models", give the weight for noise; it weighs an x₀ error by
    √SNR, and so do the others; for a flow it is σ(1 − σ). For noise, SNR below that of Stable Diffusion's own schedule
    counts as 1/256: the weight of a zero-terminal schedule's end would be infinite, for a timestep whose answer is its
    input.
    """
    if prediction_type == "epsilon":
        return snr.clamp(min=_MIN_SNR).rsqrt()
    return snr.sqrt() / _error_per_image_error(snr, prediction_type)


def noise_like_weight(snr: Tensor) -> Tensor:
    """SNR / (SNR + 1): what turns a v error into the noise error of the same x₀; 0 at SNR 0."""
    return snr / (snr + 1.0)


def snr_weight(snr: Tensor, options: LossOptions, prediction_type: PredictionType) -> Tensor:
    """The product of all weights that are on; shape and dtype of `snr`, finite for SNR 0 too.

    `v_pred_like` λ adds to a noise error λ times the v error of the same x₀: a weight of 1 + λ·(SNR + 1) / SNR.
    """
    weight = min_snr_weight(snr, options.min_snr_gamma, prediction_type)
    if options.scale_v_like_noise:
        weight = weight * noise_like_weight(snr)
    if options.v_pred_like:
        weight = weight * (1.0 + options.v_pred_like / noise_like_weight(snr.clamp(min=_MIN_SNR)))
    if options.is_debiased:
        weight = weight * debiased_weight(snr, prediction_type)
    return weight


def sample_weights(prior: Tensor, snr: Tensor, options: LossOptions, prediction_type: PredictionType) -> Tensor:
    """Each sample's total weight, (B,) float64: prior loss weight (1 for training images) × SNR weights."""
    return prior.double() * snr_weight(snr.double(), options, prediction_type)


def weighted_sum(losses: Tensor, weights: Tensor) -> Tensor:
    """The sum over the micro-batch of each sample's loss times its weight, 0-d.

    Divide by the samples of the whole optimiser step: several micro-batches then equal one large batch.
    """
    return (losses * weights.to(losses.device, losses.dtype)).sum()
