"""The command `images`: the list of a run, measured first if it is not yet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lib_lora_train.cli.main import main
from lib_lora_train.evaluation.image_excess import ImageLoss
from lib_lora_train.runs.measures.image_list import ImageList, image_values, write_images
from lib_lora_train.runs.records.folder import RunFolder


def run_with_losses(tmp_path: Path) -> tuple[RunFolder, ImageList]:
    folder = RunFolder(tmp_path)
    folder.config.write_text("", encoding="utf-8")
    images = [ImageLoss(f"zok/{n}.png", "zok", (0.1,), (0.15,), (0.2,)) for n in range(5)]
    images.append(ImageLoss("zok/odd.png", "zok", (0.2,), (0.25,), (0.2,)))
    found = ImageList(3, tuple(images), {one.path: "a zok" for one in images})
    write_images(folder, found)
    return folder, found


def test_the_list_is_printed_with_the_reason_of_what_stands_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_with_losses(tmp_path)
    assert main(["images", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["loss", "expected", "excess", "image"]
    assert lines[1].endswith("!zok/odd.png") and lines[2].strip().startswith("Its loss stayed, the others' fell by 50%")
    assert len(lines) == 1 + 6 + 1


def test_json_is_what_the_http_api_returns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, found = run_with_losses(tmp_path)
    assert main(["images", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"epoch": 3, "images": image_values(found)}


def test_what_is_no_run_folder_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["images", str(tmp_path / "none")]) == 2
    assert "is not a run. Give" in capsys.readouterr().err
