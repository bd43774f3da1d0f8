"""Who may call the HTTP routes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ApiAccess:
    """Who may call the HTTP routes, following the webui's own access rules.

    Read-only routes are as open as the page: to everybody, or to users logged in there. Without a page (`has_page`),
    they are as open as the API. Routes that control runs exist only if the webui's API is on (`allows_control`) and
    require the API's `credentials` (user → password) if there are any. Pages of other sites may call none of them
    except those of `allowed_origins` ("*": every site) or matching the regular expression `allowed_origin_pattern`.
    """

    allows_control: bool = True
    has_page: bool = True
    credentials: Mapping[str, str] = field(default_factory=dict)
    allowed_origins: tuple[str, ...] = ()
    allowed_origin_pattern: str = ""
