"""A whole run: folder → dataset → plan → caches → training → files → grid.

`run_training` is the only entry point for the page, the command line and REST. It is a generator of events, so its
caller sets the pace. A run writes to disk only here and in `checkpoints` and `samples`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.config.validation.validate import require_usable
from lib_lora_train.core.control import Control, RunStoppedError
from lib_lora_train.core.errors import ModelUnavailableError, OutputError, Problem, TrainingError
from lib_lora_train.core.events import (
    EpochDone,
    Event,
    Noted,
    Planned,
    Progress,
    Resumed,
    StateChanged,
    StepDone,
)
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.formats.toml import write_toml_config
from lib_lora_train.hosts.host import Host
from lib_lora_train.methods.registry import check_captions
from lib_lora_train.models.broken_weights import refuse_broken_weights
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.latent_cache import LatentCache
from lib_lora_train.models.model_identity import ModelIdentity, identity_from_values
from lib_lora_train.runs.checkpoints import (
    save_due_step_lora,
    save_epoch_lora,
    save_recent_state,
    save_step_lora,
    save_training_state,
)
from lib_lora_train.runs.checks.checkpoint_check import MODEL_NOTE, checkpoint_problems, describe_loaded, precision_of
from lib_lora_train.runs.checks.continued_file import continued_file_problems
from lib_lora_train.runs.checks.form_check import form_problems
from lib_lora_train.runs.checks.model_check import load_same_model
from lib_lora_train.runs.checks.write_places import WritePlaces, saving_places
from lib_lora_train.runs.estimates.requirements import check_precision
from lib_lora_train.runs.estimates.step_time import describe_workload
from lib_lora_train.runs.images.samples import draw_grid, generate_sample_row, load_sample_rows
from lib_lora_train.runs.measures.advice import advise_run
from lib_lora_train.runs.measures.epoch_measures import (
    Measure,
    RunMeasures,
    early_stop_reason,
    measure_epoch,
    prepare_measures,
)
from lib_lora_train.runs.measures.image_losses import measure_images_at_end
from lib_lora_train.runs.planning import RunPlan, plan_run
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.records.tensorboard import log_to_tensorboard
from lib_lora_train.runs.resuming import continue_from, refuse_other_run, report_resume
from lib_lora_train.runs.run_context import (
    RunContext,
    encode_images,
    prepare_run,
    report_notices,
    select_txt2img,
    time_call,
    time_phase,
)
from lib_lora_train.training.lease import run_in_turns, run_leased
from lib_lora_train.training.loop import train
from lib_lora_train.training.loss import loss_options
from lib_lora_train.training.training_run import Training, start_training
from lib_lora_train.training.training_state import load_state
from lib_lora_train.training.wait_for_model import follow_requests


@dataclass(frozen=True)
class RunOptions:
    """`model`: what a new run must be trained on, None for any; `any_model` also allows it when resuming.

    `lora_dir`: where LoRA files are written, None for the settings' folder or, when resuming, the run's.
    """

    model: ModelIdentity | None = None
    any_model: bool = False
    lora_dir: Path | None = None


def run_training(
    config: TrainConfig,
    host: Host,
    *,
    folder: RunFolder,
    control: Control,
    measure: Measure | None = None,
    run_plan: RunPlan | None = None,
    state: Path | None = None,
    options: RunOptions | None = None,
) -> Iterator[Event]:
    """Train with `config` and yield events; the last one is a `StateChanged`.

    LoRA files go to the host's LoRA folder (or `config.output_dir`), everything else to `folder`. No lease is held
    while an event is yielded, so the caller may take it. The adapter is removed from the model however the run ends.
    `run_plan` is the config's plan if it was made already. With `state`, a training state of the run in `folder`, that
    run is resumed and its series of files continued. `measure` adds values to those measured after each epoch. Raises
    LoraTrainError for errors that the user can fix.
    """
    events = _run_phases(
        config,
        host,
        folder=folder,
        control=control,
        measure=measure,
        run_plan=run_plan,
        state=state,
        options=options or RunOptions(),
    )
    yield from log_to_tensorboard(events, folder, config.optimizer) if config.tensorboard else events


def _run_phases(
    config: TrainConfig,
    host: Host,
    *,
    folder: RunFolder,
    control: Control,
    measure: Measure | None,
    run_plan: RunPlan | None,
    state: Path | None,
    options: RunOptions,
) -> Iterator[Event]:
    yield StateChanged("running")
    if state is None:
        if folder.config.is_file():
            yield Resumed(0)  # the run begins again
        write_toml_config(folder.config, config)
    places = saving_places(folder.root.parent, host, folder=folder, file_dir=options.lora_dir)
    run_plan = yield from _plan(config, run_plan, places)
    before = load_state(state) if state else None
    if before:
        refuse_other_run(before, config, run_plan.plan, folder)
    elif run_plan.config.sample_prompts != config.sample_prompts:  # resuming keeps what was written here
        config = config.replace(sample_prompts=run_plan.config.sample_prompts)
        write_toml_config(folder.config, config)
    require_usable(list(continued_file_problems(config)) if before is None else [])
    expected = identity_from_values(before.model) if before else options.model
    try:
        model = yield from _load_model(config, host, control, None if options.any_model else expected)
        if before:
            continue_from(before, config, folder)
        yield from _check_model(model, config, host)
        check_captions(model, config, _captions(run_plan.plan))
        latents = yield from encode_images(model, run_plan.plan, config, host=host, folder=folder, control=control)
        run = yield from prepare_run(
            config,
            host,
            folder=folder,
            control=control,
            plan=run_plan.plan,
            model=model,
            state=before,
            lora_dir=options.lora_dir,
        )
        yield from _run_through(run, latents, measure)
    except RunStoppedError:  # before the training or after it
        pass
    except ModelUnavailableError:
        if not control.is_stopped:  # stopping while waiting for the model is not a failure
            raise
    yield StateChanged("stopped" if control.is_stopped else "finished", f"All files of this run are in {folder.root}.")


def _plan(config: TrainConfig, run_plan: RunPlan | None, places: WritePlaces) -> Generator[Event, None, RunPlan]:
    """The run's plan, made now unless it is given; reports its warnings and its numbers."""
    if run_plan is None:
        run_plan = yield from time_call("scan", lambda: plan_run(config, places))
    yield from _report_problems(run_plan.problems)
    plan = run_plan.plan
    regularisation = sum(plan.is_regularisation(item) for item in range(len(plan.dataset.items)))
    images = len(plan.dataset.items) - regularisation
    yield Planned(images, regularisation, plan.steps_per_epoch, plan.epochs, plan.total_steps)
    return run_plan


