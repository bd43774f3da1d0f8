"""A session that is opened when it is first used: once, by whoever comes first."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.core.errors import HostError
from lib_lora_train.web.lazy_session import lazy_session
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
        with pytest.raises(HostError, match=r"could not be started \(RuntimeError: a package is too old\)"):
            lazy.draft()
