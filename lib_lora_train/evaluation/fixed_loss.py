"""Losses that change only with the adapter: the same images, noise and timesteps every time.

The training loss is noisy, since each step draws new noise and timesteps. A fixed loss shows its shape with a few
passes of the UNet. On images held out from training (the *validation loss*) it also shows overfitting: once it rises,
more training only memorises. On training images (the *steady loss*) it falls as long as anything is learnt, copies too;
where it falls ever faster, the images are being copied, and where it rises, the learning rate is too high.

When they lie: a loss weighs every pixel alike, so a small subject hardly counts, and losses of different datasets
cannot be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lib_lora_train.config.method_catalog import trains_text
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.generators import WithResult
from lib_lora_train.core.seeding import seed_for
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.dataset.sample_captions import fixed_caption_for
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.latent_cache import LatentCache
from lib_lora_train.models.noise_schedule import add_noise, prediction_target
from lib_lora_train.training.fixed_noise_loss import TIMESTEPS
from lib_lora_train.training.lease import YieldLease
from lib_lora_train.training.loss import sample_errors
from lib_lora_train.training.step import predict, size_conditions
from lib_lora_train.training.text_conditions import TextConditions, text_conditions

MAX_VALIDATION_IMAGES = 40
"""More images would hardly change the mean and take long."""
MAX_STEADY_IMAGES, MIN_STEADY_IMAGES = 9, 3
STEADY_TIMESTEPS = (250, 500, 750)
FEW_TIMESTEPS = (250, 750)  # show nearly as much of an image
STEADY_SHARE = 0.03
"""The most that the steady loss may take, as a share of the training's time; and again the loss of every image."""

_PASSES_PER_SAMPLE = 2.8  # of the UNet, in a training step, counted in passes without gradients


class FixedLoss:
    """Mean squared error of some images of a plan at some timesteps, unweighted; inside the mask where there is one.

    `latents` are the images' posteriors, of which the mean is used. `seed_of(item, timestep)` seeds the noise.
    """

    def __init__(
        self,
        plan: Plan,
        latents: LatentCache,
        config: TrainConfig,
        *,
        items: Sequence[int],
        timesteps: Sequence[int],
        seed_of: Callable[[int, int], int],
    ) -> None:
        self.items = tuple(items)
        self._plan = plan
        self._latents = latents
        self._config = config
        self._timesteps = tuple(timesteps)
        self._seed_of = seed_of
        self._conditions: TextConditions = text_conditions(config, trained=trains_text(config))

    def measure(self, model: DiffusionModel, yield_lease: YieldLease) -> dict[int, float]:
        """The loss of each item, of the model with its adapter in their current state.

        Calls `yield_lease` between batches.
        """
        work = WithResult(self.measure_in_turns(model))
        for _ in work:
            yield_lease()
        return {item: sum(values) / len(values) for item, values in work.result.items()}

    def measure_in_turns(
        self, model: DiffusionModel, *, captioned: bool = True
    ) -> Generator[int, None, dict[int, tuple[float, ...]]]:
        """The loss of each item at each timestep; yields the number of samples that are done after each batch.

        `captioned`: with the items' captions, otherwise with empty ones.
        """
        errors: dict[int, list[float]] = {item: [] for item in self.items}
        done = 0
        for samples in self._batches():
            found = self._errors(model, samples, captioned=captioned)
            for (item, _), error in zip(samples, found.tolist(), strict=True):
                errors[item].append(error)
            done += len(samples)
            yield done
        return {item: tuple(values) for item, values in errors.items()}

    @property
    def samples(self) -> int:
        """How many images × timesteps are measured."""
        return len(self.items) * len(self._timesteps)

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        """Batches of (item, timestep) of one size, as large as in training."""
        sizes: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for item in self.items:
            samples = sizes.setdefault(tuple(self._latents[item].mean.shape), [])
            samples += [(item, timestep) for timestep in self._timesteps]
        for samples in sizes.values():
            for start in range(0, len(samples), self._config.batch_size):
                yield samples[start : start + self._config.batch_size]

    @torch.no_grad()
    def _errors(self, model: DiffusionModel, samples: list[tuple[int, int]], *, captioned: bool) -> Tensor:
        """The error of each sample, (B,)."""
        items = [item for item, _ in samples]
        posteriors = [self._latents[item] for item in items]
        clean = torch.stack([model.latent_format.scaled(posterior.mean) for posterior in posteriors]).to(model.device)
        noise = torch.stack([_noise(self._seed_of(*sample), clean.shape[1:]) for sample in samples]).to(model.device)
        timesteps = torch.tensor([timestep for _, timestep in samples])
        captions = [fixed_caption_for(self._plan, item, self._config) if captioned else "" for item in items]
        condition = self._conditions.encode(model, captions)
        noisy = add_noise(model.schedule, clean, noise, timesteps)
        prediction = predict(model, noisy, timesteps, condition, size_conditions(self._plan, items))
        masks = [torch.ones_like(one.mean[0]) if one.mask is None else one.mask for one in posteriors]
        target = prediction_target(model.schedule, clean, noise, timesteps)
        return sample_errors(prediction, target, masks=torch.stack(masks)[:, None])


