"""A webui gets the tab and its routes, or a tab that explains why the trainer is not available."""

from __future__ import annotations

import html
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from lib_lora_train.core.errors import HostError
from lib_lora_train.hosts.webui.detect import detect_host
from lib_lora_train.ui import app, extension
from lib_lora_train.ui.unavailable import missing_packages, missing_sentence
from lib_lora_train.web.routes import make_api
from tests.paths import ROOT
from tests.stand_ins.webui.a1111 import A1111World
from tests.stand_ins.webui.modules import install, module_of

SCRIPT = ROOT / "scripts" / "lora_train.py"


class Callbacks:
    """Records what is registered, like the webui's `script_callbacks`."""

    def __init__(self) -> None:
        self.tabs: list[Any] = []
        self.apps: list[Any] = []
        self.settings: list[Any] = []
        self.pasted: list[Any] = []

    def module(self) -> Any:
        return module_of(
            "modules.script_callbacks",
            on_ui_tabs=self.tabs.append,
            on_app_started=self.apps.append,
            on_ui_settings=self.settings.append,
            on_infotext_pasted=self.pasted.append,
        )


@pytest.fixture
def callbacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callbacks:
    """A fake A1111 with what the script uses."""
    monkeypatch.setattr(app, "_sessions", {})
    A1111World(monkeypatch, tmp_path / "Lora")
    found = Callbacks()
    bound: list[Any] = []
    paste = module_of("modules.infotext_utils", ParamBinding=SimpleNamespace, register_paste_params_button=bound.append)
    install(monkeypatch, found.module(), paste, module_of("modules.paths_internal", data_path=str(tmp_path)))
    sys.modules["modules.shared"].cmd_opts.__dict__.update(api=True, nowebui=False, api_auth=None)
    return found


def functions_of(blocks: Any) -> list[Any]:
    """The callbacks of a tab, in any gradio."""
    found = blocks.fns.values() if isinstance(blocks.fns, dict) else blocks.fns
    return [one.fn for one in found if one.fn]


def shown(blocks: Any) -> str:
    """All texts of a tab."""
    return " ".join(str(block.value) for block in blocks.blocks.values() if hasattr(block, "value"))


def test_the_script_registers_a_tab_and_routes(callbacks: Callbacks, tmp_path: Path) -> None:
    runpy.run_path(str(SCRIPT))
    ((_, title, name),) = callbacks.tabs[0]()
    assert (title, name) == ("LoRA Train", "lora_train_tab")
    application = make_api()
    callbacks.apps[0](None, application)
    status = TestClient(application).get("/lora-train/v1/status").json()
    assert status["state"] == "idle"


def test_loras_can_be_saved_in_a_sub_folder(callbacks: Callbacks, tmp_path: Path) -> None:
    runpy.run_path(str(SCRIPT))
    callbacks.settings[0]()
    options = sys.modules["modules.shared"].opts
    host = detect_host()
    assert host.lora_dir == tmp_path / "Lora"
    options.lora_train_subfolder = "mine/new"
    assert host.lora_dir == tmp_path / "Lora" / "mine" / "new"
    for outside in ("../elsewhere", "/elsewhere"):
        options.lora_train_subfolder = outside
        with pytest.raises(HostError, match="outside the webui's LoRA folder"):
            _ = host.lora_dir


def test_a_reloaded_user_interface_finds_the_same_session(callbacks: Callbacks, tmp_path: Path) -> None:
    opened: list[Any] = []
    for number in range(2):
        runpy.run_path(str(SCRIPT))
        ((blocks, _, _),) = callbacks.tabs[number]()
        next(fn for fn in functions_of(blocks) if fn.__name__ == "restore")()
        opened += app._sessions.values()
    assert opened[0] is opened[1] and opened[0].home == tmp_path / "outputs" / "lora-train"


def test_a_webui_starts_without_opening_the_session(callbacks: Callbacks) -> None:
    runpy.run_path(str(SCRIPT))
    callbacks.tabs[0]()
    callbacks.apps[0](None, make_api())
    assert app._sessions == {}


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            HostError("This webui keeps its models where they cannot be read."),
            "This webui keeps its models where they cannot be read.",
        ),
        (ImportError("no module named zok"), "could not be started (ImportError: no module named zok)."),
    ],
)
def test_page_and_api_explain_why_the_trainer_did_not_start(
    callbacks: Callbacks, monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str
) -> None:
    tried = []

    def refuse() -> None:
        tried.append(1)
        raise error

    monkeypatch.setattr("lib_lora_train.hosts.webui.detect.detect_host", refuse)
    ((blocks, _, _),) = extension.tabs()
    fill_in = next(fn for fn in functions_of(blocks) if fn.__name__ == "restore")
    for _ in range(2):  # every page that loads says so, without trying again
        *_, message, _ = fill_in()
        assert sentence in html.unescape(message)
    assert tried == [1]
    application = make_api()
    extension.add_routes(None, application)
    answer = TestClient(application).get("/lora-train/v1/status")
    assert answer.status_code == 503 and sentence in answer.json()["detail"]["message"]


def test_missing_packages_are_named_in_the_tab(
    callbacks: Callbacks, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lib_lora_train.ui.unavailable.missing_packages", lambda: ["peft"])
    runpy.run_path(str(SCRIPT))
    ((blocks, _, _),) = callbacks.tabs[0]()
    assert "Missing packages: peft" in shown(blocks) and "Missing packages: peft" in capsys.readouterr().out
    assert callbacks.apps == []


def test_missing_packages_are_found_without_importing() -> None:
    assert missing_packages(("json", "no_such_package_of_ours")) == ["no_such_package_of_ours"]
    assert missing_packages() == []
    assert "diffusers, peft" in missing_sentence(["diffusers", "peft"])
