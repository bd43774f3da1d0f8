"""The door of the app: which requests are answered at all, decided from their headers before anything reads them.

A page of another site that is open in the same browser can send requests to this machine. Two headers that pages
cannot forge give it away: `Host` holds its own name if it has pointed that name at this machine (DNS rebinding), and
`Origin` or `Sec-Fetch-Site` says that another site is asking. The stand-alone app guards every route with
`RequestGuard`, gradio's included. Inside a webui only our routes are guarded, and every host is answered, as the webui
decides where it listens.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import re
import secrets
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

MAX_BODY_BYTES = 8 * 2**20
"""A request holds settings or captions; an uploaded image has its own limit."""

_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_OTHER_SITES = ("cross-site", "same-site")
_READING = ("GET", "HEAD")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class DoorRules:
    """Whom the app answers.

    `hosts` are the names it is reached by (None: any); an address is also accepted if the connection arrived there.
    `origins` are other sites that may send requests, such as `https://studio.example` ("*": every site), and
    `origin_pattern` is a regular expression for more. `login` is `user:password`, "" for none. `large_bodies` are the
    limits in bytes of the paths that take more than `max_body` bytes.
    """

    hosts: Collection[str] | None = None
    origins: Collection[str] = ()
    origin_pattern: str = ""
    login: str = ""
    max_body: int = MAX_BODY_BYTES
    large_bodies: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Refusal:
    """The HTTP status and a sentence for the user."""

    status: int
    message: str


def is_this_machine(host: str) -> bool:
    """Whether an address to listen at is reachable from this machine only."""
    address = _address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def own_names(host: str) -> tuple[str, ...]:
    """The names by which an app listening at `host` is reached: this machine's names, and `host` itself."""
    local = ("localhost", "127.0.0.1", "::1")
    if is_this_machine(host):
        return (*local, host.lower())
    name = socket.gethostname().lower()
    return (*local, host.lower(), name, f"{name.partition('.')[0]}.local")


def find_refusal(scope: Scope, rules: DoorRules) -> Refusal | None:
    """Why this request is refused, None if it may pass."""
    headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
    hosts = [value for name, value in headers if name == "host"]
    known = dict(headers)
    if rules.hosts is not None and (len(hosts) != 1 or not _is_own_host(hosts[0], scope, rules.hosts)):
        return Refusal(
            403,
            f"This app was not started for the address {', '.join(hosts) or 'that the request lacks'}. If that is you, "
            "restart it with --allow-host and that name.",
        )
    if not _is_own_site(scope, known, rules):
        return Refusal(403, "This request comes from a page of another site, which may not use this app.")
    if rules.login and not _has_login(known.get("authorization", ""), rules.login):
        return Refusal(401, "Log in with the user name and password that were printed or set when the app was started.")
    return _size_refusal(known.get("content-length", ""), _body_limit(scope, rules))


def _is_own_host(value: str, scope: Scope, names: Collection[str]) -> bool:
    try:
        name = (urlsplit(f"//{value}").hostname or "").rstrip(".")
    except ValueError:
        return False
    address = _address(name)
    if address is None:
        return name in names
    arrived_at = _address((scope.get("server") or ("",))[0] or "")
    return address.is_loopback or name in names or address == arrived_at


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None


def _is_own_site(scope: Scope, headers: Mapping[str, str], rules: DoorRules) -> bool:
    """Whether a page of ours, an allowed site or no page at all sent this.

    Another site may link to ours, as it cannot read what the browser opens then; but it may not show it in a frame.
    """
    site, origin = headers.get("sec-fetch-site", ""), headers.get("origin")
    if origin is not None:
        is_rewritten = rules.hosts is None and site == "same-origin"  # by a proxy in front of the webui
        return is_rewritten or _is_allowed_origin(origin, headers.get("host", ""), rules)
    if site not in _OTHER_SITES:
        return True
    is_link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return is_link and scope.get("method") in _READING


def _is_allowed_origin(origin: str, host: str, rules: DoorRules) -> bool:
    if "*" in rules.origins or origin.lower() in rules.origins:
        return True
    if rules.origin_pattern and re.fullmatch(rules.origin_pattern, origin):
        return True
    scheme, _, place = origin.lower().partition("://")
    default = _DEFAULT_PORTS.get(scheme)
    return default is not None and place.removesuffix(default) == host.lower().removesuffix(default)


def _has_login(header: str, login: str) -> bool:
    scheme, _, encoded = header.partition(" ")
    try:
        given = base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        return False
    return scheme.lower() == "basic" and secrets.compare_digest(given, login.encode())


def _body_limit(scope: Scope, rules: DoorRules) -> int:
    return (rules.large_bodies or {}).get(scope.get("path", ""), rules.max_body)


def _size_refusal(length: str, limit: int) -> Refusal | None:
    if length and not (length.isascii() and length.isdigit()):
        return Refusal(400, "The Content-Length of the request is not a number.")
    return _too_large(limit) if length and int(length[:20]) > limit else None


def _too_large(limit: int) -> Refusal:
    return Refusal(413, f"The request is larger than {limit / 2**20:.0f} MiB, which is the limit here.")


class RequestGuard:
    """An ASGI application that answers what may pass with `app`, and refuses the rest."""

    def __init__(self, app: App, rules: DoorRules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        refusal = find_refusal(scope, self._rules)
        if refusal is None and scope["type"] == "http" and _is_of_unknown_length(scope):
            limit = _body_limit(scope, self._rules)
            body = await _read_body(receive, limit)
            refusal, receive = (_too_large(limit), receive) if body is None else (None, _replay(body, receive))
        if refusal is not None:
            return await _refuse(scope, send, refusal)
        return await self._app(scope, receive, send)


def _is_of_unknown_length(scope: Scope) -> bool:
    """Whether the request sends its body in chunks without saying how many."""
    return any(name.lower() == b"transfer-encoding" for name, _ in scope["headers"])


async def _read_body(receive: Receive, limit: int) -> bytes | None:
    """The whole body, None as soon as it exceeds `limit`."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > limit:
            return None
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns a body that was read already, then what follows."""
    pending: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> MutableMapping[str, Any]:
        return pending.pop() if pending else await receive()

    return replay


async def _refuse(scope: Scope, send: Send, refusal: Refusal) -> None:
    if scope["type"] == "websocket":
        return await send({"type": "websocket.close", "code": 1008, "reason": refusal.message[:120]})
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b'Basic realm="LoRA Train"'))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    body = json.dumps({"detail": {"message": refusal.message}}).encode()
    return await send({"type": "http.response.body", "body": body})
