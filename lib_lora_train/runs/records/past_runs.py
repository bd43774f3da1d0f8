"""Finished and interrupted runs, read from their folders. Does not import PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib_lora_train.config.method_catalog import named_word
from lib_lora_train.config.sample_prompts import sample_prompts
from lib_lora_train.config.train_config import TrainConfig, read_config
from lib_lora_train.config.validation.validate import require_usable
from lib_lora_train.core.errors import LoraTrainError, TrainingError
from lib_lora_train.core.wording import count
from lib_lora_train.formats.toml import read_toml_config
from lib_lora_train.runs.records.event_log import read_lines
from lib_lora_train.runs.records.folder import RunFolder, read_identity
from lib_lora_train.runs.records.history import FoundLora, read_loras
from lib_lora_train.runs.records.moved_run import read_move
from lib_lora_train.runs.records.past_config import read_past_config
from lib_lora_train.sampling.infotext import xyz_infotext
from lib_lora_train.sampling.used_sampler import used_sampler

_XYZ_SEEDS = 3
_NO_PLAN = {"steps_per_epoch": 0, "epochs": 0, "total_steps": 0}


@dataclass(frozen=True)
class ResumePoint:
    """Where to resume a run: its folder, its settings (possibly with a new length) and a state file.

    Without a state, the run begins again in the same folder, on the model with the values `model` ({}: any).
    """

    folder: RunFolder
    config: TrainConfig
    state: Path | None
    model: Mapping[str, str] = field(default_factory=dict)


def past_runs(home: Path, active_run: str = "") -> Iterator[dict[str, Any]]:
    """A summary of each run in `home`, newest first.

    Keys: `run` (its id), `state`, `is_active`, `reason` (why it failed or what it was waiting for, "" if neither),
    `loras` and `grid` (existing files only), `missing` (LoRA files on record that are not on disk), `step` of the
    newest training state (0 if none), the planned `total_steps` and `epochs`, `can_resume` (it has a state, and was
    interrupted or lacks its grid), `can_extend` (all its steps are done and it has a state), `can_begin_again` (it
    was interrupted before its first state) and `unreadable_lines` of its log, which are left out. None of the three
    applies to `active_run`. The iterator is lazy: it reads a run's log only when it reaches that run.
    """
    folders = sorted((path for path in home.glob("*/") if RunFolder(path).log.is_file()), reverse=True)
    return (read_run(RunFolder(folder), is_active=folder.name == active_run) for folder in folders)


@dataclass(frozen=True)
class _Summary:
    """What a run's log says: its plans, last state and message, its LoRA files, and how many lines do not fit."""

    plans: tuple[Mapping[str, Any], ...]
    state: str
    message: str
    loras: tuple[FoundLora, ...]
    unreadable: int

    @property
    def plan(self) -> Mapping[str, Any]:
        """The last plan: a run that is extended has several."""
        return self.plans[-1] if self.plans else _NO_PLAN

    def is_complete(self, step: int) -> bool:
        """Whether all planned steps are done; a finished run stays so if extending it fails before it is planned."""
        return self.state == "finished" or 0 < self.plan["total_steps"] <= step


def read_run(folder: RunFolder, *, is_active: bool = False) -> dict[str, Any]:
    """The summary of one run, as in `past_runs`."""
    summary = _read_summary(folder)
    steps = folder.state_steps()
    step = steps[-1] if steps else 0
    has_state, is_complete = bool(steps) and not is_active, summary.is_complete(step)
    return {
        "run": folder.root.name,
        "state": summary.state,
        "is_active": is_active,
        "reason": "" if summary.state in ("finished", "stopped") else summary.message,
        "loras": [str(file.path) for file in summary.loras if not file.is_missing],
        "missing": [str(file.path) for file in summary.loras if file.is_missing],
        "grid": str(folder.grid) if folder.grid.is_file() else "",
        "step": step,
        "total_steps": summary.plan["total_steps"],
        "epochs": summary.plan["epochs"],
        "unreadable_lines": summary.unreadable,
        "can_resume": has_state and (summary.state != "finished" or _lacks_images(folder)),
        "can_begin_again": not (steps or is_active or is_complete) and folder.config.is_file(),
        "can_extend": has_state and is_complete,
    }


def find_resume_point(
    folder: RunFolder, *, more_epochs: int = 0, step: int | None = None, config: TrainConfig | None = None
) -> ResumePoint:
    """Where to resume the run in the folder: from its newest state or the one after `step`, to its planned end or
    `more_epochs` beyond it. If given, `config` decides the length instead.

    TrainingError if it cannot be resumed, ConfigError if its settings cannot be read.
    """
    steps = folder.state_steps()
    if not steps:
        return _begin_again(folder, step, config)
    read_identity(folder)
    if step is not None and step not in steps:
        known = ", ".join(map(str, steps))
        raise TrainingError(f"{folder.root.name}: there is no training state after step {step}. Choose one of {known}.")
    if config is None:
        config = _config_to_resume(folder, more_epochs, is_earlier=step is not None and step < steps[-1])
    config = read_move(folder).config(config)
    return ResumePoint(folder, config, folder.saved_states()[step or steps[-1]])


