"""The arrows, composed: folder → dataset → plan → caches → training → files → grid.

The sole entry for page, command line and REST. `run_training` is a generator of events: whoever iterates
it decides the pace; all disk writing of a run happens here and in `job_files`, `job_images`.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from lib_lora_train.config.train_config import TrainConfig, duration_in_steps
from lib_lora_train.core.errors import DataError, ModelUnavailableError, Problem, TrainingError
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
from lib_lora_train.models.latent_cache import LatentCache
from lib_lora_train.models.latents import encode_dataset
from lib_lora_train.runs.checkpoints import save_training_state, write_due_step, write_epoch, write_step
from lib_lora_train.runs.estimates.step_time import describe_workload
from lib_lora_train.runs.folder import RunFolder
from lib_lora_train.runs.planning import RunPlan, plan_run
from lib_lora_train.runs.run_context import Measure, RunContext, prepare_run, report_notices, select_txt2img, time_phase
from lib_lora_train.runs.samples import draw_grid, generate_sample_row, load_sample_rows
from lib_lora_train.runs.tensorboard import log_to_tensorboard
from lib_lora_train.training.control import Control
from lib_lora_train.training.lease import YieldLease, run_leased, run_leased_cooperatively
from lib_lora_train.training.loop import Training, train
from lib_lora_train.training.loss import loss_options
from lib_lora_train.training.lr_schedule import lr_factor, lr_schedule
from lib_lora_train.training.setup import start_training
from lib_lora_train.training.training_state import TrainState, load_state, require_same_run
from lib_lora_train.training.validation import Validation

_T = TypeVar("_T")
_ENDLESS = ("constant", "constant_with_warmup", "inverse_sqrt")  # schedules that do not depend on the length


def run_training(
    config: TrainConfig,
    host: Host,
    *,
    folder: RunFolder,
    control: Control,
    measure: Measure | None = None,
    job: RunPlan | None = None,
    state: Path | None = None,
) -> Iterator[Event]:
    """Train as `config` says and tell everything as it happens; ends with a `StateChanged`.

    Files: LoRAs into the host's LoRA folder (or `config.output_dir`), all else into `folder`. Nothing is held
    while an event is handed out, so whoever listens may take the lease. The adapter leaves the model however
    the run ends. `job` is the config's plan where it was made already. With `state`, a file of the run in `folder`,
    that run goes on, in the same series of files. Raises LoraTrainError for what a user can mend.
    """
    events = _run_phases(config, host, folder=folder, control=control, measure=measure, job=job, state=state)
    yield from log_to_tensorboard(events, folder, config.optimizer) if config.tensorboard else events


def _run_phases(
    config: TrainConfig,
    host: Host,
    *,
    folder: RunFolder,
    control: Control,
    measure: Measure | None,
    job: RunPlan | None,
    state: Path | None,
) -> Iterator[Event]:
    """See `run_training`."""
    yield StateChanged("running")
    if state is None:
        write_toml_config(folder.config, config)
    plan = yield from _plan(config, job)
    before = _load_state_to_resume(state, config, job=plan, folder=folder) if state else None
    yield PhaseStarted("load")
    began = time.monotonic()
    model = host.load_model(config)
    yield PhaseEnded("load", time.monotonic() - began)
    if model.note:
        yield Noted("hint", model.name, model.note)
    loss_options(config, model.schedule.prediction_type)  # refused now rather than after all images are encoded
    try:
        latents = yield from _encode(model, plan.plan, config, host=host, folder=folder, control=control)
        run = yield from prepare_run(
            config, host, folder=folder, control=control, plan=plan.plan, model=model, state=before
        )
        yield from _run_through(run, latents, measure)
    except ModelUnavailableError:
        if not control.is_stopped:  # stopped while it waited for the model is no failure
            raise
    yield StateChanged("stopped" if control.is_stopped else "finished", f"Everything of this run lies in {folder.root}.")


def _plan(config: TrainConfig, job: RunPlan | None) -> Generator[Event, None, RunPlan]:
    """Settings judged, images scanned, batches planned, unless that was done already; what is known of them."""
    if job is None:
        yield PhaseStarted("scan")
        began = time.monotonic()
        job = plan_run(config)
        yield PhaseEnded("scan", time.monotonic() - began)
    yield from _report_problems(job.problems)
    plan = job.plan
    regularisation = sum(plan.is_regularisation(item) for item in range(len(plan.dataset.items)))
    images = len(plan.dataset.items) - regularisation
    yield Planned(images, regularisation, plan.steps_per_epoch, plan.epochs, plan.total_steps)
    return job


def _report_problems(problems: Iterable[Problem]) -> Iterator[Event]:
    return (Noted(p.level, p.where, p.message) for p in problems if p.level != "error")


def _load_state_to_resume(path: Path, config: TrainConfig, *, job: RunPlan, folder: RunFolder) -> TrainState:
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


def _encode(
    model: DiffusionModel, plan: Plan, config: TrainConfig, *, host: Host, folder: RunFolder, control: Control
) -> Generator[Event, None, LatentCache]:
    """The latents of a plan's images, encoded in turns."""
    cache = folder.root.parent / "latents" if config.cache_to_disk else None
    encoding = lease_per_event(host, model, control, encode_dataset(model, plan, cache))
    return (yield from time_phase("latents", len(plan.dataset.items), encoding))


