"""The arrows, composed: folder → dataset → plan → caches → training → files → grid.

The sole entry for page, command line and REST. `run_job` is a generator of events: whoever iterates
it decides the pace; all disk writing of a run happens here and in `job_files`, `job_images`.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from lib_lora_train.config.train_config import TrainConfig, steps_of
from lib_lora_train.core.errors import DataError, ModelAwayError, Problem, TrainingError
from lib_lora_train.core.events import (
    VALIDATION_LOSS,
    EpochDone,
    Event,
    Measured,
    Noted,
    PhaseEnded,
    PhaseStarted,
    Planned,
    Progress,
    Resumed,
    StateChanged,
    StepDone,
)
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.formats.toml import write_toml_config
from lib_lora_train.hosts.host import Host
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.latent_cache import LatentStore
from lib_lora_train.models.latents import encode_dataset
from lib_lora_train.runs.checkpoints import keep_state, write_due_step, write_epoch, write_step
from lib_lora_train.runs.estimates.step_time import workload_of
from lib_lora_train.runs.folder import RunFolder
from lib_lora_train.runs.planning import JobPlan, plan_job
from lib_lora_train.runs.run_context import JobRun, Measure, noted_names, prepared, timed, with_painter
from lib_lora_train.runs.samples import draw_grid, draw_row, load_rows
from lib_lora_train.runs.tensorboard import with_tensorboard
from lib_lora_train.training.control import Control
from lib_lora_train.training.lease import Breathe, leased, leased_with_yields
from lib_lora_train.training.loop import Training, train
from lib_lora_train.training.loss import loss_rule
from lib_lora_train.training.lr_schedule import lr_factor, lr_schedule
from lib_lora_train.training.setup import start_training
from lib_lora_train.training.training_state import TrainState, load_state, require_same_run
from lib_lora_train.training.validation import Validation

_T = TypeVar("_T")
_ENDLESS = ("constant", "constant_with_warmup", "inverse_sqrt")  # schedules that do not depend on the length


def run_job(
    config: TrainConfig,
    host: Host,
    *,
    folder: RunFolder,
    control: Control,
    measure: Measure | None = None,
    job: JobPlan | None = None,
    state: Path | None = None,
) -> Iterator[Event]:
    """Train as `config` says and tell everything as it happens; ends with a `StateChanged`.

    Files: LoRAs into the host's LoRA folder (or `config.output_dir`), all else into `folder`. Nothing is held
    while an event is handed out, so whoever listens may take the lease. The adapter leaves the model however
    the run ends. `job` is the config's plan where it was made already. With `state`, a file of the run in `folder`,
    that run goes on, in the same series of files. Raises LoraTrainError for what a user can mend.
    """
    events = _run_of(config, host, folder=folder, control=control, measure=measure, job=job, state=state)
    yield from with_tensorboard(events, folder, config.optimizer) if config.tensorboard else events


def _run_of(
    config: TrainConfig,
    host: Host,
    *,
    folder: RunFolder,
    control: Control,
    measure: Measure | None,
    job: JobPlan | None,
    state: Path | None,
) -> Iterator[Event]:
    """See `run_job`."""
    yield StateChanged("running")
    if state is None:
        write_toml_config(folder.config, config)
    plan = yield from _planned(config, job)
    before = _state_to_go_on_from(state, config, job=plan, folder=folder) if state else None
    yield PhaseStarted("load")
    began = time.monotonic()
    model = host.load_model(config)
    yield PhaseEnded("load", time.monotonic() - began)
    if model.note:
        yield Noted("hint", model.name, model.note)
    loss_rule(config, model.schedule.prediction_type)  # refused now rather than after all images are encoded
    try:
        latents = yield from _encoded(model, plan.plan, config, host=host, folder=folder, control=control)
        run = yield from prepared(
            config, host, folder=folder, control=control, plan=plan.plan, model=model, state=before
        )
        yield from _run_through(run, latents, measure)
    except ModelAwayError:
        if not control.stopped:  # stopped while it waited for the model is no failure
            raise
    yield StateChanged("stopped" if control.stopped else "finished", f"Everything of this run lies in {folder.root}.")


def _planned(config: TrainConfig, job: JobPlan | None) -> Generator[Event, None, JobPlan]:
    """Settings judged, images scanned, batches planned, unless that was done already; what is known of them."""
    if job is None:
        yield PhaseStarted("scan")
        began = time.monotonic()
        job = plan_job(config)
        yield PhaseEnded("scan", time.monotonic() - began)
    yield from _noted(job.problems)
    plan = job.plan
    regularisation = sum(plan.is_regularisation(item) for item in range(len(plan.dataset.items)))
    images = len(plan.dataset.items) - regularisation
    yield Planned(images, regularisation, plan.steps_per_epoch, plan.epochs, plan.total_steps)
    return job


def _noted(problems: Iterable[Problem]) -> Iterator[Event]:
    return (Noted(p.level, p.where, p.message) for p in problems if p.level != "error")


def _state_to_go_on_from(path: Path, config: TrainConfig, *, job: JobPlan, folder: RunFolder) -> TrainState:
    """The state, of which it is sure that it belongs to these settings; only then do they replace the run's.

    States of later steps are void and go.
    """
    state = load_state(path)
    require_same_run(state, config, job.plan)
    write_toml_config(folder.config, config)
    for step in folder.state_steps():
        if step > state.step:
            folder.state_after(step).unlink(missing_ok=True)
    return state


def _encoded(
    model: DiffusionModel, plan: Plan, config: TrainConfig, *, host: Host, folder: RunFolder, control: Control
) -> Generator[Event, None, LatentStore]:
    """The latents of a plan's images, encoded in turns."""
    cache = folder.root.parent / "latents" if config.cache_to_disk else None
    encoding = in_turns(host, model, control, encode_dataset(model, plan, cache))
    return (yield from timed("latents", len(plan.dataset.items), encoding))


