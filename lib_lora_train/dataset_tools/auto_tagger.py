"""Images described by a tagger, one after the other in a thread of its own, and their captions written at the end.

A webui's own tagger is used in turns: whoever waits for the webui goes between two images. What was described before
a stop or a failure is written too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lib_lora_train.core.background_task import BackgroundTask
from lib_lora_train.core.errors import DataError
from lib_lora_train.dataset.images import read_upright_image
from lib_lora_train.dataset_tools.tagger import Existing, Tagger, TaggerResult, TagRule
from lib_lora_train.dataset_tools.wd14 import load_wd14

WD14 = "WD14"
_SHOWN = 20


class TaggerHost(Protocol):
    """The part of a host that is used here; see `hosts.base.Host`."""

    def has_waiters(self) -> bool: ...

    def tagger_names(self) -> tuple[str, ...]: ...

    def tagger(self, name: str) -> AbstractContextManager[Tagger]: ...


@dataclass(frozen=True)
class TaggingRequest:
    """Which images of a folder are described by whom, and what becomes of it. `model` is WD14's folder."""

    folder: Path
    images: tuple[Path, ...]
    tagger: str
    model: Path | None
    rule: TagRule
    existing: Existing


Write = Callable[[TaggingRequest, Mapping[Path, TaggerResult]], str]
"""Writes the captions of what was described, and says what it did; LoraTrainError when it cannot."""


class AutoTagger:
    """Describes one set of images at a time, while a training goes on or not."""

    def __init__(self, host: TaggerHost, write: Write) -> None:
        self._host = host
        self._write = write
        self._work = BackgroundTask("tagger")
        self._order: TaggingRequest | None = None
        self._skipped: list[tuple[str, str]] = []
        self._told = ""

    def names(self) -> tuple[str, ...]:
        """The taggers there are: the webui's own, then WD14."""
        return (*self._host.tagger_names(), WD14)

    def start(self, order: TaggingRequest) -> None:
        """Begin; DataError when one is at work, or when there is nothing to look at."""
        if not order.images:
            raise DataError("No image is to be tagged: all have captions. Choose to add to them or to replace them.")
        self._work.start(lambda: self._tag(order))

    def stop(self) -> None:
        """End after the present image; what is described by then is written."""
        self._work.stop()

    def wait(self, timeout_seconds: float | None = None) -> None:
        """Block until all is written or given up."""
        self._work.wait(timeout_seconds)

    def status(self) -> dict[str, Any]:
        """How far it is; `skipped` names the first of the images that could not be read, with the reason."""
        status, skipped = self._work.status(), list(self._skipped)
        return {
            **status,
            "message": " ".join(filter(None, (status["message"], self._told))),
            "folder": str(self._order.folder) if self._order else "",
            "tagger": self._order.tagger if self._order else "",
            "skipped": [{"name": name, "reason": reason} for name, reason in skipped[:_SHOWN]],
            "skipped_count": len(skipped),
        }

    # --- the thread ------------------------------------------------------------------------------
    def _tag(self, order: TaggingRequest) -> None:
        """Describe, then write what is described, however it ended."""
        self._order, self._skipped, self._told = order, [], ""
        self._work.start_phase("Loading the tagger", 0)
        found: dict[Path, TaggerResult] = {}
        try:
            self._describe(order, found)
        finally:
            self._told = self._write(order, found) if found else "Nothing was written."

    def _describe(self, order: TaggingRequest, found: dict[Path, TaggerResult]) -> None:
        """Fill `found`, turn by turn."""
        turn, has_waiters = self._source(order)
        left = deque(order.images)
        while left and not self._work.is_stopped():
            with turn() as tagger:
                if len(left) == len(order.images):
                    self._work.start_phase("images tagged", len(left))
                while left:
                    self._describe_one(left.popleft(), tagger, found)
                    self._work.report(len(order.images) - len(left))
                    if has_waiters() or self._work.is_stopped():
                        break

    def _source(self, order: TaggingRequest) -> tuple[Callable[[], AbstractContextManager[Tagger]], Callable[[], bool]]:
        """How a turn is taken, and whether somebody waits for its end."""
        if order.tagger != WD14:
            return lambda: self._host.tagger(order.tagger), self._host.has_waiters
        if order.model is None:
            raise DataError("Name the folder of the WD14 tagger: model.onnx with selected_tags.csv.")
        tagger = load_wd14(order.model)
        return lambda: _given(tagger), lambda: False

    def _describe_one(self, image: Path, tagger: Tagger, found: dict[Path, TaggerResult]) -> None:
        try:
            pixels = read_upright_image(image)
        except DataError as error:
            self._skipped.append((image.name, str(error)))
        else:
            found[image] = tagger(pixels)


@contextmanager
def _given(tagger: Tagger) -> Iterator[Tagger]:
    yield tagger
