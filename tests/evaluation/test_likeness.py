"""Likeness: 0 is a sample without LoRA, 1 a training image among the others."""

from __future__ import annotations

import pytest
import torch

from lib_lora_train.evaluation.features import ImageFeatures, similarity
from lib_lora_train.evaluation.likeness import LikenessScale


def _pointing(degrees: float) -> ImageFeatures:
    """An image with one location; the similarity of two of them is the cosine of the angle between them."""
    angle = torch.tensor(degrees).deg2rad()
    return ImageFeatures(torch.stack([angle.cos(), angle.sin()])[None], torch.ones(1), torch.zeros(1, 2))


def test_the_scale_runs_from_samples_without_lora_to_the_training_images_among_themselves() -> None:
    """Closed form: training images at 0° and 60° are alike by cos 60°, a sample at 150° without LoRA by cos 90°."""
    scale = LikenessScale([_pointing(0), _pointing(60)], [_pointing(150)])
    assert scale.is_known
    assert scale.likeness([_pointing(150)]) == pytest.approx(0.0, abs=1e-6)
    assert scale.likeness([_pointing(120)]) == pytest.approx(1.0, abs=1e-6)  # 60° from the nearest
    assert scale.likeness([_pointing(0)]) == pytest.approx(2.0, abs=1e-6)  # a copy is above 1
    assert scale.likeness([_pointing(150), _pointing(120)]) == pytest.approx(0.5, abs=1e-6)


def test_a_sample_between_all_training_images_is_less_alike_than_one_at_any_of_them() -> None:
    """The trap of the mean: what is a little like every image would be rated highest by it."""
    training = [_pointing(degrees) for degrees in (0, 40, 80)]
    scale = LikenessScale(training, [_pointing(180)])
    between, copy_of_an_edge = _pointing(20), _pointing(0)
    assert sum(similarity(between, image) for image in training) > sum(
        similarity(copy_of_an_edge, image) for image in training
    )
    assert scale.likeness([copy_of_an_edge]) > scale.likeness([between])


def test_duplicates_do_not_move_the_scale() -> None:
    training = [_pointing(0), _pointing(60)]
    once, twice = (LikenessScale(images, [_pointing(150)]) for images in (training, training * 2))
    assert twice.likeness([_pointing(100)]) == pytest.approx(once.likeness([_pointing(100)]), abs=1e-6)


def test_a_single_training_image_has_a_scale_and_one_that_changes_nothing_has_none() -> None:
    assert LikenessScale([_pointing(0)], [_pointing(90)]).likeness([_pointing(0)]) == pytest.approx(1.0, abs=1e-6)
    assert not LikenessScale([_pointing(0), _pointing(60)], [_pointing(120)]).is_known
