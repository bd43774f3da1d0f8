"""One optimiser step's forward and backward passes, from a micro-batch of the plan to gradients.

B: samples of a micro-batch; C, h, w: a latent's channels, height and width; T: timesteps of the schedule.
Noisy latents and targets are made in float32 and rounded once, to what the UNet computes in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.dataset.plan import MicroBatch, Plan
from lib_lora_train.dataset.preserved_captions import preserved_caption, preserves_prompts
from lib_lora_train.dataset.sample_captions import caption_for_draw
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.latent_cache import LatentCache
from lib_lora_train.models.noise_schedule import add_noise, prediction_target, snr
from lib_lora_train.models.text_encoding import TextCondition, size_condition
from lib_lora_train.training.loss import LossOptions, huber_bound, sample_errors, sample_weights, weighted_sum
from lib_lora_train.training.noise import (
    draw_input_noise,
    draw_noise,
    draw_posterior,
    draw_timestep,
    noise_options,
    timestep_options,
)


@dataclass(frozen=True, eq=False)
class Batch:
    """A micro-batch with its random draws: everything the forward pass needs but the text encoders' output.

    `latents` and `noise` are (B, C, h, w) float32 on the model's device, and so is `input_noise`, which is mixed
    into the latents: `noise` itself without input perturbation. `timesteps` (B,), int64 or for a flow float64, and
    `prior_weights` (B,) float64 are on the processor; `sizes` (B, 6) float32 for SDXL; `masks` (B, 1, h, w) float32
    where any sample has one. `preserved_captions` are the prompts to keep, one for each sample, or none.
    """

    latents: Tensor
    noise: Tensor
    input_noise: Tensor
    timesteps: Tensor
    prior_weights: Tensor
    sizes: Tensor
    captions: tuple[str, ...]
    masks: Tensor | None = None
    preserved_captions: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class MaskedPrior:
    """What the model without LoRA predicts, (B, C, h, w), to be held outside the masks with this weight."""

    answer: Tensor
    weight: float


def draw_batch(
    micro_batch: MicroBatch, plan: Plan, latents: LatentCache, *, config: TrainConfig, model: DiffusionModel
) -> Batch | None:
    """The micro-batch with its random draws; None if none of its images could be encoded."""
    pairs = [(item, draw) for item, draw in zip(micro_batch.items, micro_batch.draws, strict=True) if item in latents]
    if not pairs:
        return None
    views = [draw_view(plan, latents, item, draw, config.seed) for item, draw in pairs]
    samples = [
        _draw_sample(latents, view, draw, config=config, model=model)
        for view, (_, draw) in zip(views, pairs, strict=True)
    ]
    prior_weights = [config.prior_loss_weight if plan.is_regularisation(item) else 1.0 for item, _ in pairs]
    captions = tuple(caption_for_draw(plan, item, draw, config) for item, draw in pairs)
    noise = to_device(torch.stack([sample.noise for sample in samples]), model.device)
    perturbed = torch.stack([sample.input_noise for sample in samples]) if config.ip_noise_gamma else None
    return Batch(
        latents=to_device(torch.stack([sample.latent for sample in samples]), model.device),
        noise=noise,
        input_noise=noise if perturbed is None else to_device(perturbed, model.device),
        timesteps=_timesteps(samples, model),
        prior_weights=torch.tensor(prior_weights).double(),
        sizes=to_device(size_conditions(plan, views), model.device),
        captions=captions,
        masks=_masks(samples, model),
        preserved_captions=_preserved_captions(plan, captions, [draw for _, draw in pairs], config),
    )


def _preserved_captions(
    plan: Plan, captions: Sequence[str], draws: Sequence[int], config: TrainConfig
) -> tuple[str, ...]:
    if not preserves_prompts(config):
        return ()
    return tuple(preserved_caption(plan, caption, draw, config) for caption, draw in zip(captions, draws, strict=True))


def draw_view(plan: Plan, latents: LatentCache, item: int, draw: int, seed: int) -> int:
    """The number of the view that a sample shows; the item's first where the drawn one could not be encoded."""
    view = plan.draw_view(seed, item, draw)
    return view if view in latents else item


