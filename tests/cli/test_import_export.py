"""`import`, `export` and `--preset`: other people's settings and the guides' advice from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lib_lora_train.cli import main as cli
from lib_lora_train.cli import settings as cli_settings
from lib_lora_train.config.presets import find_preset
from lib_lora_train.config.train_config import TrainConfig, read_config
from lib_lora_train.core.errors import LoraTrainError
from lib_lora_train.formats.kohya.importer import read_settings
from lib_lora_train.formats.toml import read_toml_config
from tests.paths import KOHYA_FILES as FILES


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that one is in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(path: Path) -> TrainConfig:
    config, problems = read_config(read_toml_config(path))
    assert problems == ()
    return config


def test_import_writes_the_settings_and_tells_what_is_lost(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert cli.main(["import", str(FILES / "gui.json")]) == 0
    assert written(folder / "gui.toml") == read_settings(FILES / "gui.json").config
    shown = capsys.readouterr().out
    assert "settings of gui.json are taken over. Written: gui.toml" in shown
    assert "  - optimizer_args: percentile_clipping = 95 is no argument of AdamW8bit." in shown
    assert "  - some_future_option = 3 is not known here." in shown
    assert "At kohya's default: " in shown
    assert "To mend" not in shown


def test_import_takes_a_dataset_file_and_a_place(folder: Path) -> None:
    place = folder / "tram.toml"
    words = ["import", str(FILES / "args.toml"), "--dataset", str(FILES / "dataset.toml"), "--out", str(place)]
    assert cli.main(words) == 0
    assert len(written(place).concepts) == 3


def test_import_says_what_must_be_mended(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "a.json").write_text('{"network_dim": 8}', encoding="utf-8")
    assert cli.main(["import", "a.json"]) == 0
    assert "To mend before training:\n  - concepts: no folder with images" in capsys.readouterr().out


def test_import_never_overwrites_unasked(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "gui.toml").write_text("rank = 4", encoding="utf-8")
    assert cli.main(["import", str(FILES / "gui.json")]) == 2
    assert "gui.toml is there already" in capsys.readouterr().err
    assert (folder / "gui.toml").read_text(encoding="utf-8") == "rank = 4"


@pytest.mark.parametrize("name", ["a.txt", "gone.json", "a.json"])
def test_a_file_that_is_neither_is_refused(name: str, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "a.txt").write_text("x", encoding="utf-8")
    (folder / "a.json").write_text('{"colour": 1}', encoding="utf-8")
    assert cli.main(["import", name]) == 2
    answer = capsys.readouterr()
    assert answer.out == ""
    assert name in answer.err
    assert "Traceback" not in answer.err
    assert not (folder / "a.toml").exists()


def test_export_writes_what_import_reads(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    cli.main(["import", str(FILES / "gui.json"), "--out", "fox.toml"])
    assert cli.main(["export", "fox.toml", "--out", "again.json"]) == 0
    assert json.loads((folder / "again.json").read_text(encoding="utf-8"))["LoRA_type"] == "Kohya LoCon"
    assert read_settings(folder / "again.json").config == written(folder / "fox.toml")
    assert "cannot hold" not in capsys.readouterr().out


def test_export_says_what_the_gui_cannot_hold(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "a.toml").write_text('make_grid = false\n[[concepts]]\nfolder = "a"\ntrigger = "zkw"', encoding="utf-8")
    assert cli.main(["export", "a.toml"]) == 0
    shown = capsys.readouterr().out
    assert "make_grid = False has no place in the GUI." in shown
    assert "concepts[1].trigger = zkw" in shown


def config_of(*words: str) -> TrainConfig:
    options, unknown = cli.make_parser().parse_known_args(["train", *words])
    return cli_settings.config_of(options, unknown)


def test_a_preset_wins_over_the_file_and_flags_over_both(folder: Path) -> None:
    (folder / "a.toml").write_text('rank = 4\nepochs = 3\n[[concepts]]\nfolder = "a"', encoding="utf-8")
    config = config_of("a.toml", "--preset", "style", "--preset", "low-vram", "--alpha", "2")
    assert (config.rank, config.epochs, config.alpha, config.targets) == (32, 3, 2.0, "all")
    assert config.gradient_checkpointing
    assert config == config.replace(**find_preset("Low VRAM").values)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(LoraTrainError, match="Did you mean 'SDXL'"):
        config_of("--folder", "a", "--preset", "sdx")
