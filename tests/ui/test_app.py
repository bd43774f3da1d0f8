"""The stand-alone app: whom it answers, on gradio's routes too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.core.errors import HostError
from lib_lora_train.ui.app import Address, make_app
from tests.stand_ins.ui import open_small_session

gradio = pytest.importorskip("gradio")
pytestmark = pytest.mark.skipif(int(gradio.__version__.split(".")[0]) < 6, reason="the app pins gradio 6")

ROUTES = ("/", "/config", "/gradio_api/info", "/lora-train/v1/status", "/lora-train/v1/results", "/theme.css")


def client(tmp_path: Path, address: Address, *, base_url: str = "http://127.0.0.1:7861") -> Any:
    from fastapi.testclient import TestClient

    return TestClient(make_app(open_small_session(tmp_path)[0], address.door()), base_url=base_url)


def test_the_app_answers_its_own_hosts_and_pages_only(tmp_path: Path) -> None:
    app = client(tmp_path, Address())
    for route in ROUTES:
        assert app.get(route).status_code == 200, route
        assert app.get(route, headers={"Host": "evil.example"}).status_code == 403, route
        assert app.get(route, headers={"Origin": "https://evil.example"}).status_code == 403, route
    for route in ("/gradio_api/upload", "/gradio_api/run/predict", "/gradio_api/queue/join"):
        assert app.post(route, headers={"Origin": "https://evil.example"}).status_code == 403, route
        assert app.post(route, content=b" " * (9 * 2**20)).status_code == 413, route


def test_an_app_for_other_machines_asks_for_a_login(tmp_path: Path) -> None:
    address = Address("0.0.0.0")
    door = address.door()
    app = client(tmp_path, Address("0.0.0.0", login=door.login))
    user, password = door.login.split(":")
    for route in ROUTES:
        assert app.get(route).status_code == 401, route
        assert app.get(route, auth=(user, password)).status_code == 200, route
    assert password in address.announcement(door)


def test_an_app_for_other_machines_without_a_login_warns_loudly() -> None:
    address = Address("0.0.0.0", login="")
    assert address.door().login == "" and "NO LOG-IN" in address.announcement(address.door())
    assert "NO LOG-IN" not in Address().announcement(Address().door())


def test_every_start_makes_up_another_password() -> None:
    assert Address("0.0.0.0").door().login != Address("0.0.0.0").door().login


def test_a_login_without_a_password_is_refused() -> None:
    with pytest.raises(HostError, match="USER:PASSWORD"):
        Address(login="lora").door()


def test_a_proxys_name_is_answered_with_a_login(tmp_path: Path) -> None:
    app = client(tmp_path, Address(allowed_hosts=("Studio.example",), login="a:b"))
    headers = {"Host": "studio.example", "Origin": "https://studio.example"}
    assert app.get("/config", headers=headers, auth=("a", "b")).status_code == 200
    assert Address(allowed_hosts=("studio.example",)).door().login != ""