def _load_model(
    config: TrainConfig, host: Host, control: Control, expected: ModelIdentity | None
) -> Generator[Event, None, DiffusionModel]:
    """The run's model, with sound weights; OtherModelError if it is not the expected one."""
    model = yield from time_phase("load", 0, load_same_model(config, host, control, expected))
    yield from run_leased(host, model, control, refuse_broken_weights)
    return model


def _check_model(model: DiffusionModel, config: TrainConfig, host: Host) -> Iterator[Event]:
    """What the model was found to be, and what speaks against it; ConfigError for settings that do not suit it."""
    yield Noted("hint", model.name, f"{MODEL_NOTE}{describe_loaded(model, host.run_target(config))}.")
    problems = (
        *checkpoint_problems(model.spec, config),
        *continued_file_problems(config, model.spec),
        *form_problems(config, host.run_target(config).webui, model.spec),
        *check_precision(precision_of(model), model.device.type),
    )
    require_usable(problems)
    yield from _report_problems(problems)
    if model.note:
        yield Noted("hint", model.name, model.note)
    loss_options(config, model.schedule.prediction_type)  # raises ConfigError now rather than after encoding all images


def _captions(plan: Plan) -> Iterator[str]:
    """Those of the images to learn from, each as its file has it and each line of several."""
    for number, item in enumerate(plan.dataset.items):
        if not plan.is_regularisation(number):
            yield from (item.caption, *item.lines)


def _report_problems(problems: Iterable[Problem]) -> Iterator[Event]:
    return (Noted(p.level, p.where, p.message) for p in problems if p.level != "error")


def _run_through(run: RunContext, latents: LatentCache, measure: Measure | None) -> Iterator[Event]:
    """Samples without LoRA, training with saving and sampling, then the grid; removes the adapter at the end."""
    try:
        yield from report_notices(run)
        yield from select_txt2img(run)
        load_sample_rows(run)
        measures = yield from prepare_measures(run, latents, measure)
        if run.state:
            yield from report_resume(run, run.state)
        if run.config.sample_every_n_epochs and 0 not in run.images:
            yield from generate_sample_row(run, 0)
        yield from follow_requests(run.control)
        if not run.state:
            yield from measure_epoch(run, measures, 0)
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
            encoding = training.text_conditions.encode_captions(run.model, captions)
            yield from time_phase("text", len(captions), run_in_turns(run.host, run.model, run.control, encoding))
        yield from time_phase("train", run.plan.total_steps, _train(run, training, measures))
        if not run.control.is_stopped:
            yield from measure_images_at_end(run, latents)
        yield from draw_grid(run)
        yield from advise_run(run)
    finally:
        run.adapter.remove()


# --- while training ------------------------------------------------------------------------------