def _validation(run: RunContext) -> Generator[Event, None, Validation | None]:
    """What measures the loss on the images kept from training; none if none are kept or can be encoded."""
    plan = run.plan.validation
    if plan is None:
        return None
    try:
        latents = yield from _encode(run.model, plan, run.config, host=run.host, folder=run.folder, control=run.control)
    except DataError as reason:
        yield Noted("warning", "validation_share", f"{reason} Nothing is measured.")
        return None
    return Validation(plan, latents, run.config)


def _run_through(run: RunContext, latents: LatentCache, measure: Measure | None) -> Iterator[Event]:
    """Samples without LoRA, the training with all that comes between, the grid; the adapter leaves the model."""
    try:
        yield from report_notices(run)
        yield from select_txt2img(run)
        load_sample_rows(run)
        run.validation = yield from _validation(run)
        if run.state:
            yield from _report_resume(run, run.state)
        if run.config.sample_every_n_epochs and 0 not in run.images:
            yield from generate_sample_row(run, 0)
        if not run.state:
            yield from _measure(run, measure, 0)
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
        device = run.host.run_target(run.config).device
        yield describe_workload(run.config, run.plan, architecture=run.model.spec.architecture, device=device)
        captions = training.captions_to_cache()
        if captions:
            encoding = training.conditions.encode_captions(run.model, captions)
            yield from time_phase("text", len(captions), lease_per_event(run.host, run.model, run.control, encoding))
        yield from time_phase("train", run.plan.total_steps, _train(run, training, measure))
        yield from draw_grid(run)
    finally:
        run.adapter.remove()


def _report_resume(run: RunContext, state: TrainState) -> Iterator[Event]:
    """Where the run goes on, and what becomes of all that is reckoned by its length if that is another one now."""
    yield Resumed(state.step)
    if all(state.config.get(name) == getattr(run.config, name) for name in ("epochs", "max_steps")):
        return
    end = duration_in_steps(run.config.stop_text_encoder, run.plan.total_steps)
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


def lease_per_event(
    host: Host, model: DiffusionModel, control: Control, events: Generator[Event, None, _T]
) -> Generator[Event, None, _T]:
    """The same events, each made under a lease of its own: between two of them others may use the model."""

    def next_event(_: DiffusionModel) -> Event | _Ended[_T]:
        try:
            return next(events)
        except StopIteration as end:
            return _Ended(end.value)

    while True:
        event = yield from run_leased(host, model, control, next_event)
        if isinstance(event, _Ended):
            return event.value
        yield event


@dataclass(frozen=True)
class _Ended(Generic[_T]):
    """What a generator returned."""

    value: _T


# --- while training ------------------------------------------------------------------------------


