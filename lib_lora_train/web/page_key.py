"""The key that is part of the page: only those who may open the page can request its actions."""

from __future__ import annotations

import functools
import secrets


@functools.cache
def page_key() -> str:
    """The key of this process. It stays the same when the user interface is reloaded."""
    return secrets.token_urlsafe(16)