def _train(run: RunContext, training: Training, measures: RunMeasures) -> Generator[Event, None, None]:
    """The training loop's events and all that is saved, sampled and measured.

    OutputError for a LoRA file that cannot be written and that nobody waits for; the training state is saved then.
    """
    try:
        yield from _train_and_save(run, training, measures)
    except OutputError:
        yield from save_training_state(run, training)
        raise


def _train_and_save(run: RunContext, training: Training, measures: RunMeasures) -> Generator[Event, None, None]:
    """The training loop's events, with saving, sampling and measuring after epochs, at due steps and on request."""
    try:
        yield from _finish_interrupted_step(run, training)
        for event in train(training, host=run.host, control=run.control):
            yield event
            if isinstance(event, EpochDone):
                run.history.losses[event.epoch] = event.mean_loss
                yield from save_training_state(run, training)
                yield from _save_epoch(run, event.epoch, event.step)
                yield from _sample_epoch(run, event.epoch)
                if not run.is_due(event.epoch, run.config.sample_every_n_epochs):
                    yield from _sample_due_step(run, training)
                yield from measure_epoch(run, measures, event.epoch)
                if reason := early_stop_reason(run, event.epoch):
                    yield Noted("hint", "early_stopping_epochs", reason)
                    if event.epoch not in run.history.epoch_files():
                        yield from save_epoch_lora(run, event.epoch, event.step)
                    break
            elif isinstance(event, Progress):
                yield from _save_due_step(run, training)
                yield from save_recent_state(run, training)
            elif isinstance(event, (StepDone, StateChanged)):
                yield from _handle_requests(run, training)
                if event == StateChanged("paused"):
                    yield from save_training_state(run, training)
    except (TrainingError, ModelUnavailableError):
        yield from save_step_lora(run, training)
        yield from save_training_state(run, training)
        raise
    if run.control.is_stopped and not run.control.is_dropped:
        yield from save_step_lora(run, training)
        yield from save_training_state(run, training)


def _finish_interrupted_step(run: RunContext, training: Training) -> Iterator[Event]:
    """Save and draw what the run was interrupted in after the step it resumes from: the epoch's file and samples."""
    step, length, epoch = training.step, run.plan.steps_per_epoch, training.trained_epoch
    if not run.state or not step:
        return
    if (epoch, step) in run.history.unfinished_samples:
        yield from _sample_step(run, training)
    if step % length and step != run.plan.total_steps:
        if run.config.save_every_n_steps and step % run.config.save_every_n_steps == 0:
            yield from save_due_step_lora(run, training)
        return
    known = {file.epoch: file.step for file in run.history.files.values() if file.epoch}
    if known.get(epoch) != step:
        yield from _save_epoch(run, epoch, step)
    if run.history.samples.get(epoch, 0) < len(run.prompts) or epoch not in run.images:
        yield from _sample_epoch(run, epoch)


def _save_epoch(run: RunContext, epoch: int, step: int) -> Iterator[Event]:
    is_selected = epoch >= run.config.save_from_epoch or epoch == run.plan.epochs
    if is_selected and run.is_due(epoch, run.config.save_every_n_epochs):
        yield from save_epoch_lora(run, epoch, step)


def _sample_epoch(run: RunContext, epoch: int) -> Iterator[Event]:
    has_lora = not run.txt2img or epoch in run.history.epoch_files()
    if has_lora and run.is_due(epoch, run.config.sample_every_n_epochs):
        yield from generate_sample_row(run, epoch)


def _save_due_step(run: RunContext, training: Training) -> Iterator[Event]:
    """Save and sample at a due step; steps that end an epoch are handled after `EpochDone`."""
    config, step = run.config, training.step
    if step % run.plan.steps_per_epoch == 0 or step == run.plan.total_steps:
        return
    if config.save_every_n_steps and step % config.save_every_n_steps == 0:
        yield from save_due_step_lora(run, training)
    if config.save_state_every_n_steps and step % config.save_state_every_n_steps == 0:
        yield from save_training_state(run, training)
    yield from _sample_due_step(run, training)


def _sample_due_step(run: RunContext, training: Training) -> Iterator[Event]:
    """Generate samples if the step is due."""
    every = run.config.sample_every_n_steps
    if every and not training.step % every and run.prompts:
        yield from _sample_step(run, training)


def _sample_step(run: RunContext, training: Training) -> Iterator[Event]:
    """Generate samples within an epoch."""
    if run.txt2img:  # the webui generates only from files
        yield from save_step_lora(run, training)
    yield from generate_sample_row(run, training.trained_epoch, training.step)


def _handle_requests(run: RunContext, training: Training) -> Iterator[Event]:
    """Handle "save now" and "sample now" between two steps."""
    if run.control.pop_save_request():
        yield from save_step_lora(run, training)
    if run.control.pop_sample_request():
        yield from _sample_step(run, training)
