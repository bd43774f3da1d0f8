"""Likeness, copies and diversity, on images whose similarities are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lib_lora_train.evaluation.features import ImageFeatures, similarity
from lib_lora_train.evaluation.sample_scale import Look, SampleScale, copies, make_look, pixel_similarity


def _pointing(degrees: float, seed: int = 0) -> Look:
    """An image with one location; the similarity of two of them is the cosine of the angle between them.

    Those of one seed have equal pixels, others nothing in common.
    """
    angle = torch.tensor(degrees).deg2rad()
    features = ImageFeatures(torch.stack([angle.cos(), angle.sin()])[None], torch.ones(1), torch.zeros(1, 2))
    return Look(features, np.random.default_rng(seed).random((3, 32, 32)))


def _likeness(scale: SampleScale, *samples: Look) -> float:
    return scale.likeness(scale.matches(samples))


def test_the_scale_runs_from_samples_without_lora_to_the_training_images_among_themselves() -> None:
    """Closed form: training images at 0° and 60° are alike by cos 60°, a sample at 150° without LoRA by cos 90°."""
    scale = SampleScale([_pointing(0), _pointing(60)], [_pointing(150)])
    assert scale.is_known
    assert _likeness(scale, _pointing(150)) == pytest.approx(0.0, abs=1e-6)
    assert _likeness(scale, _pointing(120)) == pytest.approx(1.0, abs=1e-6)  # 60° from the nearest
    assert _likeness(scale, _pointing(0)) == pytest.approx(2.0, abs=1e-6)  # a copy is above 1
    assert _likeness(scale, _pointing(150), _pointing(120)) == pytest.approx(0.5, abs=1e-6)
    assert [match.image for match in scale.matches([_pointing(5), _pointing(50)])] == [0, 1]


def test_a_sample_between_all_training_images_is_less_alike_than_one_at_any_of_them() -> None:
    """The trap of the mean: what is a little like every image would be rated highest by it."""
    training = [_pointing(degrees) for degrees in (0, 40, 80)]
    scale = SampleScale(training, [_pointing(180)])
    between, copy_of_an_edge = _pointing(20), _pointing(0)
    assert sum(similarity(between.features, image.features) for image in training) > sum(
        similarity(copy_of_an_edge.features, image.features) for image in training
    )
    assert _likeness(scale, copy_of_an_edge) > _likeness(scale, between)


def test_duplicates_do_not_move_the_scale() -> None:
    training = [_pointing(0), _pointing(60)]
    once, twice = (SampleScale(images, [_pointing(150)]) for images in (training, training * 2))
    assert _likeness(twice, _pointing(100)) == pytest.approx(_likeness(once, _pointing(100)), abs=1e-6)
    assert twice.diversity(training) == pytest.approx(once.diversity(training), abs=1e-6)


def test_a_single_training_image_has_a_scale_and_one_that_changes_nothing_has_none() -> None:
    assert _likeness(SampleScale([_pointing(0)], [_pointing(90)]), _pointing(0)) == pytest.approx(1.0, abs=1e-6)
    assert not SampleScale([_pointing(0), _pointing(60)], [_pointing(120)]).is_known


def test_a_copy_is_nearer_in_features_and_in_pixels_than_training_images_are_to_each_other() -> None:
    training = [_pointing(0, seed=1), _pointing(40, seed=2), _pointing(40.5, seed=2)]  # the last two are duplicates
    scale = SampleScale(training, [_pointing(150)])
    samples = {
        "a copy": _pointing(2, seed=1),
        "the same subject elsewhere": _pointing(2, seed=7),
        "another subject in the same place": _pointing(80, seed=1),
        "as near as two training images": _pointing(-41, seed=1),
    }
    found = dict(zip(samples, scale.matches(list(samples.values())), strict=True))
    assert [name for name, match in found.items() if match.is_copy] == ["a copy"]
    assert copies(list(found.values())) == 0.25


def test_with_one_training_image_a_copy_is_one_that_is_nearly_equal() -> None:
    scale = SampleScale([_pointing(0, seed=1)], [_pointing(150)])
    assert [match.is_copy for match in scale.matches([_pointing(5, 1), _pointing(50, 1), _pointing(5, 2)])] == [
        True,
        False,
        False,
    ]


def _mixed(degrees: float, first: int, second: int, share: float) -> Look:
    """As `_pointing`, with pixels that are `share` of those of one seed and the rest of another."""
    one, other = (_pointing(degrees, seed).thumbnail for seed in (first, second))
    return Look(_pointing(degrees).features, share * one + (1 - share) * other)


def test_two_training_images_that_are_unlike_each_other_do_not_make_every_sample_a_copy() -> None:
    """Two images say little about how alike two different ones can be: here 40° and nothing in common in pixels."""
    scale = SampleScale([_pointing(0, seed=1), _pointing(40, seed=2)], [_pointing(150)])
    elsewhere = _mixed(2, 1, 7, 0.55)
    assert 0.5 < pixel_similarity(elsewhere.thumbnail, scale.training[0].thumbnail) < 0.85
    assert [match.is_copy for match in scale.matches([elsewhere, _mixed(2, 1, 7, 0.95)])] == [False, True]


def test_a_copy_is_found_where_training_images_show_the_same_subject_in_other_places() -> None:
    """Alike by cos 10° = .985 at most in features; the copy's, at 20°, are less alike than that to its image."""
    training = [_pointing(0, seed=1), _pointing(11, seed=2), _pointing(22, seed=3)]
    scale = SampleScale(training, [_pointing(150)])
    assert [match.is_copy for match in scale.matches([_pointing(-20, seed=1), _pointing(-40, seed=1)])] == [True, False]


