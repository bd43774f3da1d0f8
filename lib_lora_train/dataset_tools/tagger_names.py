"""The names of what a request for a tagger can choose."""

from __future__ import annotations

from typing import Literal

WD14 = "WD14"
"""The tagger that runs a model of the user, in any webui and without one."""

Existing = Literal["skip", "append", "replace"]
EXISTING: tuple[Existing, ...] = ("skip", "append", "replace")
"""What happens to captions that exist."""
