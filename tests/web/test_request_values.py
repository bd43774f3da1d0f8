"""Values in requests: whatever a program sends, it gets a sentence and not a crash."""

from __future__ import annotations

import ast
import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from lib_lora_train.config.train_config import TrainConfig, config_values
from lib_lora_train.core.errors import LoraTrainError
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.runs.runner import Runner
from lib_lora_train.web.request_values import FIELDS, RequestValues, read_values
from lib_lora_train.web.route_access import PAGE_HEADER
from lib_lora_train.web.routes import PREFIX, EveryNameResponse, install_routes, make_api
from lib_lora_train.web.session import Session
from tests.paths import ROOT
from tests.stand_ins.ui import small_config, write_images

WRONG: tuple[Any, ...] = (
    None,
    True,
    -1,
    10**40,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\0",
    "\ud800",
    "é" * 3,
    [],
    [[]],
    ["x", 1],
    {},
    {"a": {}},
)
NO_OBJECTS: tuple[Any, ...] = (None, 1, "x", [], [{}])
EDGES: tuple[Any, ...] = (
    *WRONG,
    0,
    10**9,
    [-1, 10**6],
    [0, 0, 0, 0],
    [1e9, -1e9, 1e300, 0],
    {"fewest": -1.5, "text": "("},
)


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """A session with a real runner, a scanned dataset and open captions."""
    config = small_config(write_images(tmp_path / "set", 3))
    runner = Runner(StandaloneHost(None, None, tmp_path / "Lora", "cpu"), tmp_path / "home")
    session = Session(runner, tmp_path / "home", demo=lambda: config)
    session.scan(session.demo_form())
    session.save_draft(session.demo_form())
    session.run_action("captions-open", {"folder": str(tmp_path / "set")})
    return session


@pytest.fixture
def client(session: Session) -> TestClient:
    app = make_api()
    install_routes(app, session)
    return TestClient(app, raise_server_exceptions=False, headers={PAGE_HEADER: session.page_key})


def post(client: TestClient, path: str, body: Any) -> int:
    headers = {"Content-Type": "application/json"}
    return int(client.post(f"{PREFIX}/{path}", content=json.dumps(body), headers=headers).status_code)


def used_fields() -> set[str]:
    """Every field that an action looks up in its `values`."""
    found: set[Any] = set()
    for file in (ROOT / "lib_lora_train" / "web").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "values":
                found.add(getattr(node.slice, "value", None))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "values.get":
                found.add(getattr(node.args[0], "value", None))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "optional_path":
                found.add(getattr(node.args[1], "value", None))
    return {name for name in found if isinstance(name, str)}


def test_every_field_of_an_action_has_a_declared_kind() -> None:
    of_filters = {"all_of", "any_of", "none_of", "fewest", "most", "untagged"}
    assert used_fields() - of_filters <= set(FIELDS)


class Watched(RequestValues):
    """Values that note which of them are looked up; all of them where they are copied or gone through."""

    def __init__(self, values: Mapping[str, Any], looked_up: dict[str, None]) -> None:
        super().__init__(values)
        self.looked_up = looked_up

    def __getitem__(self, name: str) -> Any:
        self.looked_up[name] = None
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.looked_up[name] = None
        return super().get(name, default)

    def __contains__(self, name: object) -> bool:
        self.looked_up[str(name)] = None
        return super().__contains__(name)

    def __iter__(self) -> Iterator[str]:
        self.looked_up.update(dict.fromkeys(FIELDS))
        return super().__iter__()

    def keys(self) -> Any:
        self.looked_up.update(dict.fromkeys(FIELDS))
        return super().keys()

    def items(self) -> Any:
        self.looked_up.update(dict.fromkeys(FIELDS))
        return super().items()


