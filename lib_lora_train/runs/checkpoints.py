"""Saving during a run: LoRA files with their cards, training states, and the removal of old ones."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from lib_lora_train.adapters.files.lora_file import SavedAdapter, write_adapter
from lib_lora_train.adapters.files.spelling import lora_paths, spelled
from lib_lora_train.config.method_catalog import named_word
from lib_lora_train.core.errors import OutputError
from lib_lora_train.core.events import Event, LoraRemoved, LoraWritten, Noted, StateChanged, StateSaved
from lib_lora_train.core.memory_errors import saving
from lib_lora_train.formats.lora_card import card_values, preview_path, write_card
from lib_lora_train.formats.metadata import RunFacts, run_metadata
from lib_lora_train.runs.checks.checkpoint_check import describe_loaded
from lib_lora_train.runs.readable_files import describe_rewriting, readable_adapter, readable_metadata
from lib_lora_train.runs.records.history import SavedLora, epoch_name, step_name
from lib_lora_train.runs.run_context import RunContext
from lib_lora_train.training.training_run import Training
from lib_lora_train.training.training_state import write_state

_NOTICEABLE_UNDERFLOW = 0.01  # share of matrices; below it, the loss from half precision is invisible


def _pause_for(run: RunContext, error: OutputError) -> Iterator[Event]:
    """Pause the run until somebody has solved the problem and resumes it.

    Raises `error` if nobody attends the run, or if it is stopped instead.
    """
    control = run.control
    if control.is_stopped or not control.is_attended:
        raise error
    control.pause()
    yield StateChanged("paused", f"{error} The run is paused and loses nothing: press Resume to try again.")
    while control.is_paused:
        control.wait_for_request()
    if control.is_stopped:
        raise error
    yield StateChanged("running")


# --- LoRA files -----------------------------------------------------------------------------------


def save_epoch_lora(run: RunContext, epoch: int, step: int) -> Iterator[Event]:
    """Save the epoch's LoRA file, then remove old ones as keep_last_epochs says."""
    yield from _write_lora(run, SavedLora(_lora_path(run, epoch_name(run.name, epoch)), epoch, step), epoch)
    yield from _remove_oldest(run, run.history.epoch_files(), run.config.keep_last_epochs)


def save_due_step_lora(run: RunContext, training: Training) -> Iterator[Event]:
    """Save the LoRA file of this step, then remove old ones as keep_last_step_files says."""
    yield from save_step_lora(run, training)
    yield from _remove_oldest(run, run.history.step_files(), run.config.keep_last_step_files)


def save_step_lora(run: RunContext, training: Training) -> Iterator[Event]:
    """Save a LoRA file named after the step, unless this step is already saved."""
    step = training.step
    if step > run.saved_lora_step:
        file = SavedLora(_lora_path(run, step_name(run.name, step)), 0, step)
        yield from _write_lora(run, file, training.trained_epoch)


def _lora_path(run: RunContext, name: str) -> Path:
    return run.lora_dir / f"{name}.safetensors"


def _write_lora(run: RunContext, file: SavedLora, epoch: int) -> Iterator[Event]:
    """Write the LoRA file and its card; warns if the save precision loses too much."""
    path = file.path
    facts = RunFacts(
        output_name=path.stem,
        epoch=epoch,
        step=file.step,
        started=run.identity.started,
        finished=time.time(),
        session_id=run.identity.session,
        checkpoint_legacy_hash=run.legacy_hash,
    )
    metadata = run_metadata(run.config, run.plan, run.model, facts)

    converted = yield from readable_adapter(run, str(path))
    if converted is None:
        saved = yield from _write_adapter(run, path, metadata, partial(_trained_state, run))
    else:
        yield from _write_trained_form(run, path, metadata)
        metadata = readable_metadata(run, metadata)
        saved = yield from _write_adapter(run, path, metadata, lambda: converted.state)
    run.saved_lora_step = file.step
    run.history.add(file)
    yield from try_write_card(run, path, partial(_write_card, run, path, epoch, file.step))
    run.host.refresh_loras()
    yield LoraWritten(str(path), epoch, file.step)
    if converted is not None:
        yield Noted("hint", str(path), describe_rewriting(run, converted))
    if saved.vanished > _NOTICEABLE_UNDERFLOW or saved.overflowed:
        message = (
            f"In {run.config.save_precision}, {saved.vanished:.1%} of the matrices lost more than 1% of their norm to "
            f"underflow and {saved.overflowed:.1%} of the values overflowed. "
            "Set save_precision to bf16 or fp32, or use a larger alpha."
        )
        yield Noted("warning", str(path), message)


def _trained_state(run: RunContext) -> Mapping[str, Tensor]:
    with run.eval_weights():
        return spelled(run.adapter.state(), lora_paths(run.model))


def _write_adapter(
    run: RunContext, path: Path, metadata: Mapping[str, str], make_state: Callable[[], Mapping[str, Tensor]]
) -> Generator[Event, None, SavedAdapter]:
    """Write the weights, after a pause for each failure."""
    while True:
        try:
            with saving(path):
                return write_adapter(path, make_state(), metadata=metadata, precision=run.config.save_precision)
        except OutputError as error:
            yield from _pause_for(run, error)


