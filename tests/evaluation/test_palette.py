"""The palette of an image, on images whose colours are counted by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from lib_lora_train.evaluation.palette import palette, palette_similarity

Pixels = npt.NDArray[np.float64]


def _scene(background: tuple[float, float, float], *parts: tuple[slice, slice, tuple[float, float, float]]) -> Pixels:
    """(3, 32, 32): rectangles of one colour each on a plain background."""
    image = np.empty((3, 32, 32))
    image[:] = np.array(background)[:, None, None]
    for rows, columns, colour in parts:
        image[:, rows, columns] = np.array(colour)[:, None, None]
    return image


def _by_definition(image: Pixels) -> Pixels:
    """Pixel by pixel: what is at least 0.35 as far from the border's median as the farthest one, by its colour."""
    _, height, width = image.shape
    sides = [(y, x) for y in (0, height - 1) for x in range(width)]
    sides += [(y, x) for x in (0, width - 1) for y in range(height)]
    middle = np.median([image[:, y, x] for y, x in sides], axis=0)
    colours = [image[:, y, x] for y in range(height) for x in range(width)]
    farthest = max(float(np.linalg.norm(colour - middle)) for colour in colours)
    counts = np.zeros((4, 4, 4))
    for colour in colours:
        if np.linalg.norm(colour - middle) >= 0.35 * farthest:
            red, green, blue = (min(3, int(4 * value)) for value in colour)
            counts[red, green, blue] += 1
    shares: Pixels = counts.flatten() / counts.sum()
    return shares


def test_the_palette_is_that_of_its_definition() -> None:
    """Small images, most of them border, with colours from 0 up to 1."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        image = rng.integers(0, 9, (3, *rng.integers(3, 7, 2))) / 8
        assert palette(image) == pytest.approx(_by_definition(image))


_RED, _BLUE, _GREEN, _WHITE = (0.9, 0.1, 0.1), (0.1, 0.1, 0.9), (0.1, 0.9, 0.1), (1.0, 1.0, 1.0)
_TOP, _BOTTOM = (slice(8, 16), slice(8, 24)), (slice(16, 24), slice(8, 24))


def test_it_counts_the_colours_of_what_stands_out_and_not_the_background() -> None:
    two = palette(_scene(_WHITE, (*_TOP, _RED), (*_BOTTOM, _BLUE)))
    assert two.sum() == pytest.approx(1)
    assert sorted(two[two > 0]) == pytest.approx([0.5, 0.5])
    assert two[3 * 16] == pytest.approx(0.5) and two[3] == pytest.approx(0.5)  # red (3, 0, 0), blue (0, 0, 3)


@pytest.mark.parametrize("background", [_WHITE, _GREEN, (0.5, 0.5, 0.5)])
def test_the_same_object_has_the_same_palette_anywhere_and_on_any_background(
    background: tuple[float, float, float],
) -> None:
    here = palette(_scene(_WHITE, (*_TOP, _RED), (*_BOTTOM, _BLUE)))
    smaller = palette(_scene(background, (slice(2, 6), slice(3, 9), _RED), (slice(6, 10), slice(3, 9), _BLUE)))
    assert palette_similarity(here, smaller) == pytest.approx(1)


def test_the_similarity_is_the_share_in_common() -> None:
    both = palette(_scene(_WHITE, (*_TOP, _RED), (*_BOTTOM, _BLUE)))
    red = palette(_scene(_WHITE, (*_TOP, _RED), (*_BOTTOM, _RED)))
    green = palette(_scene(_WHITE, (*_TOP, _GREEN)))
    assert palette_similarity(both, red) == pytest.approx(0.5)
    assert palette_similarity(red, green) == 0
    assert palette_similarity(red, red) == pytest.approx(1)


def test_a_plain_image_has_a_palette_too() -> None:
    plain = palette(_scene(_WHITE))
    assert plain[-1] == pytest.approx(1)
