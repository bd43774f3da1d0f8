"""Buckets and placements are kohya's, checked against an independent definition."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.dataset.buckets import BucketRule, list_bucket_sizes, make_bucket_rule, place_image

STEPS = st.sampled_from([8, 32, 64])
SIDES = st.integers(1, 5000)


@st.composite
def _rules(draw: st.DrawFn) -> BucketRule:
    step = draw(STEPS)
    resolution = draw(st.integers(1, 16)) * 64
    low = draw(st.integers(1, resolution // step)) * step
    high = -(-resolution // step) * step + draw(st.integers(0, 12)) * step
    return BucketRule(resolution=resolution, min_side=low, max_side=high, step=step)


def _brute_force(rule: BucketRule) -> set[tuple[int, int]]:
    """All sizes on the grid with an allowed width and the largest height that fits, in both orientations."""
    grid = [n * rule.step for n in range(1, rule.max_side // rule.step + 1)]
    widths = [w for w in range(rule.min_side, rule.max_side + 1) if (w - rule.min_side) % rule.step == 0]
    found = set()
    for width in widths:
        fitting = [h for h in grid if width * h <= rule.resolution**2]
        if fitting and fitting[-1] >= rule.min_side:
            found |= {(width, fitting[-1]), (fitting[-1], width)}
    square = [s for s in grid if s * s <= rule.resolution**2][-1]
    return found | {(square, square)}


@given(_rules())
def test_bucket_sizes_equal_those_of_brute_force(rule: BucketRule) -> None:
    assert set(list_bucket_sizes(rule)) == _brute_force(rule)


@given(_rules(), SIDES, SIDES)
def test_an_image_goes_to_the_bucket_with_the_nearest_ratio(rule: BucketRule, width: int, height: int) -> None:
    placement = place_image(width, height, rule)
    ratio = Fraction(width, height)
    chosen = abs(Fraction(placement.width, placement.height) - ratio)
    nearest = min(abs(Fraction(w, h) - ratio) for w, h in _brute_force(rule))
    assert chosen - nearest < Fraction(1, 10**12)  # the choice is made in double precision


@given(_rules(), SIDES, SIDES, st.booleans(), st.booleans())
def test_every_placement_covers_its_bucket_and_crops_the_centre(
    rule: BucketRule, width: int, height: int, enabled: bool, no_upscale: bool
) -> None:
    rule = BucketRule(rule.resolution, rule.min_side, rule.max_side, rule.step, no_upscale, enabled)
    p = place_image(width, height, rule)
    assert p.width % rule.step == p.height % rule.step == 0
    assert p.width > 0 < p.height
    assert p.left == (p.resize_width - p.width) // 2 >= 0
    assert p.top == (p.resize_height - p.height) // 2 >= 0
    if not (enabled and no_upscale):
        assert p.resize_width == p.width or p.resize_height == p.height
        # proportions are kept up to rounding by half a pixel
        scale = max(Fraction(p.width, width), Fraction(p.height, height))
        assert abs(p.resize_width - width * scale) <= Fraction(1, 2)
        assert abs(p.resize_height - height * scale) <= Fraction(1, 2)


@given(_rules(), SIDES, SIDES)
def test_no_upscale_never_enlarges_images_of_at_least_one_step(rule: BucketRule, width: int, height: int) -> None:
    rule = BucketRule(rule.resolution, rule.min_side, rule.max_side, rule.step, no_upscale=True)
    p = place_image(width, height, rule)
    if min(width, height) >= rule.step and width * height <= rule.resolution**2:
        assert (p.resize_width, p.resize_height) == (width, height)
        assert (p.width, p.height) == (width - width % rule.step, height - height % rule.step)


def test_sdxl_with_wide_limits_has_kohyas_41_buckets() -> None:
    rule = BucketRule(resolution=1024, min_side=256, max_side=2048, step=64)
    sizes = list_bucket_sizes(rule)
    assert len(sizes) == 41
    assert min(w * h for w, h in sizes) == 1024**2 // 2


def test_small_resolutions_have_buckets_too() -> None:
    rule = BucketRule(resolution=128, min_side=64, max_side=1024, step=64)
    assert list_bucket_sizes(rule) == ((64, 192), (64, 256), (128, 128), (192, 64), (256, 64))
    placement = place_image(128, 128, rule)
    assert (placement.resize_width, placement.resize_height, placement.left, placement.top) == (128, 128, 0, 0)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1000, 1000), (512, 512)), ((1920, 1080), (640, 384)), ((1080, 1920), (384, 640)), ((4000, 500), (1024, 256))],
)
def test_known_sizes_go_to_known_buckets_at_512(size: tuple[int, int], expected: tuple[int, int]) -> None:
    placement = place_image(*size, BucketRule(resolution=512))
    assert (placement.width, placement.height) == expected


def test_without_buckets_the_central_square_is_cropped() -> None:
    placement = place_image(1024, 512, BucketRule(resolution=256, enabled=False))
    assert (placement.resize_width, placement.resize_height) == (512, 256)
    assert (placement.left, placement.top, placement.width, placement.height) == (128, 0, 256, 256)


def test_no_upscale_shrinks_large_images_to_the_area() -> None:
    placement = place_image(2000, 1000, BucketRule(resolution=512, no_upscale=True))
    # by hand: the area gives 724 × 362; 724 → 704 gives 704 × 320 (ratio 2.2), 362 → 320 gives 640 × 320 (ratio 2)
    assert (placement.resize_width, placement.resize_height) == (640, 320)
    assert (placement.width, placement.height) == (640, 320)


def test_the_bucket_rule_comes_from_the_settings() -> None:
    config = TrainConfig(resolution=768, min_bucket=320, max_bucket=960, bucket_step=32, bucket_no_upscale=True)
    assert make_bucket_rule(config) == BucketRule(768, 320, 960, 32, True, True)