def _begin_again(folder: RunFolder, step: int | None, config: TrainConfig | None) -> ResumePoint:
    """A run that was interrupted before its first state, from its beginning."""
    if not folder.config.is_file():
        raise TrainingError(f"{folder.root} is not a resumable run folder. Choose another run or start a new one.")
    if step is not None or _read_summary(folder).is_complete(0):
        text = "no training state was saved. Start a new run, with save_state on"
        raise TrainingError(f"{folder.root.name}: {text}.")
    try:
        model = read_identity(folder).model
    except TrainingError:  # interrupted before the model was loaded
        model = {}
    return ResumePoint(folder, config or _read_config(folder), None, model)


def _read_config(folder: RunFolder) -> TrainConfig:
    """The run's settings, with the paths of a moved run found again."""
    config, problems = read_config(read_toml_config(folder.config, is_ours=True))
    require_usable(problems)
    return read_move(folder).config(config)


def _lacks_images(folder: RunFolder) -> bool:
    """Whether a finished run has not made its grid, for example because the disk was full."""
    if folder.grid.is_file():
        return False
    try:
        config = _read_config(folder)
    except LoraTrainError:
        return False
    return config.make_grid and bool(config.sample_prompts)


def _config_to_resume(folder: RunFolder, more_epochs: int, *, is_earlier: bool) -> TrainConfig:
    if more_epochs < 0:
        raise TrainingError(f"more_epochs is {more_epochs}, but a run can only be extended. Use 0 or more.")
    summary = _read_summary(folder)
    if summary.state == "finished" and not more_epochs and not is_earlier and not _lacks_images(folder):
        text = (
            f"{count(summary.plan['total_steps'], 'step was', 'steps were')} planned and done. Enter how many epochs "
            "to add"
        )
        raise TrainingError(f"{folder.root.name}: {text}.")
    return _extend(_as_planned(_read_config(folder), summary.plans), summary.plan, more_epochs)


def _as_planned(config: TrainConfig, plans: Sequence[Mapping[str, Any]]) -> TrainConfig:
    """The settings with the length of the last plan, if they still have that of the one before.

    An extended run writes its settings when it continues, so they are old if it fails before.
    """
    if len(plans) < 2 or plans[-1]["total_steps"] <= plans[-2]["total_steps"]:
        return config
    before, last = plans[-2:]
    if config.max_steps:
        return config.replace(max_steps=last["total_steps"]) if config.max_steps == before["total_steps"] else config
    return config.replace(epochs=last["epochs"]) if config.epochs == before["epochs"] else config


def _read_summary(folder: RunFolder) -> _Summary:
    state, message, unreadable = "", "", 0
    plans, files = [], []
    for record in read_lines(folder.log):
        if record is None:
            unreadable += 1
        elif record["kind"] == "Planned":
            plans.append(record)
        elif record["kind"] == "StateChanged":
            state, message = str(record["state"]), str(record.get("message", ""))
        elif record["kind"] in ("LoraWritten", "LoraRemoved"):
            files.append(record)
    return _Summary(tuple(plans), state, message, read_loras(folder, files), unreadable)


def _extend(config: TrainConfig, plan: Mapping[str, Any], more_epochs: int) -> TrainConfig:
    """The settings with `more_epochs` added, and max_steps raised accordingly."""
    if not more_epochs:
        return config
    if not config.max_steps:
        return config.replace(epochs=config.epochs + more_epochs)
    steps = plan["total_steps"] + more_epochs * plan["steps_per_epoch"]
    return config.replace(epochs=max(config.epochs, plan["epochs"] + more_epochs), max_steps=steps)


def newest_run_with_loras(home: Path) -> dict[str, Any] | None:
    """The summary of the newest run in `home` that has LoRA files; None if none has."""
    return next((run for run in past_runs(home) if run["loras"]), None)


def files_to_plot(home: Path, name: str) -> list[Path]:
    """The LoRA files in the X/Y/Z plot of a run in `home`."""
    return [Path(path) for path in read_run(RunFolder(home / name))["loras"]]


def xyz_text(home: Path, name: str = "") -> str:
    """Infotext for an X/Y/Z plot of a run in `home`, or of the newest one with LoRA files; "" if it has none."""
    run = read_run(RunFolder(home / name)) if name else newest_run_with_loras(home)
    if run is None or not run["loras"]:
        return ""
    try:
        config = read_past_config(RunFolder(home / run["run"]))
        prompts = sample_prompts(config)
    except LoraTrainError:  # a hand-edited settings file must not break the page
        config, prompts = TrainConfig(), ()
    first = prompts[0] if prompts else sample_prompts(config.replace(sample_prompts=("",)))[0]
    seeds = [first.seed + number for number in range(_XYZ_SEEDS)]
    names = [Path(path).stem for path in run["loras"]]
    sampler = used_sampler(config.effective_sampler, config.prediction_type)
    word = named_word(config)
    return xyz_infotext(first, names, seeds, sampler=sampler, clip_skip=config.clip_skip, word=word)
