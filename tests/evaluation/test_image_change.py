"""What changed in an image, on images whose difference and roughness are known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lib_lora_train.evaluation.image_change import (
    change,
    difference,
    difference_of_prompts,
    roughness,
    roughness_ratio,
)

_LEVEL = 1 / 255  # one step of an 8-bit colour, the rounding of every pixel


def _plain(red: int, green: int = 0, blue: int = 0, side: int = 128) -> Image.Image:
    return Image.new("RGB", (side, side), (red, green, blue))


def _noisy(deviation: float, mean: float = 128, side: int = 128, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).normal(mean, deviation, (side, side, 3))
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))


def test_the_difference_is_the_root_mean_square_over_all_pixels_and_colours() -> None:
    assert difference(_plain(0), _plain(255)) == pytest.approx((1 / 3) ** 0.5)  # one of three colours differs fully
    assert difference(_plain(10, 20, 30), _plain(40, 20, 70)) == pytest.approx(((30**2 + 40**2) / 3) ** 0.5 / 255)
    half = _plain(0)
    half.paste((255, 255, 255), (0, 0, 64, 128))
    assert difference(_plain(0), half) == pytest.approx(0.5**0.5)
    assert difference(half, half) == 0


def test_images_of_other_sizes_are_compared_as_thumbnails() -> None:
    assert difference(_plain(90, side=512), _plain(90, side=64)) == 0
    assert difference(_noisy(40, side=512), _plain(128, 128, 128)) < 0.02  # noise averages out


def test_change_is_one_where_an_image_differs_as_those_of_other_prompts_do() -> None:
    rows = [_plain(0), _plain(100), _plain(250)]
    one = difference_of_prompts(rows)
    assert one == pytest.approx((100 + 250 + 150) / 3 / 255 / 3**0.5)
    assert change(_plain(0), _plain(0), one) == 0
    assert change(_plain(20), _plain(120), difference_of_prompts([_plain(0), _plain(100)])) == pytest.approx(1)
    assert change(_plain(20), _plain(70), difference_of_prompts([_plain(0), _plain(100)])) == pytest.approx(0.5)


def test_one_prompt_or_equal_images_have_no_scale_and_no_change() -> None:
    assert difference_of_prompts([_plain(3)]) == 0
    assert change(_plain(0), _plain(255), 0.0) == 0


@pytest.mark.parametrize("deviation", [4, 10, 30])
def test_the_roughness_of_noise_is_its_standard_deviation(deviation: float) -> None:
    """A cell has 8 × 8 × 3 numbers, so its deviation is known to about 5%, the 20th percentile lies below the mean."""
    assert roughness(_noisy(deviation)) * 255 == pytest.approx(deviation, rel=0.12)


def test_the_roughness_is_that_of_the_plain_parts() -> None:
    image = _noisy(2)
    image.paste(_noisy(70, seed=1).crop((0, 0, 96, 128)), (0, 0))  # three quarters are an object full of details
    assert roughness(image) * 255 == pytest.approx(2, rel=0.2)
    assert roughness(_plain(200)) == pytest.approx(0, abs=1e-12)


def test_a_fifth_of_the_parts_are_plainer_than_the_one_that_counts() -> None:
    """256 cells of checkerboards, whose deviation is their amplitude: 51 are plainer than the 52nd."""
    amplitudes = np.random.default_rng(0).permutation(np.arange(256) // 2)
    signs = (-1) ** np.add.outer(np.arange(8), np.arange(8))
    colours = np.array([1, 0, 0])  # a third of the variance of all three
    cells = 128 + amplitudes.reshape(16, 16, 1, 1, 1) * signs[:, :, None] * colours  # (16, 16, 8, 8, 3)
    pixels = cells.transpose(0, 2, 1, 3, 4).reshape(128, 128, 3)
    assert roughness(Image.fromarray(pixels.astype(np.uint8))) * 255 * 3**0.5 == pytest.approx(51 // 2)


def test_edges_between_cells_do_not_count() -> None:
    steps = np.repeat(np.repeat(np.random.default_rng(0).integers(0, 255, (16, 16, 3)), 8, 0), 8, 1)
    assert roughness(Image.fromarray(steps.astype(np.uint8))) == pytest.approx(0, abs=1e-12)


def test_the_ratio_compares_the_means_and_smooth_images_count_as_one_step_of_colour() -> None:
    before, after = [_noisy(5), _noisy(15, seed=1)], [_noisy(20, seed=2), _noisy(20, seed=3)]
    assert roughness_ratio(before, after) == pytest.approx(2, rel=0.1)
    assert roughness_ratio([_plain(9)], [_plain(9)]) == 1
    assert roughness_ratio([_plain(9)], [_noisy(10)]) == pytest.approx(roughness(_noisy(10)) / _LEVEL)
