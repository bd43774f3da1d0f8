"""The webui's own upscalers, for images that are too small to train on. To be called under the queue lock.

`shared.sd_upscalers` and `images.resize_image` are the same in A1111 1.10 and all that descend from it. Three traps: an
unknown name is silently replaced by the first upscaler; one whose model is missing downloads it while everybody waits,
so only those that are there are offered; and one whose file cannot be read gives the image back as it is, which the
webui then enlarges by Lanczos without a word.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from lib_lora_train.core.errors import HostError, InterruptedDrawing
from lib_lora_train.hosts.webui.txt2img import as_a_job

_JUST_RESIZE = 0
_MODEL_ENDINGS = (".ckpt", ".safetensors", ".pt", ".pth")
_FAILURES = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, pickle.UnpicklingError)
"""What the webui raises where a model file is damaged or of another kind, or the memory is full."""


def upscaler_names() -> tuple[str, ...]:
    """The upscalers that can be used at once, in the webui's order."""
    from modules import shared

    return tuple(one.name for one in shared.sd_upscalers if one.name != "None" and not _is_missing(one))


def _is_missing(upscaler: Any) -> bool:
    """Whether its model is an address still, or, where no file is named (LDSR), none lies in its folder."""
    place = getattr(upscaler, "local_data_path", None) or getattr(upscaler, "data_path", None)
    if place is None and getattr(upscaler.scaler, "model_url", None):
        return not _has_model(upscaler.scaler)
    return str(place).startswith(("http://", "https://"))


def _has_model(scaler: Any) -> bool:
    folders = [Path(folder) for name in ("model_path", "user_path") if (folder := getattr(scaler, name, None))]
    return any(file.suffix in _MODEL_ENDINGS for folder in folders for file in folder.rglob("*"))


def upscale(image: Image.Image, size: tuple[int, int], upscaler: str) -> Image.Image:
    """The RGB image at `size`; HostError where the webui fails, InterruptedDrawing at its Interrupt."""
    from modules import images, shared

    if upscaler not in upscaler_names():
        raise HostError(f"The webui has no upscaler {upscaler}, or its model is not downloaded. Choose another one.")
    scaler = next(one.scaler for one in shared.sd_upscalers if one.name == upscaler)
    with as_a_job(shared), _watched(scaler) as given_back:
        try:
            larger = images.resize_image(_JUST_RESIZE, image, *size, upscaler_name=upscaler)
        except _FAILURES as error:
            raise HostError(f"{upscaler} failed ({error}). The webui's console says more.") from error
        if shared.state.interrupted:
            raise InterruptedDrawing("The webui's Interrupt was pressed while it enlarged images.")
    if given_back:
        raise HostError(f"The webui could not use {upscaler}: its model file may be damaged. Its console says more.")
    if not isinstance(larger, Image.Image) or larger.size != size:
        raise HostError(f"{upscaler} gave back no image of {size[0]}×{size[1]} px. Choose another one.")
    return larger.convert("RGB")


@contextmanager
def _watched(scaler: Any) -> Iterator[list[Image.Image]]:
    """Inside, what the upscaler gives back untouched is kept: that is how it behaves where it cannot load its model."""
    given_back: list[Image.Image] = []
    work = getattr(scaler, "do_upscale", None)
    if work is None:
        yield given_back
        return

    def do_upscale(image: Image.Image, *rest: Any, **named: Any) -> Image.Image:
        larger: Image.Image = work(image, *rest, **named)
        if larger is image:
            given_back.append(image)
        return larger

    scaler.do_upscale = do_upscale  # on this object; the class's own shows again when it is gone
    try:
        yield given_back
    finally:
        del scaler.do_upscale
