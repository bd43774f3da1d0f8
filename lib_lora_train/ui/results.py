"""The Results panel: the grid and the files, one per epoch, as far as the run has come."""

from __future__ import annotations

from lib_lora_train.ui.markup import empty_state, heading
from lib_lora_train.ui.widgets import build_html

_NO_FILES = empty_state(
    "No files yet", "A LoRA file is written after each epoch; the grid at the end shows which is best."
)


def build_results_panel() -> None:
    """Lay the panel out; nothing in it changes from the server's side."""
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
