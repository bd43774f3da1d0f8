"""A run on the terminal: its events as lines, and what Ctrl-C does."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

from lib_lora_train.cli.terminal import Terminal

if TYPE_CHECKING:
    from lib_lora_train.core.control import Control
    from lib_lora_train.core.events import Event

_STOPPING = {
    True: "Stopping after this step and saving the LoRA.",
    False: "Stopping. No step was taken yet, so there is no LoRA to save.",
}
"""What the first Ctrl-C says, by whether the run has taken a step."""


def show_run(events: Iterable[Event], control: Control) -> None:
    """Show a run's events on the terminal; the first Ctrl-C stops it after the step and saves the result."""
    terminal = Terminal(sys.stdout)
    with stop_on_interrupt(control, terminal):
        try:
            for event in events:
                terminal.show(event)
        finally:
            terminal.close()


@contextlib.contextmanager
def stop_on_interrupt(control: Control, terminal: Terminal) -> Iterator[None]:
    """Inside, the first Ctrl-C stops the run after its step and saves the result, if any; a second one aborts.

    A plain KeyboardInterrupt would be raised in the middle of a step and lose it.
    """

    def stop(_number: int, _frame: FrameType | None) -> None:
        if control.is_stopped:
            raise KeyboardInterrupt
        control.stop()
        terminal.write(f"{_STOPPING[terminal.has_steps]} Press Ctrl-C again to abort.")

    previous = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
