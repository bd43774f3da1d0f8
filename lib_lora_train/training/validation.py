"""The loss on images kept from training, measured with the same noise after every epoch.

The training loss jumps, since each step draws new noise and timesteps, and falls on while a LoRA only memorises. This
one moves for one reason, the adapter, and on images that the adapter has not seen: where it begins to rise, more
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

MOST_IMAGES = 40
"""Beyond these more images would change the mean little and take long."""


class Validation:
    """Mean squared error over images × `TIMESTEPS`, unweighted; where an image has a mask, within it.

    `plan` is the plan of the images kept from training and `latents` their posteriors, of which the mean is taken.
    """

    def __init__(self, plan: Plan, latents: LatentCache, config: TrainConfig) -> None:
        self._plan = plan
        self._latents = latents
        self._config = config
        self._conditions: TextConditions = text_conditions(config, trained=config.train_text_encoder)

    @torch.no_grad()
    def measure(self, model: DiffusionModel, yield_lease: Callable[[], None]) -> float:
        """The loss of the model as it is now, adapter and all; between two batches it lets others yield_lease."""
        errors: list[float] = []
        for samples in self._batches():
            errors += self._errors(model, samples).tolist()
            yield_lease()
        return sum(errors) / len(errors)

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        """(item, timestep) of one size together, as many as a training batch has."""
        items = [item for item in range(len(self._plan.dataset.items)) if item in self._latents]
        every = -(-len(items) // MOST_IMAGES)
        sizes: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for item in items[::every]:
            samples = sizes.setdefault(tuple(self._latents[item].mean.shape), [])
            samples += [(item, timestep) for timestep in TIMESTEPS]
        for samples in sizes.values():
            for start in range(0, len(samples), self._config.batch_size):
                yield samples[start : start + self._config.batch_size]

    def _errors(self, model: DiffusionModel, samples: list[tuple[int, int]]) -> Tensor:
        """The error of each sample, (B,)."""
        items = [item for item, _ in samples]
        found = [self._latents[item] for item in items]
        clean = torch.stack([posterior.mean * model.spec.scale_factor for posterior in found]).to(model.device)
        noise = torch.stack([self._noise(sample, clean.shape[1:]) for sample in samples]).to(model.device)
        timesteps = torch.tensor([timestep for _, timestep in samples])
        condition = self._conditions.of(model, [fixed_caption_for(self._plan, item, self._config) for item in items])
        noisy = add_noise(model.schedule, clean, noise, timesteps)
        answer = predict(model, noisy, timesteps, condition, size_conditions(self._plan, items))
        masks = [torch.ones_like(one.mean[0]) if one.mask is None else one.mask for one in found]
        wanted = prediction_target(model.schedule, clean, noise, timesteps)
        return sample_errors(answer, wanted, masks=torch.stack(masks)[:, None])

    def _noise(self, sample: tuple[int, int], shape: torch.Size) -> Tensor:
        """Standard normal, (C, h, w) float32, a function of the seed, the image's place and the timestep."""
        generator = torch.Generator().manual_seed(seed_for(self._config.seed, "validation noise", *sample))
        return torch.randn(shape, generator=generator)
