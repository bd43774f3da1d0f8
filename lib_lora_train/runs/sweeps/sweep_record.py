"""The record of a sweep, in one file beside the runs: what was planned, and which run came of each part.

The file is written once, before the first run. Which runs belong to it is written in their own folders, so a sweep
survives any restart, and its runs can be deleted, repeated and resumed like all others. Does not import PyTorch.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lib_lora_train.config.train_config import TrainConfig, config_values, read_config
from lib_lora_train.config.validation.validate import require_usable
from lib_lora_train.core.errors import HostError, OutputError
from lib_lora_train.core.events import ACTIVE_STATES
from lib_lora_train.runs.queue import QueuedRun
from lib_lora_train.runs.records.folder import RunFolder, write_json
from lib_lora_train.runs.records.past_runs import read_run
from lib_lora_train.runs.sweeps.sweep import Variant

_FOLDER = "sweeps"


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep: what it changes by place, and all of its settings."""

    changes: Mapping[str, Any]
    values: Mapping[str, Any]

    def config(self) -> TrainConfig:
        """The settings; ConfigError if this version cannot read them."""
        config, problems = read_config(self.values)
        require_usable(problems)
        return config


@dataclass(frozen=True)
class Sweep:
    """A sweep by its id. `base` is the run that it varies, which is compared too; "" if it varies the form."""

    id: str
    base: str
    runs: tuple[PlannedRun, ...]

    @property
    def places(self) -> tuple[str, ...]:
        """The settings that it varies."""
        return tuple(dict.fromkeys(place for run in self.runs for place in run.changes))

    def origin(self, number: int) -> dict[str, Any]:
        """What the folder of its run number `number` (from 0) says about where it comes from."""
        return {"sweep": self.id, "number": number}


@dataclass(frozen=True)
class Member:
    """Run number `number` of a sweep. `run` is its id, "" if it has not started; `problem` says why it could not.

    `state` is that of the run, or interrupted, queued or missing: it was never queued, or was removed or deleted.
    """

    number: int
    state: str
    run: str = ""
    problem: str = ""
    can_resume: bool = False


def write_sweep(home: Path, base: str, variants: Sequence[Variant], name: str) -> Sweep:
    """A new sweep, recorded in `home`; OutputError if that fails."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    runs = tuple(PlannedRun(_plain(variant.changes), config_values(variant.config)) for variant in variants)
    ids = (f"{stamp}-{name}{suffix}" for suffix in ("", *(f"-{number}" for number in range(2, 1000))))
    sweep = Sweep(next(one for one in ids if not _file(home, one).exists()), base, runs)
    try:
        _file(home, sweep.id).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{home / _FOLDER} cannot be created: {error.strerror or error}.") from error
    write_json(_file(home, sweep.id), asdict(sweep))
    return sweep


def read_sweep(home: Path, sweep: str) -> Sweep:
    """The recorded sweep with this id; HostError if there is none or its file is damaged."""
    path = _file(home, sweep)
    if Path(sweep).name != sweep or not path.is_file():
        raise HostError(f"There is no sweep {sweep!r}; its file may have been deleted. Reload the list.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        runs = tuple(PlannedRun(dict(run["changes"]), dict(run["values"])) for run in values["runs"])
        return Sweep(sweep, str(values["base"]), runs)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HostError(f"{path} is damaged. Its runs are in the list of runs; compare them there.") from error


def read_sweep_of(folder: RunFolder) -> Sweep | None:
    """The sweep that a run belongs to; None if it belongs to none, or if that cannot be read."""
    try:
        origin = json.loads(folder.origin.read_text(encoding="utf-8"))
        return read_sweep(folder.root.parent, str(origin["sweep"]))
    except (OSError, ValueError, KeyError, TypeError, HostError):
        return None


def list_sweeps(home: Path) -> Iterator[Sweep]:
    """The recorded sweeps, newest first, without damaged ones."""
    for path in sorted((home / _FOLDER).glob("*.json"), key=lambda path: path.stem, reverse=True):
        try:
            yield read_sweep(home, path.stem)
        except HostError:
            continue


def make_report_folder(home: Path, sweep: Sweep) -> Path:
    """The folder for the report on a sweep; OutputError if it cannot be created."""
    folder = home / _FOLDER / sweep.id
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be created: {error.strerror or error}.") from error
    return folder


def find_members(home: Path, sweep: Sweep, queue: Sequence[QueuedRun] = (), active_run: str = "") -> tuple[Member, ...]:
    """What has become of each run of a sweep, in order; a run that was repeated counts once, as its newest one."""
    runs = _runs_of(home, sweep)
    queued = {entry.origin.get("number"): entry for entry in queue if entry.origin.get("sweep") == sweep.id}
    resuming = {entry.run for entry in queue if entry.run}
    return tuple(
        _member(number, runs.get(number), queued.get(number), resuming, active_run) for number in range(len(sweep.runs))
    )


def _member(
    number: int, folder: RunFolder | None, entry: QueuedRun | None, resuming: set[str], active_run: str
) -> Member:
    if entry is not None:  # also a repetition of a run that failed
        return Member(number, "queued", problem=entry.problem)
    if folder is None:
        return Member(number, "missing")
    name = folder.root.name
    run = _read_unchanged(folder, name == active_run, _stamp(folder))
    if name in resuming:
        return Member(number, "queued", name)
    state = str(run["state"])
    if state in ACTIVE_STATES and name != active_run:
        state = "interrupted"
    can_resume = bool(state in ("interrupted", "stopped") and (run["can_resume"] or run["can_begin_again"]))
    return Member(number, state, name, str(run["reason"]) if state == "failed" else "", can_resume)


def _stamp(folder: RunFolder) -> tuple[int, ...]:
    """Numbers that change when the run continues, or when one of its states or its grid comes or goes."""
    files = [path.stat() for path in (folder.root, folder.log, folder.states) if path.exists()]
    return tuple(number for file in files for number in (file.st_size, file.st_mtime_ns))


@functools.lru_cache(maxsize=1024)
def _read_unchanged(folder: RunFolder, is_active: bool, _stamp: tuple[int, ...]) -> Mapping[str, Any]:
    """The summary of a run, read again only when something has changed: a page with many sweeps asks often."""
    return read_run(folder, is_active=is_active)


def _runs_of(home: Path, sweep: Sweep) -> dict[int, RunFolder]:
    """The newest run folder of each number."""
    found = {}
    for path in sorted(home.glob("*/origin.json")):
        try:
            origin = json.loads(path.read_text(encoding="utf-8"))
            is_mine = origin["sweep"] == sweep.id and RunFolder(path.parent).log.is_file()
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if is_mine:
            found[origin["number"]] = RunFolder(path.parent)
    return found


def _file(home: Path, sweep: str) -> Path:
    return home / _FOLDER / f"{sweep}.json"


def _plain(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {place: list(value) if isinstance(value, tuple) else value for place, value in changes.items()}
