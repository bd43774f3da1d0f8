"""Converting a checkpoint in the Tools panel: in the background, with progress and a stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lib_lora_train.core.errors import LoraTrainError
from lib_lora_train.web.checkpoint_conversion import CheckpointConversion
from lib_lora_train.web.request_values import read_values
from tests.stand_ins.tiny_models import tiny_tensors


@pytest.fixture
def source(tmp_path: Path) -> Path:
    torch.save({"state_dict": dict(tiny_tensors("sd1", shallow=True))}, tmp_path / "old.ckpt")
    return tmp_path / "old.ckpt"


def finished(conversion: CheckpointConversion, values: dict[str, Any]) -> dict[str, Any]:
    """The status at the end."""
    conversion.start(read_values(values))
    conversion.task.wait(60)
    return conversion.status({})


def test_the_new_file_is_beside_the_old_one(source: Path) -> None:
    conversion = CheckpointConversion()
    status = finished(conversion, {"file": f'"{source}"', "precision": "fp16", "vae": "", "ema": "drop", "name": ""})
    assert status["state"] == "done", status["message"]
    assert status["result"]["path"] == str(source.with_name("old-fp16.safetensors"))
    assert all(tensor.dtype != torch.float32 for tensor in load_file(status["result"]["path"]).values())
    with pytest.raises(LoraTrainError, match="already exists"):
        conversion.start(read_values({"file": str(source), "precision": "fp16"}))


def test_wrong_requests_and_files_say_why(source: Path, tmp_path: Path) -> None:
    conversion = CheckpointConversion()
    for values, message in [({"file": ""}, "Enter a checkpoint"), ({"precision": "fp8"}, "'fp8' is not a precision")]:
        with pytest.raises(LoraTrainError, match=message):
            conversion.start(read_values({"file": str(source), **values}))
    status = finished(conversion, {"file": str(tmp_path / "none.ckpt")})
    assert status["state"] == "failed" and "none.ckpt cannot be read: No such file" in status["message"]
    assert status["result"] is None


def test_stop_ends_it_after_a_tensor_and_writes_nothing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conversion = CheckpointConversion()
    report = conversion.task.report

    def stop_at_the_third(done: int) -> None:
        if done == 2:
            conversion.stop({})
        report(done)

    monkeypatch.setattr(conversion.task, "report", stop_at_the_third)
    status = finished(conversion, {"file": str(source)})
    assert status["state"] == "stopped" and status["result"] is None
    assert list(source.parent.iterdir()) == [source]
