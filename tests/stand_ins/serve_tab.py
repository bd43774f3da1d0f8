"""Serves the tab for the browser tests: `python tests/stand_ins/serve_tab.py PORT HOME`, project on PYTHONPATH.

With the gradio that the stand-alone app pins it is that app. With a webui's gradio, or `webui` as third argument, the
tab is inside a page with txt2img, with style and scripts put into the page's head, as the webuis do it.
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
from tests.stand_ins.webui import infotext

MAJOR = int(gr.__version__.split(".")[0])


TXT2IMG = {
    "prompt": "Prompt",
    "neg_prompt": "Negative prompt",
    "steps": "Steps",
    "sampling": "Sampler",
    "cfg_scale": "CFG scale",
    "width": "Size-1",
    "height": "Size-2",
    "clip_skip": "Clip skip",
}
"""The fields of txt2img by element id: their names in an infotext."""


def page_in_a_webui(session: Session, *, has_txt2img: bool) -> Any:
    """The tab beside another one, which is the webui's txt2img or has nothing to do with it."""
    bound: list[tuple[Any, Any]] = []
    tab = build_tab(session, (lambda button, text: bound.append((button, text))) if has_txt2img else None)
    with gr.Blocks(analytics_enabled=False) as page, gr.Tabs():
        with gr.Tab("LoRA Train"):
            tab.render()
        with gr.Tab("Other"):
            fields = [gr.Textbox(label=name, lines=2, interactive=True, elem_id=f"txt2img_{name}") for name in TXT2IMG]
        for button, text in bound:
            button.click(_paste, inputs=[text], outputs=fields, queue=False)
    return page


def _paste(text: str) -> list[str]:
    """The texts of txt2img's fields, as A1111 fills them in; options are at their defaults."""
    values = infotext.parse(text)
    return [str(values.get(name, "")) for name in TXT2IMG.values()]


def put_into_head(elements: str) -> None:
    """Gradio 3 has no way to do this: webuis change the page that its templates give."""
    from gradio import routes

    respond = routes.templates.TemplateResponse

    def with_elements(*arguments: Any, **named: Any) -> Any:
        response = respond(*arguments, **named)
        response.body = response.body.replace(b"</head>", elements.encode() + b"</head>")
        response.init_headers()
        return response

    routes.templates.TemplateResponse = with_elements


def make_app(session: Session, *, has_txt2img: bool) -> Any:
    """The ASGI application for this gradio."""
    if MAJOR >= 6 and not has_txt2img:
        return own_app.make_app(session)
    app = make_api()
    install_routes(app, session)
    head = {"head": own_app.page_head(), "ssr_mode": False} if MAJOR >= 6 else {}
    if not head:
        put_into_head(own_app.page_head())
    return gr.mount_gradio_app(app, page_in_a_webui(session, has_txt2img=has_txt2img), path="/", **head)


def main() -> None:
    port, home = int(sys.argv[1]), Path(sys.argv[2])
    session = own_app.open_session(home / "outputs", lambda: StandaloneHost(None, None, home / "models" / "Lora"))
    app = make_app(session, has_txt2img=sys.argv[3:] == ["webui"])
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main()