def _masks(samples: Sequence[_Sample], model: DiffusionModel) -> Tensor | None:
    """(B, 1, h, w), ones for samples without a mask; None if no sample has one."""
    if all(sample.mask is None for sample in samples):
        return None
    masks = [torch.ones(sample.latent.shape[1:]) if sample.mask is None else sample.mask for sample in samples]
    return to_device(torch.stack(masks)[:, None], model.device)


def _timesteps(samples: Sequence[_Sample], model: DiffusionModel) -> Tensor:
    """(B,) on the processor, float64 where timesteps are real numbers."""
    dtype = torch.float64 if model.schedule.has_real_timesteps else torch.int64
    return torch.tensor([sample.timestep for sample in samples], dtype=dtype)


@dataclass(frozen=True, eq=False)
class _Sample:
    """One sample: `latent`, the `noise` to predict and `input_noise`, (C, h, w) float32; `mask` (h, w)."""

    latent: Tensor
    noise: Tensor
    input_noise: Tensor
    timestep: float
    mask: Tensor | None


def _draw_sample(latents: LatentCache, view: int, draw: int, *, config: TrainConfig, model: DiffusionModel) -> _Sample:
    posterior, seed, options = latents[view], config.seed, noise_options(config)
    latent = posterior.sample(draw_posterior(seed, draw, tuple(posterior.mean.shape)), model.latent_format)
    noise = draw_noise(seed, draw, latent, options)
    return _Sample(
        latent=latent,
        noise=noise,
        input_noise=draw_input_noise(seed, draw, noise, options),
        timestep=draw_timestep(seed, draw, timestep_options(config, model.schedule, *latent.shape[1:])),
        mask=posterior.mask,
    )


def size_conditions(plan: Plan, views: Sequence[int]) -> Tensor:
    """SDXL's size conditioning (B, 6) from the actual crops, for views of the plan by their numbers.

    The image's original size, the crop's top left corner in the resized (and perhaps mirrored) image, and the bucket,
    each with height (or top) first (Podell et al. 2023, section 2.2).
    """
    shown = [plan.all_views[view] for view in views]
    images = [plan.dataset.items[view.item].image for view in shown]
    places = [view.placement for view in shown]
    return size_condition(
        [(image.height, image.width) for image in images],
        [(place.top, place.left) for place in places],
        [(place.height, place.width) for place in places],
    )


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`, without waiting for the device's pending work, as a pageable copy would."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def predict(
    model: DiffusionModel, noisy: Tensor, timesteps: Tensor, condition: TextCondition, sizes: Tensor | None = None
) -> Tensor:
    """The UNet's prediction (B, C, h, w) for noisy latents of any float dtype; `sizes` (B, 6) is for SDXL only."""
    return model.kind.predict(model, noisy, timesteps, condition, sizes)


def noisy_latents(model: DiffusionModel, batch: Batch) -> Tensor:
    """The latents with their noise, (B, C, h, w) float32."""
    return add_noise(model.schedule, batch.latents, batch.input_noise, batch.timesteps)


def batch_loss(
    model: DiffusionModel,
    batch: Batch,
    condition: TextCondition,
    options: LossOptions,
    prior: MaskedPrior | None = None,
) -> Tensor:
    """The sum of the samples' weighted losses, 0-d float32, with gradients.

    With `prior`, plus the mean squared distance from its answer outside the masks, Σ (1 − m)·d² / (C·Σ (1 − m)).
    """
    schedule = model.schedule
    target = prediction_target(schedule, batch.latents, batch.noise, batch.timesteps)
    prediction = predict(model, noisy_latents(model, batch), batch.timesteps, condition, batch.sizes)
    ratios = snr(schedule, batch.timesteps)
    bound = huber_bound(options, ratios, batch.timesteps.double() / len(schedule))
    weights = sample_weights(batch.prior_weights, ratios, options, schedule.prediction_type)
    errors = sample_errors(prediction, target, options.loss_type, bound, masks=batch.masks)
    loss = weighted_sum(errors, weights)
    if prior is None or batch.masks is None:
        return loss
    return loss + prior.weight * sample_errors(prediction, prior.answer, masks=1.0 - batch.masks).sum()
