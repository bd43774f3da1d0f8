"""The Results panel: the grid and the files, one per epoch, as far as the run has come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lib_lora_train.ui.markup import empty_state, heading
from lib_lora_train.ui.widgets import build_button, build_html, build_text

_NO_FILES = empty_state(
    "No files yet", "A LoRA file is written after each epoch; the grid at the end shows which is best."
)


@dataclass(frozen=True)
class XyzPlot:
    """The way to the webui's own X/Y/Z plot: a text and the button that sends it."""

    text: Any
    send: Any


def build_results_panel(bind_paste: Callable[[Any, Any], None] | None) -> XyzPlot | None:
    """Lay the panel out; with a webui around it, with the way to its X/Y/Z plot."""
    build_html(f"<div data-lt='no-files'>{_NO_FILES}</div>", "no_files")
    build_html(
        f"<div class='lt-card'>{heading('Grid', 'epochs × prompts, the first row without LoRA')}"
        "<div data-lt='grid'></div></div>",
        "grid",
        classes=["lt-grid-only"],
    )
    build_html(
        f"<div class='lt-card'>{heading('Files')}<div data-lt='files'></div></div>", "files", classes=["lt-files-only"]
    )
    build_html("<div data-lt='runs'></div>", "runs")
    return None if bind_paste is None else _build_xyz_plot(bind_paste)


def _build_xyz_plot(bind_paste: Callable[[Any, Any], None]) -> XyzPlot:
    """The button does what the webui's own “Send to txt2img” does, with the text beside it."""
    build_html(heading("X/Y/Z plot", "the epochs of the last run, drawn by txt2img"), "xyz_heading")
    text = build_text("What is sent to txt2img", "xyz_text")
    send = build_button("Send to X/Y/Z plot", "xyz_send")
    bind_paste(send, text)
    return XyzPlot(text, send)
