"""The webui's own describers of images: DeepBooru (tags with scores) and BLIP (a sentence).

Their names are the same in A1111 1.10 and all that descend from it. A turn is taken under the queue lock: models come
to the device as the webui brings them and leave as it lets them leave. The webui would download a missing model while
everybody waits; so a missing one is refused with what to do.
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
"""What the webui's loading raises: packages or files that are missing, damaged, or too large for the memory."""

TaggerSession = Callable[[], AbstractContextManager[Tagger]]


def find_taggers() -> Mapping[str, TaggerSession]:
    """The describers that this webui has, by name."""
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
    """DeepBooru on the device; every tag with its score, whatever the webui's own threshold and options are."""
    owner = _deepbooru()
    if getattr(owner, "model", None) is None:
        _require_file("DeepBooru", "torch_deepdanbooru", "*.pt")
    try:
        owner.start()
        _require_loaded(owner)
    except _FAILURES as error:
        _forget_half_loaded(owner)
        raise _failure("DeepBooru", error) from error
    try:
        yield lambda image: _told("DeepBooru", owner.start, lambda: _scores(owner, image))
    finally:
        owner.stop()


def _require_loaded(owner: Any) -> None:
    if not getattr(owner.model, "tags", None):
        raise ValueError("its file holds no list of tags")


def _forget_half_loaded(owner: Any) -> None:
    """A network whose file could not be read stays behind untrained, and the webui would go on with it."""
    if getattr(owner, "model", None) is None:
        return
    if not getattr(owner.model, "tags", None):
        owner.model = None
    else:
        owner.stop()


def _scores(owner: Any, image: Image.Image) -> TaggerResult:
    """The network's own scores; its `tag` would leave out those below the webui's threshold."""
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
    """BLIP on the device; sentences without the artists and styles that the webui's *Interrogate CLIP* appends.

    The webui's settings for it (beams, lengths) hold. The webui loads CLIP together with it.
    """
    owner = _interrogator()
    if getattr(owner, "blip_model", None) is None:
        _require_file("BLIP", "BLIP", "*.pth")
    try:
        _make_room()
        owner.load()
    except _FAILURES as error:
        if getattr(owner, "blip_model", None) is not None:
            owner.unload()
        raise _failure("BLIP", error) from error
    try:
        yield lambda image: _told("BLIP", owner.load, lambda: _sentence(owner, image))
    finally:
        owner.unload()


def _sentence(owner: Any, image: Image.Image) -> TaggerResult:
    text = " ".join(str(owner.generate_caption(image.convert("RGB"))).split())
    return TaggerResult(sentence=text.rstrip(" ."))


def _make_room() -> None:
    """With --medvram and --lowvram the webui first takes its own model off the card."""
    empty = getattr(sys.modules.get("modules.lowvram"), "send_everything_to_cpu", None)
    if empty is not None:
        empty()


# --- what goes wrong ----------------------------------------------------------------------------


def _require_file(name: str, folder: str, pattern: str) -> None:
    from modules import paths

    place = Path(paths.models_path) / folder
    if next(place.rglob(pattern), None) is None:
        raise HostError(
            f"{name}'s model is not in {place} yet. Press the webui's own Interrogate button in img2img once: "
            "it downloads the model."
        )


def _told(name: str, bring: Callable[[], object], describe: Callable[[], TaggerResult]) -> TaggerResult:
    """The description; the model is brought to the device again first.

    The webui's own Interrogate buttons take no lock, and send it away when they are done.
    """
    try:
        bring()
        return describe()
    except _FAILURES as error:
        raise _failure(name, error) from error


def _failure(name: str, error: Exception) -> HostError:
    reason = " ".join(str(error).split())  # some webuis write several lines
    return HostError(f"The webui's {name} failed ({type(error).__name__}: {reason}). The webui's console may say more.")
