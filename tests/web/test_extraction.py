"""Extracting a LoRA in the Tools panel and over HTTP: in the background, with progress and a stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.adapters.files.lora_file import read_adapter
from lib_lora_train.core.errors import LoraTrainError
from lib_lora_train.web.extraction import ExtractSession
from lib_lora_train.web.request_values import read_values
from tests.lora_tools.test_extract import FIRST, KEYS, LINEAR, noise, write_tuned
from tests.stand_ins.tiny_models import write_tiny_checkpoint


@pytest.fixture
def checkpoints(tmp_path: Path) -> dict[str, Any]:
    """Values of a request for two tiny checkpoints, which differ in a layer and in the first convolution."""
    base = write_tiny_checkpoint(tmp_path / "base.safetensors", "sd1")
    tuned = write_tuned(base, "tuned.safetensors", noise(base, LINEAR, FIRST))
    return {"checkpoint": str(base), "tuned": f'"{tuned}"', "rank": "4", "conv_rank": "", "rule": "", "threshold": ""}


def extracted(session: ExtractSession, values: dict[str, Any]) -> dict[str, Any]:
    """The status at the end of an extraction."""
    session.start(read_values(values))
    session.task.wait(60)
    return session.status({})


def test_a_lora_is_written_into_the_lora_folder_with_what_it_lost(checkpoints: dict[str, Any], tmp_path: Path) -> None:
    session = ExtractSession(lambda: tmp_path / "loras")
    assert session.status({})["result"] is None
    status = extracted(session, {**checkpoints, "targets": "standard", "text_encoder": False, "clamp": "0.99"})
    assert status["state"] == "done", status["message"]
    result = status["result"]
    assert Path(result["path"]) == tmp_path / "loras" / "tuned-rank4.safetensors"
    assert {key.partition(".")[0] for key in read_adapter(result["path"]).state} == {KEYS[LINEAR]}
    assert (result["layers"], result["ranks"], result["warnings"]) == (1, "rank 4", [])
    assert 0 < result["error"] < 1 and 0 < result["outside"] < 1 and result["worst"].startswith(KEYS[LINEAR])
    with pytest.raises(LoraTrainError, match="already exists"):
        session.start(read_values(checkpoints))


def test_wrong_requests_are_errors_before_anything_is_read(checkpoints: dict[str, Any], tmp_path: Path) -> None:
    session = ExtractSession(lambda: tmp_path)
    for wrong, message in [
        ({"tuned": ""}, "Enter two checkpoints"),
        ({"rank": ""}, "Give the new rank"),
        ({"clamp": "much"}, "clamp_quantile must be above 0.5"),
        ({"targets": "some"}, "'some' is not a choice of layers"),
        ({"name": "a/b"}, "The name"),
    ]:
        with pytest.raises(LoraTrainError, match=message):
            session.start(read_values({**checkpoints, **wrong}))
    assert session.status({})["state"] == "idle"


def test_files_that_cannot_be_compared_are_an_error_of_the_task(checkpoints: dict[str, Any], tmp_path: Path) -> None:
    status = extracted(ExtractSession(lambda: tmp_path), {**checkpoints, "tuned": checkpoints["checkpoint"]})
    assert status["state"] == "failed" and status["message"].startswith("base.safetensors is given twice")
    assert status["result"] is None


def test_stop_ends_it_after_a_layer_and_writes_nothing(
    checkpoints: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, seen = ExtractSession(lambda: tmp_path), list[int]()
    report = session.task.report

    def stop_at_the_third(done: int) -> None:
        seen.append(done)
        if done == 2:
            session.stop({})
        report(done)

    monkeypatch.setattr(session.task, "report", stop_at_the_third)
    before = set(tmp_path.iterdir())
    status = extracted(session, checkpoints)
    assert status["state"] == "stopped" and status["result"] is None and seen == [0, 1, 2]
    assert set(tmp_path.iterdir()) == before
