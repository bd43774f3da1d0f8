"""The arrows, composed: folder → data set → plan → caches → training → files → grid.

The sole entry for page, command line and REST. `run_job` is a generator of events: whoever iterates
it decides the pace; all disk writing of a run happens here.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from PIL import Image

from lib_lora_train.adapters.file import read_adapter, write_adapter
from lib_lora_train.adapters.inject import Adapter, inject
from lib_lora_train.adapters.registry import spec_from_config
from lib_lora_train.config import TrainConfig
from lib_lora_train.data.plan import Plan, make_plan
from lib_lora_train.data.scan import read_dataset
from lib_lora_train.errors import ModelAwayError, OutputError, Problem, TrainingError
from lib_lora_train.evaluate.grid import compose_grid, epoch_rows
from lib_lora_train.events import (
    EpochDone,
    Event,
    GridDrawn,
    LoraWritten,
    Measured,
    Noted,
    Phase,
    PhaseEnded,
    PhaseStarted,
    Planned,
    Progress,
    SampleDrawn,
    StateChanged,
    StepDone,
)
from lib_lora_train.formats.card import card_values, write_card, write_preview
from lib_lora_train.formats.metadata import RunFacts, run_metadata
from lib_lora_train.formats.toml import write_toml_config
from lib_lora_train.hosts.base import Host
from lib_lora_train.judge import judge, require_usable
from lib_lora_train.models.latents import LatentStore, encode_dataset
from lib_lora_train.models.load import legacy_hash
from lib_lora_train.models.model import DiffusionModel
from lib_lora_train.run_folder import RunFolder
from lib_lora_train.train.control import Control
from lib_lora_train.train.infotext import infotext, write_picture
from lib_lora_train.train.lending import leased
from lib_lora_train.train.loop import Training, encode_captions, start_training, train
from lib_lora_train.train.loss import loss_rule
from lib_lora_train.train.prompt import SamplePrompt, sample_prompts
from lib_lora_train.train.sample import draw_samples

_T = TypeVar("_T")
_PICTURES_PER_TURN = 4  # so that a user's own generation never waits for a whole row of samples
_MANY_VANISHED = 0.01  # share of numbers; below it, half precision loses nothing that is seen
_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}

Measure = Callable[[DiffusionModel, Adapter], Mapping[str, float]]
"""Measures the model with the adapter in place; called under the lease, first with the adapter switched off."""


@dataclass
class _Run:
    """What the arrows of one run share."""

    config: TrainConfig
    host: Host
    folder: RunFolder
    control: Control
    plan: Plan
    prompts: tuple[SamplePrompt, ...]
    lora_dir: Path
    name: str
    model: DiffusionModel
    adapter: Adapter
    started: float = field(default_factory=time.time)
    session: str = field(default_factory=lambda: uuid.uuid4().hex)
    pictures: dict[int, list[Image.Image]] = field(default_factory=dict)
    losses: dict[int, str] = field(default_factory=dict)
    written: dict[int, Path] = field(default_factory=dict)
    written_step: int = 0

    def is_due(self, epoch: int, every: int) -> bool:
        """Whether something done every so many epochs is done after this one; the last one always counts."""
        return every > 0 and (epoch % every == 0 or epoch == self.plan.epochs)


def run_job(
    config: TrainConfig, host: Host, *, folder: RunFolder, control: Control, measure: Measure | None = None
) -> Iterator[Event]:
    """Train as `config` says and tell everything as it happens; ends with a `StateChanged`.

    Files: LoRAs into the host's LoRA folder (or `config.output_dir`), all else into `folder`. Nothing is held
    while an event is handed out, so whoever listens may take the lease. The adapter leaves the model however
    the run ends. Raises LoraTrainError for what a user can mend.
    """
    yield StateChanged("running")
    write_toml_config(folder.config, config)
    plan = yield from _planned(config)
    yield PhaseStarted("load")
    began = time.monotonic()
    model = host.load_model(config)
    yield PhaseEnded("load", time.monotonic() - began)
    if model.note:
        yield Noted("hint", model.name, model.note)
    loss_rule(config, model.schedule.prediction_type)  # refused now rather than after all pictures are encoded
    try:
        cache = folder.root.parent / "latents" if config.cache_to_disk else None
        encoding = in_turns(host, model, control, encode_dataset(model, plan, cache))
        latents = yield from _timed("latents", len(plan.dataset.items), encoding)
        run = yield from _prepared(config, host, folder=folder, control=control, plan=plan, model=model)
        yield from _run_through(run, latents, measure)
    except ModelAwayError:
        if not control.stopped:  # stopped while it waited for the model is no failure
            raise
    yield StateChanged("stopped" if control.stopped else "finished", f"Everything of this run lies in {folder.root}.")


def _run_through(run: _Run, latents: LatentStore, measure: Measure | None) -> Iterator[Event]:
    """Samples without LoRA, the training with all that comes between, the grid; the adapter leaves the model."""
    try:
        yield from _noted_names(run)
        if run.config.sample_every_n_epochs:
            yield from _drawn(run, 0)
        yield from _measured(run, measure, 0)
        cache = run.folder.root.parent / "text" if run.config.cache_to_disk else None
        training = start_training(
            run.model, run.adapter, plan=run.plan, latents=latents, config=run.config, text_cache=cache
        )
        if not training.conditions.trained:
            encoding = in_turns(run.host, run.model, run.control, encode_captions(training))
            yield from _timed("text", 0, encoding)
        yield from _timed("train", run.plan.total_steps, _trained(run, training, measure))
        yield from _gridded(run)
    finally:
        run.adapter.remove()


def in_turns(
    host: Host, model: DiffusionModel, control: Control, events: Generator[Event, None, _T]
) -> Generator[Event, None, _T]:
    """The same events, each made under a lease of its own: between two of them others may use the model."""

    def following(_: DiffusionModel) -> Event | _Ended[_T]:
        try:
            return next(events)
        except StopIteration as end:
            return _Ended(end.value)

    while True:
        event = yield from leased(host, model, control, following)
        if isinstance(event, _Ended):
            return event.value
        yield event


@dataclass(frozen=True)
class _Ended(Generic[_T]):
    """What a generator returned."""

    value: _T


def _timed(phase: Phase, total: int, events: Generator[Event, None, _T]) -> Generator[Event, None, _T]:
    """The same events between the phase's start and its end."""
    yield PhaseStarted(phase, total)
    began = time.monotonic()
    value = yield from events
    yield PhaseEnded(phase, time.monotonic() - began)
    return value


