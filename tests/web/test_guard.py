"""The door of the app: other sites, other hosts, logins and sizes."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import pytest

from lib_lora_train.web.guard import DoorRules, find_refusal, is_this_machine, own_names

HERE = DoorRules(hosts=own_names("127.0.0.1"))


def request(method: str = "GET", *, arrived_at: str = "127.0.0.1", path: str = "/", **headers: str) -> dict[str, Any]:
    named = {"host": "127.0.0.1:7861", **{name.replace("_", "-"): value for name, value in headers.items()}}
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in named.items()]
    return {"type": "http", "method": method, "path": path, "server": (arrived_at, 7861), "headers": encoded}


def status(rules: DoorRules, scope: Mapping[str, Any]) -> int:
    refusal = find_refusal(dict(scope), rules)
    return refusal.status if refusal else 200


@pytest.mark.parametrize(
    "host", ["127.0.0.1:7861", "localhost:7861", "LOCALHOST", "[::1]:7861", "127.0.0.2", "localhost."]
)
def test_this_machines_names_are_answered(host: str) -> None:
    assert status(HERE, request(host=host)) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "evil.example:7861",
        "10.1.2.3",
        "",
        "localhost@evil.example",
        "[::1",
        "0.0.0.0",
    ],
)
def test_a_foreign_host_is_refused(host: str) -> None:
    assert status(HERE, request(host=host)) == 403


def test_a_missing_or_repeated_host_is_refused() -> None:
    scope = request()
    assert status(HERE, {**scope, "headers": []}) == 403
    assert status(HERE, {**scope, "headers": scope["headers"] * 2}) == 403


def test_an_app_for_others_answers_the_address_the_connection_arrived_at() -> None:
    rules = DoorRules(hosts=own_names("0.0.0.0"))
    assert status(rules, request(arrived_at="192.168.1.5", host="192.168.1.5:7861")) == 200
    assert status(rules, request(arrived_at="192.168.1.5", host="192.168.1.6:7861")) == 403
    assert status(rules, request(arrived_at="192.168.1.5", host="evil.example")) == 403


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "OPTIONS"])
@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://localhost:7861",
        "http://127.0.0.1:8000",
        "http://127.0.0.1",
        "null",
        "",
        "file://127.0.0.1:7861",
    ],
)
def test_a_foreign_origin_is_refused_for_reading_too(method: str, origin: str) -> None:
    assert status(HERE, request(method, origin=origin)) == 403
    assert status(DoorRules(), request(method, origin=origin)) == 403


def test_our_own_page_and_programs_pass() -> None:
    assert status(HERE, request("POST", origin="http://127.0.0.1:7861", sec_fetch_site="same-origin")) == 200
    assert status(HERE, request("POST")) == 200
    assert status(DoorRules(), request("POST", host="studio.example", origin="https://studio.example:443")) == 200


def test_an_image_or_frame_of_another_site_is_refused_but_a_link_is_followed() -> None:
    foreign = {"sec_fetch_site": "cross-site"}
    assert status(HERE, request(**foreign, sec_fetch_mode="no-cors", sec_fetch_dest="image")) == 403
    assert status(HERE, request(**foreign, sec_fetch_mode="navigate", sec_fetch_dest="iframe")) == 403
    assert status(HERE, request(**foreign, sec_fetch_mode="navigate", sec_fetch_dest="document")) == 200
    assert status(HERE, request("POST", **foreign, sec_fetch_mode="navigate", sec_fetch_dest="document")) == 403


def test_allowed_origins_pass() -> None:
    rules = DoorRules(origins=("https://studio.example",), origin_pattern=r"https://.*\.mine\.example")
    assert status(rules, request("POST", origin="https://studio.example", sec_fetch_site="cross-site")) == 200
    assert status(rules, request("POST", origin="https://a.mine.example")) == 200
    assert status(rules, request("POST", origin="https://studio.example.evil.example")) == 403
    assert status(DoorRules(origins=("*",)), request("POST", origin="https://evil.example")) == 200


def test_a_proxy_that_rewrites_the_host_passes_in_a_webui_only() -> None:
    scope = request("POST", origin="https://studio.example", sec_fetch_site="same-origin")
    assert status(DoorRules(), scope) == 200
    assert status(HERE, scope) == 403


@pytest.mark.parametrize("header", ["", "Basic", "Basic !", "Basic YTpi", "Bearer bG9yYTpww6RzcycK"])
def test_a_wrong_login_is_refused(header: str) -> None:
    rules = DoorRules(hosts=HERE.hosts, login="lora:päss")
    assert status(rules, request(authorization=header)) == 401
    right = base64.b64encode("lora:päss".encode()).decode()
    assert status(rules, request(authorization=f"Basic {right}")) == 200


@pytest.mark.parametrize(("length", "expected"), [("10", 200), ("11", 413), ("9" * 5000, 413), ("-1", 400), ("x", 400)])
def test_a_large_body_is_refused_by_its_length(length: str, expected: int) -> None:
    assert status(DoorRules(max_body=10), request("POST", content_length=length)) == expected
    assert (
        status(DoorRules(max_body=1, large_bodies={"/up": 10}), request(path="/up", content_length=length)) == expected
    )


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", True), ("127.0.0.9", True), ("::1", True), ("0.0.0.0", False), ("::", False), ("box", False)],
)
def test_listening_beyond_this_machine_is_recognised(host: str, expected: bool) -> None:
    assert is_this_machine(host) is expected
