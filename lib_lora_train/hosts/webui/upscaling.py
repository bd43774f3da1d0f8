"""The webui's own upscalers, for images that are too small to train on. Call these under the queue lock.

`shared.sd_upscalers` and `images.resize_image` are the same in A1111 1.10 and all webuis derived from it. Three traps:
an unknown name is silently replaced by the first upscaler; an upscaler whose model is missing downloads it while it
holds the lock, so only downloaded ones are offered; and one whose model file cannot be read returns the image
unchanged, which the webui then silently enlarges with Lanczos.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from lib_lora_train.core.errors import GenerationInterrupted, HostError
from lib_lora_train.hosts.webui.txt2img import webui_job

_JUST_RESIZE = 0
_MODEL_ENDINGS = (".ckpt", ".safetensors", ".pt", ".pth")
_FAILURES = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, pickle.UnpicklingError)
"""What the webui raises if a model file is damaged or of the wrong kind, or memory is full."""


def upscaler_names() -> tuple[str, ...]:
    """The upscalers that can be used at once, in the webui's request."""
    from modules import shared

    return tuple(one.name for one in shared.sd_upscalers if one.name != "None" and not _is_missing(one))


def _is_missing(upscaler: Any) -> bool:
    """Whether its model path is still a URL or, if it names no file (LDSR), its folder has no model."""
    place = getattr(upscaler, "local_data_path", None) or getattr(upscaler, "data_path", None)
    if place is None and getattr(upscaler.scaler, "model_url", None):
        return not _has_model(upscaler.scaler)
    return str(place).startswith(("http://", "https://"))


def _has_model(scaler: Any) -> bool:
    folders = [Path(folder) for name in ("model_path", "user_path") if (folder := getattr(scaler, name, None))]
    return any(file.suffix in _MODEL_ENDINGS for folder in folders for file in folder.rglob("*"))


def upscale(image: Image.Image, size: tuple[int, int], upscaler: str) -> Image.Image:
    """The RGB image at `size`; HostError if the webui fails, GenerationInterrupted if its Interrupt is pressed."""
    from modules import images, shared

    if upscaler not in upscaler_names():
        raise HostError(f"The webui has no upscaler {upscaler}, or its model is not downloaded. Choose another.")
    scaler = next(one.scaler for one in shared.sd_upscalers if one.name == upscaler)
    with webui_job(shared), _record_unchanged(scaler) as unchanged:
        try:
            larger = images.resize_image(_JUST_RESIZE, image, *size, upscaler_name=upscaler)
        except _FAILURES as error:
            raise HostError(f"{upscaler} failed ({error}). See the webui's console.") from error
        if shared.state.interrupted:
            raise GenerationInterrupted("Interrupt was pressed in the webui while it upscaled images.")
    if unchanged:
        raise HostError(f"The webui could not use {upscaler}. Its model file may be damaged; see the webui's console.")
    if not isinstance(larger, Image.Image) or larger.size != size:
        raise HostError(f"{upscaler} did not return a {size[0]}×{size[1]} px image. Choose another.")
    return larger.convert("RGB")


@contextmanager
def _record_unchanged(scaler: Any) -> Iterator[list[Image.Image]]:
    """The images that the upscaler returns unchanged inside the block, which means that it could not load its model."""
    unchanged: list[Image.Image] = []
    original = getattr(scaler, "do_upscale", None)
    if original is None:
        yield unchanged
        return

    def do_upscale(image: Image.Image, *rest: Any, **named: Any) -> Image.Image:
        larger: Image.Image = original(image, *rest, **named)
        if larger is image:
            unchanged.append(image)
        return larger

    scaler.do_upscale = do_upscale  # on the instance: deleting it restores the class's method
    try:
        yield unchanged
    finally:
        del scaler.do_upscale