def mean_loss(losses: Mapping[int, float]) -> float:
    """The mean over the images."""
    return sum(losses.values()) / len(losses)


def validation_loss(plan: Plan, latents: LatentCache, config: TrainConfig) -> FixedLoss:
    """The loss on the held-out images, whose plan and latents these are; its noise depends on the run's seed."""
    items = [item for item in range(len(plan.dataset.items)) if item in latents]
    stride = -(-len(items) // MAX_VALIDATION_IMAGES)

    def seed_of(item: int, timestep: int) -> int:
        return seed_for(config.seed, "validation noise", item, timestep)

    return FixedLoss(plan, latents, config, items=items[::stride], timesteps=TIMESTEPS, seed_of=seed_of)


def steady_loss(plan: Plan, latents: LatentCache, config: TrainConfig) -> FixedLoss | None:
    """The loss on up to nine of the images to learn, None if there are none.

    Images are chosen, and their noise is drawn, by their contents: runs with another seed, other settings or one image
    less measure the same.
    """
    chosen = sorted(
        (item for item in learnt_items(plan) if item in latents),
        key=lambda item: (plan.dataset.items[item].image.content_hash, item),
    )[: _steady_images(plan)]
    if not chosen:
        return None
    return _loss_by_content(plan, latents, config, sorted(chosen), STEADY_TIMESTEPS)


def loss_of_every_image(
    plan: Plan, latents: LatentCache, config: TrainConfig, timesteps: Sequence[int] = STEADY_TIMESTEPS
) -> FixedLoss | None:
    """The steady loss on all images to learn; None if there are none."""
    items = [item for item in learnt_items(plan) if item in latents]
    return _loss_by_content(plan, latents, config, items, timesteps) if items else None


def affordable_timesteps(plan: Plan, times: int) -> tuple[int, ...]:
    """Those at which measuring every image `times` times takes at most `STEADY_SHARE` of the training; () if none."""
    epochs = plan.total_steps / plan.steps_per_epoch
    each = _passes(plan) * epochs / (times * len(learnt_items(plan)))
    return next((one for one in (STEADY_TIMESTEPS, FEW_TIMESTEPS) if len(one) <= each), ())


def _loss_by_content(
    plan: Plan, latents: LatentCache, config: TrainConfig, items: Sequence[int], timesteps: Sequence[int]
) -> FixedLoss:
    """The noise is drawn by the images' contents, whatever the run."""

    def seed_of(item: int, timestep: int) -> int:
        return seed_for(0, f"steady noise {plan.dataset.items[item].image.content_hash}", timestep)

    return FixedLoss(plan, latents, config, items=items, timesteps=timesteps, seed_of=seed_of)


def learnt_items(plan: Plan) -> list[int]:
    """The items that are not regularisation images."""
    return [item for item in range(len(plan.dataset.items)) if not plan.is_regularisation(item)]


def steady_epochs(plan: Plan) -> int:
    """After every how many epochs the steady loss is measured, to take at most `STEADY_SHARE` of the training."""
    images = min(_steady_images(plan), len(learnt_items(plan)))
    return math.ceil(images * len(STEADY_TIMESTEPS) / _passes(plan))


def _steady_images(plan: Plan) -> int:
    return max(MIN_STEADY_IMAGES, min(MAX_STEADY_IMAGES, math.floor(_passes(plan) / len(STEADY_TIMESTEPS))))


def _passes(plan: Plan) -> float:
    """How many passes the steady loss may take in an epoch."""
    return STEADY_SHARE * _PASSES_PER_SAMPLE * plan.samples_per_epoch


def _noise(seed: int, shape: torch.Size) -> Tensor:
    """Standard normal, (C, h, w) float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
