"""The shared state of one run, and its preparation."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from PIL import Image

from lib_lora_train.adapters.readable import count_file_values
from lib_lora_train.config.sample_prompts import SamplePrompt, sample_prompts
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.control import Control, RunStoppedError
from lib_lora_train.core.errors import HostError, LoraTrainError, OutputError
from lib_lora_train.core.events import Event, Noted, PhaseEnded, PhaseStarted
from lib_lora_train.core.phases import Phase
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.core.wording import count
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.hosts.host import Host, Txt2Img
from lib_lora_train.methods.registry import attach
from lib_lora_train.methods.trained_part import TrainedPart
from lib_lora_train.models.checkpoint import legacy_hash
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.latent_cache import LatentCache
from lib_lora_train.models.latents import encode_dataset
from lib_lora_train.runs.checks.write_places import saving_places
from lib_lora_train.runs.estimates.memory import DTYPE_BYTES, OPTIMIZER_BYTES
from lib_lora_train.runs.records.folder import Identity, RunFolder, read_identity, write_identity
from lib_lora_train.runs.records.history import RunHistory, read_history
from lib_lora_train.runs.records.moved_run import read_move
from lib_lora_train.runs.state_clock import StateClock
from lib_lora_train.training.lease import run_in_turns, run_leased
from lib_lora_train.training.training_run import Training
from lib_lora_train.training.training_state import TrainState

_T = TypeVar("_T")
_STATE_BYTES = DTYPE_BYTES["fp32"] + max(OPTIMIZER_BYTES.values())  # per trained parameter, the most there can be


@dataclass
class RunContext:
    """One run. `state` is where it resumes from, None for a new run; `history` is what it has done so far."""

    config: TrainConfig
    host: Host
    folder: RunFolder
    control: Control
    plan: Plan
    prompts: tuple[SamplePrompt, ...]
    identity: Identity
    model: DiffusionModel
    adapter: TrainedPart
    state: TrainState | None
    history: RunHistory
    images: dict[int, list[Image.Image]] = field(default_factory=dict)
    cards: dict[Path, int] = field(default_factory=dict)
    """Cards written by this run, with their modification times in ns."""
    training: Training | None = None
    """The training in progress. Before and after it, the adapter itself holds the weights to save and sample with."""
    txt2img: Txt2Img | None = None
    """The webui's own sampler if it generates the images, which it does from saved files."""
    saved_lora_step: int = 0
    saved_state_step: int = 0
    """The step of the newest state file; 0 needs none."""
    state_clock: StateClock = field(default_factory=StateClock)
    has_paused_for_state: bool = False
    """Whether the run has paused once because a state could not be written."""
    legacy_hash: str = ""
    """The checkpoint's legacy hash, read once: the file may be renamed or replaced while the run is training."""

    @property
    def name(self) -> str:
        """The stem of the run's LoRA files, before the epoch's number."""
        return self.identity.name

    @property
    def lora_dir(self) -> Path:
        """The folder for the LoRA files."""
        return Path(self.identity.lora_dir)

    def eval_weights(self) -> AbstractContextManager[None]:
        """Inside, the adapter holds the weights to save, sample with and validate (such as the EMA)."""
        return self.training.eval_weights() if self.training else nullcontext()

    def is_due(self, epoch: int, every_n_epochs: int) -> bool:
        """Whether an action for every N epochs (0: never) is due after this epoch; the last epoch always is."""
        return every_n_epochs > 0 and (epoch % every_n_epochs == 0 or epoch == self.plan.epochs)


