"""The routes: steering a run by program, and who may."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from lib_lora_train.config.train_config import config_values
from lib_lora_train.hosts.access import Access
from lib_lora_train.hosts.webui.options import webui_access
from lib_lora_train.runs.folder import new_run_folder
from lib_lora_train.web.routes import COMMANDS, PAGE_HEADER, PREFIX, install_routes, make_api
from tests.stand_ins.ui import ToldRunner, open_small_session, small_config
from tests.stand_ins.webui import install, module_of

SECRET = Access(credentials={"ann": "pass"})


def opened(tmp_path: Path, access: Access | None = None, **app_values: Any) -> tuple[TestClient, ToldRunner]:
    session, runner = open_small_session(tmp_path)
    app = make_api()
    for name, value in app_values.items():
        setattr(app, name, value)
    install_routes(app, session, access)
    return TestClient(app), runner


def settings(tmp_path: Path) -> dict[str, Any]:
    return json.loads(json.dumps(config_values(small_config(tmp_path / "set"))))  # type: ignore[no-any-return]


def test_a_plan_tells_and_starts_nothing(tmp_path: Path) -> None:
    client, runner = opened(tmp_path)
    plan = client.post(f"{PREFIX}/plan", json=settings(tmp_path)).json()
    assert plan["images"] == 3 and plan["total_steps"] == plan["steps_per_epoch"] * plan["epochs"] > 0
    assert plan["memory_bytes"]["total"] > plan["memory_bytes"]["base"] > 0
    assert (plan["seconds"], plan["seconds_from"]) == (None, "")
    assert runner.started == []


def test_a_start_runs_the_settings(tmp_path: Path) -> None:
    client, runner = opened(tmp_path)
    answer = client.post(f"{PREFIX}/start", json={**settings(tmp_path), "epochs": 3})
    assert answer.json() == {"run": "run"} and runner.started[0].epochs == 3


def test_wrong_settings_are_all_told_and_nothing_starts(tmp_path: Path) -> None:
    client, runner = opened(tmp_path)
    wrong = {"rank": 0, "learning_rate": "much", "colour": 1}
    answer = client.post(f"{PREFIX}/start", json={**settings(tmp_path), **wrong})
    assert answer.status_code == 422 and runner.started == []
    assert set(wrong) <= {problem["where"] for problem in answer.json()["detail"]["problems"]}


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    client, _ = opened(tmp_path)
    answer = client.post(f"{PREFIX}/plan", json={**settings(tmp_path), "concepts": [{"folder": str(tmp_path / "no")}]})
    assert answer.status_code == 422 and "no" in answer.json()["detail"]["message"]


def test_commands_reach_the_run_or_say_that_there_is_none(tmp_path: Path) -> None:
    client, runner = opened(tmp_path)
    answer = client.post(f"{PREFIX}/stop", json={})
    assert answer.status_code == 409 and answer.json()["detail"]["message"] == "No training is running."
    runner.is_busy = True
    for command in COMMANDS:
        assert client.post(f"{PREFIX}/{command}", json={}).status_code == 200
    assert tuple(runner.commands) == COMMANDS
    assert client.post(f"{PREFIX}/start", json=settings(tmp_path)).status_code == 409


def test_results_list_what_is_still_there(tmp_path: Path) -> None:
    client, _ = opened(tmp_path)
    folder = new_run_folder(tmp_path / "home", "zok")
    kept, lost = tmp_path / "kept.safetensors", tmp_path / "lost.safetensors"
    kept.touch()
    records = [
        {"kind": "LoraWritten", "path": str(kept)},
        {"kind": "LoraWritten", "path": str(lost)},
        {"kind": "StateChanged", "state": "finished"},
    ]
    folder.log.write_text("\n".join(map(json.dumps, records)) + '\n{"kind": "StateChanged", "sta', encoding="utf-8")
    assert client.get(f"{PREFIX}/results").json() == [
        {
            "run": folder.root.name,
            "state": "finished",
            "loras": [str(kept)],
            "grid": "",
            "step": 0,
            "total_steps": 0,
            "epochs": 0,
            "can_resume": False,
            "can_extend": False,
        }
    ]


# --- who may --------------------------------------------------------------------------------------


def test_reading_routes_only_read(tmp_path: Path) -> None:
    assert opened(tmp_path)[0].post(f"{PREFIX}/status", json={}).status_code == 405


def test_without_the_webuis_api_nothing_can_be_steered(tmp_path: Path) -> None:
    client, _ = opened(tmp_path, Access(may_steer=False))
    assert client.post(f"{PREFIX}/start", json=settings(tmp_path)).status_code == 404
    assert client.get(f"{PREFIX}/status").status_code == 200


def test_steering_asks_for_the_apis_password(tmp_path: Path) -> None:
    client, runner = opened(tmp_path, SECRET)
    runner.is_busy = True
    url = f"{PREFIX}/pause"
    assert client.post(url, json={}).status_code == 401
    assert [client.post(url, json={}, auth=wrong).status_code for wrong in (("ann", "no"), ("bob", "pass"))] == [
        401
    ] * 2
    assert runner.commands == []
    assert client.post(url, json={}, auth=("ann", "pass")).status_code == 200
    assert client.get(f"{PREFIX}/status").status_code == 200  # the page is open, so is what it shows


def test_a_page_behind_a_login_keeps_its_images_behind_it(tmp_path: Path) -> None:
    client, _ = opened(tmp_path, SECRET, auth=[("user", "password")], tokens={"t0ken": "user"})
    url = f"{PREFIX}/images"
    assert client.get(url).status_code == 401
    for name in ("access-token", "access-token-unsecure-x1"):
        assert client.get(url, headers={"cookie": f"{name}=t0ken"}).status_code == 200
        assert client.get(url, headers={"cookie": f"{name}=other"}).status_code == 401
    assert client.get(url, auth=("ann", "pass")).status_code == 200


def test_without_a_page_reading_asks_for_the_apis_password_too(tmp_path: Path) -> None:
    """The webui's `--nowebui`: the API alone, all of it behind `--api-auth`; the page's own buttons are not there."""
    client, _ = opened(tmp_path, replace(SECRET, has_page=False))
    for name in ("status", "results", "images", "thumbnail/x"):
        assert client.get(f"{PREFIX}/{name}").status_code == 401
        assert client.get(f"{PREFIX}/{name}", auth=("ann", "pass")).status_code in (200, 404)
    assert client.post(f"{PREFIX}/page/fix", json={}, auth=("ann", "pass")).status_code == 404


def test_forms_of_other_pages_are_refused(tmp_path: Path) -> None:
    client, runner = opened(tmp_path)
    runner.is_busy = True
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        assert client.post(f"{PREFIX}/stop", content="{}", headers={"content-type": kind}).status_code == 415
    assert runner.commands == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, Access(may_steer=False)),
        ({"api": True}, Access()),
        ({"api": True, "api_auth": "ann:pa:ss,bob:b"}, Access(credentials={"ann": "pa:ss", "bob": "b"})),
        ({"nowebui": True, "api_auth": "ann:b"}, Access(has_page=False, credentials={"ann": "b"})),
    ],
)
def test_access_is_what_the_webui_gives_its_own_api(
    options: dict[str, Any], expected: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = SimpleNamespace(**{"api": False, "nowebui": False, "api_auth": None, **options})
    install(monkeypatch, module_of("modules"), module_of("modules.shared", cmd_opts=given))
    assert webui_access() == expected


def test_the_pages_own_buttons_need_the_key_that_stands_in_the_page(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    app = make_api()
    install_routes(app, session, Access(may_steer=False))
    client = TestClient(app)
    address, known = f"{PREFIX}/page/fix", {PAGE_HEADER: session.page_key}
    assert client.post(address, json={"number": 0}).status_code == 403
    assert client.post(address, json={"number": 0}, headers={PAGE_HEADER: "guessed"}).status_code == 403
    assert client.post(address, content="{}", headers={**known, "content-type": "text/plain"}).status_code == 415
    assert client.post(f"{PREFIX}/page/nothing", json={}, headers=known).status_code == 404
    refused = client.post(address, json={"number": 99}, headers=known)
    assert (refused.status_code, "newer list" in refused.json()["detail"]["message"]) == (409, True)


def test_a_login_guards_the_pages_buttons_too(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    app = make_api()
    app.auth = {"ann": "pass"}  # type: ignore[attr-defined]
    install_routes(app, session)
    answer = TestClient(app).post(f"{PREFIX}/page/fix", json={"number": 0}, headers={PAGE_HEADER: session.page_key})
    assert answer.status_code == 401
