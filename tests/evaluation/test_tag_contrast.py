"""How much an image has of what a tag's images have in common, on images whose similarities are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lib_lora_train.dataset.concept_tags import ConceptTags
from lib_lora_train.evaluation.features import ImageFeatures
from lib_lora_train.evaluation.sample_scale import Look
from lib_lora_train.evaluation.tag_contrast import RowLooks, TagContrast, measure_concept


def _look(degrees: float, brightness: float = 0.5) -> Look:
    """An image with one location, whose features point somewhere, and one colour."""
    angle = torch.tensor(degrees).deg2rad()
    features = ImageFeatures(torch.stack([angle.cos(), angle.sin()])[None], torch.ones(1), torch.zeros(1, 2))
    return Look(features, np.full((3, 32, 32), brightness))


_HAVING = [_look(degrees) for degrees in (80, 85, 90, 95)]
_LACKING = [_look(degrees) for degrees in (-5, 0, 5, 10)]


def test_the_position_runs_from_the_images_without_the_tag_to_those_with_it() -> None:
    contrast = TagContrast(_HAVING, _LACKING)
    assert np.mean([contrast.position(look) for look in _LACKING]) == pytest.approx(0, abs=1e-9)
    assert np.mean([contrast.position(look) for look in _HAVING]) == pytest.approx(1, abs=1e-9)
    assert 0.3 < contrast.position(_look(45)) < 0.7
    assert contrast.separation > 5


def test_a_tag_that_is_seen_in_the_whole_image_is_told_by_that() -> None:
    having, lacking = ([_look(90 * n, brightness) for n in range(4)] for brightness in (0.9, 0.1))
    contrast = TagContrast(having, lacking)
    assert contrast.position(_look(45, 0.9)) > 0.9 and contrast.position(_look(45, 0.1)) < 0.1


def test_images_with_nothing_in_common_are_not_told_apart() -> None:
    contrast = TagContrast([_look(n) for n in (0, 90, 180)], [_look(n) for n in (0, 90, 180)])
    assert contrast.separation < 1.5 and np.isfinite(contrast.position(_look(45)))


def test_every_tag_is_measured_and_those_not_drawn_are_counted() -> None:
    training = dict(enumerate([*_HAVING, *_LACKING]))
    concept = ConceptTags("zok", "zok", tuple(range(8)), {"hat": (0, 1, 2, 3), "cape": (0,)})
    rows = RowLooks(
        alone=[_look(0), _look(10)],
        nonsense=[[_look(10), _look(20)], [_look(0), _look(0)]],
        tags={"hat": [_look(90), _look(85)]},
    )
    hat, cape = measure_concept(concept, training, rows)
    assert (hat.images, hat.total, hat.prompt) == (4, 8, "zok, hat")
    assert min(hat.having) > 0.9 and max(hat.without) < 0.2 and len(hat.nonsense) == 2
    assert min(hat.effect) > max(hat.floor) > 0
    assert (cape.images, cape.having, cape.separation) == (1, (), 0.0)


def test_a_tag_in_all_captions_is_compared_with_images_drawn_without_the_lora() -> None:
    concept = ConceptTags("zok", "zok", tuple(range(4)), {"hat": (0, 1, 2, 3)})
    rows = RowLooks([_look(0)] * 2, [[_look(5)] * 2], {"hat": [_look(90)] * 2}, untrained=_LACKING)
    (hat,) = measure_concept(concept, dict(enumerate(_HAVING)), rows)
    assert min(hat.having) > 0.9 > 0.2 > max(hat.without)


def test_what_a_tag_may_pull_along_is_measured_on_images_without_that_tag() -> None:
    """Of the images on a beach (90°), two have no hat; those with a hat (180°) do not count."""
    looks = [_look(n) for n in (178, 180, 182, 88, 92, 0, 2, 4, 6, 8, 10, 12)]
    concept = ConceptTags("zok", "zok", tuple(range(12)), {"beach": (0, 1, 2, 3, 4), "hat": (0, 1, 2)})
    rows = RowLooks([_look(5)] * 2, [[_look(8)] * 2], {"beach": [_look(90)] * 2, "hat": [_look(91)] * 2})
    _, hat = measure_concept(concept, dict(enumerate(looks)), rows)
    (pull,) = hat.pulls
    assert (pull.tag, pull.both, pull.images) == ("beach", 3, 5)
    assert min(pull.pulled) > 0.9 and max(pull.without) < 0.2