def _validation(run: JobRun) -> Generator[Event, None, Validation | None]:
    """What measures the loss on the images kept from training; none if none are kept or can be encoded."""
    plan = run.plan.validation
    if plan is None:
        return None
    try:
        latents = yield from _encoded(
            run.model, plan, run.config, host=run.host, folder=run.folder, control=run.control
        )
    except DataError as reason:
        yield Noted("warning", "validation_share", f"{reason} Nothing is measured.")
        return None
    return Validation(plan, latents, run.config)


def _run_through(run: JobRun, latents: LatentStore, measure: Measure | None) -> Iterator[Event]:
    """Samples without LoRA, the training with all that comes between, the grid; the adapter leaves the model."""
    try:
        yield from noted_names(run)
        yield from with_painter(run)
        load_rows(run)
        run.validation = yield from _validation(run)
        if run.state:
            yield from _resumed(run, run.state)
        if run.config.sample_every_n_epochs and 0 not in run.images:
            yield from draw_row(run, 0)
        if not run.state:
            yield from _measured(run, measure, 0)
        training = start_training(
            run.model,
            run.adapter,
            plan=run.plan,
            latents=latents,
            config=run.config,
            state=run.state,
            text_cache=run.folder.root.parent / "text" if run.config.cache_to_disk else None,
        )
        run.training = training
        device = run.host.footing(run.config).device
        yield workload_of(run.config, run.plan, family=run.model.spec.family, device=device)
        captions = training.captions_ahead()
        if captions:
            encoding = training.conditions.encode_ahead(run.model, captions)
            yield from timed("text", len(captions), in_turns(run.host, run.model, run.control, encoding))
        yield from timed("train", run.plan.total_steps, _trained(run, training, measure))
        yield from draw_grid(run)
    finally:
        run.adapter.remove()


def _resumed(run: JobRun, state: TrainState) -> Iterator[Event]:
    """Where the run goes on, and what becomes of all that is reckoned by its length if that is another one now."""
    yield Resumed(state.step)
    if all(state.config.get(name) == getattr(run.config, name) for name in ("epochs", "max_steps")):
        return
    end = steps_of(run.config.stop_text_encoder, run.plan.total_steps)
    if run.config.train_text_encoder and 0 < run.config.stop_text_encoder < 1 and end > state.step:
        text = f"{run.config.stop_text_encoder:g} is meant of the new length: the text encoders learn until step {end}"
        yield Noted("hint", "stop_text_encoder", f"{text}. To leave them as they are, start a new run from the file.")
    if run.config.lr_schedule in _ENDLESS:
        return
    factor = lr_factor(lr_schedule(run.config, run.plan.total_steps), state.step)
    text = (
        f"the {run.config.lr_schedule} schedule is stretched over the new length of {run.plan.total_steps} steps; the"
    )
    yield Noted("hint", "lr_schedule", f"{text} learning rate goes on at {factor:.0%} of its full value.")


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


# --- while training ------------------------------------------------------------------------------


