"""The webui's own taggers: DeepBooru (tags with scores) and BLIP (a sentence).

Their names are the same in A1111 1.10 and all webuis derived from it. Both run under the queue lock, and the webui's
own functions load and unload their models. The webui would download a missing model while holding the lock, so a
missing model raises HostError with the remedy instead.
"""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lib_lora_train.core.errors import HostError
from lib_lora_train.dataset_tools.tagger import ScoredTag, Tagger, TaggerResult

_SIZE_PX = 512  # what DeepBooru's network was trained on
_FILL = 2  # the webui's "resize and fill"
_FAILURES = (
    ImportError,
    OSError,
    RuntimeError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    pickle.UnpicklingError,
)
"""What the webui raises if packages or files are missing, damaged or too large for the memory."""

TaggerSession = Callable[[], AbstractContextManager[Tagger]]


def find_taggers() -> Mapping[str, TaggerSession]:
    """The taggers that this webui has: by name, a function that opens one."""
    found: dict[str, TaggerSession] = {}
    if _has(_deepbooru(), "start", "stop", "load"):
        found["DeepBooru"] = open_deepbooru
    if _has(_interrogator(), "load", "unload", "generate_caption"):
        found["BLIP"] = open_blip
    return found


def _has(owner: Any, *names: str) -> bool:
    return all(callable(getattr(owner, name, None)) for name in names)


def _deepbooru() -> Any:
    try:
        return importlib.import_module("modules.deepbooru").model
    except (ImportError, AttributeError):
        return None


def _interrogator() -> Any:
    from modules import shared

    return getattr(shared, "interrogator", None)


# --- DeepBooru ----------------------------------------------------------------------------------


@contextmanager
def open_deepbooru() -> Iterator[Tagger]:
    """DeepBooru on the device; returns every tag with its score, regardless of the webui's threshold and options."""
    owner = _deepbooru()
    if getattr(owner, "model", None) is None:
        _require_file("DeepBooru", "torch_deepdanbooru", "*.pt")
    try:
        owner.start()
        _require_loaded(owner)
    except _FAILURES as error:
        _discard_half_loaded(owner)
        raise _failure("DeepBooru", error) from error
    try:
        yield lambda image: _describe("DeepBooru", owner.start, lambda: _scores(owner, image))
    finally:
        owner.stop()


def _require_loaded(owner: Any) -> None:
    if not getattr(owner.model, "tags", None):
        raise ValueError("its file contains no list of tags")


def _discard_half_loaded(owner: Any) -> None:
    """Remove a network whose file could not be read; otherwise the webui would use it untrained."""
    if getattr(owner, "model", None) is None:
        return
    if not getattr(owner.model, "tags", None):
        owner.model = None
    else:
        owner.stop()


def _scores(owner: Any, image: Image.Image) -> TaggerResult:
    """The network's scores; the webui's own `tag` omits those below its threshold."""
    import numpy as np
    from modules import images

    network = owner.model
    weight = next(network.parameters())
    device = getattr(owner, "load_device", None) or weight.device
    resized = images.resize_image(_FILL, image.convert("RGB"), _SIZE_PX, _SIZE_PX)
    pixels = torch.from_numpy(np.asarray(resized, np.float32)[None] / 255)  # (1, 512, 512, 3)
    with torch.no_grad():
        scores = network(pixels.to(device, weight.dtype))[0].float().cpu().tolist()
    return TaggerResult(
        tuple(
            ScoredTag(str(name), float(score), "rating" if str(name).startswith("rating:") else "general")
            for name, score in zip(network.tags, scores, strict=True)
        )
    )


# --- BLIP ---------------------------------------------------------------------------------------


@contextmanager
def open_blip() -> Iterator[Tagger]:
    """BLIP on the device; returns sentences without the artists and styles that *Interrogate CLIP* appends.

    The webui's settings for BLIP (beams, lengths) apply. The webui loads CLIP together with it.
    """
    owner = _interrogator()
    if getattr(owner, "blip_model", None) is None:
        _require_file("BLIP", "BLIP", "*.pth")
    try:
        _free_gpu()
        owner.load()
    except _FAILURES as error:
        if getattr(owner, "blip_model", None) is not None:
            owner.unload()
        raise _failure("BLIP", error) from error
    try:
        yield lambda image: _describe("BLIP", owner.load, lambda: _sentence(owner, image))
    finally:
        owner.unload()


def _sentence(owner: Any, image: Image.Image) -> TaggerResult:
    text = " ".join(str(owner.generate_caption(image.convert("RGB"))).split())
    return TaggerResult(sentence=text.rstrip(" ."))


def _free_gpu() -> None:
    """With --medvram and --lowvram, move the webui's own model off the GPU first, as the webui does."""
    empty = getattr(sys.modules.get("modules.lowvram"), "send_everything_to_cpu", None)
    if empty is not None:
        empty()


# --- errors ----------------------------------------------------------------------------


def _require_file(name: str, folder: str, pattern: str) -> None:
    from modules import paths

    place = Path(paths.models_path) / folder
    if next(place.rglob(pattern), None) is None:
        raise HostError(
            f"{name}'s model is not in {place} yet. Press the webui's Interrogate button in img2img once "
            "to download it."
        )


def _describe(name: str, load: Callable[[], object], describe: Callable[[], TaggerResult]) -> TaggerResult:
    """The description; first moves the model to the device again.

    The webui's own Interrogate buttons take no lock and move it away when they are done.
    """
    try:
        load()
        return describe()
    except _FAILURES as error:
        raise _failure(name, error) from error


def _failure(name: str, error: Exception) -> HostError:
    reason = " ".join(str(error).split())  # some webuis raise multi-line messages
    return HostError(f"The webui's {name} failed ({type(error).__name__}: {reason}). See the webui's console.")
