"""The dataset doctor's side of the server: findings in the concepts' folders, and their remedies. No gradio here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.background_task import BackgroundTask
from lib_lora_train.core.errors import DataError
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.dataset.images import IMAGE_EXTENSIONS
from lib_lora_train.dataset_tools.checkup import CheckReport, Finding, check_dataset, count_images
from lib_lora_train.dataset_tools.image_cache import ImageFactsCache
from lib_lora_train.dataset_tools.repairs import RepairResult, write_repairs, write_undo
from lib_lora_train.dataset_tools.upscale import LANCZOS, Upscale, upscale_lanczos, write_upscaled
from lib_lora_train.web.image_tokens import ImageTokens
from lib_lora_train.web.markup import count

_SHOWN = 40
_LEVELS = ("error", "warning", "hint")


class Upscaling(Protocol):
    """The part of a host that enlarges images."""

    def upscaler_names(self) -> tuple[str, ...]: ...

    def upscale(self, image: Image.Image, size: tuple[int, int], upscaler: str) -> Image.Image: ...


Tell = Callable[[int, int], None]
Repair = Callable[[Path, Concept, Sequence[Finding], Tell], RepairResult]
"""Treats the findings in a folder, telling (done, total)."""


class CheckupSession:
    """Examines the folders of the form as it was last kept; what was done last can be undone.

    It works in a thread of its own, on one thing at a time; every answer is the status.
    """

    def __init__(self, image_tokens: ImageTokens, config: Callable[[], TrainConfig], host: Upscaling) -> None:
        self._image_tokens = image_tokens
        self._host = host
        self._config = config
        self._memory = ImageFactsCache()
        self._found: list[tuple[Concept, CheckReport]] = []
        self._undo: list[Path] = []
        self._told, self._failed = "", False
        self.work = BackgroundTask("doctor")

    def actions(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        """The actions that the page can request, by name."""
        return {
            "checkup-run": self.examine,
            "checkup-fix": self.treat,
            "checkup-upscale": self.upscale,
            "checkup-undo": self.undo,
            "checkup-stop": self.stop,
            "checkup-status": self.status,
        }

    def status(self, _values: Mapping[str, Any]) -> dict[str, Any]:
        """How far it is; `found` is None until it is done: the findings by kind, the gravest first."""
        status = self.work.status()
        return {**status, "found": None if status["state"] in ("idle", "busy") else self._findings()}

    def stop(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """End after the present image; what was found or done by then is told."""
        self.work.stop()
        return self.status(values)

    def examine(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Look at every image and caption of every concept; a second page joins in."""
        config = self._config()
        if not any(concept.folder for concept in config.concepts):
            raise DataError("No folder is given. Name one in a card first.")
        if self.work.status()["state"] == "busy":
            return self.status(values)
        return self._start(lambda: self._scan(config))

    def treat(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Do the remedy of every finding of one kind; the originals are kept beside the folders."""
        kind = str(values.get("kind", ""))

        def remedy(folder: Path, concept: Concept, findings: Sequence[Finding], tell: Tell) -> RepairResult:
            return write_repairs(folder, findings, words=_words(concept), on_progress=tell, is_stopped=self.work.is_stopped)

        return self._fix("files treated", lambda finding: finding.kind == kind and finding.repair != "", remedy)

    def upscale(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Upscale every tiny image to the training resolution by the named upscaler; the originals are kept."""
        enlarge, resolution = self._enlarge(str(values.get("upscaler", ""))), self._config().resolution

        def remedy(folder: Path, _: Concept, findings: Sequence[Finding], tell: Tell) -> RepairResult:
            tiny = [finding.path for finding in findings]
            return write_upscaled(folder, tiny, resolution, enlarge, on_progress=tell, is_stopped=self.work.is_stopped)

        return self._fix("images enlarged", lambda finding: finding.kind == "tiny", remedy)

    def undo(self, _values: Mapping[str, Any]) -> dict[str, Any]:
        """Put back what the last remedy changed."""
        if not self._undo:
            raise DataError("There is nothing to undo.")
        config = self._config()

        def work() -> None:
            self.work.start_phase("Putting the originals back", 0)
            number = write_undo(self._undo.pop())
            self._told = f"{count(number, 'file')} {'is as it was' if number == 1 else 'are as they were'}."
            self._scan(config)

        return self._start(work)

    # --- in the thread ---------------------------------------------------------------------------
    def _start(self, work: Callable[[], None]) -> dict[str, Any]:
        def begun() -> None:
            self._told, self._failed = "", False
            work()

        self.work.start(begun)
        return self.status({})

    def _scan(self, config: TrainConfig) -> None:
        """Examine the folders; what was found before stays until then. Once stopped, the other folders are left."""
        self.work.start_phase("Reading the folders", 0)
        concepts = [concept for concept in config.concepts if concept.folder]
        total = sum(count_images(user_path(concept.folder)) for concept in concepts)
        self.work.start_phase("images looked at", total)
        found: list[tuple[Concept, CheckReport]] = []
        done = 0
        for concept in concepts:
            if self.work.is_stopped():
                break
            examination = check_dataset(
                user_path(concept.folder),
                resolution=config.resolution,
                caption_extension=config.caption_extension,
                cache=self._memory,
                on_progress=self._counted_from(done),
                is_stopped=self.work.is_stopped,
            )
            found.append((concept, examination))
            done += examination.checked_count
        self._found = found
        if done < total:
            told = f"Stopped: {done:,} of {total:,} images were looked at, and this is about them."
            self._told = f"{self._told} {told}".strip()

    def _fix(self, what: str, is_meant: Callable[[Finding], bool], remedy: Repair) -> dict[str, Any]:
        """Treat what is meant of the findings, then look again."""
        wanted = [(concept, found.folder, list(filter(is_meant, found.findings))) for concept, found in self._found]
        total = sum(len(findings) for _, _, findings in wanted)
        if not total:
            raise DataError("There is nothing to do about these. Examine the folders again.")
        config = self._config()

        def work() -> None:
            self.work.start_phase(what, total)
            done = 0
            for concept, folder, findings in wanted:
                if findings and not self.work.is_stopped():
                    self._note(remedy(folder, concept, findings, self._counted_from(done)))
                    done += len(findings)
            self.work.clear_stop()
            self._scan(config)

        return self._start(work)

    def _note(self, fixed: RepairResult) -> None:
        """What was done, and that it can be undone."""
        if fixed.undo:
            self._undo.append(fixed.undo)
        self._told = f"{self._told} {fixed}".strip()
        self._failed = self._failed or bool(fixed.failed)

    def _counted_from(self, before: int) -> Tell:
        return lambda done, _total: self.work.report(before + done)

    def _enlarge(self, name: str) -> Upscale:
        if name == LANCZOS and name not in self._host.upscaler_names():
            return upscale_lanczos
        return lambda image, size: self._host.upscale(image, size, name)

    # --- what was found --------------------------------------------------------------------------
    def _findings(self) -> dict[str, Any]:
        kinds: dict[str, list[Finding]] = {}
        for _, found in self._found:
            for finding in found.findings:
                kinds.setdefault(finding.kind, []).append(finding)
        ordered = sorted(kinds.items(), key=lambda entry: _LEVELS.index(entry[1][0].level))
        return {
            "images": sum(len(found.images) for _, found in self._found),
            "kinds": [self._kind(kind, findings) for kind, findings in ordered],
            "undo": len(self._undo),
            "told": self._told,
            "failed": self._failed,
        }

    def _kind(self, kind: str, findings: Sequence[Finding]) -> dict[str, Any]:
        remedies = sorted({finding.repair for finding in findings if finding.repair})
        return {
            "kind": kind,
            "level": findings[0].level,
            "count": len(findings),
            "remedy": " or ".join(remedies),
            "upscalers": list(self._host.upscaler_names() or (LANCZOS,)) if kind == "tiny" else [],
            "findings": [
                {"name": f.path.name, "message": f.message, "tokens": self._images(f)} for f in findings[:_SHOWN]
            ],
        }

    def _images(self, finding: Finding) -> list[str]:
        """Tokens of the image and of the one that it repeats, if any."""
        paths = [path for path in (finding.path, finding.like) if path and path.suffix.lower() in IMAGE_EXTENSIONS]
        return list(self._image_tokens.publish(paths))


def _words(concept: Concept) -> str:
    """What a missing caption becomes."""
    return " ".join(word for word in (concept.trigger, concept.class_word) if word)
