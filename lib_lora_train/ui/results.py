"""The Results panel: the grid and the files, one per epoch, as far as the run has come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lib_lora_train.ui.widgets import build_button, build_choice, build_html, build_text
from lib_lora_train.web.markup import empty_state, heading

_NO_FILES = empty_state(
    "No files yet", "A LoRA file is written after each epoch; the grid at the end shows which is best."
)


@dataclass(frozen=True)
class XyzPlot:
    """The way to the webui's own X/Y/Z plot: a text and the button that sends it."""

    text: Any
    send: Any


@dataclass(frozen=True)
class EpochGrid:
    """The grid that the webui draws itself: a sampler to choose, the button, and what is said about it."""

    sampler: Any
    draw: Any
    told: Any


def build_epoch_grid(samplers: Sequence[str]) -> EpochGrid | None:
    """A row for the webui's own grid; None outside a webui."""
    if not samplers:
        return None
    with gr.Row(elem_classes=["lt-fields", "lt-sources"]):
        sampler = build_choice("Sampler", "grid_sampler", samplers, info="The webui draws the last run's epochs")
        draw = build_button("Draw epoch grid", "grid_draw", tooltip="All epochs of the last run on its sample prompts.")
    told = build_html("", "grid_told")
    build_html("<div data-lt='grid-status'></div>", "grid_status")
    return EpochGrid(sampler, draw, told)


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
    text = build_text(
        "What is sent to txt2img", "xyz_text", tooltip="Prompt and settings of the plot; nothing to type here."
    )
    send = build_button("Send to X/Y/Z plot", "xyz_send", tooltip="Fill txt2img in; press Generate there.")
    bind_paste(send, text)
    return XyzPlot(text, send)
