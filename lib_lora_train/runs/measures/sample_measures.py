"""What a run's samples have of its training images, after every epoch that has samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from lib_lora_train.config.sample_prompts import prompt_groups
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import DataError
from lib_lora_train.core.events import SampleMatched
from lib_lora_train.core.measures import COPIES, DIVERSITY, LIKENESS
from lib_lora_train.dataset.images import read_pixels
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.evaluation.feature_cache import FeatureCache
from lib_lora_train.evaluation.features import ImageFeatures, image_features
from lib_lora_train.evaluation.sample_scale import MAX_IMAGES, Look, SampleScale, copies, make_look
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.training.lease import YieldLease

MAX_SAMPLES = 4
"""Samples of an epoch that are compared."""

_Features = Callable[[DiffusionModel, Sequence[Image.Image]], list[ImageFeatures]]


@dataclass(frozen=True)
class SampleFindings:
    """The values by name, and the training image that each sample is most like."""

    values: dict[str, float]
    matches: list[SampleMatched]


@dataclass(eq=False)
class SampleMeasures:
    """Measures the samples at `places` of a row of samples against the images of `plan`.

    Images are looked at as large as they are trained, but not larger than those that the model was trained at.
    """

    plan: Plan
    places: Sequence[int]
    config: TrainConfig
    folder: RunFolder
    cache: FeatureCache
    _scale: SampleScale | None = field(default=None, init=False)
    _paths: list[Path] = field(default_factory=list, init=False)

    def measure(
        self,
        model: DiffusionModel,
        images: dict[int, list[Image.Image]],
        epoch: int,
        yield_lease: YieldLease,
    ) -> SampleFindings:
        """What the samples of an epoch are like; nothing if that cannot be measured in this run.

        `images` has the rows of samples by epoch, 0 being those without LoRA. The adapter must be switched off: the
        model looks at the images as it was.
        """
        options = self._options(model, yield_lease)
        try:
            scale = self._prepare(model, images[0], options)
            samples = _make_looks(model, self._row(images[epoch]), partial(image_features, **options))
        except DataError:  # an image that the VAE cannot encode was reported before
            return SampleFindings({}, [])
        matches = scale.matches(samples)
        diversity = scale.diversity(samples)
        values = {LIKENESS: scale.likeness(matches)} if scale.is_known else {}
        values |= {COPIES: copies(matches)} | ({} if diversity is None else {DIVERSITY: diversity})
        found = [
            SampleMatched(
                epoch,
                str(self.folder.sample(epoch, place + 1)),
                str(self._paths[match.image]),
                match.similarity,
                match.is_copy,
            )
            for place, match in zip(self.places, matches, strict=False)
        ]
        return SampleFindings(values, found)

    def likeness_of_each(
        self,
        model: DiffusionModel,
        without_lora: Sequence[Image.Image],
        row: Sequence[Image.Image],
        yield_lease: YieldLease,
    ) -> tuple[float, ...]:
        """The likeness of each sample of a row; () if likeness has no scale. The adapter must be switched off.

        DataError if an image cannot be read or encoded.
        """
        options = self._options(model, yield_lease)
        scale = self._prepare(model, without_lora, options)
        return tuple(scale.likeness_of_each(_make_looks(model, self._row(row), partial(image_features, **options))))

    def _options(self, model: DiffusionModel, yield_lease: YieldLease) -> dict[str, Any]:
        side = min(self.config.resolution_side, model.spec.own_resolution)
        return {"side": side, "clip_skip": self.config.clip_skip, "yield_lease": yield_lease}

    def _prepare(
        self, model: DiffusionModel, without_lora: Sequence[Image.Image], options: Mapping[str, Any]
    ) -> SampleScale:
        """The scale of the run, made once."""
        if self._scale is None:
            self._paths, training = _training_images(self.plan)
            looks = _make_looks(model, training, partial(self.cache.features, **options))
            drawn = _make_looks(model, self._row(without_lora), partial(image_features, **options))
            self._scale = SampleScale(looks, drawn)
        return self._scale

    def _row(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        return [images[place] for place in self.places if place < len(images)]


def sample_measures(
    plan: Plan, config: TrainConfig, folder: RunFolder, places: Sequence[int] | None = None
) -> SampleMeasures:
    """For the samples at `places` of a row, None for those of the first prompts that are not control prompts.

    Features are cached beside the run's folder if the settings ask for a cache.
    """
    cache = FeatureCache(folder.root.parent / "features" if config.cache_to_disk else None)
    places = prompt_groups(config).concept[:MAX_SAMPLES] if places is None else places
    return SampleMeasures(plan, places, config, folder, cache)


def _make_looks(model: DiffusionModel, images: Sequence[Image.Image], features: _Features) -> list[Look]:
    return [make_look(image, one) for image, one in zip(images, features(model, images), strict=True)]


def _training_images(plan: Plan) -> tuple[list[Path], list[Image.Image]]:
    """Up to `MAX_IMAGES` of the images to learn, spread over the dataset, as training crops them, with their paths."""
    items = [item for item in range(len(plan.dataset.items)) if not plan.is_regularisation(item)]
    stride = -(-len(items) // MAX_IMAGES)
    found: dict[Path, Image.Image] = {}
    for item in items[::stride]:
        image = plan.dataset.items[item].image
        try:
            found[image.path] = read_pixels(image, plan.all_views[item].placement)
        except DataError:  # it was skipped in training too, with a warning
            continue
    if not found:
        raise DataError("None of the training images can be read any more.")
    return list(found), list(found.values())
