"""Refuses settings for models that cannot be trained here, before they become a LoRA for Stable Diffusion."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lib_lora_train.formats.kohya.import_state import parse_flag
from lib_lora_train.models.other_models import find_by_word

_CHECKBOX = re.compile(r"([a-z0-9_]+?)_checkbox")
_MODULE = re.compile(r"networks\.(?:lora|lokr|loha|locon|oft)_(.+)")


def find_other_model(values: Mapping[str, Any]) -> str:
    """The model that these settings of kohya's tools are for; "" if it may be SD1, SD2 or SDXL."""
    return next((name for sign in _signs(values) if (name := find_by_word(sign))), "")


def _signs(values: Mapping[str, Any]) -> Iterator[str]:
    """What in the settings names a model."""
    for key, value in values.items():
        checkbox = _CHECKBOX.fullmatch(str(key))
        if checkbox and parse_flag(value):
            yield checkbox[1]
    yield str(values.get("LoRA_type", ""))
    module = _MODULE.match(str(values.get("network_module", "")))
    if module:
        yield module[1]
    for key in ("ss_base_model_version", "modelspec.architecture"):
        yield str(values.get(key, ""))
