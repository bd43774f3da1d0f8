"""Upscales tiny images to the training resolution; the originals are kept."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from lib_lora_train.core.errors import GenerationInterrupted, LoraTrainError
from lib_lora_train.core.wording import without_name
from lib_lora_train.dataset_tools.repairs import RepairResult, edit_image, write_replacements_one_by_one

LANCZOS = "Lanczos"
"""The upscaler that is always available: like training itself, it adds no detail."""

Upscale = Callable[[Image.Image, tuple[int, int]], Image.Image]
"""(RGB image, size in px) → the image at that size."""


def upscale_lanczos(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image resampled with the Lanczos filter."""
    return image.resize(size, Image.Resampling.LANCZOS)


def upscaled_size(size: tuple[int, int], resolution: int) -> tuple[int, int]:
    """The size with the same aspect ratio and an area of at least resolution²; never smaller than `size`."""
    scale = max(1.0, resolution / math.sqrt(size[0] * size[1]))
    return math.ceil(size[0] * scale - 1e-9), math.ceil(size[1] * scale - 1e-9)


def write_upscaled(
    folder: Path,
    images: Sequence[Path],
    resolution: int,
    upscale: Upscale,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> RepairResult:
    """Upscale the images in place for a resolution; captions and masks stay as they are (masks are stretched anyway).

    A failure is reported and leaves that image unchanged; after an interruption or a stop, so are the remaining ones.
    `on_progress` is called with (done, total).
    """
    failed: list[tuple[Path, str]] = []
    done = 0

    def upscaled() -> Iterator[tuple[Path, tuple[Path, bytes]]]:
        nonlocal done
        for done, path in enumerate(images, start=1):
            try:
                yield path, edit_image(path, lambda whole: _upscale(whole, resolution, upscale))
            except GenerationInterrupted as error:
                failed.append((path, str(error)))
                return
            except LoraTrainError as error:
                failed.append((path, f"{path.name}: {without_name(str(error), str(path))}"))
            if on_progress:
                on_progress(done, len(images))
            if is_stopped():
                return

    result = write_replacements_one_by_one(folder, upscaled(), "upscale")
    return dataclasses.replace(result, failed=(*failed, *result.failed), remaining=len(images) - done)


def _upscale(image: Image.Image, resolution: int, upscale: Upscale) -> Image.Image:
    """The image at its new size and in its own mode. `upscale` gets the colours; alpha is resampled."""
    size = upscaled_size(image.size, resolution)
    larger = upscale(image.convert("RGB"), size)
    if image.mode == "RGBA":
        larger.putalpha(upscale_lanczos(image.getchannel("A"), size))
    return larger.convert(image.mode)
