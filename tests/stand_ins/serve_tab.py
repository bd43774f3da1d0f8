"""Serves the tab for the browser tests: `python tests/stand_ins/serve_tab.py PORT HOME`, project on PYTHONPATH.

With the gradio that the stand-alone app pins it is that app. With a webui's gradio the tab lies inside a page of other
tabs, with style and scripts put into the page's head, as the webuis do it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn

from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.ui import app as own_app
from lib_lora_train.ui.tab import build_tab
from lib_lora_train.web.routes import install_routes, make_api
from lib_lora_train.web.session import Session
from tests.paths import ROOT

MAJOR = int(gr.__version__.split(".")[0])


def page_in_a_webui(session: Session) -> Any:
    """The tab beside another one."""
    tab = build_tab(session)
    style = (ROOT / "style.css").read_text(encoding="utf-8")
    with gr.Blocks(css=style, analytics_enabled=False) as page, gr.Tabs():
        with gr.Tab("LoRA Train"):
            tab.render()
        with gr.Tab("Other"):
            gr.Textbox(label="Other")
    return page


def put_into_head(scripts: str) -> None:
    """Gradio 3 has no way of its own: webuis change the page that its templates give."""
    from gradio import routes

    respond = routes.templates.TemplateResponse

    def with_scripts(*arguments: Any, **named: Any) -> Any:
        response = respond(*arguments, **named)
        response.body = response.body.replace(b"</head>", scripts.encode() + b"</head>")
        response.init_headers()
        return response

    routes.templates.TemplateResponse = with_scripts


def make_app(session: Session) -> Any:
    """The ASGI application for this gradio."""
    if MAJOR >= 6:
        return own_app.make_app(session)
    app = make_api()
    install_routes(app, session)
    put_into_head(own_app._scripts())
    return gr.mount_gradio_app(app, page_in_a_webui(session), path="/")


def main() -> None:
    port, home = int(sys.argv[1]), Path(sys.argv[2])
    session = own_app.open_session(home / "outputs", lambda: StandaloneHost(None, None, home / "models" / "Lora"))
    uvicorn.run(make_app(session), host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main()