def _trained(run: JobRun, training: Training, measure: Measure | None) -> Generator[Event, None, None]:
    """The loop's events; after each epoch its file, samples and numbers, and what was asked for in between."""
    try:
        yield from _made_up_for(run, training)
        for event in train(training, host=run.host, control=run.control):
            yield event
            if isinstance(event, EpochDone):
                run.history.losses[event.epoch] = event.mean_loss
                yield from keep_state(run, training)
                yield from _epoch_file(run, event.epoch, event.step)
                yield from _epoch_samples(run, event.epoch)
                if not run.is_due(event.epoch, run.config.sample_every_n_epochs):
                    yield from _step_samples(run, training)
                yield from _measured(run, measure, event.epoch)
            elif isinstance(event, Progress):
                yield from _after_turn(run, training)
            elif isinstance(event, (StepDone, StateChanged)):
                yield from _asked_for(run, training)
                if event == StateChanged("paused"):
                    yield from keep_state(run, training)
    except (TrainingError, ModelAwayError):
        yield from write_step(run, training)
        yield from keep_state(run, training)
        raise
    if run.control.stopped:
        yield from write_step(run, training)
        yield from keep_state(run, training)


def _made_up_for(run: JobRun, training: Training) -> Iterator[Event]:
    """What the interruption cut off after the last epoch: its file and samples, as far as they are not there."""
    step, length = training.step, run.plan.steps_per_epoch
    epoch = -(-step // length)
    if not run.state or not step or (step % length and step != run.plan.total_steps):
        return
    known = {file.epoch: file.step for file in run.history.files.values() if file.epoch}
    if known.get(epoch) != step:
        yield from _epoch_file(run, epoch, step)
    if run.history.samples.get(epoch, 0) < len(run.prompts) or epoch not in run.images:
        yield from _epoch_samples(run, epoch)


def _epoch_file(run: JobRun, epoch: int, step: int) -> Iterator[Event]:
    is_wanted = epoch >= run.config.save_from_epoch or epoch == run.plan.epochs
    if is_wanted and run.is_due(epoch, run.config.save_every_n_epochs):
        yield from write_epoch(run, epoch, step)


def _epoch_samples(run: JobRun, epoch: int) -> Iterator[Event]:
    has_what_is_drawn_from = not run.painter or epoch in run.history.epoch_files()
    if has_what_is_drawn_from and run.is_due(epoch, run.config.sample_every_n_epochs):
        yield from draw_row(run, epoch)


def _after_turn(run: JobRun, training: Training) -> Iterator[Event]:
    """File and state of a step that is due; at an epoch's end they come after the epoch was told."""
    config, step = run.config, training.step
    if step % run.plan.steps_per_epoch == 0 or step == run.plan.total_steps:
        return
    if config.save_every_n_steps and step % config.save_every_n_steps == 0:
        yield from write_due_step(run, training)
    if config.save_state_every_n_steps and step % config.save_state_every_n_steps == 0:
        yield from keep_state(run, training)
    yield from _step_samples(run, training)


def _step_samples(run: JobRun, training: Training) -> Iterator[Event]:
    """The samples of a step that is due."""
    every = run.config.sample_every_n_steps
    if not every or training.step % every or not run.prompts:
        return
    if run.painter:  # the webui draws from files only
        yield from write_step(run, training)
    epoch = -(-training.step // run.plan.steps_per_epoch)
    yield from draw_row(run, epoch, training.step)


def _asked_for(run: JobRun, training: Training) -> Iterator[Event]:
    """ "Save now" and "sample now", obeyed between two steps."""
    if run.control.take_save():
        yield from write_step(run, training)
    if run.control.take_sample():
        if run.painter:  # the webui draws from files only
            yield from write_step(run, training)
        yield from draw_row(run, training.epoch)


def _measured(run: JobRun, measure: Measure | None, epoch: int) -> Iterator[Event]:
    """What is to be known after an epoch: the loss on images kept from training, and what `measure` tells."""
    if measure is None and run.validation is None:
        return
    yield PhaseStarted("evaluate")
    began = time.monotonic()

    def values_of(model: DiffusionModel, breathe: Breathe) -> Mapping[str, float]:
        with run.adapter.enabled(epoch > 0), run.for_use():
            validated = {VALIDATION_LOSS: run.validation.measure(model, breathe)} if run.validation else {}
            return {**validated, **(measure(model, run.adapter) if measure else {})}

    values = yield from leased_with_yields(run.host, run.model, run.control, values_of)
    yield PhaseEnded("evaluate", time.monotonic() - began)
    yield Measured(epoch, values)
