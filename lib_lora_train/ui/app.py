"""The stand-alone app: the tab and its routes, served on this machine only."""

from __future__ import annotations

import os
import sys
import threading
import time
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.project import PROJECT_ROOT
from lib_lora_train.demo.demo import demo_config
from lib_lora_train.hosts.host import Host
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.models.embedded import EMBEDDED_CHECKPOINT
from lib_lora_train.runs.runner import Runner
from lib_lora_train.ui.tab import build_tab
from lib_lora_train.web.routes import install_routes, make_api
from lib_lora_train.web.session import Session

_PAGE_STYLE = ".gradio-container { overflow: clip !important; }"  # "hidden" would disable the sticky strip
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]


def make_app(session: Session) -> Any:
    """The ASGI application: our routes first, gradio's page on everything else."""
    app = make_api()
    install_routes(app, session)
    return gr.mount_gradio_app(
        app,
        build_tab(session),
        path="/",
        theme=_theme(),
        css=(PROJECT_ROOT / "style.css").read_text(encoding="utf-8") + _PAGE_STYLE,
        head=_scripts(),
        footer_links=[],
        ssr_mode=False,
    )


def _theme() -> Any:
    """Gradio's default theme in indigo, with system fonts, as nothing is loaded from the network."""
    return gr.themes.Default(primary_hue="indigo", neutral_hue="slate", font=_FONTS, font_mono=_MONO)


def _scripts() -> str:
    """The JavaScript of the page as inline script elements. Webuis load the files themselves."""
    texts = [file.read_text(encoding="utf-8") for file in sorted((PROJECT_ROOT / "javascript").glob("*.js"))]
    return "".join(f"<script>{text}</script>" for text in texts)


_sessions: dict[Path, Session] = {}


def open_session(outputs: Path, make_host: Callable[[], Host]) -> Session:
    """The one session for `outputs` in this process, so that runs survive reloading the page or the user interface.

    `outputs` receives run folders and the draft of the form. `make_host` is called the first time only.
    """
    if outputs not in _sessions:
        _sessions[outputs] = Session(Runner(make_host(), outputs), outputs, demo=_demo)
    return _sessions[outputs]


def _demo() -> TrainConfig:
    """The demo with the tiny model that it was made for, whatever a webui has loaded."""
    return demo_config().replace(checkpoint=str(EMBEDDED_CHECKPOINT))


def serve(*, host: str = "127.0.0.1", port: int = 7861, home: Path = PROJECT_ROOT, open_browser: bool = True) -> None:
    """Serve the app until interrupted. `outputs/` and `models/Lora/` are created in `home`."""
    app = make_app(open_session(home / "outputs", lambda: StandaloneHost(None, None, home / "models" / "Lora")))
    server = uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_level="warning"))
    address = f"http://{host}:{port}/"
    threading.Thread(target=_announce, args=(server, address, open_browser), daemon=True).start()
    server.run()


def _announce(server: Any, address: str, open_browser: bool) -> None:
    """Print the address once the server answers, and open it in the browser if there is a desktop."""
    while not server.started:
        if server.should_exit:
            return
        time.sleep(0.1)
    print(f"LoRA Train is running at {address} (press Ctrl-C to stop)", flush=True)
    has_desktop = sys.platform in ("win32", "darwin") or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    if open_browser and has_desktop:
        webbrowser.open(address)
