"""`files_for_webui`: what stands in the webui's LoRA folder works there, whatever was trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_lora_train.adapters.files.decode import parse_file
from lib_lora_train.adapters.files.lora_file import read_adapter, write_adapter
from lib_lora_train.config.family_support import FORMS, WEBUIS, bad_webuis
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import ModelUnavailableError
from lib_lora_train.core.events import Event, LoraWritten, Noted
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.models.embedded import EMBEDDED_CHECKPOINT
from lib_lora_train.models.model_files import read_checkpoint_info
from lib_lora_train.runs.checkpoints import save_epoch_lora, save_step_lora
from lib_lora_train.runs.checks.form_check import form_problems, trained_forms
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.records.history import read_loras
from lib_lora_train.runs.run_context import RunContext
from lib_lora_train.runs.runner import Runner
from lib_lora_train.training.training_run import Training
from tests.stand_ins.run_parts import NO_SAMPLES, only, run_context, small_run_setup
from tests.stand_ins.training_parts import shared_model as model

IA3: dict[str, Any] = {"family": "ia3", "files_for_webui": True}
NEO = "Forge Neo 2.26"
Made = Callable[..., tuple[RunContext, Training]]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    """Makes the test's run in a webui; its adapter is removed afterwards."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    made: list[RunContext] = []

    def make_run(webui: str = NEO, **values: Any) -> tuple[RunContext, Training]:
        run, training = run_context(model(), tmp_path, **{**IA3, **values})
        run.host.name = webui
        with torch.no_grad():
            for parameters in run.adapter.groups.values():
                for parameter in parameters:
                    parameter.add_(0.1)
        made.append(run)
        return run, training

    yield make_run
    for run in made:
        run.adapter.remove()


def family_of(path: Path) -> set[str]:
    return {layer.kind for layer in parse_file(read_adapter(path)).layers.values()}


def notes(events: list[Event], level: str) -> list[str]:
    return [event.message for event in only(events, Noted) if event.level == level]


def test_the_file_in_the_loras_folder_is_read_and_the_trained_form_is_kept(make: Made) -> None:
    run, _ = make()
    events = list(save_epoch_lora(run, 1, 4))
    (written,) = only(events, LoraWritten)
    path = Path(written.path)
    assert path.parent == run.lora_dir and family_of(path) == {"full"}
    kept = run.folder.trained_form(path.name)
    assert family_of(kept) == {"ia3"}
    assert [*run.lora_dir.glob("*.safetensors")] == [path], "one file per epoch in the webui's folder"
    (note,) = notes(events, "hint")
    assert FORMS["full"] in note and "differs from the trained one by" in note
    assert read_adapter(path).metadata["ss_network_args"] == '{"algo": "full"}'
    assert read_adapter(path).metadata["ss_output_name"] == path.stem


@pytest.mark.parametrize(
    ("webui", "values"), [("AUTOMATIC1111 v1.10.1", {}), (NEO, {"files_for_webui": False}), (NEO, {"family": "lora"})]
)
def test_no_file_is_rewritten_where_the_webui_reads_it_or_nobody_asked(
    make: Made, webui: str, values: dict[str, Any]
) -> None:
    run, _ = make(webui, **values)
    events = list(save_epoch_lora(run, 1, 4))
    assert family_of(Path(only(events, LoraWritten)[0].path)) == {run.config.family}
    assert not run.folder.trained_form("").exists() and not notes(events, "hint")


def test_removing_old_epochs_removes_both_forms(make: Made) -> None:
    run, _ = make(keep_last_epochs=1)
    for epoch in (1, 2, 3):
        list(save_epoch_lora(run, epoch, 4 * epoch))
    names = [path.name for path in run.lora_dir.glob("*.safetensors")]
    assert names == ["test-000003.safetensors"]
    assert [path.name for path in run.folder.trained_form("x").parent.iterdir()] == names


class Busy:
    """A host in which somebody always waits for the model; `turns` counts the leases."""

    def __init__(self, host: Any) -> None:
        self._host = host
        self.turns = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)

    def has_waiters(self) -> bool:
        return True

    def lease(self, model: Any = None) -> AbstractContextManager[Any]:
        self.turns += 1
        lease: AbstractContextManager[Any] = self._host.lease(model)
        return lease


