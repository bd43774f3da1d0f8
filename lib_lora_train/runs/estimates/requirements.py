"""What a planned run will need, in words: memory beside what the card has, time by what past runs took.

Both are estimates and say so; where nothing is known they say that. No PyTorch is needed here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import AdapterError, Problem
from lib_lora_train.core.progress import format_duration
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.hosts.host import Gpu, RunTarget
from lib_lora_train.runs.estimates.memory import CheckpointSizes, MemoryEstimate, estimate_memory, read_checkpoint_sizes
from lib_lora_train.runs.estimates.step_time import TimeEstimate, describe_workload, estimate_time

_GIB = 2**30
_MIB = 2**20


@dataclass(frozen=True)
class Requirements:
    """Memory and time of a run, None where they are not known, and what is worth a warning."""

    memory: MemoryEstimate | None
    time: TimeEstimate | None
    gpu: Gpu | None
    device: str
    problems: tuple[Problem, ...] = ()

    @property
    def memory_summary(self) -> str:
        """`about 6.3 GB`, or why it is not known."""
        return f"about {size_text(self.memory.total)}" if self.memory else "not known"

    @property
    def time_summary(self) -> str:
        """`about 12 min`, or that the first run will tell."""
        return f"about {format_duration(self.time.seconds)}" if self.time else "not known yet"

    @property
    def tiles(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """(name, figure) of time and memory, for where there is little room."""
        time = ("time, about", format_duration(self.time.seconds)) if self.time else ("time, not known yet", "–")
        memory = ("memory, about", size_text(self.memory.total)) if self.memory else ("memory, not known", "–")
        return time, memory

    @property
    def sentences(self) -> tuple[str, ...]:
        """What stands behind the two figures, one sentence each."""
        return (_about_memory(self.memory, self.gpu, self.device), _about_time(self.time))

    @property
    def values(self) -> dict[str, Any]:
        """For other programs: bytes and seconds, None where they are not known."""
        memory = self.memory
        parts = ("total", "base", "adapter", "activations", "encoding", "extra", "is_loaded")
        return {
            "memory_bytes": {part: getattr(memory, part) for part in parts} if memory else None,
            "card_bytes": {"total": self.gpu.total, "free": self.gpu.free} if self.gpu else None,
            "seconds": self.time.seconds if self.time else None,
            "seconds_from": self.time.run if self.time else "",
        }


def estimate_requirements(config: TrainConfig, plan: Plan, run_target: RunTarget, home: Path) -> Requirements:
    """What the run will need, as far as `run_target` and the past runs in `home` tell."""
    model = read_checkpoint_sizes(run_target.checkpoint) if run_target.checkpoint else None
    if model is None:
        return Requirements(None, None, run_target.gpu, run_target.device)
    try:
        memory = _memory(model, config, plan, run_target)
    except AdapterError:  # block lists that do not fit this model: the run refuses them
        return Requirements(None, None, run_target.gpu, run_target.device)
    wanted = describe_workload(config, plan, architecture=model.spec.architecture, device=run_target.device)
    problems = tuple(_about_room(memory, model, config, plan, run_target))
    return Requirements(
        memory, estimate_time(home, wanted, plan.total_steps), run_target.gpu, run_target.device, problems
    )


def _memory(model: CheckpointSizes, config: TrainConfig, plan: Plan, run_target: RunTarget) -> MemoryEstimate:
    return estimate_memory(model, config, plan, dtype_bytes=run_target.dtype_bytes, is_loaded=run_target.is_loaded)


# --- room on the card ---------------------------------------------------------------------------


def _about_room(
    memory: MemoryEstimate, model: CheckpointSizes, config: TrainConfig, plan: Plan, run_target: RunTarget
) -> Iterator[Problem]:
    gpu = run_target.gpu
    if gpu is None:
        return
    if memory.total > gpu.total:
        text = f"The run needs about {size_text(memory.total)}, and the {gpu.name} has {size_text(gpu.total)}."
        where, advice = _advice(model, config, plan, run_target)
        yield Problem("warning", where, f"{text} {advice}")
    elif memory.extra > gpu.free:
        text = f"The run needs about {size_text(memory.extra)} more, and {size_text(gpu.free)} of the {gpu.name}"
        yield Problem("hint", "", f"{text} are free now. Close other programs that use it.")


def _advice(model: CheckpointSizes, config: TrainConfig, plan: Plan, run_target: RunTarget) -> tuple[str, str]:
    """(the parameter to change, what to do): one change after the other until the run fits, as far as they go."""
    assert run_target.gpu is not None
    done: list[str] = []
    first = "resolution"
    for name, changes, words in _savings(config, run_target):
        config = config.replace(**changes)
        plan = dataclasses.replace(plan, batch_size=config.batch_size, accumulation=config.gradient_accumulation)
        first = first if done else name
        done.append(words)
        memory = _memory(model, config, plan, run_target)
        if memory.total <= run_target.gpu.total:
            return first, f"{_joined(done)}: then it is about {size_text(memory.total)}."
    rest = "a lower resolution or a smaller rank"
    return first, f"{_joined(done)}, and choose {rest}." if done else f"Choose {rest}."


def _savings(config: TrainConfig, run_target: RunTarget) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(parameter, changed settings, in words) of what saves memory and costs least in quality, the best first."""
    if not config.gradient_checkpointing:
        yield "gradient_checkpointing", {"gradient_checkpointing": True}, "switch on gradient_checkpointing"
    if config.batch_size > 1:
        steps = min(256, config.gradient_accumulation * config.batch_size)
        changes = {"batch_size": 1, "gradient_accumulation": steps}
        yield "batch_size", changes, f"take batch_size 1 with gradient_accumulation {steps}"
    if not run_target.is_loaded and not config.fp8_base:
        yield "fp8_base", {"fp8_base": True}, "switch on fp8_base"
    if config.train_text_encoder and config.train_unet:
        yield "train_text_encoder", {"train_text_encoder": False}, "switch off train_text_encoder"


