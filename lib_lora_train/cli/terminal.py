"""Show a run's events as lines on a terminal, with a progress line for the current phase and its ETA.

If the output is not a terminal (a log file), the progress line is a plain line every ten seconds.
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean
from typing import TextIO

from tqdm import tqdm

from lib_lora_train.core.events import (
    Advised,
    EpochDone,
    Event,
    GridDrawn,
    LoraRemoved,
    LoraWritten,
    Measured,
    Noted,
    PhaseEnded,
    PhaseStarted,
    Planned,
    Progress,
    Resumed,
    StateChanged,
    StepDone,
    StrengthTested,
)
from lib_lora_train.core.measures import measure_title
from lib_lora_train.core.phases import PHASE_TITLES
from lib_lora_train.core.progress import Eta, format_clock
from lib_lora_train.core.wording import count, fixed, located, percent

_METER = "{desc:<24}{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}{postfix}"
_LOSS_STEPS = 50  # the mean over these steps is shown, because the loss of one step is mostly noise
_REDRAW_SECONDS = 0.1
_LOG_SECONDS = 10.0


@dataclass
class Terminal:
    """Shows events on `out`; `width` is the number of columns, None for the terminal's width."""

    out: TextIO
    width: int | None = None
    clock: Callable[[], float] = time.monotonic
    has_steps: bool = False
    """Whether the run shown has taken a step, so that there is something to save."""
    _eta: Eta = field(init=False)
    _losses: deque[float] = field(default_factory=lambda: deque(maxlen=_LOSS_STEPS))
    _drawn_at: float = float("-inf")
    _is_line_open: bool = False

    def __post_init__(self) -> None:
        self._eta = Eta(self.clock)

    def show(self, event: Event) -> None:
        """Print the event's line, if it has one, and update the progress line."""
        self._update(event)
        line = describe(event)
        if line:
            self.write(line)
        if isinstance(event, Progress):
            self._draw_meter(event)

    def write(self, line: str) -> None:
        """Print a permanent line above the progress line."""
        self.close()
        self.out.write(f"{line}\n")
        self.out.flush()

    def close(self) -> None:
        """Remove the progress line."""
        if self._is_line_open:
            self.out.write("\r\x1b[K")
            self._is_line_open = False

    def _update(self, event: Event) -> None:
        self._eta.handle(event)
        if isinstance(event, PhaseStarted):
            self._drawn_at = float("-inf")
        elif isinstance(event, StepDone):
            self._losses.append(event.loss)
        if isinstance(event, (StepDone, Resumed)):
            self.has_steps = True

    def _draw_meter(self, event: Progress) -> None:
        now = self.clock()
        pause = _REDRAW_SECONDS if self.out.isatty() else _LOG_SECONDS
        if now - self._drawn_at < pause and event.done < event.total:
            return
        self._drawn_at = now
        meter = self.meter(event)
        if self.out.isatty():
            self.out.write(f"\r\x1b[K{meter}")
            self.out.flush()
            self._is_line_open = True
        else:
            self.write(meter)

    def meter(self, event: Progress) -> str:
        """`Training   34% |███   | 204/600, 0:42 left, loss 0.123`."""
        facts = [event.text] if event.text else []
        if event.done < event.total:
            facts.append(f"{format_clock(self._eta.remaining_seconds())} left")
        if event.phase == "train" and self._losses:
            facts.append(f"loss {sum(self._losses) / len(self._losses):.4f}")
        is_terminal = self.out.isatty()
        return str(
            tqdm.format_meter(
                n=event.done,
                total=max(event.total, 1),
                elapsed=0,
                ncols=self.width or (_columns() if is_terminal else 100),
                prefix=f"{PHASE_TITLES[event.phase]:<24}",
                ascii=not _can_encode(self.out, "█▏"),
                postfix=", ".join(facts) or None,
                bar_format=_METER if is_terminal else _METER.replace("|{bar}| ", ""),
            )
        ).rstrip()


def describe(event: Event) -> str:
    """The permanent line for an event, "" for events that only update the progress line."""
    if isinstance(event, Planned):
        extra = count(event.regularisation_images, "regularisation image")
        extra = f" and {extra}" if event.regularisation_images else ""
        return (
            f"Plan: {count(event.images, 'image')}{extra}; {count(event.steps_per_epoch, 'step')} × "
            f"{count(event.epochs, 'epoch')}, {count(event.total_steps, 'step')} in total"
        )
    if isinstance(event, PhaseEnded):
        return f"{PHASE_TITLES[event.phase]}: done in {format_clock(event.seconds)}"
    if isinstance(event, EpochDone):
        return f"Epoch {event.epoch}: mean loss {event.mean_loss:.4f}"
    if isinstance(event, Measured):
        numbers = ", ".join(f"{measure_title(name).lower()} {value:.3g}" for name, value in event.values.items())
        return f"{f'Epoch {event.epoch}' if event.epoch else 'Without LoRA'}: {numbers}"
    if isinstance(event, StrengthTested):
        change = f", control images changed by {percent(fmean(event.change))}" if event.change else ""
        return f"Epoch {event.epoch} at strength {event.strength:g}: likeness {fixed(fmean(event.likeness))}{change}"
    if isinstance(event, Advised):
        return "\n  ".join([event.sentence, *event.reasons, *event.remedies])
    if isinstance(event, LoraWritten):
        return f"Saved: {event.path}"
    if isinstance(event, LoraRemoved):
        return f"Deleted old file: {event.path}"
    if isinstance(event, Resumed):
        return f"Resuming after step {event.step}"
    if isinstance(event, GridDrawn):
        return f"Grid: {event.path}"
    if isinstance(event, Noted):
        return f"{event.level}: {located(event.where, event.message)}"
    if isinstance(event, StateChanged):
        return event.message
    return ""


def _can_encode(out: TextIO, text: str) -> bool:
    try:
        text.encode(out.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _columns() -> int:
    """One less than the terminal's width, because some terminals wrap at the last column."""
    return shutil.get_terminal_size().columns - 1