@pytest.mark.parametrize(("turn_seconds", "is_divided"), [(0.0, True), (1000.0, False)])
def test_generations_wait_for_a_turn_of_the_rewriting_not_for_its_end_nor_for_one_layer(
    make: Made, monkeypatch: pytest.MonkeyPatch, turn_seconds: float, is_divided: bool
) -> None:
    monkeypatch.setattr("lib_lora_train.runs.readable_files._TURN_SECONDS", turn_seconds)
    run, _ = make()
    run.host = busy = Busy(run.host)
    list(save_epoch_lora(run, 1, 4))
    assert busy.turns == (len(run.adapter.layers) + 1 if is_divided else 1)


class Away:
    """A host whose user has loaded another model."""

    def __init__(self, host: Any) -> None:
        self._host = host

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)

    def lease(self, _: Any = None) -> AbstractContextManager[Any]:
        raise ModelUnavailableError("The webui now has another loaded.")


def test_a_stopped_run_whose_model_is_gone_saves_the_trained_form_and_says_so(make: Made) -> None:
    run, training = make(control=Control())
    run.host, training.step = Away(run.host), 2
    run.control.stop()
    events = list(save_step_lora(run, training))
    (written,) = only(events, LoraWritten)
    assert family_of(Path(written.path)) == {"ia3"}
    (warning,) = notes(events, "warning")
    assert "could not be made" in warning and "Convert it in Results" in warning


def test_a_whole_run_and_its_continuation_write_one_series_of_files(demo_dir: Path, tmp_path: Path) -> None:
    host = StandaloneHost(None, None, tmp_path, "cpu")
    host.name = NEO
    setup = small_run_setup(host, demo_dir, tmp_path)
    runner = Runner(host, tmp_path / "outputs")
    run = runner.start(setup.config.replace(**IA3, **NO_SAMPLES, make_grid=False))
    runner.wait(300)
    assert runner.status()["state"] == "finished", runner.status()["message"]
    runner.resume_run(run, more_epochs=1)
    runner.wait(300)
    folder = RunFolder(tmp_path / "outputs" / run)
    names = [f"test-00000{epoch}.safetensors" for epoch in (1, 2, 3)]
    assert [file.path.name for file in read_loras(folder)] == names
    assert [family_of(file.path) for file in read_loras(folder)] == [{"full"}] * 3
    assert all(family_of(folder.trained_form(name)) == {"ia3"} for name in names), "it continues with what it trains"


# --- the plan -----------------------------------------------------------------------------------


def problems(webui: str, **values: Any) -> list[Any]:
    spec = read_checkpoint_info(EMBEDDED_CHECKPOINT).spec
    return list(form_problems(TrainConfig(**values), webui, spec))


@pytest.mark.parametrize("values", [{"family": "ia3"}, {"family": "oft", "constraint": 0.1}])
def test_a_plan_that_the_webui_would_misread_has_a_button(values: dict[str, Any]) -> None:
    (problem,) = problems(NEO, **values)
    assert problem.level == "warning" and problem.message.startswith(NEO)
    assert problem.remedy == (("files_for_webui", True),)
    (after,) = problems(NEO, **values, **dict(problem.remedy))
    assert after.level == "hint" and after.where == "files_for_webui" and "trained form" in after.message


def test_the_size_of_full_matrices_is_said_before_the_start() -> None:
    (problem,) = problems(NEO, family="ia3", targets="full")
    assert "(about " in problem.message and "MB each)" in problem.message


def test_a_webui_that_reads_the_file_gets_a_hint_about_others() -> None:
    (problem,) = problems("AUTOMATIC1111 v1.10.1", family="ia3")
    assert problem.level == "hint" and "Forge" in problem.message and not problem.remedy


def test_a_setting_without_effect_is_pointed_out() -> None:
    (problem,) = problems(NEO, files_for_webui=True)
    assert "has no effect" in problem.message and problem.level == "hint"
    assert not problems(NEO)


@pytest.mark.parametrize("family", ["ia3", "oft", "boft"])
def test_stand_alone_a_warning_names_every_webui_that_misreads_the_file(family: str) -> None:
    (problem,) = problems("", family=family)
    named = [name for name, _ in bad_webuis(family)]
    assert named and all(name in problem.message for name in named if name in WEBUIS)


def test_a_continued_file_is_judged_by_its_own_layers(make: Made, tmp_path: Path) -> None:
    run, _ = make()
    path = tmp_path / "old.safetensors"
    write_adapter(path, run.adapter.state(), metadata={}, precision="fp32")
    config = TrainConfig(continue_from=str(path))
    assert trained_forms(config) == ("ia3",)
    assert [problem.level for problem in form_problems(config, NEO)] == ["warning"]
