"""Runs that are over, read from their folders; no PyTorch is needed for that."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lib_lora_train.config import TrainConfig, read_config
from lib_lora_train.errors import LoraTrainError
from lib_lora_train.formats.toml import read_toml_config
from lib_lora_train.run_folder import RunFolder
from lib_lora_train.train.infotext import xyz_infotext
from lib_lora_train.train.prompt import sample_prompts

_XYZ_SEEDS = 3


def past_runs(home: Path) -> Iterator[dict[str, Any]]:
    """What became of the runs in `home`, the newest first: state, LoRA files and grid, as far as they are there.

    Each log is read when its run is asked for: whoever wants the newest one does not wait for all.
    """
    folders = sorted((path for path in home.glob("*/") if RunFolder(path).log.is_file()), reverse=True)
    return (_past_run(RunFolder(folder)) for folder in folders)


def _past_run(folder: RunFolder) -> dict[str, Any]:
    """A log may end in half a line, if the machine went down."""
    state, files = "", []
    for line in folder.log.read_text(encoding="utf-8").splitlines():
        if '"StateChanged"' in line or '"LoraWritten"' in line:
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                state = record.get("state", state)
                files += [record["path"]] if record["kind"] == "LoraWritten" else []
    grid = str(folder.grid) if folder.grid.is_file() else ""
    loras = [file for file in files if Path(file).is_file()]
    return {"run": folder.root.name, "state": state, "loras": loras, "grid": grid}


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
