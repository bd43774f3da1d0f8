"""The Results panel: the grid and the files of the current run, and past runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lib_lora_train.ui.widgets import build_button, build_hidden_text, build_html, build_text
from lib_lora_train.web.markup import empty_state, heading

_NO_FILES = empty_state(
    "No files yet", "A LoRA file is written after each epoch. The grid at the end helps to choose the best."
)


@dataclass(frozen=True)
class XyzPlot:
    """Sends the epochs to the X/Y/Z plot of the webui: a text and a button."""

    text: Any
    send: Any


def build_results_panel(bind_paste: Callable[[Any, Any], None] | None) -> XyzPlot | None:
    """Build the panel, inside a webui with a button for its X/Y/Z plot."""
    build_html(f"<div data-lt='no-files'>{_NO_FILES}</div>", "no_files")
    build_html(
        f"<div class='lt-card'>{heading('Grid', 'epochs × prompts, first row without LoRA')}"
        "<div data-lt='grid'></div></div>",
        "grid",
        classes=["lt-grid-only"],
    )
    build_html(
        f"<div class='lt-card'>{heading('Epoch grid', 'all epochs of this run, with other prompts and strengths')}"
        "<div data-lt='epoch-grid'></div></div>",
        "epoch_grid",
        classes=["lt-files-only"],
    )
    build_html(
        f"<div class='lt-card'>{heading('Files')}<div data-lt='files'></div></div>", "files", classes=["lt-files-only"]
    )
    build_html("<div data-lt='comparison'></div>", "comparison")
    build_html("<div data-lt='runs'></div>", "runs")
    if bind_paste is not None:
        _build_paste(bind_paste)
    return None if bind_paste is None else _build_xyz_plot(bind_paste)


def _build_paste(bind_paste: Callable[[Any, Any], None]) -> None:
    """A hidden pair with which JavaScript sends a text to txt2img, as “Send to txt2img” of the webui does."""
    with gr.Row(elem_classes=["lt-hidden"]):
        bind_paste(build_button("Send to txt2img", "paste_send"), build_hidden_text("paste_text", ""))


def _build_xyz_plot(bind_paste: Callable[[Any, Any], None]) -> XyzPlot:
    """The button works like “Send to txt2img” of the webui, with the text beside it."""
    build_html(heading("X/Y/Z plot", "the epochs of the last run, generated in txt2img"), "xyz_heading")
    text = build_text("Sent to txt2img", "xyz_text", tooltip="Prompt and settings of the plot.")
    send = build_button("Send to X/Y/Z plot", "xyz_send", tooltip="Fill in txt2img; then press Generate there.")
    bind_paste(send, text)
    return XyzPlot(text, send)
