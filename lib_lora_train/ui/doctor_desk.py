"""The data-set doctor's side of the server: findings in the concepts' folders, and their remedies. No gradio here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from lib_lora_train.config import Concept, TrainConfig
from lib_lora_train.data.doctor import Examination, Finding, examine
from lib_lora_train.data.enlarging import LANCZOS, Enlarge, by_lanczos, write_enlarged
from lib_lora_train.data.fixes import Fixed, write_fixes, write_undo
from lib_lora_train.data.images import IMAGE_ENDINGS
from lib_lora_train.errors import DataError
from lib_lora_train.hosts.pictures import PictureShelf
from lib_lora_train.typed_paths import typed_path
from lib_lora_train.ui.markup import count

_SHOWN = 40
_LEVELS = ("error", "warning", "hint")


class Upscaling(Protocol):
    """The part of a host that enlarges pictures."""

    def upscaler_names(self) -> tuple[str, ...]: ...

    def upscale(self, picture: Image.Image, size: tuple[int, int], upscaler: str) -> Image.Image: ...


class DoctorDesk:
    """Examines the folders of the form as it was last kept; what was done last can be undone."""

    def __init__(self, shelf: PictureShelf, config: Callable[[], TrainConfig], host: Upscaling) -> None:
        self._shelf = shelf
        self._host = host
        self._config = config
        self._found: list[tuple[Concept, Examination]] = []
        self._undo: list[Path] = []
        self._lock = threading.Lock()

    def asks(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        """What the page's buttons ask, by name."""
        return {
            "doctor-examine": self.examine,
            "doctor-treat": self.treat,
            "doctor-upscale": self.upscale,
            "doctor-undo": self.undo,
        }

    def examine(self, _values: Mapping[str, Any]) -> dict[str, Any]:
        """Look at every picture and caption of every concept; the findings by kind, the gravest first."""
        config = self._config()
        concepts = [concept for concept in config.concepts if concept.folder]
        if not concepts:
            raise DataError("No folder is given. Name one in a card first.")
        with self._lock:
            self._found = [
                (
                    concept,
                    examine(
                        typed_path(concept.folder),
                        resolution=config.resolution,
                        caption_extension=config.caption_extension,
                    ),
                )
                for concept in concepts
            ]
        return self._told("")

    def treat(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Do the remedy of every finding of one kind; the originals are kept beside the folders."""
        kind = str(values.get("kind", ""))
        done = []
        with self._lock:
            for concept, found in self._found:
                findings = [finding for finding in found.findings if finding.kind == kind and finding.remedy]
                if not findings:
                    continue
                done.append(write_fixes(found.folder, findings, words=_words(concept)))
        if not done:
            raise DataError("There is nothing to do about these. Examine the folders again.")
        return self._done(done)

    def upscale(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Enlarge every tiny picture to the training resolution by the named upscaler; the originals are kept."""
        name = str(values.get("upscaler", ""))
        resolution, done = self._config().resolution, []
        with self._lock:
            for _, found in self._found:
                tiny = [finding.path for finding in found.findings if finding.kind == "tiny"]
                if tiny:
                    done.append(write_enlarged(found.folder, tiny, resolution, self._enlarge(name)))
        if not done:
            raise DataError("No picture is too small any more. Examine the folders again.")
        return self._done(done)

    def _done(self, done: Sequence[Fixed]) -> dict[str, Any]:
        """What was done, which can be undone, and what the folders hold now."""
        with self._lock:
            self._undo += [fixed.undo for fixed in done if fixed.undo]
        failed = any(fixed.failed for fixed in done)
        return {**self.examine({}), "told": " ".join(str(fixed) for fixed in done), "failed": failed}

    def _enlarge(self, name: str) -> Enlarge:
        if name == LANCZOS and name not in self._host.upscaler_names():
            return by_lanczos
        return lambda picture, size: self._host.upscale(picture, size, name)

    def undo(self, _values: Mapping[str, Any]) -> dict[str, Any]:
        """Put back what the last remedy changed."""
        with self._lock:
            if not self._undo:
                raise DataError("There is nothing to undo.")
            number = write_undo(self._undo.pop())
        return {
            **self.examine({}),
            "told": f"{count(number, 'file')} {'is as it was' if number == 1 else 'are as they were'}.",
        }

    def _told(self, told: str) -> dict[str, Any]:
        kinds: dict[str, list[Finding]] = {}
        for _, found in self._found:
            for finding in found.findings:
                kinds.setdefault(finding.kind, []).append(finding)
        ordered = sorted(kinds.items(), key=lambda entry: _LEVELS.index(entry[1][0].level))
        return {
            "pictures": sum(len(found.pictures) for _, found in self._found),
            "kinds": [self._kind(kind, findings) for kind, findings in ordered],
            "undo": len(self._undo),
            "told": told,
        }

    def _kind(self, kind: str, findings: Sequence[Finding]) -> dict[str, Any]:
        remedies = sorted({finding.remedy for finding in findings if finding.remedy})
        return {
            "kind": kind,
            "level": findings[0].level,
            "count": len(findings),
            "remedy": " or ".join(remedies),
            "upscalers": list(self._host.upscaler_names() or (LANCZOS,)) if kind == "tiny" else [],
            "findings": [
                {"name": f.path.name, "message": f.message, "tokens": self._pictures(f)} for f in findings[:_SHOWN]
            ],
        }

    def _pictures(self, finding: Finding) -> list[str]:
        """Tokens of the picture and of the one that it repeats, if any."""
        paths = [path for path in (finding.path, finding.like) if path and path.suffix.lower() in IMAGE_ENDINGS]
        return list(self._shelf.publish(paths))


def _words(concept: Concept) -> str:
    """What a missing caption becomes."""
    return " ".join(word for word in (concept.trigger, concept.class_word) if word)