def _joined(words: list[str]) -> str:
    text = ", ".join(words)
    return text[:1].upper() + text[1:]


# --- in words -----------------------------------------------------------------------------------


def _about_memory(memory: MemoryEstimate | None, gpu: Gpu | None, device: str) -> str:
    if memory is None:
        return "Memory is not known: the checkpoint's header cannot be read, or no checkpoint is loaded."
    base = "the model you already have loaded" if memory.is_loaded else "the model's weights"
    training = memory.adapter + memory.activations
    if training >= memory.encoding:
        most = (
            f"{size_text(memory.adapter)} the adapter with its optimiser, {size_text(memory.activations)} activations"
        )
    else:
        most = f"{size_text(memory.encoding)} for encoding the images, more than the {size_text(training)} of training"
    where = f"The {gpu.name} has {size_text(gpu.total)}, {size_text(gpu.free)} of it free. " if card else ""
    if device == "cpu":
        where = "It is taken from the computer's memory, as no graphics card is used. "
    text = f"Memory, an estimate: {size_text(memory.total)}, of which {size_text(memory.base)} {base}, {most}."
    return f"{text} {where}PyTorch and the driver take some hundred MB more."


def _about_time(time: TimeEstimate | None) -> str:
    if time is None:
        return "Time: not known yet. The first run with this kind of model on this machine tells."
    far = ", whose steps were of quite another size" if time.is_extrapolated else ""
    return f"Time of the steps alone, without samples and files, by the speed of {time.run}{far}."


def size_text(size: float) -> str:
    """Bytes for people: `6.3 GB` (of 2³⁰ bytes, as cards are sold), `340 MB`."""
    if size >= 10 * _GIB:
        return f"{size / _GIB:.0f} GB"
    return f"{size / _GIB:.1f} GB" if size >= 0.95 * _GIB else f"{size / _MIB:.0f} MB"


def requirement_lines(found: Requirements) -> list[str]:
    """The two estimates for the command line, in the plan's columns."""
    lines = [f"time {found.time_summary}, memory {found.memory_summary}", *found.sentences]
    return [f"{'' if number else 'Needs':<10}{line}" for number, line in enumerate(lines)]