def _planned(config: TrainConfig) -> Generator[Event, None, Plan]:
    """Settings judged, pictures scanned, batches planned."""
    problems = judge(config)
    require_usable(problems)
    yield from _noted(problems)
    yield PhaseStarted("scan")
    began = time.monotonic()
    dataset = read_dataset(config)
    plan = make_plan(dataset, config)
    yield from _noted((*dataset.skipped, *plan.warnings))
    yield PhaseEnded("scan", time.monotonic() - began)
    regularisation = sum(plan.is_regularisation(item) for item in range(len(dataset.items)))
    images = len(dataset.items) - regularisation
    yield Planned(images, regularisation, plan.steps_per_epoch, plan.epochs, plan.total_steps)
    return plan


def _noted(problems: Iterable[Problem]) -> Iterator[Event]:
    return (Noted(p.level, p.where, p.message) for p in problems if p.level != "error")


def _prepared(
    config: TrainConfig, host: Host, *, folder: RunFolder, control: Control, plan: Plan, model: DiffusionModel
) -> Generator[Event, None, _Run]:
    """Prompts parsed, the place for the files made, the adapter put onto the model."""
    prompts = sample_prompts(config)
    lora_dir = Path(config.output_dir).expanduser() if config.output_dir else host.lora_dir
    _make_folder(lora_dir)
    spec = spec_from_config(config)
    adapter = yield from leased(host, model, control, lambda lent: inject(lent, spec, seed=config.seed))
    try:
        _require_room(lora_dir, adapter, config, plan)
    except OutputError:
        adapter.remove()
        raise
    return _Run(
        config=config,
        host=host,
        folder=folder,
        control=control,
        plan=plan,
        prompts=prompts,
        lora_dir=lora_dir,
        name=free_name(lora_dir, config.output_name),
        model=model,
        adapter=adapter,
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Cannot make the folder {folder}: {error.strerror}. Choose another output_dir.") from error


def _require_room(folder: Path, adapter: Adapter, config: TrainConfig, plan: Plan) -> None:
    """OutputError now rather than after hours of training, if the LoRA files will not fit on the disk."""
    numbers = sum(parameter.numel() for group in adapter.groups.values() for parameter in group)
    files = -(-plan.epochs // config.save_every_n_epochs) + 1
    wanted, free = numbers * _BYTES[config.save_precision] * files, shutil.disk_usage(folder).free
    if wanted > free:
        raise OutputError(
            f"{folder} has {free / 2**20:.0f} MiB free, and {files} LoRA files of this run need {wanted / 2**20:.0f}. "
            "Make room, lower the rank, or raise save_every_n_epochs."
        )


def free_name(folder: Path, name: str) -> str:
    """`name`, or `name-2`, `name-3`…: the first under which `folder` holds no LoRA file yet."""
    taken = {path.stem for path in folder.glob("*.safetensors")}

    def is_taken(candidate: str) -> bool:
        return any(stem == candidate or stem.startswith((f"{candidate}-0", f"{candidate}-step")) for stem in taken)

    return next(c for c in (name, *(f"{name}-{n}" for n in range(2, 100_000))) if not is_taken(c))


def _noted_names(run: _Run) -> Iterator[Event]:
    """What the user must know before the first step: another file name, layers that get no LoRA."""
    asked = run.config.output_name
    if run.name != asked:
        message = f"LoRA files called {asked} are there already and stay; this run is written as {run.name}."
        yield Noted("hint", "output_name", message)
    if run.adapter.skipped:
        message = f"{len(run.adapter.skipped)} layers cannot carry this kind of LoRA and stay as they are."
        yield Noted("warning", "targets", message)


# --- while training ------------------------------------------------------------------------------


def _trained(run: _Run, training: Training, measure: Measure | None) -> Generator[Event, None, None]:
    """The loop's events; after each epoch its file, samples and numbers, and what was asked for in between."""
    try:
        for event in train(training, host=run.host, control=run.control):
            yield event
            if isinstance(event, EpochDone):
                run.losses[event.epoch] = f"loss {event.mean_loss:.4f}"
                yield from _after_epoch(run, event, measure)
            elif isinstance(event, (StepDone, StateChanged)):
                yield from _asked_for(run, training)
    except (TrainingError, ModelAwayError):
        yield from _kept(run, training)
        raise
    if run.control.stopped:
        yield from _kept(run, training)


def _after_epoch(run: _Run, event: EpochDone, measure: Measure | None) -> Iterator[Event]:
    if run.is_due(event.epoch, run.config.save_every_n_epochs):
        written = yield from _written(run, f"{run.name}-{event.epoch:06}", epoch=event.epoch, step=event.step)
        run.written[event.epoch] = written
    if run.is_due(event.epoch, run.config.sample_every_n_epochs):
        yield from _drawn(run, event.epoch)
    yield from _measured(run, measure, event.epoch)


def _asked_for(run: _Run, training: Training) -> Iterator[Event]:
    """ "Save now" and "sample now", obeyed between two steps."""
    if run.control.take_save():
        yield from _kept(run, training)
    if run.control.take_sample():
        yield from _drawn(run, training.epoch)


def _kept(run: _Run, training: Training) -> Iterator[Event]:
    """What is learnt so far, as a file named after the step; nothing if it stands in a file already."""
    if training.step > run.written_step:
        yield from _written(run, f"{run.name}-step{training.step:08}", epoch=training.epoch, step=training.step)


def _written(run: _Run, name: str, *, epoch: int, step: int) -> Generator[Event, None, Path]:
    """The adapter as a LoRA file of its own name."""
    facts = RunFacts(
        output_name=name,
        epoch=epoch,
        step=step,
        started=run.started,
        finished=time.time(),
        session_id=run.session,
        checkpoint_legacy_hash=legacy_hash(run.model.path) if run.model.path else "",
    )
    path = run.lora_dir / f"{name}.safetensors"
    metadata = run_metadata(run.config, run.plan, run.model, facts)
    saved = write_adapter(path, run.adapter.state(), metadata=metadata, precision=run.config.save_precision)
    run.written_step = step
    yield from _carded(run, path, partial(_write_card, run, path, epoch, step))
    run.host.show_loras()
    yield LoraWritten(str(path), epoch, step)
    if saved.vanished > _MANY_VANISHED or saved.overflowed:
        message = (
            f"{saved.vanished:.1%} of the numbers became 0 and {saved.overflowed:.1%} infinite in "
            f"{run.config.save_precision}. Choose save_precision bf16 or fp32, or a larger alpha."
        )
        yield Noted("warning", str(path), message)
    return path


def _carded(run: _Run, path: Path, write: Callable[[], None]) -> Iterator[Event]:
    """A part of the LoRA's card written; one that cannot be is told, and harms nothing."""
    if run.config.write_card:
        try:
            write()
        except OSError as error:
            yield Noted("warning", str(path), f"Its card could not be written: {error.strerror}. The LoRA is complete.")


def _write_card(run: _Run, path: Path, epoch: int, step: int) -> None:
    loss = run.losses.get(epoch, "")
    notes = [f"epoch {epoch} of {run.plan.epochs}, step {step}", loss, f"trained on {run.model.name}"]
    values = card_values(
        family=run.model.spec.family,
        triggers=[concept.trigger for concept in run.plan.dataset.concepts],
        description=run.config.comment,
        notes=", ".join(note for note in notes if note),
    )
    write_card(path, values)


def _drawn(run: _Run, epoch: int) -> Iterator[Event]:
    """The sample prompts with the adapter as it stands; epoch 0 without it."""
    if not run.prompts:
        return
    yield from _timed("samples", len(run.prompts), _draw_row(run, epoch))
    if epoch in run.written:
        path, picture = run.written[epoch], run.pictures[epoch][0]
        yield from _carded(run, path, partial(write_preview, path, picture.save))


def _draw_row(run: _Run, epoch: int) -> Generator[Event, None, None]:
    row: list[Image.Image] = []
    lora = f"{run.name}-{epoch:06}" if epoch else ""
    for start in range(0, len(run.prompts), _PICTURES_PER_TURN):
        prompts = run.prompts[start : start + _PICTURES_PER_TURN]
        drawn = yield from leased(run.host, run.model, run.control, partial(_draw, run, prompts, epoch))
        for prompt, picture in zip(prompts, drawn, strict=True):
            row.append(picture)
            path = run.folder.samples / f"epoch-{epoch:06}-{len(row):02}.png"
            text = infotext(
                prompt,
                sampler=run.config.sample_sampler,
                clip_skip=run.config.clip_skip,
                model=run.model.name,
                lora=lora,
            )
            write_picture(path, picture, text)
            yield SampleDrawn(str(path), epoch, prompt.prompt, prompt.seed)
        yield Progress("samples", len(row), len(run.prompts))
    run.pictures[epoch] = row


def _draw(run: _Run, prompts: Sequence[SamplePrompt], epoch: int, model: DiffusionModel) -> list[Image.Image]:
    with run.adapter.enabled(epoch > 0):
        return draw_samples(
            model,
            prompts,
            sampler=run.config.sample_sampler,
            clip_skip=run.config.clip_skip,
            noise_device=run.host.noise_device,
        )


def _measured(run: _Run, measure: Measure | None, epoch: int) -> Iterator[Event]:
    if measure is None:
        return
    yield PhaseStarted("evaluate")
    began = time.monotonic()

    def values_of(model: DiffusionModel) -> Mapping[str, float]:
        with run.adapter.enabled(epoch > 0):
            return measure(model, run.adapter)

    values = yield from leased(run.host, run.model, run.control, values_of)
    yield PhaseEnded("evaluate", time.monotonic() - began)
    yield Measured(epoch, values)


def _gridded(run: _Run) -> Iterator[Event]:
    """The grid from the rows drawn while training; rows nobody asked for earlier are drawn from the files."""
    if not (run.config.make_grid and run.prompts):
        return
    if not run.config.sample_every_n_epochs:
        yield from _drawn(run, 0)
        for epoch, path in run.written.items():
            run.adapter.load_state(read_adapter(path).state)
            yield from _drawn(run, epoch)
    yield PhaseStarted("grid")
    began = time.monotonic()
    columns = [prompt.prompt for prompt in run.prompts]
    grid = compose_grid(columns, epoch_rows(run.pictures, run.losses), title=f"{run.name} on {run.model.name}")
    write_picture(run.folder.grid, grid)
    yield PhaseEnded("grid", time.monotonic() - began)
    yield GridDrawn(str(run.folder.grid))