def test_the_image_that_is_copied_is_shown_even_if_another_one_is_nearer_in_features() -> None:
    scale = SampleScale([_pointing(0, seed=1), _pointing(20, seed=2)], [_pointing(150)])
    [match] = scale.matches([_pointing(-25, seed=2)])
    assert not match.is_copy and match.image == 0, "45° from the image whose pixels it has"
    [match] = scale.matches([_pointing(8, seed=2)])
    assert match.is_copy and match.image == 1


def test_images_that_are_as_alike_in_pixels_as_a_copy_would_be_raise_the_bound() -> None:
    training = [_pointing(0, seed=1), _mixed(40, 1, 2, 0.8)]
    scale = SampleScale(training, [_pointing(150)])
    assert pixel_similarity(training[0].thumbnail, training[1].thumbnail) > 0.9
    assert [match.is_copy for match in scale.matches([_mixed(2, 1, 7, 0.75), _mixed(2, 1, 7, 0.95)])] == [False, True]


def test_diversity_is_the_samples_difference_as_a_share_of_the_training_images() -> None:
    """Closed form: images 60° apart differ by 1 − cos 60° = ½, samples 90° apart by 1."""
    scale = SampleScale([_pointing(0), _pointing(60)], [_pointing(150)])
    assert scale.diversity([_pointing(0), _pointing(90)]) == pytest.approx(2.0, abs=1e-6)
    assert scale.diversity([_pointing(10), _pointing(10)]) == pytest.approx(0.0, abs=1e-6)
    assert scale.diversity([_pointing(10)]) is None
    assert SampleScale([_pointing(0)], [_pointing(150)]).diversity([_pointing(0), _pointing(90)]) is None


def test_pixels_are_compared_whatever_their_brightness_contrast_and_a_small_shift() -> None:
    base = make_look(_blob(40), _pointing(0).features).thumbnail
    assert pixel_similarity(base, base) == pytest.approx(1)
    assert pixel_similarity(base, base * 0.5 + 0.2) == pytest.approx(1)
    assert pixel_similarity(base, make_look(_blob(46), _pointing(0).features).thumbnail) > 0.95
    assert pixel_similarity(base, make_look(_blob(90), _pointing(0).features).thumbnail) < 0.5
    assert pixel_similarity(base, np.full((3, 32, 32), 0.3)) == 0


def _blob(left: int) -> Image.Image:
    """A red square on blue, 128 px."""
    image = Image.new("RGB", (128, 128), "blue")
    image.paste("red", (left, 40, left + 30, 70))
    return image


# --- features and colours together ----------------------------------------------------------------


def _coloured(degrees: float, *colours: tuple[float, float, float]) -> Look:
    """As `_pointing`, with an object of these colours in equal parts on white."""
    thumbnail = np.ones((3, 32, 32))
    for number, colour in enumerate(colours):
        width = 16 // len(colours)
        left = 8 + number * width
        thumbnail[:, 8:24, left : left + width] = np.array(colour)[:, None, None]
    return Look(_pointing(degrees).features, thumbnail)


_RED, _BLUE = (0.9, 0.1, 0.1), (0.1, 0.1, 0.9)


def test_each_sample_is_rated_by_features_and_by_colours_and_neither_above_one() -> None:
    """Closed form: features from cos 90° to cos 60°, palettes from nothing in common to all."""
    scale = SampleScale([_coloured(0, _RED), _coloured(60, _RED)], [_coloured(150, _BLUE)])
    samples = [_coloured(150, _BLUE), _coloured(150, _RED), _coloured(120, _BLUE), _coloured(0, _RED, _BLUE)]
    assert scale.likeness_of_each(samples) == pytest.approx([0.0, 0.5, 0.5, (1 + 0.5) / 2], abs=1e-6)


def test_what_has_no_scale_is_left_out() -> None:
    alike = [_coloured(0, _RED), _coloured(60, _RED)]
    only_colours = SampleScale(alike, [_coloured(120, _BLUE)])  # as far from 60° as 60° is from 0°
    assert only_colours.likeness_of_each([_coloured(0, _RED), _coloured(0, _BLUE)]) == pytest.approx([1.0, 0.0])
    only_features = SampleScale(alike, [_coloured(150, _RED)])
    assert only_features.likeness_of_each([_coloured(120, _BLUE)]) == pytest.approx([1.0], abs=1e-6)
    assert SampleScale(alike, [_coloured(120, _RED)]).likeness_of_each([_coloured(0, _RED)]) == []
