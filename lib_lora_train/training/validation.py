"""The validation loss: on images held out from training, with the same noise after every epoch.

The training loss is noisy, since each step draws new noise and timesteps, and keeps falling while a LoRA only
memorises. This one changes only with the adapter, and is taken on images that it has not seen: once it rises, more
training only memorises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.seeding import seed_for
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.dataset.sample_captions import fixed_caption_for
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.latent_cache import LatentCache
from lib_lora_train.models.noise_schedule import add_noise, prediction_target
from lib_lora_train.training.fixed_noise_loss import TIMESTEPS
from lib_lora_train.training.loss import sample_errors
from lib_lora_train.training.step import predict, size_conditions
from lib_lora_train.training.text_conditions import TextConditions, text_conditions

MAX_IMAGES = 40
"""More images would hardly change the mean and take long."""


class Validation:
    """Mean squared error over images × `TIMESTEPS`, unweighted; inside the mask where an image has one.

    `plan` is that of the held-out images and `latents` their posteriors, of which the mean is used.
    """

    def __init__(self, plan: Plan, latents: LatentCache, config: TrainConfig) -> None:
        self._plan = plan
        self._latents = latents
        self._config = config
        self._conditions: TextConditions = text_conditions(config, trained=config.train_text_encoder)

    @torch.no_grad()
    def measure(self, model: DiffusionModel, yield_lease: Callable[[], None]) -> float:
        """The loss of the model with its adapter in their current state; calls `yield_lease` between batches."""
        errors: list[float] = []
        for samples in self._batches():
            errors += self._errors(model, samples).tolist()
            yield_lease()
        return sum(errors) / len(errors)

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        """Batches of (item, timestep) of one size, as large as in training."""
        items = [item for item in range(len(self._plan.dataset.items)) if item in self._latents]
        stride = -(-len(items) // MAX_IMAGES)
        sizes: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for item in items[::stride]:
            samples = sizes.setdefault(tuple(self._latents[item].mean.shape), [])
            samples += [(item, timestep) for timestep in TIMESTEPS]
        for samples in sizes.values():
            for start in range(0, len(samples), self._config.batch_size):
                yield samples[start : start + self._config.batch_size]

    def _errors(self, model: DiffusionModel, samples: list[tuple[int, int]]) -> Tensor:
        """The error of each sample, (B,)."""
        items = [item for item, _ in samples]
        posteriors = [self._latents[item] for item in items]
        clean = torch.stack([posterior.mean * model.spec.scale_factor for posterior in posteriors]).to(model.device)
        noise = torch.stack([self._noise(sample, clean.shape[1:]) for sample in samples]).to(model.device)
        timesteps = torch.tensor([timestep for _, timestep in samples])
        captions = [fixed_caption_for(self._plan, item, self._config) for item in items]
        condition = self._conditions.encode(model, captions)
        noisy = add_noise(model.schedule, clean, noise, timesteps)
        prediction = predict(model, noisy, timesteps, condition, size_conditions(self._plan, items))
        masks = [torch.ones_like(one.mean[0]) if one.mask is None else one.mask for one in posteriors]
        target = prediction_target(model.schedule, clean, noise, timesteps)
        return sample_errors(prediction, target, masks=torch.stack(masks)[:, None])

    def _noise(self, sample: tuple[int, int], shape: torch.Size) -> Tensor:
        """Standard normal, (C, h, w) float32, a function of the seed, the image's number and the timestep."""
        generator = torch.Generator().manual_seed(seed_for(self._config.seed, "validation noise", *sample))
        return torch.randn(shape, generator=generator)