def _train(run: RunContext, training: Training, measure: Measure | None) -> Generator[Event, None, None]:
    """The loop's events; after each epoch its file, samples and numbers, and what was asked for in between."""
    try:
        yield from _finish_interrupted_epoch(run, training)
        for event in train(training, host=run.host, control=run.control):
            yield event
            if isinstance(event, EpochDone):
                run.history.losses[event.epoch] = event.mean_loss
                yield from save_training_state(run, training)
                yield from _save_epoch(run, event.epoch, event.step)
                yield from _sample_epoch(run, event.epoch)
                if not run.is_due(event.epoch, run.config.sample_every_n_epochs):
                    yield from _sample_due_step(run, training)
                yield from _measure(run, measure, event.epoch)
            elif isinstance(event, Progress):
                yield from _save_due_step(run, training)
            elif isinstance(event, (StepDone, StateChanged)):
                yield from _handle_requests(run, training)
                if event == StateChanged("paused"):
                    yield from save_training_state(run, training)
    except (TrainingError, ModelUnavailableError):
        yield from write_step(run, training)
        yield from save_training_state(run, training)
        raise
    if run.control.is_stopped:
        yield from write_step(run, training)
        yield from save_training_state(run, training)


def _finish_interrupted_epoch(run: RunContext, training: Training) -> Iterator[Event]:
    """What the interruption cut off after the last epoch: its file and samples, as far as they are not there."""
    step, length = training.step, run.plan.steps_per_epoch
    epoch = -(-step // length)
    if not run.state or not step or (step % length and step != run.plan.total_steps):
        return
    known = {file.epoch: file.step for file in run.history.files.values() if file.epoch}
    if known.get(epoch) != step:
        yield from _save_epoch(run, epoch, step)
    if run.history.samples.get(epoch, 0) < len(run.prompts) or epoch not in run.images:
        yield from _sample_epoch(run, epoch)


def _save_epoch(run: RunContext, epoch: int, step: int) -> Iterator[Event]:
    is_wanted = epoch >= run.config.save_from_epoch or epoch == run.plan.epochs
    if is_wanted and run.is_due(epoch, run.config.save_every_n_epochs):
        yield from write_epoch(run, epoch, step)


def _sample_epoch(run: RunContext, epoch: int) -> Iterator[Event]:
    has_what_is_drawn_from = not run.txt2img or epoch in run.history.epoch_files()
    if has_what_is_drawn_from and run.is_due(epoch, run.config.sample_every_n_epochs):
        yield from generate_sample_row(run, epoch)


def _save_due_step(run: RunContext, training: Training) -> Iterator[Event]:
    """File and state of a step that is due; at an epoch's end they come after the epoch was told."""
    config, step = run.config, training.step
    if step % run.plan.steps_per_epoch == 0 or step == run.plan.total_steps:
        return
    if config.save_every_n_steps and step % config.save_every_n_steps == 0:
        yield from write_due_step(run, training)
    if config.save_state_every_n_steps and step % config.save_state_every_n_steps == 0:
        yield from save_training_state(run, training)
    yield from _sample_due_step(run, training)


def _sample_due_step(run: RunContext, training: Training) -> Iterator[Event]:
    """The samples of a step that is due."""
    every = run.config.sample_every_n_steps
    if not every or training.step % every or not run.prompts:
        return
    if run.txt2img:  # the webui draws from files only
        yield from write_step(run, training)
    epoch = -(-training.step // run.plan.steps_per_epoch)
    yield from generate_sample_row(run, epoch, training.step)


def _handle_requests(run: RunContext, training: Training) -> Iterator[Event]:
    """ "Save now" and "sample now", obeyed between two steps."""
    if run.control.pop_save_request():
        yield from write_step(run, training)
    if run.control.pop_sample_request():
        if run.txt2img:  # the webui draws from files only
            yield from write_step(run, training)
        yield from generate_sample_row(run, training.epoch)


def _measure(run: RunContext, measure: Measure | None, epoch: int) -> Iterator[Event]:
    """What is to be known after an epoch: the loss on images kept from training, and what `measure` tells."""
    if measure is None and run.validation is None:
        return
    yield PhaseStarted("evaluate")
    began = time.monotonic()

    def values_of(model: DiffusionModel, yield_lease: YieldLease) -> Mapping[str, float]:
        with run.adapter.enabled(epoch > 0), run.eval_weights():
            validated = {VALIDATION_LOSS: run.validation.measure(model, yield_lease)} if run.validation else {}
            return {**validated, **(measure(model, run.adapter) if measure else {})}

    values = yield from run_leased_cooperatively(run.host, run.model, run.control, values_of)
    yield PhaseEnded("evaluate", time.monotonic() - began)
    yield Measured(epoch, values)
