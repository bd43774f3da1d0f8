"""Who may call the HTTP routes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ApiAccess:
    """Who may call the HTTP routes, following the webui's own access rules.

    Read-only routes are as open as the page: to everybody, or to users logged in there. Without a page (`has_page`),
    they are as open as the API. Routes that control runs exist only if the webui's API is on (`allows_control`) and
    require the API's `credentials` (user → password) if there are any.
    """

    allows_control: bool = True
    has_page: bool = True
    credentials: Mapping[str, str] = field(default_factory=dict)
