"""The Tools panel: a place for the page's JavaScript, which asks `tools_session`."""

from __future__ import annotations

from lib_lora_train.ui.widgets import build_html


def build_tools_panel() -> None:
    """Lay the panel out."""
    build_html("<div data-lt='tools'></div>", "tools")
