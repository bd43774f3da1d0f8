"""The files of a run while it goes on: LoRAs with their cards, training states, and which of them are kept."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from lib_lora_train.adapters.files.lora_file import write_adapter
from lib_lora_train.core.errors import OutputError
from lib_lora_train.core.events import Event, LoraRemoved, LoraWritten, Noted, StateSaved
from lib_lora_train.formats.lora_card import card_values, write_card
from lib_lora_train.formats.metadata import RunFacts, run_metadata
from lib_lora_train.models.checkpoint import legacy_hash
from lib_lora_train.runs.history import Written, epoch_name, step_name
from lib_lora_train.runs.run_context import JobRun
from lib_lora_train.training.loop import Training
from lib_lora_train.training.training_state import write_state

_MANY_VANISHED = 0.01  # share of matrices; below it, half precision loses nothing that is seen


# --- LoRA files -----------------------------------------------------------------------------------


def write_epoch(run: JobRun, epoch: int, step: int) -> Iterator[Event]:
    """The epoch's LoRA file, then the removal of those that are not kept any more."""
    yield from _written(run, Written(_place(run, epoch_name(run.name, epoch)), epoch, step), epoch)
    yield from _thinned(run, run.history.epoch_files(), run.config.keep_last_epochs)


def write_due_step(run: JobRun, training: Training) -> Iterator[Event]:
    """The LoRA file of a step that is due, then the removal of those that are not kept any more."""
    yield from write_step(run, training)
    yield from _thinned(run, run.history.step_files(), run.config.keep_last_step_files)


def write_step(run: JobRun, training: Training) -> Iterator[Event]:
    """What is learnt so far, as a file named after the step; nothing if it stands in a file already."""
    step = training.step
    if step > run.written_step:
        file = Written(_place(run, step_name(run.name, step)), 0, step)
        yield from _written(run, file, training.epoch)


def _place(run: JobRun, name: str) -> Path:
    return run.lora_dir / f"{name}.safetensors"


def _written(run: JobRun, file: Written, epoch: int) -> Iterator[Event]:
    """The adapter as a LoRA file of its own name."""
    path = file.path
    facts = RunFacts(
        output_name=path.stem,
        epoch=epoch,
        step=file.step,
        started=run.identity.started,
        finished=time.time(),
        session_id=run.identity.session,
        checkpoint_legacy_hash=legacy_hash(run.model.path) if run.model.path else "",
    )
    metadata = run_metadata(run.config, run.plan, run.model, facts)
    with run.for_use():
        saved = write_adapter(path, run.adapter.state(), metadata=metadata, precision=run.config.save_precision)
    run.written_step = file.step
    run.history.take(file)
    yield from carded(run, path, partial(_write_card, run, path, epoch, file.step))
    run.host.show_loras()
    yield LoraWritten(str(path), epoch, file.step)
    if saved.vanished > _MANY_VANISHED or saved.overflowed:
        message = (
            f"In {run.config.save_precision} {saved.vanished:.1%} of the matrices lost more than a hundredth of their "
            f"size to zeros, and {saved.overflowed:.1%} of the numbers became infinite. "
            "Choose save_precision bf16 or fp32, or a larger alpha."
        )
        yield Noted("warning", str(path), message)


def _thinned(run: JobRun, files: Mapping[int, Path], keep: int) -> Iterator[Event]:
    """The oldest of these files deleted, so that `keep` are left (0: all); they are this run's own, and no others."""
    for number in sorted(files)[:-keep] if keep else ():
        path = files[number]
        with contextlib.suppress(OSError):  # in use, or gone already: no reason to end a run
            path.unlink()
        for card in (path.with_suffix(".json"), path.with_suffix(".png")):
            _remove_card(run, card)
        del run.history.files[path]
        run.host.show_loras()
        yield LoraRemoved(str(path))


# --- cards ----------------------------------------------------------------------------------------


def carded(run: JobRun, lora: Path, write: Callable[[], Path | None]) -> Iterator[Event]:
    """A part of the LoRA's card written; one that cannot be is told, and harms nothing."""
    if not run.config.write_card:
        return
    try:
        card = write()
        if card:
            run.cards[card] = card.stat().st_mtime_ns
    except OSError as error:
        yield Noted("warning", str(lora), f"Its card could not be written: {error.strerror}. The LoRA is complete.")


def _remove_card(run: JobRun, card: Path) -> None:
    """Delete a card that this run wrote and nobody has changed since."""
    with contextlib.suppress(OSError):
        if run.cards.get(card) == card.stat().st_mtime_ns:
            card.unlink()


def _write_card(run: JobRun, lora: Path, epoch: int, step: int) -> Path | None:
    progress = f"epoch {epoch} of {run.plan.epochs}, step {step}"
    notes = [progress, run.history.loss_text(epoch), f"trained on {run.model.name}"]
    values = card_values(
        family=run.model.spec.family,
        triggers=[concept.trigger for concept in run.plan.dataset.concepts],
        description=run.config.comment,
        notes=", ".join(note for note in notes if note),
    )
    return write_card(lora, values)


# --- training states ------------------------------------------------------------------------------


def keep_state(run: JobRun, training: Training) -> Iterator[Event]:
    """The training state as a file, if it is wanted, exact and new; the oldest ones go when it stands.

    A state that cannot be written is told and does not end the run: the LoRA files are what counts.
    """
    path = run.folder.state_after(training.step)
    if not (run.config.save_state and training.is_exact) or training.step == run.kept_step:
        return
    try:
        write_state(path, training.state())
    except OutputError as error:
        yield Noted("warning", str(path), f"{error} Without it the run can only be resumed from an earlier step.")
        return
    run.kept_step = training.step
    for step in run.folder.state_steps()[: -run.config.keep_last_states]:
        with contextlib.suppress(OSError):
            run.folder.state_after(step).unlink()
    yield StateSaved(str(path), training.step)
