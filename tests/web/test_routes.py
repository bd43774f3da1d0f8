"""The HTTP routes: remote control of runs, and access."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from lib_lora_train.config.train_config import config_values
from lib_lora_train.hosts.access import ApiAccess
from lib_lora_train.hosts.webui.options import webui_access
from lib_lora_train.runs.records.folder import new_run_folder
from lib_lora_train.web.route_access import PAGE_HEADER
from lib_lora_train.web.routes import COMMANDS, PREFIX, install_routes, make_api
from tests.stand_ins.ui import FakeRunner, open_small_session, small_config
from tests.stand_ins.webui.modules import install, module_of

SECRET = ApiAccess(credentials={"ann": "pass"})


def opened(tmp_path: Path, access: ApiAccess | None = None, **app_values: Any) -> tuple[TestClient, FakeRunner]:
    session, runner = open_small_session(tmp_path)
    app = make_api()
    for name, value in app_values.items():
        setattr(app, name, value)
    install_routes(app, session, access)
    return TestClient(app), runner


def settings(tmp_path: Path) -> dict[str, Any]:
    return json.loads(json.dumps(config_values(small_config(tmp_path / "set"))))  # type: ignore[no-any-return]


def test_a_plan_is_returned_without_starting_a_run(tmp_path: Path) -> None:
    client, runner = opened(tmp_path)
    plan = client.post(f"{PREFIX}/plan", json=settings(tmp_path)).json()
    assert plan["images"] == 3 and plan["total_steps"] == plan["steps_per_epoch"] * plan["epochs"] > 0
    assert plan["memory_bytes"]["total"] > plan["memory_bytes"]["base"] > 0
    assert (plan["seconds"], plan["seconds_from"]) == (None, "")
    assert runner.started == []


def test_start_runs_the_settings(tmp_path: Path) -> None:
    client, runner = opened(tmp_path)
    answer = client.post(f"{PREFIX}/start", json={**settings(tmp_path), "epochs": 3})
    assert answer.json() == {"run": "run"} and runner.started[0].epochs == 3


def test_invalid_settings_are_all_reported_and_nothing_starts(tmp_path: Path) -> None:
    client, runner = opened(tmp_path)
    wrong = {"rank": 0, "learning_rate": "much", "colour": 1}
    answer = client.post(f"{PREFIX}/start", json={**settings(tmp_path), **wrong})
    assert answer.status_code == 422 and runner.started == []
    assert set(wrong) <= {problem["where"] for problem in answer.json()["detail"]["problems"]}


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    client, _ = opened(tmp_path)
    answer = client.post(f"{PREFIX}/plan", json={**settings(tmp_path), "concepts": [{"folder": str(tmp_path / "no")}]})
    assert answer.status_code == 422 and "no" in answer.json()["detail"]["message"]


def test_commands_reach_the_run_or_fail_without_one(tmp_path: Path) -> None:
    client, runner = opened(tmp_path)
    answer = client.post(f"{PREFIX}/stop", json={})
    assert answer.status_code == 409 and answer.json()["detail"]["message"] == "No training is running."
    runner.is_busy = True
    for command in COMMANDS:
        assert client.post(f"{PREFIX}/{command}", json={}).status_code == 200
    assert tuple(runner.commands) == COMMANDS
    assert client.post(f"{PREFIX}/start", json=settings(tmp_path)).status_code == 409


def test_results_list_existing_files_only(tmp_path: Path) -> None:
    client, _ = opened(tmp_path)
    folder = new_run_folder(tmp_path / "home", "zok")
    kept, lost = tmp_path / "kept.safetensors", tmp_path / "lost.safetensors"
    kept.touch()
    records = [
        {"kind": "LoraWritten", "path": str(kept), "epoch": 1, "step": 5},
        {"kind": "LoraWritten", "path": str(lost), "epoch": 2, "step": 9},
        {"kind": "StateChanged", "state": "finished", "message": ""},
    ]
    folder.log.write_text("\n".join(map(json.dumps, records)) + '\n{"kind": "StateChanged", "sta', encoding="utf-8")
    assert client.get(f"{PREFIX}/results").json() == [
        {
            "run": folder.root.name,
            "state": "finished",
            "is_active": False,
            "reason": "",
            "loras": [str(kept)],
            "missing": [str(lost)],
            "grid": "",
            "step": 0,
            "total_steps": 0,
            "epochs": 0,
            "unreadable_lines": 1,
            "can_resume": False,
            "can_begin_again": False,
            "can_extend": False,
        }
    ]


def test_lora_files_are_checked_converted_and_merged_over_http(tmp_path: Path) -> None:
    client, _ = opened(tmp_path)
    file = str(tmp_path / "gone.safetensors")
    for name, values in (
        ("check", {}),
        ("convert", {"name": "b"}),
        ("resize", {}),
        ("merge", {"files": file, "name": "b"}),
    ):
        answer = client.post(f"{PREFIX}/{name}", json={"file": file, **values})
        assert answer.status_code == 422 and "gone.safetensors is not an existing" in answer.json()["detail"]["message"]


def test_an_extraction_is_started_followed_and_cancelled_over_http(tmp_path: Path) -> None:
    client, _ = opened(tmp_path)
    answer = client.post(f"{PREFIX}/extract", json={"checkpoint": "/a", "rank": 4})
    assert answer.status_code == 422 and "Enter two checkpoints" in answer.json()["detail"]["message"]
    for route in ("extract/status", "extract/cancel"):
        assert client.post(f"{PREFIX}/{route}", json={}).json()["state"] == "idle"


# --- access ---------------------------------------------------------------------------------------


def test_read_routes_refuse_post(tmp_path: Path) -> None:
    assert opened(tmp_path)[0].post(f"{PREFIX}/status", json={}).status_code == 405


def test_runs_cannot_be_controlled_unless_the_api_is_enabled(tmp_path: Path) -> None:
    client, _ = opened(tmp_path, ApiAccess(allows_control=False))
    assert client.post(f"{PREFIX}/start", json=settings(tmp_path)).status_code == 404
    assert client.get(f"{PREFIX}/status").status_code == 200


def test_control_requires_the_password_of_the_api(tmp_path: Path) -> None:
    client, runner = opened(tmp_path, SECRET)
    runner.is_busy = True
    url = f"{PREFIX}/pause"
    assert client.post(url, json={}).status_code == 401
    assert [client.post(url, json={}, auth=wrong).status_code for wrong in (("ann", "no"), ("bob", "pass"))] == [
        401
    ] * 2
    assert runner.commands == []
    assert client.post(url, json={}, auth=("ann", "pass")).status_code == 200
    assert client.get(f"{PREFIX}/status").status_code == 200  # the page is public, and so is what it shows


def test_a_login_protects_images_too(tmp_path: Path) -> None:
    client, _ = opened(tmp_path, SECRET, auth=[("user", "password")], tokens={"t0ken": "user"})
    url = f"{PREFIX}/images"
    assert client.get(url).status_code == 401
    for name in ("access-token", "access-token-unsecure-x1"):
        assert client.get(url, headers={"cookie": f"{name}=t0ken"}).status_code == 200
        assert client.get(url, headers={"cookie": f"{name}=other"}).status_code == 401
    assert client.get(url, auth=("ann", "pass")).status_code == 200


def test_without_a_page_reading_requires_the_password_of_the_api(tmp_path: Path) -> None:
    """With `--nowebui` there is only the API, behind `--api-auth`; page actions do not exist."""
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
        ({}, ApiAccess(allows_control=False)),
        ({"api": True}, ApiAccess()),
        ({"api": True, "api_auth": "ann:pa:ss,bob:b"}, ApiAccess(credentials={"ann": "pa:ss", "bob": "b"})),
        ({"nowebui": True, "api_auth": "ann:b"}, ApiAccess(has_page=False, credentials={"ann": "b"})),
    ],
)
def test_access_follows_the_options_of_the_webui(
    options: dict[str, Any], expected: ApiAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = SimpleNamespace(**{"api": False, "nowebui": False, "api_auth": None, **options})
    install(monkeypatch, module_of("modules"), module_of("modules.shared", cmd_opts=given))
    assert webui_access() == expected


def test_page_actions_require_the_page_key(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    app = make_api()
    install_routes(app, session, ApiAccess(allows_control=False))
    client = TestClient(app)
    address, known = f"{PREFIX}/page/fix", {PAGE_HEADER: session.page_key}
    assert client.post(address, json={"number": 0}).status_code == 403
    assert client.post(address, json={"number": 0}, headers={PAGE_HEADER: "guessed"}).status_code == 403
    assert client.post(address, content="{}", headers={**known, "content-type": "text/plain"}).status_code == 415
    assert client.post(f"{PREFIX}/page/nothing", json={}, headers=known).status_code == 404
    refused = client.post(address, json={"number": 99}, headers=known)
    assert (refused.status_code, "updated list" in refused.json()["detail"]["message"]) == (409, True)


def test_a_login_protects_page_actions_too(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    app = make_api()
    app.auth = {"ann": "pass"}  # type: ignore[attr-defined]
    install_routes(app, session)
    answer = TestClient(app).post(f"{PREFIX}/page/fix", json={"number": 0}, headers={PAGE_HEADER: session.page_key})
    assert answer.status_code == 401


def test_every_route_refuses_pages_of_other_sites_and_large_bodies(tmp_path: Path) -> None:
    client, _ = opened(tmp_path)
    foreign = {"Origin": "https://evil.example"}
    routes = [(path, method) for path, methods in client.app.openapi()["paths"].items() for method in methods]  # type: ignore[attr-defined]
    assert len(routes) > 15
    for path, method in routes:
        assert client.request(method, path, headers=foreign).status_code == 403, path
        assert client.request(method, path, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403, path
        if method == "post":
            assert client.post(path, content=b" " * (9 * 2**20)).status_code == 413, path
            assert client.post(path, content=iter([b" " * 2**20] * 9)).status_code == 413, path


def test_an_origin_that_the_webui_allows_may_use_the_api(tmp_path: Path) -> None:
    client, _ = opened(tmp_path, ApiAccess(allowed_origins=("https://studio.example",)))
    assert client.get(f"{PREFIX}/status", headers={"Origin": "https://studio.example"}).status_code == 200
