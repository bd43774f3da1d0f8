"""Runs that are over or interrupted, read from their folders; no PyTorch is needed for that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib_lora_train.config.sample_prompts import sample_prompts
from lib_lora_train.config.train_config import TrainConfig, read_config
from lib_lora_train.config.validation.validate import require_usable
from lib_lora_train.core.errors import LoraTrainError, TrainingError
from lib_lora_train.formats.toml import read_toml_config
from lib_lora_train.runs.event_log import read_log
from lib_lora_train.runs.folder import RunFolder, read_identity
from lib_lora_train.sampling.infotext import xyz_infotext

_XYZ_SEEDS = 3
_NO_PLAN = {"steps_per_epoch": 0, "epochs": 0, "total_steps": 0}


@dataclass(frozen=True)
class Continuation:
    """How a run goes on: in its own folder, with its settings (the length may be another), from a state file."""

    folder: RunFolder
    config: TrainConfig
    state: Path


def past_runs(home: Path, live: str = "") -> Iterator[dict[str, Any]]:
    """What became of the runs in `home`, the newest first.

    `run` (its id), `state`, `loras` and `grid` as far as they are there; `step` of the newest training state (0: none),
    `total_steps` and `epochs` as planned; `can_resume`: it was cut short and has a state; `can_extend`: it took all of
    its steps and could take more; neither for the run `live`, which is at work. Each log is read when its run is asked
    for: whoever wants the newest one does not wait for all.
    """
    folders = sorted((path for path in home.glob("*/") if RunFolder(path).log.is_file()), reverse=True)
    return (_past_run(RunFolder(folder), folder.name == live) for folder in folders)


def _past_run(folder: RunFolder, is_live: bool) -> dict[str, Any]:
    state, files, plan = "", dict[str, None](), _NO_PLAN
    for record in read_log(folder.log):
        if record["kind"] == "StateChanged":
            state = str(record["state"])
        elif record["kind"] == "LoraWritten":
            files[record["path"]] = None
        elif record["kind"] == "Planned":
            plan = record
    steps = folder.state_steps()
    step = steps[-1] if steps else 0
    can_go_on, is_over = bool(steps) and not is_live, state == "finished"
    return {
        "run": folder.root.name,
        "state": state,
        "loras": [file for file in files if Path(file).is_file()],
        "grid": str(folder.grid) if folder.grid.is_file() else "",
        "step": step,
        "total_steps": plan["total_steps"],
        "epochs": plan["epochs"],
        "can_resume": can_go_on and not is_over,
        "can_extend": can_go_on and is_over,
    }


def continuation(
    folder: RunFolder, *, more_epochs: int = 0, step: int | None = None, config: TrainConfig | None = None
) -> Continuation:
    """How the run in the folder can go on: from its newest state or the one after `step`, to its planned end or
    `more_epochs` beyond it. With a `config`, that one says how long the run is.

    TrainingError, in one sentence, if it cannot go on; ConfigError if its settings cannot be read.
    """
    read_identity(folder)
    steps = folder.state_steps()
    if not steps:
        text = "no training state was kept. Only a new run helps; save_state has to be on for it"
        raise TrainingError(f"{folder.root.name}: {text}.")
    if step is not None and step not in steps:
        known = ", ".join(map(str, steps))
        raise TrainingError(f"{folder.root.name}: there is no state after step {step}. There are: {known}.")
    if config is None:
        config = _config_to_go_on_with(folder, more_epochs, is_earlier=step is not None and step < steps[-1])
    return Continuation(folder, config, folder.state_after(step or steps[-1]))


def _config_to_go_on_with(folder: RunFolder, more_epochs: int, *, is_earlier: bool) -> TrainConfig:
    if more_epochs < 0:
        raise TrainingError(f"more_epochs is {more_epochs}; a run can only be made longer.")
    plan, ending = _plan_and_ending(folder)
    if ending == "finished" and not more_epochs and not is_earlier:
        text = f"all {plan['total_steps']} steps are taken. Say by how many epochs to extend it"
        raise TrainingError(f"{folder.root.name}: {text}.")
    config, problems = read_config(read_toml_config(folder.config))
    require_usable(problems)
    return _longer(config, plan, more_epochs)


def _plan_and_ending(folder: RunFolder) -> tuple[Mapping[str, Any], str]:
    plan, ending = _NO_PLAN, ""
    for record in read_log(folder.log):
        if record["kind"] == "Planned":
            plan = record
        elif record["kind"] == "StateChanged":
            ending = str(record["state"])
    return plan, ending


def _longer(config: TrainConfig, plan: Mapping[str, Any], more_epochs: int) -> TrainConfig:
    """The settings with so many more epochs; a limit of steps moves along."""
    if not more_epochs:
        return config
    if not config.max_steps:
        return config.replace(epochs=config.epochs + more_epochs)
    steps = plan["total_steps"] + more_epochs * plan["steps_per_epoch"]
    return config.replace(epochs=max(config.epochs, plan["epochs"] + more_epochs), max_steps=steps)


def xyz_text(home: Path) -> str:
    """Infotext for an X/Y/Z plot over the LoRA files of the newest run in `home` that has any; "" if none has."""
    run = next((run for run in past_runs(home) if run["loras"]), None)
    if run is None:
        return ""
    try:
        config, _ = read_config(read_toml_config(RunFolder(home / run["run"]).config))
        prompts = sample_prompts(config)
    except LoraTrainError:  # a settings file that somebody edited is no reason for the page to fail
        config, prompts = TrainConfig(), ()
    first = prompts[0] if prompts else sample_prompts(config.replace(sample_prompts=("",)))[0]
    seeds = [first.seed + number for number in range(_XYZ_SEEDS)]
    names = [Path(path).stem for path in run["loras"]]
    return xyz_infotext(first, names, seeds, sampler=config.sample_sampler)
