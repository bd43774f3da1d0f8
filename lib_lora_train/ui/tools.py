"""The Tools panel: a container that JavaScript fills; `LoraToolsSession` does the work."""

from __future__ import annotations

from lib_lora_train.ui.widgets import build_html


def build_tools_panel() -> None:
    """Build the panel."""
    build_html("<div data-lt='tools'></div>", "tools")