def prepare_run(
    config: TrainConfig,
    host: Host,
    *,
    folder: RunFolder,
    control: Control,
    plan: Plan,
    model: DiffusionModel,
    state: TrainState | None,
    lora_dir: Path | None = None,
) -> Generator[Event, None, RunContext]:
    """The run's context, with the sample prompts parsed, the LoRA folder created and the adapter attached.

    `lora_dir` is where a resumed run writes from now on, None for where it did before.
    """
    prompts = sample_prompts(config)
    if state:
        identity = yield from _moved_identity(folder, config, host, lora_dir)
    else:
        identity = _new_identity(config, host, folder.root.parent, lora_dir)
    identity = replace(identity, model=model.identity.values(), roots=_roots(identity, folder))
    _make_folder(Path(identity.lora_dir))
    adapter, values = yield from run_leased(host, model, control, lambda leased: _attach(leased, config, host.name))
    try:
        _require_disk_space(Path(identity.lora_dir), folder, adapter=adapter, values=values, config=config, plan=plan)
        write_identity(folder, identity)
    except OutputError:
        adapter.remove()
        raise
    history = read_history(folder, state.step) if state else RunHistory()
    step = state.step if state else 0
    return RunContext(
        config=config,
        host=host,
        folder=folder,
        control=control,
        plan=plan,
        prompts=prompts,
        identity=identity,
        model=model,
        adapter=adapter,
        state=state,
        history=history,
        saved_lora_step=step if any(file.step == step for file in history.files.values()) else 0,
        saved_state_step=step,
        legacy_hash=legacy_hash(model.path) if model.path and model.path.exists() else "",
    )


def _roots(identity: Identity, folder: RunFolder) -> list[str]:
    """Where the run folder has been, including now."""
    move = read_move(folder)
    return list(dict.fromkeys([*identity.roots, *map(str, move.before), str(move.now)]))


def _moved_identity(
    folder: RunFolder, config: TrainConfig, host: Host, lora_dir: Path | None
) -> Generator[Event, None, Identity]:
    """The identity of the run to resume, with a LoRA folder that exists; a note if that is another one than before."""
    identity = read_identity(folder)
    output_dir = user_path(config.output_dir) if config.output_dir else None
    before = read_move(folder).find(identity.lora_dir)
    usual = saving_places(folder.root.parent, host).file_dir(config)
    places = [place for place in (lora_dir, output_dir, before, usual) if place is not None]
    place = lora_dir or next((place for place in places if place.is_dir()), usual)
    if place != Path(identity.lora_dir):
        yield Noted(
            "hint", str(place), f"New LoRA files are saved here; earlier ones were saved in {identity.lora_dir}."
        )
    return replace(identity, lora_dir=str(place))


def _new_identity(config: TrainConfig, host: Host, home: Path, lora_dir: Path | None = None) -> Identity:
    usual = saving_places(home, host).file_dir(config)
    lora_dir = lora_dir or (user_path(config.output_dir) if config.output_dir else usual)
    known = host.lora_dirs if usual == host.lora_dir else (usual,)
    name = unused_name((lora_dir, *known), config.output_name)
    return Identity(name, str(lora_dir), uuid.uuid4().hex, time.time())


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Cannot create the folder {folder}: {error.strerror}. Choose another output_dir.") from error


def _attach(model: DiffusionModel, config: TrainConfig, webui: str) -> tuple[TrainedPart, int]:
    """The adapter on the model, and the number of values in each of its files."""
    adapter = attach(model, config)
    is_rewritten = config.files_for_webui and bool(adapter.layers)
    return adapter, count_file_values(adapter.layers, webui) if is_rewritten else _count_parameters(adapter)


def _count_parameters(adapter: TrainedPart) -> int:
    return sum(parameter.numel() for group in adapter.groups.values() for parameter in group)


def _require_disk_space(
    lora_dir: Path, folder: RunFolder, *, adapter: TrainedPart, values: int, config: TrainConfig, plan: Plan
) -> None:
    """OutputError if the LoRA files, of `values` weights each, or training states will not fit on the disk."""
    parameters = _count_parameters(adapter)
    files = _count_files(config, plan)
    size = values * DTYPE_BYTES[config.save_precision]
    advice = "Free some space, lower the rank, or raise save_every_n_epochs."
    _require_free_bytes(lora_dir, files * size, what=f"{count(files, 'LoRA file')}", advice=advice)
    if config.save_state:
        advice = "Free some space, lower the rank, or turn save_state off."
        states = (
            config.keep_last_states + 2
        )  # and the newest by time; an old one is removed after the new one is written
        size = int(parameters * _STATE_BYTES * states)
        _require_free_bytes(folder.root, size, what="the training states", advice=advice)


