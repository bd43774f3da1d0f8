"""Aspect-ratio buckets as in kohya's sd-scripts: sides are multiples of a step, areas at most that of the resolution.

An image goes to the bucket with the nearest width / height, is resized to cover it and centre-cropped.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from lib_lora_train.config.train_config import TrainConfig


@dataclass(frozen=True)
class BucketRule:
    """How buckets are made, lengths in px. If `enabled` is False, every image is cropped to one size.

    `resolution` is the side of a square, or the width beside a `height`; only their area counts for buckets.
    """

    resolution: int
    min_side: int = 256
    max_side: int = 1024
    step: int = 64
    no_upscale: bool = False
    enabled: bool = True
    height: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the resolution."""
        return self.resolution, self.resolution if self.height is None else self.height

    @property
    def area(self) -> int:
        """The largest area of a bucket."""
        return self.size[0] * self.size[1]


@dataclass(frozen=True)
class Placement:
    """Resize an image to (resize_width, resize_height), then crop (width, height), its bucket, at (left, top)."""

    resize_width: int
    resize_height: int
    left: int
    top: int
    width: int
    height: int


def make_bucket_rule(config: TrainConfig, resolution: int = 0) -> BucketRule:
    """The bucket rule of a config. At another `resolution` a rectangle and the bucket limits scale with it."""
    width, height = config.resolution_size
    side = config.resolution_side
    resolution = resolution or side
    step = config.bucket_step

    def scale(length: int) -> int:
        return length if resolution == side else max(length * resolution // side // step, 1) * step

    is_scaled = width != height and resolution != side
    return BucketRule(
        resolution=resolution if width == height else round(width * resolution / side) if is_scaled else width,
        height=None if width == height else round(height * resolution / side) if is_scaled else height,
        min_side=scale(config.min_bucket),
        max_side=scale(config.max_bucket),
        step=config.bucket_step,
        no_upscale=config.bucket_no_upscale,
        enabled=config.enable_buckets,
    )


@functools.lru_cache(maxsize=64)
def list_bucket_sizes(rule: BucketRule) -> tuple[tuple[int, int], ...]:
    """All bucket sizes (width, height), sorted; `no_upscale` can give others too.

    The square of the area, and for every width from `min_side` to `max_side` the largest height that fits the area and
    `max_side`, if it is at least `min_side`; each in both orientations.
    """
    if not rule.enabled:
        width, height = (_whole_steps(side, rule) for side in rule.size)
        return ((width, height),)
    square = _whole_steps(math.isqrt(rule.area), rule)
    sizes = {(square, square)}
    for width in range(rule.min_side, rule.max_side + 1, rule.step):
        height = min(rule.max_side, rule.area // width // rule.step * rule.step)
        if height >= rule.min_side:
            sizes |= {(width, height), (height, width)}
    return tuple(sorted(sizes))


def place_image(width: int, height: int, rule: BucketRule) -> Placement:
    """The resize and crop for an image of this (upright) size."""
    if rule.enabled and rule.no_upscale:
        return _place_without_upscaling(width, height, rule)
    ratio = width / height
    # Of two buckets with the same ratio, the larger keeps more of the image.
    bucket = min(list_bucket_sizes(rule), key=lambda size: (abs(size[0] / size[1] - ratio), -size[0] * size[1]))
    return _cover(width, height, bucket)


def _whole_steps(side: int, rule: BucketRule) -> int:
    return max(side // rule.step, 1) * rule.step


def _cover(width: int, height: int, bucket: tuple[int, int]) -> Placement:
    """The smallest resize that covers the bucket, cropped at the centre. Integer arithmetic, halves rounded up."""
    bucket_width, bucket_height = bucket
    if width * bucket_height > height * bucket_width:  # wider than the bucket: match the heights
        resized = (_divide_rounded(width * bucket_height, height), bucket_height)
    else:
        resized = (bucket_width, _divide_rounded(height * bucket_width, width))
    return _crop_centre(resized, bucket)


def _divide_rounded(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)


def _crop_centre(resized: tuple[int, int], bucket: tuple[int, int]) -> Placement:
    left, top = ((outer - inner) // 2 for outer, inner in zip(resized, bucket, strict=True))
    return Placement(*resized, left, top, *bucket)


def _place_without_upscaling(width: int, height: int, rule: BucketRule) -> Placement:
    """The bucket is the image's own size rounded down to whole steps; only larger ones than the area are shrunk."""
    is_large = width * height > rule.area
    resized = _shrink(width / height, rule) if is_large else (width, height)
    bucket = (resized[0] // rule.step * rule.step, resized[1] // rule.step * rule.step)
    if 0 in bucket:  # smaller than one step: the crop would be empty, so enlarge
        return _cover(width, height, (max(bucket[0], rule.step), max(bucket[1], rule.step)))
    return _crop_centre(resized, bucket)


def _shrink(ratio: float, rule: BucketRule) -> tuple[int, int]:
    """The size of the resolution's area with one side in whole steps; of the two choices, the one nearer to `ratio`."""

    def round_to_steps(length: float) -> int:
        return max(int(length + 0.5) // rule.step, 1) * rule.step

    side = math.sqrt(rule.area)
    wide, high = side * math.sqrt(ratio), side / math.sqrt(ratio)
    width, height = round_to_steps(wide), round_to_steps(high)
    error_of_width = abs(width / round_to_steps(width / ratio) - ratio)
    error_of_height = abs(round_to_steps(height * ratio) / height - ratio)
    if error_of_width < error_of_height:
        return width, int(width / ratio + 0.5)
    return int(height * ratio + 0.5), height
