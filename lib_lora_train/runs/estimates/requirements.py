"""The memory and time a planned run will need, as text: memory compared with the GPU's, time from past runs.

Both are estimates and labelled as such. Does not import PyTorch.
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
from lib_lora_train.core.wording import size_text
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.hosts.host import Gpu, RunTarget
from lib_lora_train.runs.estimates.memory import CheckpointSizes, MemoryEstimate, estimate_memory, read_checkpoint_sizes
from lib_lora_train.runs.estimates.model_checks import check_model
from lib_lora_train.runs.estimates.step_time import TimeEstimate, describe_workload, estimate_time


@dataclass(frozen=True)
class Requirements:
    """Memory and time of a run, None if unknown, and warnings about them."""

    memory: MemoryEstimate | None
    time: TimeEstimate | None
    gpu: Gpu | None
    device: str
    problems: tuple[Problem, ...] = ()

    @property
    def memory_summary(self) -> str:
        """`about 6.3 GB`, or `not known`."""
        return f"about {size_text(self.memory.total)}" if self.memory else "not known"

    @property
    def time_summary(self) -> str:
        """`about 12 min`, or `not known yet`."""
        return f"about {format_duration(self.time.seconds)}" if self.time else "not known yet"

    @property
    def tiles(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """(label, value) of time and memory, for the summary tiles."""
        time = ("time, about", format_duration(self.time.seconds)) if self.time else ("time, not known yet", "–")
        memory = ("memory, about", size_text(self.memory.total)) if self.memory else ("memory, not known", "–")
        return time, memory

    @property
    def sentences(self) -> tuple[str, ...]:
        """One explanation for each of the two values."""
        return (_memory_text(self.memory, self.gpu, self.device), _time_text(self.time))

    @property
    def values(self) -> dict[str, Any]:
        """For the REST API: bytes and seconds, None if unknown."""
        memory = self.memory
        parts = ("total", "base", "copies", "adapter", "activations", "encoding", "extra", "is_loaded")
        return {
            "memory_bytes": {part: getattr(memory, part) for part in parts} if memory else None,
            "card_bytes": {"total": self.gpu.total, "free": self.gpu.free} if self.gpu else None,
            "seconds": self.time.seconds if self.time else None,
            "seconds_from": self.time.run if self.time else "",
        }


def estimate_requirements(config: TrainConfig, plan: Plan, run_target: RunTarget, home: Path) -> Requirements:
    """What the run will need, from `run_target` and the past runs in `home`."""
    model = _sizes(run_target)
    if model is None:
        return Requirements(None, None, run_target.gpu, run_target.device)
    try:
        memory = _memory(model, config, plan, run_target)
    except AdapterError:  # block lists that do not fit this model; the run will report them
        return Requirements(None, None, run_target.gpu, run_target.device)
    target = describe_workload(config, plan, architecture=model.spec.architecture, device=run_target.device)
    problems = (
        *check_model(config, model.spec, run_target),
        *check_precision(config.precision, run_target.device),
        *_check_memory(memory, model, config, plan, run_target),
    )
    return Requirements(
        memory, estimate_time(home, target, plan.total_steps), run_target.gpu, run_target.device, problems
    )


def check_precision(precision: str, device: str) -> Iterator[Problem]:
    """A warning for fp16 on the CPU, where PyTorch's convolutions took 160 times as long as in fp32 (2.13, x86)."""
    if precision == "fp16" and device == "cpu":
        text = "fp16 is far slower than fp32 on a CPU, up to a hundred times. Use auto or fp32."
        yield Problem("warning", "precision", text, (("precision", "auto"),))


def _memory(model: CheckpointSizes, config: TrainConfig, plan: Plan, run_target: RunTarget) -> MemoryEstimate:
    return estimate_memory(
        model,
        config,
        plan,
        dtype_bytes=run_target.dtype_bytes,
        is_loaded=run_target.is_loaded,
        weights=run_target.weights,
    )


def _sizes(run_target: RunTarget) -> CheckpointSizes | None:
    """Of the checkpoint's file; of a quantised model, whose file may not be readable, what the host has loaded."""
    if run_target.weights:
        return CheckpointSizes(run_target.weights.spec, unet=(0, 0), text=(0, 0), vae=(0, 0))
    return read_checkpoint_sizes(run_target.checkpoint, run_target.vae) if run_target.checkpoint else None


# --- memory of the GPU ------------------------------------------------------------------------


