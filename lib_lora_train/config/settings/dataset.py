"""How images are sized, grouped and kept."""

from __future__ import annotations

from dataclasses import dataclass

from lib_lora_train.config.parameters import param

MIN_RESOLUTION, MAX_RESOLUTION = 64, 2048


@dataclass(frozen=True)
class DataSettings:
    """How images are sized, grouped and kept."""

    resolution: int = param(
        512,
        "Side of the square whose area every image is brought to. 512 for SD1, 768 for SD2 and big SD1 runs, "
        "1024 for SDXL. More needs memory with its square and teaches nothing the images do not have.",
        group="data",
        tier="essential",
        low=MIN_RESOLUTION,
        high=MAX_RESOLUTION,
        unit="px",
        kohya="resolution",
    )
    balance_repeats: bool = param(
        False,
        "Choose the repeats so that every concept is shown about equally often: as often as the largest one has "
        "images, and at least 100 times per epoch. The plan shows the shares before and after. Regularisation is "
        "left alone.",
        group="data",
        tier="beginner",
    )
    enable_buckets: bool = param(
        True,
        "Keep the images' aspect ratios: each goes to the bucket with the nearest one. Off: a square is cut "
        "from the middle.",
        group="data",
        tier="beginner",
        kohya="enable_bucket",
    )
    min_bucket: int = param(
        256, "Shortest side of a bucket.", group="data", low=64, high=2048, unit="px", kohya="min_bucket_reso"
    )
    max_bucket: int = param(
        1024, "Longest side of a bucket.", group="data", low=64, high=4096, unit="px", kohya="max_bucket_reso"
    )
    bucket_step: int = param(
        64,
        "Bucket sides are multiples of this. A smaller step cuts less away and fills fewer batches.",
        group="data",
        low=8,
        high=256,
        unit="px",
        kohya="bucket_reso_steps",
    )
    bucket_no_upscale: bool = param(
        False,
        "Never enlarge a small image: its bucket is its own size, rounded down to the step.",
        group="data",
        kohya="bucket_no_upscale",
    )
    cache_to_disk: bool = param(
        True,
        "Keep encoded images on disk between runs. They are found again by content, so a changed image, "
        "size or VAE is never confused with an old one.",
        group="data",
        kohya="cache_latents_to_disk",
    )
