"""What the webui gets from us: a tab, and the routes behind it. `scripts/lora_train.py` registers both."""

from __future__ import annotations

import logging
from typing import Any

from lib_lora_train.core.errors import HostError
from lib_lora_train.hosts.webui.detect import detect_host
from lib_lora_train.hosts.webui.options import bind_paste_button, outputs_folder, webui_access
from lib_lora_train.ui.app import open_session
from lib_lora_train.ui.tab import TITLE, build_tab
from lib_lora_train.ui.unavailable import build_refusal
from lib_lora_train.web.routes import install_routes
from lib_lora_train.web.session import Session

log = logging.getLogger("lora_train")


def tabs() -> list[tuple[Any, str, str]]:
    """Our tab, as the webui asks for it at each start of its user interface; a refusal is a tab too."""
    try:
        blocks = build_tab(_desk(), bind_paste_button)
    except HostError as reason:
        log.error("%s", reason)
        blocks = build_refusal(str(reason))
    return [(blocks, TITLE, "lora_train_tab")]


def add_routes(_blocks: Any, app: Any) -> None:
    """Our routes, in the webui's application; none where the webui was refused."""
    try:
        session = _desk()
    except HostError:
        return
    install_routes(app, session, webui_access())


def _desk() -> Session:
    """One per process: a run goes on while the user interface is reloaded."""
    return open_session(outputs_folder(), detect_host)