def _write_trained_form(run: RunContext, lora: Path, metadata: Mapping[str, str]) -> Iterator[Event]:
    """Keep the trained form of a file in the run's folder; a failure is only a warning, since the other is used."""
    path = run.folder.trained_form(lora.name)
    try:
        with saving(path):
            path.parent.mkdir(exist_ok=True)
            write_adapter(path, _trained_state(run), metadata=metadata, precision=run.config.save_precision)
    except (OutputError, OSError) as error:
        yield Noted("warning", str(path), f"The trained form could not be kept: {error}")


def _remove_oldest(run: RunContext, files: Mapping[int, Path], keep: int) -> Iterator[Event]:
    """Delete the oldest of these files so that `keep` remain (0: all). Only this run's own files are listed."""
    for number in sorted(files)[:-keep] if keep else ():
        path = files[number]
        with contextlib.suppress(OSError):  # in use or already gone; not worth ending the run
            path.unlink()
        with contextlib.suppress(OSError):
            run.folder.trained_form(path.name).unlink()
        is_embedding = bool(named_word(run.config))
        for card in (path.with_suffix(".json"), preview_path(path, is_embedding=is_embedding)):
            _remove_card(run, card)
        del run.history.files[path]
        run.host.refresh_loras()
        yield LoraRemoved(str(path))


# --- cards ----------------------------------------------------------------------------------------


def try_write_card(run: RunContext, lora: Path, write: Callable[[], Path | None]) -> Iterator[Event]:
    """Write part of the LoRA's card with `write`; a failure is only a warning."""
    if not run.config.write_card:
        return
    try:
        card = write()
        if card:
            run.cards[card] = card.stat().st_mtime_ns
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or "the memory is full"
        text = f"The card could not be written: {reason}. The LoRA file itself is complete."
        yield Noted("warning", str(lora), text)


def _remove_card(run: RunContext, card: Path) -> None:
    """Delete a card that this run wrote, unless it was changed since."""
    with contextlib.suppress(OSError):
        if run.cards.get(card) == card.stat().st_mtime_ns:
            card.unlink()


def _write_card(run: RunContext, lora: Path, epoch: int, step: int) -> Path | None:
    progress = f"epoch {epoch} of {run.plan.epochs}, step {step}"
    model = f"trained on {run.model.name} ({describe_loaded(run.model, run.host.run_target(run.config))})"
    notes = [progress, run.history.loss_text(epoch), model]
    values = card_values(
        architecture=run.model.spec.architecture,
        triggers=[lora.stem] if named_word(run.config) else [c.trigger for c in run.plan.dataset.concepts],
        description=run.config.comment,
        notes=", ".join(note for note in notes if note),
        webui=run.host.name,
    )
    return write_card(lora, values)


# --- training states ------------------------------------------------------------------------------


def save_training_state(run: RunContext, training: Training) -> Iterator[Event]:
    """Save the training state if save_state is on and the state is exact and new, then remove old states.

    The first failure pauses a run that somebody attends; after that, failures are only warnings, because the LoRA
    files matter more.
    """
    path = run.folder.state_path(training.step)
    if not (run.config.save_state and training.is_resumable) or training.step == run.saved_state_step:
        return
    try:
        yield from _write_state(run, path, training)
    except OutputError as error:
        yield Noted("warning", str(path), f"{error} The run can only be resumed from an earlier step.")
        return
    run.saved_state_step = training.step
    _remove_states(sorted(run.folder.states.glob("step-*.pt"))[: -run.config.keep_last_states])
    _remove_states(run.folder.states.glob("recent-*.pt"))
    yield StateSaved(str(path), training.step)


def save_recent_state(run: RunContext, training: Training) -> Iterator[Event]:
    """Save a state when the last one is most of a minute old, so that a crash costs at most a minute of training.

    Only the newest is kept, beside those of epochs. Saving takes at most 1% of the time: large states are rarer. The
    first failure is a warning.
    """
    ends_epoch = training.step % run.plan.steps_per_epoch == 0 or training.step == run.plan.total_steps
    is_due = run.state_clock.is_due() and training.step != run.saved_state_step and not ends_epoch
    if not (is_due and run.config.save_state and training.is_resumable):
        return
    path = run.folder.recent_state_path(training.step)
    try:
        with run.state_clock.measure(), saving(path):
            write_state(path, training.state())
    except OutputError as error:
        if not run.has_paused_for_state:
            run.has_paused_for_state = True
            yield Noted("warning", str(path), f"{error} The run can only be resumed from an earlier step.")
        return
    run.saved_state_step = training.step
    _remove_states(other for other in run.folder.states.glob("recent-*.pt") if other != path)


def _remove_states(paths: Iterable[Path]) -> None:
    for path in list(paths):
        with contextlib.suppress(OSError):
            path.unlink()


def _write_state(run: RunContext, path: Path, training: Training) -> Iterator[Event]:
    """Write the state, after a pause for the run's first failure; OutputError for later ones."""
    try:
        with run.state_clock.measure(), saving(path):
            write_state(path, training.state())
    except OutputError as error:
        if run.has_paused_for_state:
            raise
        run.has_paused_for_state = True
        yield from _pause_for(run, error)
        with saving(path):
            write_state(path, training.state())
