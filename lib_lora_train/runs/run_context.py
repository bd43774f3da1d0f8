"""What the arrows of one run share: its value, and how it is made ready."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from PIL import Image

from lib_lora_train.adapters.create import create_adapter
from lib_lora_train.adapters.inject import Adapter
from lib_lora_train.config.sample_prompts import SamplePrompt, sample_prompts
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import HostError, OutputError
from lib_lora_train.core.events import Event, Noted, Phase, PhaseEnded, PhaseStarted
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.hosts.host import Host, Txt2Img
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.runs.folder import Identity, RunFolder, read_identity, write_identity
from lib_lora_train.runs.history import RunHistory, read_history
from lib_lora_train.training.control import Control
from lib_lora_train.training.lease import run_leased
from lib_lora_train.training.loop import Training
from lib_lora_train.training.training_state import TrainState
from lib_lora_train.training.validation import Validation

_T = TypeVar("_T")
_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}
_STATE_BYTES = 20  # per number: fp32 weights and what the hungriest optimiser, Prodigy, remembers

Measure = Callable[[DiffusionModel, Adapter], Mapping[str, float]]
"""Measures the model with the adapter in place; called under the lease, first with the adapter switched off."""


@dataclass
class RunContext:
    """One run. `state` is where it goes on from, None for one that begins; `history` what it has done so far."""

    config: TrainConfig
    host: Host
    folder: RunFolder
    control: Control
    plan: Plan
    prompts: tuple[SamplePrompt, ...]
    identity: Identity
    model: DiffusionModel
    adapter: Adapter
    state: TrainState | None
    history: RunHistory
    images: dict[int, list[Image.Image]] = field(default_factory=dict)
    cards: dict[Path, int] = field(default_factory=dict)
    """Cards that were written, with the time of that."""
    training: Training | None = None
    """The training under way; until then, and when it is over, the adapter holds what is to be saved and drawn."""
    validation: Validation | None = None
    """Measures the loss on the images kept from training, if there are any."""
    txt2img: Txt2Img | None = None
    """The webui's own sampler, if it draws the images; from files then."""
    saved_lora_step: int = 0
    saved_state_step: int = 0
    """The step of the newest state file; the one before the first step needs none."""

    @property
    def name(self) -> str:
        """What all files of the run are called, before the epoch's number."""
        return self.identity.name

    @property
    def lora_dir(self) -> Path:
        """Where the LoRA files go."""
        return Path(self.identity.lora_dir)

    def eval_weights(self) -> AbstractContextManager[None]:
        """Inside, the adapter holds the weights to be saved, drawn with and measured."""
        return self.training.eval_weights() if self.training else nullcontext()

    def is_due(self, epoch: int, every: int) -> bool:
        """Whether something done every so many epochs is done after this one; the last one always counts."""
        return every > 0 and (epoch % every == 0 or epoch == self.plan.epochs)


def prepare_run(
    config: TrainConfig,
    host: Host,
    *,
    folder: RunFolder,
    control: Control,
    plan: Plan,
    model: DiffusionModel,
    state: TrainState | None,
) -> Generator[Event, None, RunContext]:
    """Prompts parsed, the place for the files made, the adapter put onto the model."""
    prompts = sample_prompts(config)
    identity = read_identity(folder) if state else _new_identity(config, host)
    _make_folder(Path(identity.lora_dir))
    adapter = yield from run_leased(host, model, control, lambda lent: create_adapter(lent, config))
    try:
        _require_disk_space(Path(identity.lora_dir), folder, adapter=adapter, config=config, plan=plan)
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
    )


def _new_identity(config: TrainConfig, host: Host) -> Identity:
    lora_dir = user_path(config.output_dir) if config.output_dir else host.lora_dir
    name = free_name(lora_dir, config.output_name)
    return Identity(name, str(lora_dir), uuid.uuid4().hex, time.time())


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Cannot make the folder {folder}: {error.strerror}. Choose another output_dir.") from error


def _require_disk_space(
    lora_dir: Path, folder: RunFolder, *, adapter: Adapter, config: TrainConfig, plan: Plan
) -> None:
    """OutputError now rather than after hours of training, if LoRA files or states will not fit on the disk."""
    numbers = sum(parameter.numel() for group in adapter.groups.values() for parameter in group)
    files = _count_files(config, plan)
    size = numbers * _BYTES[config.save_precision]
    advice = "Make room, lower the rank, or raise save_every_n_epochs."
    _require_free_bytes(lora_dir, files * size, what=f"{files} LoRA files of this run need", advice=advice)
    if config.save_state:
        advice = "Make room, lower the rank, or switch save_state off."
        size = numbers * _STATE_BYTES * (config.keep_last_states + 1)  # the new one stands before the old one goes
        _require_free_bytes(folder.root, size, what="the training states need", advice=advice)


def _count_files(config: TrainConfig, plan: Plan) -> int:
    """How many LoRA files of the run can stand at a time, the one of a stop among them."""
    epochs = -(-plan.epochs // config.save_every_n_epochs)
    steps = plan.total_steps // config.save_every_n_steps if config.save_every_n_steps else 0
    epochs = min(epochs, config.keep_last_epochs + 1) if config.keep_last_epochs else epochs
    steps = min(steps, config.keep_last_step_files + 1) if config.keep_last_step_files else steps
    return epochs + steps + 1


def _require_free_bytes(folder: Path, wanted: int, *, what: str, advice: str) -> None:
    free = shutil.disk_usage(folder).free
    if wanted > free:
        text = f"{folder} has {free / 2**20:.0f} MiB free, and {what} {wanted / 2**20:.0f}."
        raise OutputError(f"{text} {advice}")


def free_name(folder: Path, name: str) -> str:
    """`name`, or `name-2`, `name-3`…: the first under which `folder` holds no LoRA file yet."""
    taken = {path.stem for path in folder.glob("*.safetensors")}

    def is_taken(candidate: str) -> bool:
        return any(stem == candidate or stem.startswith((f"{candidate}-0", f"{candidate}-step")) for stem in taken)

    return next(c for c in (name, *(f"{name}-{n}" for n in range(2, 100_000))) if not is_taken(c))


def report_notices(run: RunContext) -> Iterator[Event]:
    """What the user must know before the first step: another file name, layers that get no LoRA."""
    asked = run.config.output_name
    if run.name != asked and not run.state:
        message = f"LoRA files called {asked} are there already and stay; this run is written as {run.name}."
        yield Noted("hint", "output_name", message)
    left = run.adapter.left_out
    if left:
        shown = ", ".join(left[:3]) + (", …" if len(left) > 3 else "")
        yield Noted("warning", "continue_from", f"{len(left)} keys or layers of the file have no place here: {shown}.")
    if run.adapter.skipped:
        message = f"{len(run.adapter.skipped)} layers cannot carry this kind of LoRA and stay as they are."
        yield Noted("warning", "targets", message)


def select_txt2img(run: RunContext) -> Iterator[Event]:
    """The webui draws the run's images if the settings say so and it can; else why not."""
    if run.config.webui_sampler and run.prompts:
        try:
            run.txt2img = run.host.txt2img(run.config.webui_sampler, run.model)
        except HostError as reason:
            yield Noted("warning", "webui_sampler", f"{reason} Samples are drawn with {run.config.sample_sampler}.")


def time_phase(phase: Phase, total: int, events: Generator[Event, None, _T]) -> Generator[Event, None, _T]:
    """The same events between the phase's start and its end."""
    yield PhaseStarted(phase, total)
    began = time.monotonic()
    value = yield from events
    yield PhaseEnded(phase, time.monotonic() - began)
    return value
