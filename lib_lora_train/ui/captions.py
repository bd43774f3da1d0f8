"""The Captions panel: a place for the page's JavaScript, which asks `caption_session` for everything it shows."""

from __future__ import annotations

import dataclasses
import json

from lib_lora_train.ui.widgets import build_html
from lib_lora_train.web.caption_edits import BULK_EDITS
from lib_lora_train.web.markup import text
from lib_lora_train.web.tagging import FIELDS


def build_captions_panel() -> None:
    """Lay the panel out; one place, as there is no component per image or tag: 5,000 images stay quick."""
    edits = [
        {"name": name, "label": edit.label, "help": edit.help, "asks": edit.asks} for name, edit in BULK_EDITS.items()
    ]
    fields = [{"name": name, **dataclasses.asdict(field)} for name, field in FIELDS.items()]
    given = f"data-edits='{text(json.dumps(edits))}' data-tagging='{text(json.dumps(fields))}'"
    place = f"<div data-lt='captions' {given}></div>"
    build_html(place, "captions")
