"""Auto-tagging: images are tagged in a background thread, and each caption is written as soon as its image is tagged.

The webui's own taggers share the card with the webui: a waiting generation runs between two images. Whatever ends the
tagging, a crash too, the captions written so far stay.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lib_lora_train.core.background_task import BackgroundTask
from lib_lora_train.core.errors import DataError
from lib_lora_train.core.wording import without_name
from lib_lora_train.dataset.images import read_upright_image
from lib_lora_train.dataset_tools.tagger import Tagger, TaggerResult, TagRule
from lib_lora_train.dataset_tools.tagger_names import WD14, Existing
from lib_lora_train.dataset_tools.wd14 import LABELS, MODEL, load_wd14

_MAX_LISTED = 20


class TaggerHost(Protocol):
    """The part of `hosts.host.Host` that tagging needs."""

    name: str

    def has_waiters(self) -> bool: ...

    def tagger_names(self) -> tuple[str, ...]: ...

    def tagger(self, name: str) -> AbstractContextManager[Tagger]: ...


@dataclass(frozen=True)
class TaggingRequest:
    """Which images of a folder to tag, with which tagger, and how to write the captions. `model` is WD14's folder."""

    folder: Path
    images: tuple[Path, ...]
    tagger: str
    model: Path | None
    rule: TagRule
    existing: Existing


WriteCaptions = Callable[[TaggingRequest, Mapping[Path, TaggerResult]], str]
"""Writes the captions of newly tagged images; a sentence about all that it has written for the request so far.

LoraTrainError if it cannot.
"""


class AutoTagger:
    """Tags one set of images at a time; training may run at the same time."""

    def __init__(self, host: TaggerHost, write: WriteCaptions) -> None:
        self._host = host
        self._write = write
        self._task = BackgroundTask("tagger")
        self._request: TaggingRequest | None = None
        self._skipped: list[tuple[str, str]] = []
        self._write_report = ""

    def tagger_names(self) -> tuple[str, ...]:
        """The available taggers: the webui's own, then WD14."""
        return (*self._host.tagger_names(), WD14)

    @property
    def missing(self) -> str:
        """What the host lacks and what to use instead; "" if it has taggers."""
        if self._host.tagger_names():
            return ""
        return f"DeepBooru and BLIP are not available here ({self._host.name}). Use a WD14 model instead."

    def start(self, request: TaggingRequest) -> None:
        """Start tagging; DataError if tagging is under way already or there is nothing to tag."""
        if not request.images:
            raise DataError("Nothing to tag: every image already has a caption. Choose Add or Replace.")
        self._task.start(lambda: self._tag(request))

    def stop(self) -> None:
        """Stop after the current image."""
        self._task.stop()

    def wait(self, timeout_seconds: float | None = None) -> None:
        """Block until all captions are written or tagging has failed."""
        self._task.wait(timeout_seconds)

    def status(self) -> dict[str, Any]:
        """The progress; `skipped` lists the first images that could not be read, with the reason."""
        status, skipped = self._task.status(), list(self._skipped)
        return {
            **status,
            "message": " ".join(filter(None, (status["message"], self._write_report))),
            "folder": str(self._request.folder) if self._request else "",
            "tagger": self._request.tagger if self._request else "",
            "skipped": [{"name": name, "reason": reason} for name, reason in skipped[:_MAX_LISTED]],
            "skipped_count": len(skipped),
        }

    # --- the thread ------------------------------------------------------------------------------
    def _tag(self, request: TaggingRequest) -> None:
        self._request, self._skipped, self._write_report = request, [], ""
        self._task.start_phase("Loading the tagger", 0)
        try:
            self._tag_images(request)
        finally:
            self._write_report = self._write_report or "Nothing was written."

    def _tag_images(self, request: TaggingRequest) -> None:
        """Tag the images, releasing the tagger between two of them whenever a generation is waiting."""
        acquire_tagger, has_waiters = self._choose_tagger(request)
        remaining = deque(request.images)
        while remaining and not self._task.is_stopped():
            with acquire_tagger() as tagger:
                if len(remaining) == len(request.images):
                    self._task.start_phase("images tagged", len(remaining))
                while remaining:
                    self._tag_image(remaining.popleft(), tagger, request)
                    self._task.report(len(request.images) - len(remaining))
                    if has_waiters() or self._task.is_stopped():
                        break

    def _choose_tagger(
        self, request: TaggingRequest
    ) -> tuple[Callable[[], AbstractContextManager[Tagger]], Callable[[], bool]]:
        """(how to acquire the tagger, whether a generation is waiting for it)."""
        if request.tagger != WD14:
            return lambda: self._host.tagger(request.tagger), self._host.has_waiters
        if request.model is None:
            raise DataError(f"Enter the folder of the WD14 tagger, with {MODEL} and {LABELS}.")
        tagger = load_wd14(request.model)
        return lambda: nullcontext(tagger), lambda: False

    def _tag_image(self, image: Path, tagger: Tagger, request: TaggingRequest) -> None:
        try:
            pixels = read_upright_image(image)
        except DataError as error:
            self._skipped.append((image.name, without_name(str(error), str(image))))
        else:
            self._write_report = self._write(request, {image: tagger(pixels)})
