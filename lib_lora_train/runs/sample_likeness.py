"""The likeness of a run's samples to its training images, after every epoch that has samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from PIL import Image

from lib_lora_train.config.sample_prompts import SamplePrompt
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import DataError
from lib_lora_train.core.events import LIKENESS
from lib_lora_train.dataset.images import read_pixels
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.evaluation.feature_cache import FeatureCache
from lib_lora_train.evaluation.features import ImageFeatures, image_features
from lib_lora_train.evaluation.likeness import MAX_IMAGES, LikenessScale
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.training.lease import YieldLease

_LookAt = Callable[[DiffusionModel, Sequence[Image.Image]], list[ImageFeatures]]


@dataclass(eq=False)
class SampleLikeness:
    """Measures the samples at `places` of a row of samples against the images of `plan`.

    Images are looked at as large as they are trained, but not larger than those that the model was trained at.
    """

    plan: Plan
    places: Sequence[int]
    resolution: int
    clip_skip: int
    cache: FeatureCache
    _scale: LikenessScale | None = field(default=None, init=False)

    def measure(
        self,
        model: DiffusionModel,
        without_lora: Sequence[Image.Image],
        samples: Sequence[Image.Image],
        yield_lease: YieldLease,
    ) -> Mapping[str, float]:
        """The likeness of a row of samples by its name; nothing if it cannot be measured in this run.

        The adapter must be switched off: the model looks at the images as it was.
        """
        side = min(self.resolution, model.spec.own_resolution)
        look_at: _LookAt = partial(image_features, side=side, clip_skip=self.clip_skip, yield_lease=yield_lease)
        look_at_once: _LookAt = partial(
            self.cache.features, side=side, clip_skip=self.clip_skip, yield_lease=yield_lease
        )
        try:
            if self._scale is None:
                training = look_at_once(model, _training_images(self.plan))
                self._scale = LikenessScale(training, look_at(model, self._row(without_lora)))
            if not self._scale.is_known:
                return {}
            return {LIKENESS: self._scale.likeness(look_at(model, self._row(samples)))}
        except DataError:  # an image that the VAE cannot encode was reported before
            return {}

    def _row(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        return [images[place] for place in self.places if place < len(images)]


def sample_likeness(
    plan: Plan, prompts: Sequence[SamplePrompt], config: TrainConfig, folder: Path | None
) -> SampleLikeness:
    """For the prompts that contain a trigger, or all if none does; features are cached in `folder`."""
    words = [trigger.lower() for trigger in config.triggers]
    places = [
        place for place, prompt in enumerate(prompts) if any(word in prompt.prompt.lower() for word in words)
    ] or range(len(prompts))
    return SampleLikeness(plan, places, config.resolution, config.clip_skip, FeatureCache(folder))


def _training_images(plan: Plan) -> list[Image.Image]:
    """Up to `MAX_IMAGES` of the images to learn, spread over the dataset, as training crops them."""
    items = [item for item in range(len(plan.dataset.items)) if not plan.is_regularisation(item)]
    stride = -(-len(items) // MAX_IMAGES)
    images = []
    for item in items[::stride]:
        try:
            images.append(read_pixels(plan.dataset.items[item].image, plan.all_views[item].placement))
        except DataError:  # it was skipped in training too, with a warning
            continue
    if not images:
        raise DataError("None of the training images can be read any more.")
    return images
