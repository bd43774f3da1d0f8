"""Grids drawn stand-alone, by the trainer's own samplers, from the LoRA files."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from lib_lora_train.core.errors import HostError
from lib_lora_train.core.events import SampleDrawn
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.runs.images.epoch_grid import GridChoice, find_grid_task, read_sheets
from lib_lora_train.runs.images.grid_generator import GridGenerator
from lib_lora_train.runs.records.event_log import log_line, log_record
from lib_lora_train.sampling.infotext import read_image
from tests.paths import ROOT
from tests.stand_ins.run_parts import RunSetup, only, small_run_setup


@pytest.fixture(scope="module")
def setup(demo_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> RunSetup:
    """A run of two epochs on the embedded model, with its log."""
    host = StandaloneHost(None, None, Path("unused"), "cpu")
    setup = small_run_setup(host, demo_dir, tmp_path_factory.mktemp("run"))
    prompts = ("zorp --s 2 --l 2 --d 5", "fox --s 2 --l 2")
    setup = setup._replace(
        config=setup.config.replace(sample_prompts=prompts, learning_rate=0.02, sample_sampler="Euler")
    )
    events = setup.run()
    setup.folder.log.write_text("".join(log_line(log_record(event)) for event in events), encoding="utf-8")
    setup.folder.root.joinpath("drawn.txt").write_text("\n".join(event.path for event in only(events, SampleDrawn)))
    return setup


def _draw(setup: RunSetup, choice: GridChoice) -> GridGenerator:
    grids = GridGenerator(setup.host, setup.folder.root.parent)
    grids.start(choice)
    grids.wait(120)
    return grids


def _cells(setup: RunSetup, sheet_id: str) -> list[list[Path]]:
    sheet = next(one for one in read_sheets(setup.folder) if one.id == sheet_id)
    return [[setup.folder.epoch_grids / name for name in row.cells] for row in sheet.rows]


def _difference(one: Path, other: Path) -> int:
    """The largest difference of a value, of 255."""
    with Image.open(one) as first, Image.open(other) as second:
        extrema = ImageChops.difference(first.convert("RGB"), second.convert("RGB")).getextrema()
    return max(high for _, high in extrema)  # type: ignore[misc]


def test_cells_are_the_runs_own_samples(setup: RunSetup) -> None:
    """The files hold fp16 weights, and samples share a batch: a difference of 3 in 255 is allowed."""
    status = _draw(setup, GridChoice()).status()
    assert (status["state"], status["done"]) == ("done", 6), status["message"]
    cells = [path for row in _cells(setup, status["sheet"]) for path in row]
    samples = map(Path, setup.folder.root.joinpath("drawn.txt").read_text().splitlines())
    assert max(_difference(cell, sample) for cell, sample in zip(cells, samples, strict=True)) <= 3


def test_strength_changes_the_image_and_its_infotext(setup: RunSetup) -> None:
    status = _draw(setup, GridChoice(strengths=(1.0, 2.0))).status()
    cells = _cells(setup, status["sheet"])
    assert status["state"] == "done" and _difference(cells[3][0], cells[4][0]) > 3
    with Image.open(cells[4][0]) as image:
        assert "<lora:test-000002:2>" in image.text["parameters"]  # type: ignore[attr-defined]


def test_a_damaged_cell_is_drawn_again_and_the_others_are_not(setup: RunSetup) -> None:
    status = _draw(setup, GridChoice()).status()
    cells = [path for row in _cells(setup, status["sheet"]) for path in row]
    cells[3].write_bytes(b"\x89PNG half")
    before = {path: path.stat().st_mtime_ns for path in cells}
    assert _draw(setup, GridChoice()).status()["state"] == "done"
    assert [path for path in cells if path.stat().st_mtime_ns != before[path]] == [cells[3]]


def test_the_model_is_without_lora_after_a_grid_and_after_a_cancelled_one(setup: RunSetup) -> None:
    from lib_lora_train.adapters.inject import has_adapter

    grids = GridGenerator(setup.host, setup.folder.root.parent)
    grids.start(GridChoice(strengths=(0.7,)))
    while grids.status()["done"] < 3:
        threading.Event().wait(0.005)
    grids.cancel()
    grids.wait(60)
    assert grids.status()["state"] == "cancelled" and grids.status()["done"] < 6
    with setup.host.lease() as model:
        assert not has_adapter(model)


def test_a_grid_waits_for_the_end_of_a_training(setup: RunSetup) -> None:
    home = setup.folder.root.parent
    with pytest.raises(HostError, match="A training is running"):
        GridGenerator(setup.host, home, lambda: True).start(GridChoice())
    assert find_grid_task(home, GridChoice()).total == 6


def test_a_killed_grid_goes_on_where_it_was(setup: RunSetup) -> None:
    """The process of the command is killed, without any chance to tidy up."""
    command = [sys.executable, "-m", "lib_lora_train", "grid", str(setup.folder.root), "--strengths", "0.3 0.5 0.9"]
    folder = setup.folder.epoch_grids
    before = set(folder.glob("*"))
    with subprocess.Popen([*command, "--cpu"], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        while "image 4 of" not in process.stdout.readline():
            assert process.poll() is None
        process.kill()
    kept = {path: path.stat().st_mtime_ns for path in set(folder.glob("*.png")) - before}
    assert len(kept) >= 2 and len(set(folder.glob("*.json")) - before) == 1
    status = _draw(setup, GridChoice(strengths=(0.3, 0.5, 0.9))).status()
    assert (status["state"], status["done"]) == ("done", 14)
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert all(read_image(path) for path in kept), "nothing half-written"


def test_samplers_of_a_webui_are_refused_with_those_that_exist(setup: RunSetup) -> None:
    status = _draw(setup, GridChoice(sampler="DPM++ 2M")).status()
    assert status["state"] == "failed" and "DDIM, Euler and Euler a" in status["message"]
