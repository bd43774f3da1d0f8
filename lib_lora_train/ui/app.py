"""The stand-alone app: the tab and its routes, served on this machine unless it is started for others."""

from __future__ import annotations

import os
import secrets
import sys
import threading
import time
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import HostError
from lib_lora_train.core.project import PROJECT_ROOT
from lib_lora_train.hosts.host import Host
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.models.embedded import EMBEDDED_CHECKPOINT
from lib_lora_train.runs.demo.demo import demo_config
from lib_lora_train.runs.runner import Runner
from lib_lora_train.ui.tab import build_tab
from lib_lora_train.web.guard import DoorRules, RequestGuard, is_this_machine, own_names
from lib_lora_train.web.routes import PREFIX, install_routes, make_api
from lib_lora_train.web.session import Session
from lib_lora_train.web.uploads import large_bodies

_HERE = "127.0.0.1"
_PAGE_STYLE = ".gradio-container { overflow: clip !important; }"  # "hidden" would disable the sticky strip
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]


def make_app(session: Session, door: DoorRules | None = None) -> Any:
    """The ASGI application: our routes first, gradio's page on everything else.

    `door` says who may call them; by default only this machine.
    """
    app = make_api()
    app.add_middleware(RequestGuard, rules=door or Address().door())
    install_routes(app, session)
    return gr.mount_gradio_app(
        app,
        build_tab(session),
        path="/",
        theme=_theme(),
        head=page_head(),
        footer_links=[],
        ssr_mode=False,
    )


def _theme() -> Any:
    """Gradio's default theme in indigo, with system fonts, as nothing is loaded from the network."""
    return gr.themes.Default(primary_hue="indigo", neutral_hue="slate", font=_FONTS, font_mono=_MONO)


def page_head() -> str:
    """The style and JavaScript of the page as inline elements. Webuis load the files themselves.

    Not by gradio's `css`, which leaves out the rules that depend on the width of a container.
    """
    style = (PROJECT_ROOT / "style.css").read_text(encoding="utf-8") + _PAGE_STYLE
    scripts = [file.read_text(encoding="utf-8") for file in sorted((PROJECT_ROOT / "javascript").glob("*.js"))]
    return f"<style>{style}</style>" + "".join(f"<script>{script}</script>" for script in scripts)


_sessions: dict[Path, Session] = {}
_opening = threading.Lock()


def open_session(outputs: Path, make_host: Callable[[], Host]) -> Session:
    """The one session for `outputs` in this process, so that runs survive reloading the page or the user interface.

    `outputs` receives run folders and the draft of the form. `make_host` is called the first time only.
    """
    with _opening:
        if outputs not in _sessions:
            _sessions[outputs] = Session(Runner(make_host(), outputs), outputs, demo=_demo)
        return _sessions[outputs]


def _demo() -> TrainConfig:
    """The demo with the tiny model that it was made for, whatever a webui has loaded."""
    return demo_config().replace(checkpoint=str(EMBEDDED_CHECKPOINT))


@dataclass(frozen=True)
class Address:
    """Where the app listens and who may use it.

    `allowed_hosts` are names that it is also reached by, such as a proxy's. `login` is `user:password`, "" for none;
    None makes one up if other machines can reach the app.
    """

    host: str = _HERE
    port: int = 7861
    allowed_hosts: Sequence[str] = ()
    login: str | None = None

    @property
    def is_public(self) -> bool:
        """Whether other machines can reach the app."""
        return not is_this_machine(self.host) or bool(self.allowed_hosts)

    def door(self) -> DoorRules:
        """The rules for this address; HostError for a login without a colon."""
        if self.login and not all(self.login.partition(":")):
            raise HostError("The login must have the form USER:PASSWORD.")
        login = self.login
        if login is None:
            login = f"lora:{secrets.token_urlsafe(12)}" if self.is_public else ""
        names = [name.lower() for name in self.allowed_hosts]
        origins = tuple(f"{scheme}://{name}" for name in names for scheme in ("http", "https"))
        hosts = (*own_names(self.host), *(name.partition(":")[0] for name in names))
        return DoorRules(hosts=hosts, origins=origins, login=login, large_bodies=large_bodies(PREFIX))

    def announcement(self, door: DoorRules) -> str:
        """Where the app is, and how to log in."""
        shown = f"[{self.host}]" if ":" in self.host else self.host
        text = f"LoRA Train is running at http://{shown}:{self.port}/ (press Ctrl-C to stop)"
        if door.login and not self.login:
            user, _, password = door.login.partition(":")
            return f"{text}\nOther machines can reach it. Log in as {user} with the password {password}"
        if not door.login and self.is_public:
            return (
                f"{text}\nWARNING: other machines can reach it and there is NO LOG-IN: everyone in the network can "
                "read and change your images, captions and runs. Start it with --login USER:PASSWORD."
            )
        return text


def serve(
    *,
    host: str = _HERE,
    port: int = 7861,
    home: Path = PROJECT_ROOT,
    open_browser: bool = True,
    login: str | None = None,
    allowed_hosts: Sequence[str] = (),
) -> None:
    """Serve the app until interrupted, at an `Address`. `outputs/` and `models/Lora/` are created in `home`."""
    address = Address(host, port, allowed_hosts, login)
    door = address.door()
    session = open_session(home / "outputs", lambda: StandaloneHost(None, None, home / "models" / "Lora"))
    config = uvicorn.Config(make_app(session, door), host=address.host, port=address.port, log_level="warning")
    server = uvicorn.Server(config)
    announcement = address.announcement(door)
    threading.Thread(target=_announce, args=(server, announcement, address, open_browser), daemon=True).start()
    server.run()


def _announce(server: Any, announcement: str, address: Address, open_browser: bool) -> None:
    """Print the address once the server answers, and open it in the browser if there is a desktop."""
    while not server.started:
        if server.should_exit:
            return
        time.sleep(0.1)
    print(announcement, flush=True)
    has_desktop = sys.platform in ("win32", "darwin") or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    if open_browser and has_desktop:
        webbrowser.open(f"http://{_HERE if address.host in ('0.0.0.0', '::') else address.host}:{address.port}/")