def _check_memory(
    memory: MemoryEstimate, model: CheckpointSizes, config: TrainConfig, plan: Plan, run_target: RunTarget
) -> Iterator[Problem]:
    gpu = run_target.gpu
    if gpu is None:
        return
    if memory.total > gpu.total:
        text = f"The run needs about {size_text(memory.total)}, but the {gpu.name} has {size_text(gpu.total)}."
        where, advice, remedy = _advice(model, config, plan, run_target)
        yield Problem("warning", where, f"{text} {advice}", remedy)
    elif memory.extra > gpu.free:
        text = f"The run needs about {size_text(memory.extra)} more, but only {size_text(gpu.free)} of the {gpu.name}"
        yield Problem("hint", "", f"{text} is free now. Close other programs that use the GPU.")


def _advice(
    model: CheckpointSizes, config: TrainConfig, plan: Plan, run_target: RunTarget
) -> tuple[str, str, tuple[tuple[str, Any], ...]]:
    """(the first setting to change, what to do, all changes as a remedy): adds changes until the run fits.

    The remedy is () if the run does not fit with all of them.
    """
    assert run_target.gpu is not None
    done: list[str] = []
    remedy: dict[str, Any] = {}
    first = "resolution"
    for name, changes, words in _savings(config, run_target):
        config = config.replace(**changes)
        plan = dataclasses.replace(plan, batch_size=config.batch_size, accumulation=config.gradient_accumulation)
        first = first if done else name
        done.append(words)
        remedy |= changes
        memory = _memory(model, config, plan, run_target)
        if memory.total <= run_target.gpu.total:
            return first, f"{_join(done)}. It then needs about {size_text(memory.total)}.", tuple(remedy.items())
    rest = "a lower resolution or rank"
    return first, f"{_join(done)}, and use {rest}." if done else f"Use {rest}.", ()


def _savings(config: TrainConfig, run_target: RunTarget) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(setting, changes, description) of ways to save memory, those that cost least quality first."""
    if not config.gradient_checkpointing:
        yield "gradient_checkpointing", {"gradient_checkpointing": True}, "turn on gradient_checkpointing"
    if config.batch_size > 1:
        steps = min(256, config.gradient_accumulation * config.batch_size)
        changes = {"batch_size": 1, "gradient_accumulation": steps}
        yield "batch_size", changes, f"set batch_size to 1 and gradient_accumulation to {steps}"
    if not run_target.is_loaded and not config.fp8_base:
        yield "fp8_base", {"fp8_base": True}, "turn on fp8_base"
    if config.method == "lora" and config.train_text_encoder and config.train_unet:
        yield "train_text_encoder", {"train_text_encoder": False}, "turn off train_text_encoder"


def _join(words: list[str]) -> str:
    text = ", ".join(words)
    return text[:1].upper() + text[1:]


# --- text --------------------------------------------------------------------------------


def _memory_text(memory: MemoryEstimate | None, gpu: Gpu | None, device: str) -> str:
    if memory is None:
        return "Memory: unknown, because no checkpoint is loaded or its header cannot be read."
    base = "the model that is already loaded" if memory.is_loaded else "the model's weights"
    if memory.copies:
        base = f"the quantised model that is loaded, {size_text(memory.copies)} for unpacked copies of its weights"
    training = memory.adapter + memory.activations
    if training >= memory.encoding:
        lora, activations = size_text(memory.adapter), size_text(memory.activations)
        rest = f"{lora} for what is trained and its optimiser, {activations} for activations"
    else:
        rest = f"{size_text(memory.encoding)} for encoding the images (training: {size_text(training)})"
    where = f"The {gpu.name} has {size_text(gpu.total)}, {size_text(gpu.free)} of it free. " if gpu else ""
    if device == "cpu":
        where = "This is system memory, because no GPU is used. "
    held = size_text(memory.base - memory.copies)
    text = f"Estimated memory: {size_text(memory.total)}, of which {held} for {base}, {rest}."
    return f"{text} {where}PyTorch and the driver need a few hundred MB more."


def _time_text(time: TimeEstimate | None) -> str:
    if time is None:
        return "Time: unknown until a first run with this architecture on this machine."
    far = ", whose steps were a very different size" if time.is_extrapolated else ""
    return f"The time is for the steps only, without samples and files, at the speed of {time.run}{far}."


def requirement_lines(requirements: Requirements) -> list[str]:
    """The estimates for the command line, aligned with the plan."""
    lines = [f"time {requirements.time_summary}, memory {requirements.memory_summary}", *requirements.sentences]
    return [f"{'' if number else 'Needs':<10}{line}" for number, line in enumerate(lines)]
