"""Who may call which HTTP route: checks that FastAPI runs before the route."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from lib_lora_train.hosts.access import ApiAccess

PAGE_HEADER = "X-LoRA-Train-Page"
_BASIC_AUTH = {"WWW-Authenticate": "Basic"}
_basic = HTTPBasic(auto_error=False)


def require_page_login(app: FastAPI, access: ApiAccess) -> Callable[..., None]:
    """A check for users who may open the page: gradio stores their cookies in `app.tokens`."""

    def check(request: Request, given: HTTPBasicCredentials | None = Depends(_basic)) -> None:  # noqa: B008
        if getattr(app, "auth", None) is None or _is_known(given, access):
            return
        tokens = getattr(app, "tokens", {})
        cookies = (value for name, value in request.cookies.items() if name.startswith("access-token"))
        if not any(value in tokens for value in cookies):
            raise HTTPException(401, "Log in to the webui first.", _BASIC_AUTH)

    return check


def require_api_login(access: ApiAccess) -> Callable[..., None]:
    """A check for the user name and password of the webui's API; everybody passes if it has none."""

    def check(given: HTTPBasicCredentials | None = Depends(_basic)) -> None:  # noqa: B008
        if access.credentials and not _is_known(given, access):
            raise HTTPException(401, "Incorrect user name or password.", _BASIC_AUTH)

    return check


def require_page_key(current: Callable[[], str]) -> Callable[..., None]:
    """A check for the key in the page, which pages of other sites cannot read."""

    def check(request: Request) -> None:
        given = request.headers.get(PAGE_HEADER, "")
        if not secrets.compare_digest(given.encode(), current().encode()):
            raise HTTPException(403, {"message": "The server was restarted. Reload the page."})

    return check


def _is_known(given: HTTPBasicCredentials | None, access: ApiAccess) -> bool:
    if given is None or given.username not in access.credentials:
        return False
    return secrets.compare_digest(given.password.encode(), access.credentials[given.username].encode())


def require_json(request: Request) -> None:
    """Refuse anything but JSON: pages of other sites can make a browser send forms, but not JSON."""
    if not request.headers.get("content-type", "").startswith("application/json"):
        raise HTTPException(415, "Send JSON (Content-Type: application/json); use {} for an empty body.")
