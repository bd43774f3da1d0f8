"""The Captions panel: a container that JavaScript fills with what `CaptionSession` returns."""

from __future__ import annotations

import dataclasses
import json

from lib_lora_train.ui.widgets import build_html
from lib_lora_train.web.caption_edits import BULK_EDITS
from lib_lora_train.web.markup import text
from lib_lora_train.web.tagging_options import FIELDS


def build_captions_panel() -> None:
    """Build the panel. It has no component per image or tag, so 5,000 images stay fast."""
    edits = [
        {"name": name, "label": edit.label, "help": edit.help, "inputs": edit.inputs}
        for name, edit in BULK_EDITS.items()
    ]
    fields = [{"name": name, **dataclasses.asdict(field)} for name, field in FIELDS.items()]
    attributes = f"data-edits='{text(json.dumps(edits))}' data-tagging='{text(json.dumps(fields))}'"
    container = f"<div data-lt='captions' {attributes}></div>"
    build_html(container, "captions")