def test_no_value_of_any_field_crashes_any_action(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every field that an action looks up gets every value, alone and beside usable values of its other fields.

    A field that an action does not look up cannot make a difference.
    """
    looked_up: dict[str, None] = {}
    watched = "lib_lora_train.web.session.read_values"
    monkeypatch.setattr(watched, lambda values: Watched(read_values(values), looked_up))
    usable = {name: [value for value in EDGES if is_read({name: value})] for name in FIELDS}
    assert all(usable.values()), "a field of which no value is tried"
    real = {"folder": str(tmp_path / "set"), "folders": [str(tmp_path / "set")], "number": 0, "image": "000.png"}
    others = {name: real.get(name, values[-1]) for name, values in usable.items()}
    used: set[str] = set()
    for action in [name for name in session._actions if name != "runs-tensorboard"]:  # which starts a program
        looked_up.clear()
        run(session, action, {})
        tried: set[str] = set()
        while waiting := looked_up.keys() & FIELDS.keys() - tried:  # some are looked up only beside another one
            name = min(waiting)
            tried.add(name)
            for value in (others[name], *usable[name]):
                run(session, action, {name: value})
                run(session, action, {**{other: others[other] for other in looked_up if other in others}, name: value})
        used |= tried
    assert used >= {"content", "edit", "files", "filter", "folder", "frame", "run", "settings", "texts"}, sorted(used)


def run(session: Session, action: str, values: dict[str, Any]) -> None:
    with contextlib.suppress(LoraTrainError):
        session.run_action(action, values)


def is_read(values: dict[str, Any]) -> bool:
    """Whether `read_values` lets the values through; anything but LoraTrainError fails the test."""
    try:
        return bool(read_values(values))
    except LoraTrainError:
        return False


def test_a_wrong_value_is_a_client_error_over_http(client: TestClient) -> None:
    assert [value for value in WRONG if not 400 <= post(client, "page/captions-save", {"number": value}) < 500] == []
    assert [body for body in NO_OBJECTS if post(client, "page/fix", body) != 422] == []


def test_no_wrong_value_crashes_a_control_route(client: TestClient) -> None:
    fields = ("run", "more_epochs", "id", "place", "sampler", "concepts")
    paths = [path.removeprefix(f"{PREFIX}/") for path in client.app.openapi()["paths"]]  # type: ignore[attr-defined]
    assert {"queue/add", "start", "grid"} <= set(paths)
    bodies = [*WRONG, *({name: value} for name in fields for value in WRONG), {"concepts": [1]}]
    for path in (path for path in paths if "{" not in path):
        assert [body for body in bodies if post(client, path, body) >= 500] == [], path


def test_no_wrong_value_of_a_setting_crashes_the_plan(client: TestClient) -> None:
    good = json.loads(json.dumps(config_values(TrainConfig())))
    crashed = [(name, value) for name in good for value in WRONG if post(client, "plan", {**good, name: value}) >= 500]
    assert crashed == []


def test_no_wrong_query_crashes_a_reading_route(client: TestClient) -> None:
    for path in ("status?since={}&after={}", "images?page={}", "thumbnail/{}", "image/{}"):
        for value in ("x", "-1", "9" * 40, "%00", "%ed%a0%80", "1.5", "..%2f..%2fetc%2fpasswd"):
            assert client.get(f"{PREFIX}/{path.format(value, value)}").status_code < 500, (path, value)


def test_a_wrong_value_is_named() -> None:
    with pytest.raises(LoraTrainError, match=r"number in the request must be a whole number, not 'seven'"):
        read_values({"number": "seven"})
    with pytest.raises(LoraTrainError, match="lacks 'number'"):
        read_values({})["number"]


def test_names_that_are_not_utf8_stay_usable() -> None:
    assert read_values({"folder": "caf\udce9"}) == {"folder": "caf\udce9"}


def test_answers_hold_names_that_are_not_utf8() -> None:
    assert json.loads(bytes(EveryNameResponse({"folder": "caf\udce9"}).body)) == {"folder": "caf\udce9"}
