"""The dataset check in the Dataset panel: findings in the folders of the concepts, and repairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.errors import LEVELS, DataError
from lib_lora_train.core.phases import PHASE_TITLES
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.core.wording import count
from lib_lora_train.dataset.caption_encoding import shorten
from lib_lora_train.dataset.data_folders import resolve_folders
from lib_lora_train.dataset.images import IMAGE_EXTENSIONS
from lib_lora_train.dataset_tools.checkup import (
    CheckReport,
    FileState,
    Finding,
    check_dataset,
    count_images,
    read_state,
)
from lib_lora_train.dataset_tools.image_cache import ImageFactsCache
from lib_lora_train.dataset_tools.repairs import RepairResult, list_undos, write_repairs, write_undo
from lib_lora_train.dataset_tools.upscale import LANCZOS, Upscale, upscale_lanczos, write_upscaled
from lib_lora_train.web.image_tokens import ImageTokens
from lib_lora_train.web.task_session import TaskSession

_FINDINGS_SHOWN = 40
_MAX_CHECKS = 8
_KINDS = ("repair", "upscale")


class UpscalerHost(Protocol):
    """The part of a host that upscales images."""

    def upscaler_names(self) -> tuple[str, ...]: ...

    def upscale(self, image: Image.Image, size: tuple[int, int], upscaler: str) -> Image.Image: ...


OnProgress = Callable[[int, int], None]
RepairFolder = Callable[[Path, Concept, "Selection", OnProgress], RepairResult]
"""Repairs the selected findings in a folder and reports (done, total)."""


@dataclass(frozen=True)
class Check:
    """A finished check. Requests of the page name it, since another page may have checked other folders since."""

    number: int
    config: TrainConfig
    reports: tuple[tuple[Concept, CheckReport], ...]

    @property
    def folders(self) -> list[Path]:
        """The folders that were checked."""
        return [user_path(concept.folder) for concept in self.config.concepts if concept.folder]


@dataclass(frozen=True)
class Selection:
    """The findings to repair in one folder, the chosen encodings of captions, and the files as they were checked."""

    findings: tuple[Finding, ...]
    encodings: Mapping[Path, str]
    seen: Mapping[Path, FileState]


class CheckupSession(TaskSession):
    """Checks the folders of the draft, and repairs what was found. Repairs can be undone, latest first.

    The work runs in a background thread, one task at a time. Every action returns the status. `stop` ends it after the
    current image; results so far are kept.
    """

    def __init__(self, image_tokens: ImageTokens, config: Callable[[], TrainConfig], host: UpscalerHost) -> None:
        super().__init__("dataset check")
        self._image_tokens = image_tokens
        self._host = host
        self._config = config
        self._cache = ImageFactsCache()
        self._checks: dict[int, Check] = {}
        self._next = 1
        self._message, self._has_failures = "", False

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

    def status(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The progress, and the findings of the named check (the latest without one) by kind, most severe first.

        `found` is None until the check has ended; `report` is the number of the check that a request has started.
        """
        status = self.task.status()
        if status["state"] in ("idle", "busy"):
            return {**status, "found": None, "report": self._next, "undo": len(self._undos(values))}
        number = int(values.get("report") or 0)
        check = self._checks.get(number) or next(reversed(self._checks.values()), None)
        return {**status, "found": self._findings(check), "report": check.number if check else 0}

    def check(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Check every image and caption of every concept; while a check is running, return its status."""
        config = self._config()
        if not any(concept.folder for concept in config.concepts):
            raise DataError("No folder to check. Enter the folder of a concept first.")
        if self.task.status()["state"] == "busy":
            return self.status(values)
        return self._start(lambda: self._check_folders(config))

    def repair(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Repair the findings of one kind in the named check; the originals are kept beside the folders.

        `skip` and `swap` are numbers of findings to leave out, and of duplicates of which the other one goes;
        `encodings` are those chosen by number of finding.
        """

        def repair(folder: Path, concept: Concept, selected: Selection, on_progress: OnProgress) -> RepairResult:
            return write_repairs(
                folder,
                selected.findings,
                words=_caption_words(concept),
                encodings=selected.encodings,
                seen=selected.seen,
                on_progress=on_progress,
                is_stopped=self.task.is_stopped,
            )

        return self._repair("files repaired", values, repair)

    def upscale(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Upscale every tiny image to the training resolution; the originals are kept beside the folders."""
        upscale = self._upscale_function(str(values.get("upscaler", "")))
        resolution = self._require_check(values).config.resolution_side

        def repair(folder: Path, _: Concept, selected: Selection, on_progress: OnProgress) -> RepairResult:
            tiny = [one.path for one in selected.findings if read_state(one.path) == selected.seen.get(one.path)]
            is_stopped = self.task.is_stopped
            return write_upscaled(folder, tiny, resolution, upscale, on_progress=on_progress, is_stopped=is_stopped)

        return self._repair("images upscaled", {**values, "kind": "tiny"}, repair)

    def undo(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Restore what the latest repair in the folders of the named check changed, also after a restart."""
        records = self._undos(values)
        if not records:
            raise DataError("There is nothing to undo.")
        if values.get("record", records[0].name) != records[0].name:
            raise DataError("Something else was repaired in the meantime. Check the images again, then undo.")
        check = self._checks.get(int(values.get("report") or 0))
        config = check.config if check else self._config()

        def work() -> None:
            self.task.start_phase("Restoring the originals", 0)
            self._message = f"{count(write_undo(records[0]), 'file')} restored."
            self._check_folders(config)

        return self._start(work)

    def _undos(self, values: Mapping[str, Any]) -> list[Path]:
        """The records of the folders that the request names, itself or by its check; else of those in the form."""
        check = self._checks.get(int(values.get("report") or 0))
        folders = [user_path(str(folder)) for folder in values.get("folders") or ()]
        if not folders:
            config = check.config if check else self._config()
            folders = [user_path(concept.folder) for concept in config.concepts if concept.folder]
        found = {record for folder in folders for record in list_undos(folder, _KINDS)}
        return sorted(found, key=lambda record: record.stat().st_mtime_ns, reverse=True)

    def _require_check(self, values: Mapping[str, Any]) -> Check:
        check = self._checks.get(int(values.get("report") or 0))
        if check is None:
            raise DataError("There is nothing to repair. Check the images again.")
        return check

    # --- in the background thread ----------------------------------------------------------------
    def _start(self, work: Callable[[], None]) -> dict[str, Any]:
        def run() -> None:
            self._message, self._has_failures = "", False
            work()

        number = self._next
        self.task.start(run)
        return self.status({"report": number})

    def _check_folders(self, config: TrainConfig) -> None:
        """Add a check of the folders. When stopped, the remaining folders are skipped."""
        self.task.start_phase(PHASE_TITLES["scan"], 0)
        concepts = [concept for concept in config.concepts if concept.folder]
        total = sum(count_images(user_path(concept.folder)) for concept in concepts)
        self.task.start_phase("images checked", total)
        reports: list[tuple[Concept, CheckReport]] = []
        others = resolve_folders(config.concepts)
        done = 0
        for concept in concepts:
            if self.task.is_stopped():
                break
            report = check_dataset(
                user_path(concept.folder),
                resolution=config.resolution_side,
                caption_extension=config.caption_extension,
                cache=self._cache,
                others=others,
                on_progress=self._progress_from(done),
                is_stopped=self.task.is_stopped,
            )
            reports.append((concept, report))
            done += report.checked_count
        self._checks[self._next] = Check(self._next, config, tuple(reports))
        self._next += 1
        while len(self._checks) > _MAX_CHECKS:
            del self._checks[next(iter(self._checks))]
        if done < total:
            stopped = f"Stopped: only {done:,} of {count(total, 'image')} were checked."
            self._message = f"{self._message} {stopped}".strip()

    def _repair(self, label: str, values: Mapping[str, Any], repair: RepairFolder) -> dict[str, Any]:
        """Repair the selected findings of the named check, then check its folders again."""
        check = self._require_check(values)
        tasks = [(concept, folder, chosen) for concept, folder, chosen in _select(check, values) if chosen.findings]
        total = sum(len(chosen.findings) for _, _, chosen in tasks)
        if not total:
            raise DataError("There is nothing to repair. Check the images again.")

        def work() -> None:
            self.task.start_phase(label, total)
            done = 0
            for concept, folder, chosen in tasks:
                if not self.task.is_stopped():
                    self._record(repair(folder, concept, chosen, self._progress_from(done)))
                    done += len(chosen.findings)
            self.task.clear_stop()
            self._check_folders(check.config)

        return self._start(work)

    def _record(self, result: RepairResult) -> None:
        self._message = f"{self._message} {result}".strip()
        self._has_failures = self._has_failures or bool(result.failed)

    def _progress_from(self, before: int) -> OnProgress:
        return lambda done, _total: self.task.report(before + done)

    def _upscaler_note(self) -> str:
        """What to do if the host has no upscaler that adds detail; "" if it has one."""
        if not set(self._host.upscaler_names()) <= {LANCZOS, "Nearest"}:
            return ""
        return (
            "Only Lanczos is available, which adds no detail. In a webui, put an upscaler's model file (.pth or "
            ".safetensors) into models/ESRGAN and restart, or use larger images."
        )

    def _upscale_function(self, name: str) -> Upscale:
        if name == LANCZOS and name not in self._host.upscaler_names():
            return upscale_lanczos
        return lambda image, size: self._host.upscale(image, size, name)

    # --- for the page ----------------------------------------------------------------------------
    def _findings(self, check: Check | None) -> dict[str, Any]:
        kinds: dict[str, list[Finding]] = {}
        for _, report in check.reports if check else ():
            for finding in report.findings:
                kinds.setdefault(finding.kind, []).append(finding)
        ordered = sorted(kinds.items(), key=lambda entry: LEVELS.index(entry[1][0].level))
        number = check.number if check else 0
        records = self._undos({"report": number})
        return {
            "report": number,
            "images": sum(len(report.images) for _, report in check.reports) if check else 0,
            "kinds": [{**self._kind(kind, findings), "report": number} for kind, findings in ordered],
            "undo": len(records),
            "record": records[0].name if records else "",
            "message": self._message,
            "failed": self._has_failures,
        }

    def _kind(self, kind: str, findings: Sequence[Finding]) -> dict[str, Any]:
        repairs = sorted({finding.repair for finding in findings if finding.repair})
        shown = (
            findings if any(finding.like or finding.readings for finding in findings) else findings[:_FINDINGS_SHOWN]
        )
        return {
            "kind": kind,
            "level": findings[0].level,
            "count": len(findings),
            "repair": " or ".join(repairs),
            "upscalers": list(self._host.upscaler_names() or (LANCZOS,)) if kind == "tiny" else [],
            "upscaler_note": self._upscaler_note() if kind == "tiny" else "",
            "findings": [
                {
                    "number": number,
                    "name": f.path.name,
                    "like": f.like.name if f.like else "",
                    "message": f.message,
                    "tokens": self._tokens(f),
                    "readings": [[one.encoding, f"{one.name}: {shorten(one.text)}"] for one in f.readings],
                }
                for number, f in enumerate(shown)
            ],
        }

    def _tokens(self, finding: Finding) -> list[str]:
        """Tokens of the image, and of the image that it duplicates if any."""
        paths = [path for path in (finding.path, finding.like) if path and path.suffix.lower() in IMAGE_EXTENSIONS]
        return list(self._image_tokens.publish(paths))


def _caption_words(concept: Concept) -> str:
    """The caption of images that have none."""
    return " ".join(word for word in (concept.trigger, concept.class_word) if word)


def _select(check: Check, values: Mapping[str, Any]) -> Iterator[tuple[Concept, Path, Selection]]:
    """The findings to repair by folder. They are numbered over all folders, as the page shows them."""
    skip, swap = ({int(number) for number in values.get(name) or ()} for name in ("skip", "swap"))
    chosen = {int(number): str(name) for number, name in (values.get("encodings") or {}).items()}
    number = -1
    for concept, report in check.reports:
        findings, encodings = [], {}
        for finding in report.findings:
            if finding.kind != values.get("kind"):
                continue
            number += 1
            if number in skip or not finding.repair:
                continue
            if number in swap and finding.like:
                finding = dataclasses.replace(finding, path=finding.like, like=finding.path)
            findings.append(finding)
            encodings[finding.path] = chosen.get(number, "")
        yield concept, report.folder, Selection(tuple(findings), encodings, report.seen)
