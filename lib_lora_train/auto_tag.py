"""Pictures described by a tagger, one after the other in a thread of its own, and their captions written at the end.

A webui's own tagger is used in turns: whoever waits for the webui goes between two pictures. What was described before
a stop or a failure is written too.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lib_lora_train.data.images import read_upright
from lib_lora_train.data.tagging import Description, Existing, Tagger, TagRule
from lib_lora_train.data.wd14 import open_wd14
from lib_lora_train.errors import DataError, HostError, LoraTrainError

WD14 = "WD14"
_SHOWN = 20


class TaggerHost(Protocol):
    """The part of a host that is used here; see `hosts.base.Host`."""

    def is_wanted(self) -> bool: ...

    def tagger_names(self) -> tuple[str, ...]: ...

    def tagger(self, name: str) -> AbstractContextManager[Tagger]: ...


@dataclass(frozen=True)
class TagOrder:
    """Which pictures of a folder are described by whom, and what becomes of it. `model` is WD14's folder."""

    folder: Path
    pictures: tuple[Path, ...]
    tagger: str
    model: Path | None
    rule: TagRule
    existing: Existing


Write = Callable[[TagOrder, Mapping[Path, Description]], str]
"""Writes the captions of what was described, and says what it did; LoraTrainError when it cannot."""


@dataclass
class _State:
    """state: idle, loading, tagging, writing, done, stopped, failed."""

    state: str = "idle"
    folder: str = ""
    tagger: str = ""
    done: int = 0
    total: int = 0
    message: str = ""
    skipped: list[tuple[str, str]] = field(default_factory=list)


class AutoTagger:
    """Describes one set of pictures at a time, while a training goes on or not."""

    def __init__(self, host: TaggerHost, write: Write) -> None:
        self._host = host
        self._write = write
        self._lock = threading.Lock()
        self._state = _State()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def names(self) -> tuple[str, ...]:
        """The taggers there are: the webui's own, then WD14."""
        return (*self._host.tagger_names(), WD14)

    def start(self, order: TagOrder) -> None:
        """Begin; HostError when one is at work, DataError when there is nothing to look at."""
        if not order.pictures:
            raise DataError("No picture is to be tagged: all have captions. Choose to add to them or to replace them.")
        with self._lock:
            if self._state.state in ("loading", "tagging", "writing"):
                raise HostError("Pictures are being tagged already. Stop that first, or wait for it.")
            self._state = _State("loading", str(order.folder), order.tagger, total=len(order.pictures))
            self._stop.clear()
        self._thread = threading.Thread(target=self._work, args=(order,), name="lora-train-tagger", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the present picture; what is described by then is written."""
        self._stop.set()

    def wait(self, timeout_seconds: float | None = None) -> None:
        """Block until all is written or given up."""
        if self._thread:
            self._thread.join(timeout_seconds)

    def status(self) -> dict[str, Any]:
        """How far it is; `skipped` names the first of the pictures that could not be read, with the reason."""
        with self._lock:
            now = self._state
            return {
                **{name: getattr(now, name) for name in ("state", "folder", "tagger", "done", "total", "message")},
                "skipped": [{"name": name, "reason": reason} for name, reason in now.skipped[:_SHOWN]],
                "skipped_count": len(now.skipped),
            }

    # --- the thread ------------------------------------------------------------------------------
    def _work(self, order: TagOrder) -> None:
        """Whatever happens is told in the status; a fault of ours too, before it reaches the console."""
        found: dict[Path, Description] = {}
        end, reason = "failed", "Tagging ended with a fault; the console says more."
        try:
            try:
                self._describe(order, found)
                end, reason = ("stopped" if self._stop.is_set() else "done"), ""
            except (LoraTrainError, OSError) as error:
                reason = str(error)
            self._tell(state="writing")
            told = self._write(order, found) if found else "Nothing was written."
            reason = f"{reason} {told}".strip()
        except (LoraTrainError, OSError) as error:
            end, reason = "failed", f"{reason} {error}".strip()
        finally:
            self._tell(state=end, message=reason)

    def _describe(self, order: TagOrder, found: dict[Path, Description]) -> None:
        """Fill `found`, turn by turn."""
        turn, is_wanted = self._source(order)
        left = deque(order.pictures)
        while left and not self._stop.is_set():
            with turn() as tagger:
                self._tell(state="tagging")
                for picture in _drawn_from(left):
                    self._describe_one(picture, tagger, found)
                    if is_wanted() or self._stop.is_set():
                        break

    def _source(self, order: TagOrder) -> tuple[Callable[[], AbstractContextManager[Tagger]], Callable[[], bool]]:
        """How a turn is taken, and whether somebody waits for its end."""
        if order.tagger != WD14:
            return lambda: self._host.tagger(order.tagger), self._host.is_wanted
        if order.model is None:
            raise DataError("Name the folder of the WD14 tagger: model.onnx with selected_tags.csv.")
        tagger = open_wd14(order.model)
        return lambda: _given(tagger), lambda: False

    def _describe_one(self, picture: Path, tagger: Tagger, found: dict[Path, Description]) -> None:
        try:
            pixels = read_upright(picture)
        except DataError as error:
            with self._lock:
                self._state.skipped.append((picture.name, str(error)))
        else:
            found[picture] = tagger(pixels)
        with self._lock:
            self._state.done += 1

    def _tell(self, **values: Any) -> None:
        with self._lock:
            for name, value in values.items():
                setattr(self._state, name, value)


def _drawn_from(left: deque[Path]) -> Iterator[Path]:
    while left:
        yield left.popleft()


@contextmanager
def _given(tagger: Tagger) -> Iterator[Tagger]:
    yield tagger
