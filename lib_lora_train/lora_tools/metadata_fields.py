"""The fields of a LoRA file's metadata that can be set by a short name, as on the command line and the page."""

from __future__ import annotations

from collections.abc import Mapping

FIELDS: Mapping[str, str] = {
    "title": "modelspec.title",
    "author": "modelspec.author",
    "description": "modelspec.description",
    "trigger": "modelspec.trigger_phrase",
    "license": "modelspec.license",
}
"""Name → key in ModelSpec."""
