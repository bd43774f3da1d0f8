"""The webui extension: its tab and routes, which `scripts/lora_train.py` registers."""

from __future__ import annotations

import logging
from typing import Any

from lib_lora_train.core.errors import HostError
from lib_lora_train.hosts.webui.detect import detect_host
from lib_lora_train.hosts.webui.options import bind_paste_button, outputs_folder, webui_access
from lib_lora_train.ui.app import open_session
from lib_lora_train.ui.tab import TITLE, build_tab
from lib_lora_train.ui.unavailable import build_error_tab
from lib_lora_train.web.routes import install_routes
from lib_lora_train.web.session import Session

log = logging.getLogger("lora_train")


def tabs() -> list[tuple[Any, str, str]]:
    """The tab, for the webui's `on_ui_tabs`. If the webui is not supported, the tab says so."""
    try:
        blocks = build_tab(_session(), bind_paste_button)
    except HostError as reason:
        log.error("%s", reason)
        blocks = build_error_tab(str(reason))
    return [(blocks, TITLE, "lora_train_tab")]


def add_routes(_blocks: Any, app: Any) -> None:
    """Add the routes to the application of the webui, unless it is not supported."""
    try:
        session = _session()
    except HostError:
        return
    install_routes(app, session, webui_access())


def _session() -> Session:
    """The one session of this process: runs continue while the user interface is reloaded."""
    return open_session(outputs_folder(), detect_host)
