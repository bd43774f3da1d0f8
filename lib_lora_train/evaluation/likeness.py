"""Likeness: how much the samples show what the training images show.

Each sample is compared with the training image it is most like: the mean over all training images rates a grey blur
highest, since it is a little like each of them. Two numbers of the run itself give the scale. 0 is how alike samples
without LoRA are, 1 how alike the training images are to each other.

When it lies: a copy of a training image is as good as a new image of the subject, and it rises with everything that
the samples share with the training images, such as their style or a background that cannot be cropped away. Compare
epochs of one run, not runs with other images or prompts.

The features are those of `features.py`: DIFT (Tang et al. 2023), matched by location.
"""

from __future__ import annotations

from collections.abc import Sequence

from lib_lora_train.evaluation.features import ImageFeatures, nearest, similarity

MAX_IMAGES = 24
"""Training images beyond these would hardly change the numbers and take long."""

_DUPLICATE = 0.985  # the same image in another file format or size is at least so alike
_MIN_RANGE = 0.03  # between 0 and 1 of the scale: less is within the noise of a similarity


class LikenessScale:
    """The scale of a run, from its training images and its samples without LoRA; at least one of each.

    `is_known` is False if the samples without LoRA are already as alike as the training images are: the run then
    teaches nothing that this measure sees.
    """

    def __init__(self, training: Sequence[ImageFeatures], without_lora: Sequence[ImageFeatures]) -> None:
        self._training = list(training)
        self._zero = self._mean_nearest(without_lora)
        self._one = _mean_among(self._training)

    @property
    def is_known(self) -> bool:
        """Whether the scale is long enough to read a number from."""
        return self._one - self._zero >= _MIN_RANGE

    def likeness(self, samples: Sequence[ImageFeatures]) -> float:
        """0: as alike as without LoRA; 1: as alike as the training images are to each other; it may be outside."""
        return (self._mean_nearest(samples) - self._zero) / (self._one - self._zero)

    def _mean_nearest(self, samples: Sequence[ImageFeatures]) -> float:
        return sum(nearest(sample, self._training)[1] for sample in samples) / len(samples)


def _mean_among(images: Sequence[ImageFeatures]) -> float:
    """The mean similarity of each image to the one most like it, its duplicates aside; 1 if there is no other."""
    scores = []
    for index, image in enumerate(images):
        others = [similarity(image, other) for place, other in enumerate(images) if place != index]
        scores.append(max((score for score in others if score < _DUPLICATE), default=1.0))
    return sum(scores) / len(scores)
