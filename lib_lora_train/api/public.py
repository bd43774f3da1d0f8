"""The functions that `lib_lora_train` offers to other programs: plan, train, load and merge.

They are the commands `train --dry-run`, `train`, `check` and `merge` with values instead of text. PyTorch is imported
inside the functions that need it: `plan` works without it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_lora_train.config.train_config import TrainConfig, config_values, read_config
from lib_lora_train.config.validation.validate import all_problems, require_usable
from lib_lora_train.core.events import Event, LoraWritten
from lib_lora_train.formats.toml import read_toml_config
from lib_lora_train.runs.planning import RunPlan, plan_run

if TYPE_CHECKING:
    from lib_lora_train.adapters.files.lora_file import AdapterFile

Settings = str | os.PathLike[str] | Mapping[str, Any] | TrainConfig
"""The path of a TOML file, a mapping with the same names, or a config that was made before."""


@dataclass(frozen=True)
class TrainedRun:
    """What a run left behind.

    folder: the run's own folder, with its settings, samples, grid, log and training state
    lora_files: the LoRA files that it wrote, in the order they were written
    """

    folder: Path
    lora_files: tuple[Path, ...]


@dataclass(frozen=True)
class MergedFile:
    """A merged LoRA file.

    error: the share of the update that was lost, ‖ΔW' − ΔW‖ / ‖ΔW‖; about 0.0002 is the rounding to 16 bits
    left_out: layers that do not fit the checkpoint or the chosen form
    """

    path: Path
    error: float
    left_out: tuple[str, ...]


def plan(settings: Settings, **changes: Any) -> RunPlan:
    """The buckets, repeats and steps that these settings lead to; no model is loaded and nothing is written.

    `changes` are single settings that replace those in `settings`, as flags do on the command line. The result's
    `plan` has the numbers (`steps_per_epoch`, `epochs`, `total_steps`, `buckets`), its `problems` the warnings
    and hints.

    Raises ConfigError with all invalid settings together, and DataError for a folder that cannot be trained on.
    """
    return plan_run(_config(settings, changes))


def train(
    settings: Settings,
    *,
    out: str | os.PathLike[str] = ".",
    device: str | None = None,
    on_event: Callable[[Event], None] | None = None,
    **changes: Any,
) -> TrainedRun:
    """Train to the end and return the files that were written.

    LoRA files go to `out`/models/Lora (or to the setting `output_dir`), everything else to a new folder in
    `out`/outputs. `device` is a PyTorch device such as "cpu" or "cuda:1"; None takes the graphics card if there is one.
    `on_event` gets every event of the run (`core/events.py`) in the training thread; an exception from it ends the run.

    Raises ConfigError, DataError, ModelError, TrainingError or OutputError, all of them LoraTrainError. After a
    TrainingError the files and the state that were saved before are still there.
    """
    from lib_lora_train.core.control import Control
    from lib_lora_train.hosts.standalone import StandaloneHost
    from lib_lora_train.runs.records.event_log import log_events
    from lib_lora_train.runs.records.folder import new_run_folder
    from lib_lora_train.runs.trainer import run_training

    planned = plan_run(_config(settings, changes))
    place = Path(out).absolute()
    host = StandaloneHost(None, None, place / "models" / "Lora", device)
    folder = new_run_folder(place / "outputs", planned.config.output_name)
    files = []
    events = run_training(planned.config, host, folder=folder, control=Control(), run_plan=planned)
    for event in log_events(events, folder.log):
        if isinstance(event, LoraWritten):
            files.append(Path(event.path))
        if on_event:
            on_event(event)
    return TrainedRun(folder.root, tuple(file for file in files if file.is_file()))


def load(path: str | os.PathLike[str]) -> AdapterFile:
    """A LoRA file of any family: `state` maps each key to its tensor (on the CPU, as stored), `metadata` is text.

    For a LoRA of rank r on a linear layer (out, in), `KEY.lora_down.weight` is (r, in) and `KEY.lora_up.weight`
    is (out, r); on a convolution they are (r, in, k, k) and (out, r, 1, 1). `KEY.alpha` is a single number, and the
    update is ΔW = alpha / r · up @ down.

    Raises AdapterError if the file is missing, damaged or not a safetensors file.
    """
    from lib_lora_train.adapters.files.lora_file import read_adapter

    return read_adapter(Path(path))


def merge(
    files: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    weights: Sequence[float] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    to: str = "lora",
    rank: int = 0,
    precision: str = "fp16",
) -> MergedFile:
    """Write the weighted sum of LoRA files as one new file; existing files are never overwritten.

    `weights` has a number for each file; those without one count as 1. `checkpoint` is the model that they are for;
    None means the embedded tiny model. `to` is "lora" or "diff", the exact difference. `rank` 0 keeps all ranks side
    by side, which is exact for plain LoRAs; a smaller rank, and other families, are cut by a singular value
    decomposition. `precision` of the numbers in the file is fp16, bf16 or fp32.

    Raises AdapterError if a file cannot be read or does not fit the checkpoint, ModelError for the checkpoint, and
    LoraTrainError if `out` exists or there are more weights than files.
    """
    from lib_lora_train.adapters.files.lora_file import read_adapter
    from lib_lora_train.hosts.standalone import StandaloneHost
    from lib_lora_train.lora_tools.merge import merge_into_file
    from lib_lora_train.lora_tools.merge_into_checkpoint import pair_weights

    place = Path(out)
    pairs = pair_weights([read_adapter(Path(file)) for file in files], list(weights))
    config = TrainConfig(checkpoint=os.fspath(checkpoint) if checkpoint else "", precision="fp32")
    model = StandaloneHost(None, None, place.parent).load_layers(config)
    merged, saved = merge_into_file(place, pairs, model, to=to, rank=rank, precision=precision)
    return MergedFile(saved.path, merged.error, merged.left_out)


def _config(settings: Settings, changes: Mapping[str, Any]) -> TrainConfig:
    """The settings with the changes; ConfigError with everything that is wrong with them."""
    if isinstance(settings, TrainConfig):
        values = config_values(settings)
    elif isinstance(settings, Mapping):
        values = dict(settings)
    else:
        values = dict(read_toml_config(Path(settings)))
    config, problems = read_config({**values, **changes})
    require_usable(all_problems(config, problems))
    return config
