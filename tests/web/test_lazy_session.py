"""A session that is opened when it is first used: once, by whoever comes first."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from lib_lora_train.core.errors import SessionUnavailableError
from lib_lora_train.hosts.access import ApiAccess
from lib_lora_train.web.lazy_session import lazy_session
from lib_lora_train.web.page_key import page_key
from lib_lora_train.web.route_access import PAGE_HEADER
from lib_lora_train.web.routes import COMMANDS, PREFIX, install_routes, make_api
from lib_lora_train.web.session import Session
from tests.stand_ins.ui import open_small_session


def test_nothing_is_opened_before_the_first_use(tmp_path: Path) -> None:
    session, opened = open_small_session(tmp_path)[0], []

    def open_session() -> Session:
        opened.append(1)
        return session

    lazy = lazy_session(open_session)
    assert lazy.page_key == session.page_key and not opened
    assert lazy.home == session.home and lazy.runner is session.runner and opened == [1]


def test_threads_that_come_at_once_get_the_same_session(tmp_path: Path) -> None:
    opened: list[Session] = []

    def open_session() -> Session:
        time.sleep(0.05)
        opened.append(open_small_session(tmp_path / str(len(opened)))[0])
        return opened[-1]

    lazy, found = lazy_session(open_session), []
    threads = [threading.Thread(target=lambda: found.append(lazy.runner)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 1 and found == [opened[0].runner] * 4


def test_an_unknown_attribute_is_not_taken_for_a_failure(tmp_path: Path) -> None:
    lazy: Any = lazy_session(lambda: open_small_session(tmp_path)[0])
    with pytest.raises(AttributeError, match="zok"):
        _ = lazy.zok
    assert lazy.draft()


def test_a_failure_is_told_to_everybody_who_comes_later() -> None:
    def broken() -> Session:
        raise RuntimeError("a package is too old")

    lazy = lazy_session(broken)
    for _ in range(2):
        with pytest.raises(SessionUnavailableError, match=r"be started \(RuntimeError: a package is too old\)"):
            lazy.draft()


def test_every_route_answers_503_with_the_reason() -> None:
    def broken() -> Session:
        raise RuntimeError("a package is too old")

    app = make_api()
    install_routes(app, lazy_session(broken), ApiAccess(allows_control=True))
    client = TestClient(app)
    values = {"id": "a", "run": "b", "place": 0}  # what a route reads before it needs the session
    answers = {}
    for route, methods in app.openapi()["paths"].items():
        path = route.format(token="0", name="tags-list")
        for method in methods:
            request: dict[str, Any] = {"json": values, "headers": {PAGE_HEADER: page_key()}} if method == "post" else {}
            answers[method, route] = client.request(method, path, **request)
    asked = {route.removeprefix(f"{PREFIX}/") for _, route in answers}
    assert {
        *COMMANDS,
        "status",
        "comparison",
        "tags",
        "plan",
        "start",
        "queue/add",
        "queue/move",
        "page/{name}",
    } <= asked
    assert {name: answer.status_code for name, answer in answers.items()} == dict.fromkeys(answers, 503)
    assert all("a package is too old" in answer.json()["detail"]["message"] for answer in answers.values())
