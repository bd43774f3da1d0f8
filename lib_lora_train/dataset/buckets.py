"""Aspect-ratio buckets as in kohya's sd-scripts: sides in steps, areas of at most the resolution's square.

An image goes to the bucket with the nearest width / height, is resized to cover it and trimmed at both ends.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from lib_lora_train.config.train_config import TrainConfig


@dataclass(frozen=True)
class BucketRule:
    """How buckets are made; all lengths in px. Without `enabled` every image is cut to one square."""

    resolution: int
    min_side: int = 256
    max_side: int = 1024
    step: int = 64
    no_upscale: bool = False
    enabled: bool = True


@dataclass(frozen=True)
class Placement:
    """Resize an image to (resize_width, resize_height), then cut (width, height), its bucket, at (left, top)."""

    resize_width: int
    resize_height: int
    left: int
    top: int
    width: int
    height: int


def bucket_rule(config: TrainConfig, resolution: int = 0) -> BucketRule:
    """The rule that a config describes, at another resolution if one is given; the limits grow along with it."""
    resolution = resolution or config.resolution
    step = config.bucket_step

    def grown(side: int) -> int:
        return (
            side if resolution == config.resolution else max(side * resolution // config.resolution // step, 1) * step
        )

    return BucketRule(
        resolution=resolution,
        min_side=grown(config.min_bucket),
        max_side=grown(config.max_bucket),
        step=config.bucket_step,
        no_upscale=config.bucket_no_upscale,
        enabled=config.enable_buckets,
    )


@functools.lru_cache(maxsize=64)
def bucket_sizes(rule: BucketRule) -> tuple[tuple[int, int], ...]:
    """All (width, height) that an image can be brought to, sorted; with `no_upscale` there are others too.

    The square, and for every width from `min_side` to `max_side` the largest height within the area and
    `max_side`, if it reaches `min_side`; each in both orientations.
    """
    square = _square_side(rule)
    if not rule.enabled:
        return ((square, square),)
    sizes = {(square, square)}
    area = rule.resolution**2
    for width in range(rule.min_side, rule.max_side + 1, rule.step):
        height = min(rule.max_side, area // width // rule.step * rule.step)
        if height >= rule.min_side:
            sizes |= {(width, height), (height, width)}
    return tuple(sorted(sizes))


def place(width: int, height: int, rule: BucketRule) -> Placement:
    """Where an image of this (upright) size goes."""
    if rule.enabled and rule.no_upscale:
        return _place_without_upscaling(width, height, rule)
    ratio = width / height
    # Of buckets with the same ratio the larger keeps more of the image.
    bucket = min(bucket_sizes(rule), key=lambda size: (abs(size[0] / size[1] - ratio), -size[0] * size[1]))
    return _cover(width, height, bucket)


def _square_side(rule: BucketRule) -> int:
    return max(rule.resolution // rule.step, 1) * rule.step


def _cover(width: int, height: int, bucket: tuple[int, int]) -> Placement:
    """Resized as little as possible to cover the bucket; whole-number arithmetic, halves rounded up."""
    bucket_width, bucket_height = bucket
    if width * bucket_height > height * bucket_width:  # wider than the bucket: the heights meet
        resized = (_rounded(width * bucket_height, height), bucket_height)
    else:
        resized = (bucket_width, _rounded(height * bucket_width, width))
    return _centred(resized, bucket)


def _rounded(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)


def _centred(resized: tuple[int, int], bucket: tuple[int, int]) -> Placement:
    left, top = ((outer - inner) // 2 for outer, inner in zip(resized, bucket, strict=True))
    return Placement(*resized, left, top, *bucket)


def _place_without_upscaling(width: int, height: int, rule: BucketRule) -> Placement:
    """The bucket is the image's own size in whole steps; only an area above the resolution's is shrunk."""
    is_large = width * height > rule.resolution**2
    resized = _shrunk(width / height, rule) if is_large else (width, height)
    bucket = (resized[0] // rule.step * rule.step, resized[1] // rule.step * rule.step)
    if 0 in bucket:  # smaller than one step: nothing would be left, so this one must grow
        return _cover(width, height, (max(bucket[0], rule.step), max(bucket[1], rule.step)))
    return _centred(resized, bucket)


def _shrunk(ratio: float, rule: BucketRule) -> tuple[int, int]:
    """The size with the resolution's area of which one side is in whole steps: the one nearer to `ratio`."""

    def in_steps(length: float) -> int:
        return max(int(length + 0.5) // rule.step, 1) * rule.step

    wide, high = rule.resolution * math.sqrt(ratio), rule.resolution / math.sqrt(ratio)
    width, height = in_steps(wide), in_steps(high)
    error_of_width = abs(width / in_steps(width / ratio) - ratio)
    error_of_height = abs(in_steps(height * ratio) / height - ratio)
    if error_of_width < error_of_height:
        return width, int(width / ratio + 0.5)
    return int(height * ratio + 0.5), height
