"""Resuming a run: its state must belong to the settings and images of today."""

from __future__ import annotations

from collections.abc import Iterator

from lib_lora_train.config.method_catalog import nearest_lora
from lib_lora_train.config.train_config import TrainConfig, duration_in_steps
from lib_lora_train.core.events import Event, Noted, Resumed
from lib_lora_train.core.wording import count
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.formats.toml import write_toml_config
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.records.history import newest_lora
from lib_lora_train.runs.run_context import RunContext
from lib_lora_train.training.lr_schedule import lr_factor, lr_schedule
from lib_lora_train.training.training_state import TrainState, require_same_run

_LENGTH_INDEPENDENT = ("constant", "constant_with_warmup", "inverse_sqrt")  # schedules that do not depend on the length


def refuse_other_run(state: TrainState, config: TrainConfig, plan: Plan, folder: RunFolder) -> None:
    """ResumeRefusedError, with every difference and the file to continue from, if the state is of another run."""
    lora = newest_lora(folder)
    advice = f"start a new run with continue_from = {lora}" if lora else "start a new run"
    require_same_run(state, config, plan, advice=advice)


def continue_from(state: TrainState, config: TrainConfig, folder: RunFolder) -> None:
    """Make the settings those of the run's folder, and delete states of later steps."""
    write_toml_config(folder.config, config)
    for step, path in folder.saved_states().items():
        if step > state.step:
            path.unlink(missing_ok=True)


def report_resume(run: RunContext, state: TrainState) -> Iterator[Event]:
    """Report the step the run resumes from and, if its length changed, what that changes."""
    yield Resumed(state.step)
    if all(state.config.get(name) == getattr(run.config, name) for name in ("epochs", "max_steps")):
        return
    stop = nearest_lora(run.config).stop_text_encoder
    end = duration_in_steps(stop, run.plan.total_steps)
    if run.config.train_text_encoder and 0 < stop < 1 and end > state.step:
        text = f"{stop:g} now refers to the new length, so text encoders train until step {end}"
        yield Noted("hint", "stop_text_encoder", f"{text}. To keep them frozen, start a new run from the LoRA file.")
    if run.config.lr_schedule in _LENGTH_INDEPENDENT:
        return
    factor = lr_factor(lr_schedule(run.config, run.plan.total_steps), state.step)
    text = (
        f"the {run.config.lr_schedule} schedule is stretched to the new length of {count(run.plan.total_steps, 'step')}"
    )
    yield Noted("hint", "lr_schedule", f"{text}; the learning rate continues at {factor:.0%} of its full value.")
