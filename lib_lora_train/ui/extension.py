"""The webui extension: its tab and routes, which `scripts/lora_train.py` registers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lib_lora_train.hosts.webui.options import bind_paste_button, outputs_folder, webui_access
from lib_lora_train.ui.tab import TITLE, build_tab
from lib_lora_train.web.lazy_session import lazy_session
from lib_lora_train.web.routes import install_routes

if TYPE_CHECKING:
    from lib_lora_train.web.session import Session


def tabs() -> list[tuple[Any, str, str]]:
    """The tab, for the webui's `on_ui_tabs`. The page that loads it opens the session."""
    return [(build_tab(lazy_session(_open), bind_paste_button), TITLE, "lora_train_tab")]


def add_routes(_blocks: Any, app: Any) -> None:
    """Add the routes to the application of the webui."""
    install_routes(app, lazy_session(_open), webui_access())


def _open() -> Session:
    """The one session of this process: runs continue while the user interface is reloaded.

    Imported here because it imports PyTorch and everything that trains.
    """
    from lib_lora_train.hosts.webui.detect import detect_host
    from lib_lora_train.ui.app import open_session

    return open_session(outputs_folder(), detect_host)
