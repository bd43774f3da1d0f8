"""Values exchanged with the page as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib_lora_train.core.user_paths import user_path


def optional_path(values: Mapping[str, Any], name: str) -> Path | None:
    """The path typed into a text box, None if it is empty."""
    text = str(values.get(name) or "").strip().strip("\"'")
    return user_path(text) if text else None


def json_ready(value: Any) -> Any:
    """`value` with NaN and infinity, which JSON lacks, replaced by None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: json_ready(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(inner) for inner in value]
    return value