def _count_files(config: TrainConfig, plan: Plan) -> int:
    """The most LoRA files the run can have at a time, including one saved at a stop."""
    epochs = -(-plan.epochs // config.save_every_n_epochs)
    steps = plan.total_steps // config.save_every_n_steps if config.save_every_n_steps else 0
    epochs = min(epochs, config.keep_last_epochs + 1) if config.keep_last_epochs else epochs
    steps = min(steps, config.keep_last_step_files + 1) if config.keep_last_step_files else steps
    return epochs + steps + 1


def _require_free_bytes(folder: Path, needed: int, *, what: str, advice: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        text = f"{folder} has {free / 2**20:.0f} MiB free, but {what} need {needed / 2**20:.0f} MiB."
        raise OutputError(f"{text} {advice}")


def unused_name(folders: Iterable[Path], name: str) -> str:
    """`name`, or `name-2`, `name-3`…: the first one without LoRA files in these folders and their sub-folders.

    Webuis find a file by its name alone, and of two files they would read only one.
    """
    stems = {path.stem for folder in folders for path in folder.rglob("*.safetensors")}

    def is_used(candidate: str) -> bool:
        return any(stem == candidate or stem.startswith((f"{candidate}-0", f"{candidate}-step")) for stem in stems)

    return next(c for c in (name, *(f"{name}-{n}" for n in range(2, 100_000))) if not is_used(c))


def report_notices(run: RunContext) -> Iterator[Event]:
    """Notes before the first step: a changed file name, and layers that cannot be trained."""
    requested = run.config.output_name
    if run.name != requested and not run.state:
        message = f"There already are LoRA files named {requested}, so this run is saved as {run.name}."
        yield Noted("hint", "output_name", message)
    if run.adapter.skipped:
        message = f"{count(len(run.adapter.skipped), 'layer')} cannot have this LoRA type and are not trained."
        yield Noted("warning", "targets", message)


def select_txt2img(run: RunContext) -> Iterator[Event]:
    """Use the webui's sampler if webui_sampler is set; a warning if it cannot be used."""
    if run.config.webui_sampler and run.prompts:
        try:
            run.txt2img = run.host.txt2img(run.config.webui_sampler, run.model)
        except HostError as reason:
            yield Noted("warning", "webui_sampler", f"{reason} Samples use {run.config.sample_sampler} instead.")


def time_call(phase: Phase, function: Callable[[], _T]) -> Generator[Event, None, _T]:
    """The start and end events of a phase that is one function call; returns its result."""
    yield PhaseStarted(phase)
    began = time.monotonic()
    value = function()
    yield PhaseEnded(phase, time.monotonic() - began)
    return value


def time_phase(phase: Phase, total: int, events: Generator[Event, None, _T]) -> Generator[Event, None, _T]:
    """The same events, between the start and end events of a phase; returns what `events` returns.

    The phase also ends if they fail.
    """
    yield PhaseStarted(phase, total)
    began = time.monotonic()
    try:
        value = yield from events
    except (LoraTrainError, MemoryError, RunStoppedError):  # the run may continue, and then this phase is over
        yield PhaseEnded(phase, time.monotonic() - began)
        raise
    yield PhaseEnded(phase, time.monotonic() - began)
    return value


def encode_images(
    model: DiffusionModel, plan: Plan, config: TrainConfig, *, host: Host, folder: RunFolder, control: Control
) -> Generator[Event, None, LatentCache]:
    """The latents of the plan's images, encoded under one lease per batch."""
    cache = folder.root.parent / "latents" if config.cache_to_disk else None
    encoding = run_in_turns(host, model, control, encode_dataset(model, plan, cache))
    return (yield from time_phase("latents", len(plan.dataset.items), encoding))
