"""The dataset check in the Dataset panel: findings in the folders of the concepts, and repairs."""

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

_FINDINGS_SHOWN = 40
_LEVELS = ("error", "warning", "hint")


class UpscalerHost(Protocol):
    """The part of a host that upscales images."""

    def upscaler_names(self) -> tuple[str, ...]: ...

    def upscale(self, image: Image.Image, size: tuple[int, int], upscaler: str) -> Image.Image: ...


OnProgress = Callable[[int, int], None]
RepairFolder = Callable[[Path, Concept, Sequence[Finding], OnProgress], RepairResult]
"""Repairs the findings in a folder and reports (done, total)."""


class CheckupSession:
    """Checks the folders of the draft, and repairs what was found. Repairs can be undone, latest first.

    The work runs in a background thread, one task at a time. Every action returns the status.
    """

    def __init__(self, image_tokens: ImageTokens, config: Callable[[], TrainConfig], host: UpscalerHost) -> None:
        self._image_tokens = image_tokens
        self._host = host
        self._config = config
        self._cache = ImageFactsCache()
        self._reports: list[tuple[Concept, CheckReport]] = []
        self._undo: list[Path] = []
        self._message, self._has_failures = "", False
        self.task = BackgroundTask("dataset check")

    def actions(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        """The actions that the page can request, by name."""
        return {
            "checkup-run": self.check,
            "checkup-repair": self.repair,
            "checkup-upscale": self.upscale,
            "checkup-undo": self.undo,
            "checkup-stop": self.stop,
            "checkup-status": self.status,
        }

    def status(self, _values: Mapping[str, Any]) -> dict[str, Any]:
        """The progress, and the findings by kind, most severe first; `found` is None until the check has ended."""
        status = self.task.status()
        return {**status, "found": None if status["state"] in ("idle", "busy") else self._findings()}

    def stop(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Stop after the current image; results so far are kept."""
        self.task.stop()
        return self.status(values)

    def check(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Check every image and caption of every concept; while a check is running, return its status."""
        config = self._config()
        if not any(concept.folder for concept in config.concepts):
            raise DataError("No folder to check. Enter the folder of a concept first.")
        if self.task.status()["state"] == "busy":
            return self.status(values)
        return self._start(lambda: self._check_folders(config))

    def repair(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Repair all findings of one kind; the originals are kept beside the folders."""
        kind = str(values.get("kind", ""))

        def repair(
            folder: Path, concept: Concept, findings: Sequence[Finding], on_progress: OnProgress
        ) -> RepairResult:
            words, is_stopped = _caption_words(concept), self.task.is_stopped
            return write_repairs(folder, findings, words=words, on_progress=on_progress, is_stopped=is_stopped)

        return self._repair("files repaired", lambda finding: finding.kind == kind and finding.repair != "", repair)

    def upscale(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Upscale every tiny image to the training resolution; the originals are kept beside the folders."""
        upscale, resolution = self._upscale_function(str(values.get("upscaler", ""))), self._config().resolution

        def repair(folder: Path, _: Concept, findings: Sequence[Finding], on_progress: OnProgress) -> RepairResult:
            tiny, is_stopped = [finding.path for finding in findings], self.task.is_stopped
            return write_upscaled(folder, tiny, resolution, upscale, on_progress=on_progress, is_stopped=is_stopped)

        return self._repair("images upscaled", lambda finding: finding.kind == "tiny", repair)

    def undo(self, _values: Mapping[str, Any]) -> dict[str, Any]:
        """Restore what the latest repair changed."""
        if not self._undo:
            raise DataError("There is nothing to undo.")
        config = self._config()

        def work() -> None:
            self.task.start_phase("Restoring the originals", 0)
            self._message = f"{count(write_undo(self._undo.pop()), 'file')} restored."
            self._check_folders(config)

        return self._start(work)

    # --- in the background thread ----------------------------------------------------------------
    def _start(self, work: Callable[[], None]) -> dict[str, Any]:
        def run() -> None:
            self._message, self._has_failures = "", False
            work()

        self.task.start(run)
        return self.status({})

    def _check_folders(self, config: TrainConfig) -> None:
        """Replace the reports by new ones. When stopped, the remaining folders are skipped."""
        self.task.start_phase("Reading the folders", 0)
        concepts = [concept for concept in config.concepts if concept.folder]
        total = sum(count_images(user_path(concept.folder)) for concept in concepts)
        self.task.start_phase("images checked", total)
        reports: list[tuple[Concept, CheckReport]] = []
        done = 0
        for concept in concepts:
            if self.task.is_stopped():
                break
            report = check_dataset(
                user_path(concept.folder),
                resolution=config.resolution,
                caption_extension=config.caption_extension,
                cache=self._cache,
                on_progress=self._progress_from(done),
                is_stopped=self.task.is_stopped,
            )
            reports.append((concept, report))
            done += report.checked_count
        self._reports = reports
        if done < total:
            stopped = f"Stopped: only {done:,} of {total:,} images were checked."
            self._message = f"{self._message} {stopped}".strip()

    def _repair(self, label: str, is_included: Callable[[Finding], bool], repair: RepairFolder) -> dict[str, Any]:
        """Repair the findings that are included, then check again."""
        tasks = [(concept, found.folder, list(filter(is_included, found.findings))) for concept, found in self._reports]
        total = sum(len(findings) for _, _, findings in tasks)
        if not total:
            raise DataError("There is nothing to repair. Check the images again.")
        config = self._config()

        def work() -> None:
            self.task.start_phase(label, total)
            done = 0
            for concept, folder, findings in tasks:
                if findings and not self.task.is_stopped():
                    self._record(repair(folder, concept, findings, self._progress_from(done)))
                    done += len(findings)
            self.task.clear_stop()
            self._check_folders(config)

        return self._start(work)

    def _record(self, result: RepairResult) -> None:
        if result.undo:
            self._undo.append(result.undo)
        self._message = f"{self._message} {result}".strip()
        self._has_failures = self._has_failures or bool(result.failed)

    def _progress_from(self, before: int) -> OnProgress:
        return lambda done, _total: self.task.report(before + done)

    def _upscale_function(self, name: str) -> Upscale:
        if name == LANCZOS and name not in self._host.upscaler_names():
            return upscale_lanczos
        return lambda image, size: self._host.upscale(image, size, name)

    # --- for the page ----------------------------------------------------------------------------
    def _findings(self) -> dict[str, Any]:
        kinds: dict[str, list[Finding]] = {}
        for _, report in self._reports:
            for finding in report.findings:
                kinds.setdefault(finding.kind, []).append(finding)
        ordered = sorted(kinds.items(), key=lambda entry: _LEVELS.index(entry[1][0].level))
        return {
            "images": sum(len(report.images) for _, report in self._reports),
            "kinds": [self._kind(kind, findings) for kind, findings in ordered],
            "undo": len(self._undo),
            "message": self._message,
            "failed": self._has_failures,
        }

    def _kind(self, kind: str, findings: Sequence[Finding]) -> dict[str, Any]:
        repairs = sorted({finding.repair for finding in findings if finding.repair})
        return {
            "kind": kind,
            "level": findings[0].level,
            "count": len(findings),
            "repair": " or ".join(repairs),
            "upscalers": list(self._host.upscaler_names() or (LANCZOS,)) if kind == "tiny" else [],
            "findings": [
                {"name": f.path.name, "message": f.message, "tokens": self._tokens(f)}
                for f in findings[:_FINDINGS_SHOWN]
            ],
        }

    def _tokens(self, finding: Finding) -> list[str]:
        """Tokens of the image, and of the image that it duplicates if any."""
        paths = [path for path in (finding.path, finding.like) if path and path.suffix.lower() in IMAGE_EXTENSIONS]
        return list(self._image_tokens.publish(paths))


def _caption_words(concept: Concept) -> str:
    """The caption of images that have none."""
    return " ".join(word for word in (concept.trigger, concept.class_word) if word)
