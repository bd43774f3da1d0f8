"""Who may call the routes, as the host decides it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Access:
    """Who may call the routes, as the webui decides it for its own.

    Reading is as open as the page: to everybody, or to those logged in on it; where there is no page (`has_page`), as
    open as the API. Steering routes are there only where the webui's API is (`may_steer`), and ask for the API's
    `credentials` (user → password) if there are any.
    """

    may_steer: bool = True
    has_page: bool = True
    credentials: Mapping[str, str] = field(default_factory=dict)
