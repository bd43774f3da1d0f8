"""Tiny images made as large as training needs them, by whatever enlarges best; the originals are kept."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from lib_lora_train.core.errors import GenerationInterrupted, LoraTrainError
from lib_lora_train.dataset_tools.repairs import RepairResult, edited_image, write_replacements

LANCZOS = "Lanczos"
"""What there is everywhere: it adds no detail, as training itself would enlarge."""

Upscale = Callable[[Image.Image, tuple[int, int]], Image.Image]
"""An RGB image and the size in px → the image of that size."""


def upscale_lanczos(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image resampled by Lanczos' filter."""
    return image.resize(size, Image.Resampling.LANCZOS)


def upscaled_size(size: tuple[int, int], resolution: int) -> tuple[int, int]:
    """The size of the same shape whose area is that of `resolution`'s square, or a little more; never a smaller one."""
    scale = max(1.0, resolution / math.sqrt(size[0] * size[1]))
    return math.ceil(size[0] * scale - 1e-9), math.ceil(size[1] * scale - 1e-9)


def write_upscaled(
    folder: Path,
    images: Sequence[Path],
    resolution: int,
    enlarge: Upscale,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> RepairResult:
    """Upscale the images in place to what a resolution needs; captions stay, a mask lies over its image anyway.

    One that cannot be is told with its reason and stays; after an interruption or a stop the others stay too.
    `on_progress` is called with (done, total).
    """
    contents: dict[Path, tuple[Path, bytes]] = {}
    failed: list[tuple[Path, str]] = []
    done = 0
    for done, path in enumerate(images, start=1):
        try:
            contents[path] = edited_image(path, lambda whole: _larger(whole, resolution, enlarge))
        except GenerationInterrupted as error:
            failed.append((path, str(error)))
            break
        except LoraTrainError as error:
            failed.append((path, f"{path.name}: {error}"))
        if on_progress:
            on_progress(done, len(images))
        if is_stopped():
            break
    fixed = write_replacements(folder, contents)
    return dataclasses.replace(fixed, failed=(*failed, *fixed.failed), left=len(images) - done)


def _larger(image: Image.Image, resolution: int, enlarge: Upscale) -> Image.Image:
    """The image at its new size, in its own mode; transparency and grey are resampled, colours enlarged."""
    size = upscaled_size(image.size, resolution)
    larger = enlarge(image.convert("RGB"), size)
    if image.mode == "RGBA":
        larger.putalpha(upscale_lanczos(image.getchannel("A"), size))
    return larger.convert(image.mode)
