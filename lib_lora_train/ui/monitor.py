"""The Monitor panel: containers that JavaScript fills by polling the status once a second."""

from __future__ import annotations

from lib_lora_train.ui.widgets import build_html
from lib_lora_train.web.markup import empty_state, heading

_NO_RUN = empty_state("Nothing is training", "Loss, samples and the log appear here while a run is in progress.")


def build_monitor_panel() -> None:
    """Build the panel."""
    build_html(f"<div data-lt='no-run'>{_NO_RUN}</div>", "no_run")
    build_html("<div data-lt='figures'></div>", "figures", classes=["lt-run-only"])
    build_html(
        f"<div class='lt-card'>{heading('Loss')}<div data-lt='chart'></div></div>", "loss", classes=["lt-run-only"]
    )
    build_html("<div data-lt='curves'></div>", "curves", classes=["lt-run-only"])
    build_html(
        f"<div class='lt-card'>{heading('Samples', 'one row per epoch, one column per prompt')}"
        "<div data-lt='sample-tools'></div><div data-lt='samples'></div></div>",
        "samples",
        classes=["lt-run-only"],
    )
    build_html(f"<div class='lt-card'>{heading('Log')}<div data-lt='log'></div></div>", "log", classes=["lt-run-only"])
