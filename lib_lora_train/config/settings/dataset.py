"""Settings: how images are resized, bucketed and cached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lib_lora_train.config.parameters import Group, param

MIN_RESOLUTION, MAX_RESOLUTION = 64, 2048


@dataclass(frozen=True)
class DataSettings:
    """How images are resized, bucketed and cached."""

    GROUP: ClassVar[Group] = "data"

    resolution: int = param(
        512,
        "Training resolution: the side of a square with the same area as the resized images. 512 for SD1, 768 for "
        "SD2, 1024 for SDXL. Memory grows with its square, and values above the images' own size teach nothing.",
        tier="essential",
        low=MIN_RESOLUTION,
        high=MAX_RESOLUTION,
        unit="px",
        kohya="resolution",
    )
    resolution_height: int | None = param(
        None,
        "Height of a training resolution that is not square; resolution is its width. With buckets only its area "
        "counts, without them every image is cropped to this rectangle. Empty: a square.",
        low=MIN_RESOLUTION,
        high=MAX_RESOLUTION,
        unit="px",
    )
    balance_repeats: bool = param(
        False,
        "Choose the repeats automatically, so that all concepts are used about equally often. The target is the "
        "image count of the largest concept, but at least 100 per epoch. The plan shows the shares before and after; "
        "regularisation images are not changed.",
        tier="beginner",
    )
    leave_out_images: tuple[str, ...] = param(
        (),
        "Images that are not used in this run, one per line: a file name such as 012.png, or folder/012.png; the files "
        "stay where they are. * stands for any text, as in scan_*.",
    )
    enable_buckets: bool = param(
        True,
        "Keep the aspect ratio of images: each goes to the bucket with the nearest one. Off: every image is cropped "
        "to the resolution at its centre.",
        tier="beginner",
        kohya="enable_bucket",
    )
    min_bucket: int = param(
        256, "Minimum side length of a bucket.", low=64, high=2048, unit="px", kohya="min_bucket_reso"
    )
    max_bucket: int = param(
        1024, "Maximum side length of a bucket.", low=64, high=4096, unit="px", kohya="max_bucket_reso"
    )
    bucket_step: int = param(
        64,
        "Bucket sides are multiples of this value. A smaller step crops less, but makes more buckets, so fewer "
        "batches are full.",
        low=8,
        high=256,
        unit="px",
        kohya="bucket_reso_steps",
    )
    bucket_no_upscale: bool = param(
        False,
        "Never enlarge small images: their bucket is their own size, rounded down to bucket_step.",
        kohya="bucket_no_upscale",
    )
    cache_to_disk: bool = param(
        True,
        "Keep encoded images on disk for later runs. They are identified by content, so a changed image, size or VAE "
        "is always encoded again.",
        kohya="cache_latents_to_disk",
    )
