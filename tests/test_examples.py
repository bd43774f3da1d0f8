"""Every file in examples/ is valid as it is, and trains: here for two steps on the tiny model and the demo's images."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lib_lora_train import load, train
from lib_lora_train.config.train_config import read_config
from lib_lora_train.config.validation.validate import validate
from lib_lora_train.core.events import Event, StepDone
from lib_lora_train.formats.toml import read_toml_config
from tests.paths import ROOT
from tests.stand_ins.run_parts import NOT_MEASURED

EXAMPLES = sorted((ROOT / "examples").glob("*.toml"))
# Small enough for a processor: the embedded model, for two steps, without samples and measures.
SMALL: Mapping[str, Any] = {
    "checkpoint": "",
    "resolution": 64,
    "min_bucket": 64,
    "max_bucket": 128,
    "batch_size": 1,
    "max_steps": 2,
    "warmup": 0,
    "sample_prompts": [],
    "sample_every_n_epochs": 0,
    **NOT_MEASURED,
}

every_example = pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)


def test_there_are_six_and_the_list_names_each() -> None:
    listed = re.findall(r"^\| \[([\w.-]+)\]", (ROOT / "examples" / "README.md").read_text(encoding="utf-8"), re.M)
    assert sorted(listed) == [file.name for file in EXAMPLES] and len(listed) == 6


@every_example
def test_an_example_is_valid_and_raises_no_warning(file: Path) -> None:
    config, problems = read_config(read_toml_config(file))
    assert problems == ()
    assert [str(problem) for problem in validate(config) if problem.level != "hint"] == []


@every_example
def test_an_example_says_its_goal_and_marks_what_to_change(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert all(f"\n# {word}:" in text for word in ("Goal", "Images", "Memory", "Start"))
    assert f"examples/{file.name}" in text, "how to start it"
    for name in ("checkpoint", "folder"):
        assert re.search(rf"^{name} = .*# CHANGE", text, re.M), f"{name} is not marked"


@pytest.fixture(scope="module")
def images(demo_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[bool, Path]:
    """The first six of the demo's images and captions: False to train on, True for regularisation."""
    folders = {}
    for is_regularisation, source in ((False, "train"), (True, "reg")):
        folders[is_regularisation] = tmp_path_factory.mktemp(source)
        for path in sorted((demo_dir / source).glob("*/*"))[:12]:
            shutil.copy(path, folders[is_regularisation])
    return folders


@every_example
def test_an_example_trains(file: Path, images: Mapping[bool, Path], tmp_path: Path) -> None:
    values = dict(read_toml_config(file))
    for concept in values["concepts"]:
        concept["folder"] = str(images[concept.get("is_regularisation", False)])
    losses = []

    def watch(event: Event) -> None:
        if isinstance(event, StepDone):
            losses.append(event.loss)

    run = train({**values, **SMALL}, out=tmp_path, device="cpu", on_event=watch)
    assert len(losses) == 2
    assert load(run.lora_files[-1]).state
