"""`import`, `export` and `--preset` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tomlkit

from lib_lora_train.cli import main as cli
from lib_lora_train.cli import settings as cli_settings
from lib_lora_train.config.presets import find_preset
from lib_lora_train.config.train_config import TrainConfig, read_config
from lib_lora_train.core.errors import LoraTrainError
from lib_lora_train.formats.kohya.read_files import read_settings
from lib_lora_train.formats.toml import read_toml_config
from tests.paths import KOHYA_FILES as FILES


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, made the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_written(path: Path) -> TrainConfig:
    config, problems = read_config(read_toml_config(path))
    assert problems == ()
    return config


def test_import_writes_settings_and_prints_what_is_lost(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert cli.main(["import", str(FILES / "gui.json")]) == 0
    assert read_written(folder / "gui.toml") == read_settings(FILES / "gui.json").config
    shown = capsys.readouterr().out
    assert "Settings imported from gui.json: 69. Saved to gui.toml" in shown
    assert "  - optimizer_args: percentile_clipping = 95 is not an argument of AdamW8bit." in shown
    assert "  - some_future_option = 3 is not a known setting." in shown
    assert "At kohya's default: " in shown
    assert "Fix before training" not in shown


def test_import_accepts_dataset_file_and_output_file(folder: Path) -> None:
    path = folder / "tram.toml"
    words = ["import", str(FILES / "args.toml"), "--dataset", str(FILES / "dataset.toml"), "--out", str(path)]
    assert cli.main(words) == 0
    assert len(read_written(path).concepts) == 3


def test_import_prints_what_must_be_fixed(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "a.json").write_text('{"network_dim": 8}', encoding="utf-8")
    assert cli.main(["import", "a.json"]) == 0
    assert "Fix before training:\n  - concepts: no image folder is given" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "written"),
    [
        (["import", str(FILES / "gui.json")], "gui.toml"),
        (["import", str(FILES / "gui.json"), "--out", "mine.toml"], "mine.toml"),
        (["export", "fox.toml"], "fox.json"),
        (["export", "fox.toml", "--out", "mine.json"], "mine.json"),
        (["export", "fox.toml", "--to", "sd-scripts"], "fox-kohya.toml"),
        (["export", "fox.toml", "--to", "sd-scripts"], "fox-kohya-dataset.toml"),
    ],
)
def test_import_and_export_do_not_overwrite_files(
    words: list[str], written: str, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    (folder / "fox.toml").write_text('[[concepts]]\nfolder = "a"', encoding="utf-8")
    (folder / written).write_text("mine", encoding="utf-8")
    assert cli.main(words) == 2
    assert f"{written} already exists" in capsys.readouterr().err
    assert (folder / written).read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("name", ["a.txt", "gone.json", "a.json"])
def test_import_refuses_other_files(name: str, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "a.txt").write_text("x", encoding="utf-8")
    (folder / "a.json").write_text('{"colour": 1}', encoding="utf-8")
    assert cli.main(["import", name]) == 2
    answer = capsys.readouterr()
    assert answer.out == ""
    assert name in answer.err
    assert "Traceback" not in answer.err
    assert not (folder / "a.toml").exists()


def test_exported_settings_can_be_imported(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    cli.main(["import", str(FILES / "gui.json"), "--out", "fox.toml"])
    assert cli.main(["export", "fox.toml", "--out", "again.json"]) == 0
    assert json.loads((folder / "again.json").read_text(encoding="utf-8"))["LoRA_type"] == "Kohya LoCon"
    assert read_settings(folder / "again.json").config == read_written(folder / "fox.toml")
    assert "Not supported" not in capsys.readouterr().out


def test_settings_are_exported_for_sd_scripts_too(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "a.toml").write_text('rank = 8\nsample_prompts = ["a fox"]\n[[concepts]]\nfolder = "a"', encoding="utf-8")
    assert cli.main(["export", "a.toml", "--to", "sd-scripts"]) == 0
    assert "Saved to a-kohya.toml, a-kohya-dataset.toml, a-kohya-prompts.txt" in capsys.readouterr().out
    read_back = read_settings(folder / "a-kohya.toml").config
    assert (read_back.rank, read_back.sample_prompts) == (8, ("a fox",))
    assert [concept.folder for concept in read_back.concepts] == [str(folder / "a")]


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["--to", "sd-scripts", "--out", "new.json"], "must end in .toml, which sd-scripts reads"),
        (["--to", "kohya_ss", "--out", "new.toml"], "must end in .json, which kohya_ss reads"),
        (["--to", "sd-scripts", "--out", "new.txt"], "must end in .json (for the kohya_ss GUI) or .toml"),
        (["--out", "new"], "must end in .json (for the kohya_ss GUI) or .toml"),
    ],
)
def test_export_refuses_the_ending_of_another_program(
    words: list[str], advice: str, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    (folder / "a.toml").write_text('[[concepts]]\nfolder = "a"', encoding="utf-8")
    assert cli.main(["export", "a.toml", *words]) == 2
    assert f"{words[-1]} {advice}" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["a.toml"]


@pytest.mark.parametrize(("name", "key"), [("new.json", "LoRA_type"), ("NEW.TOML", "network_module")])
def test_the_ending_of_the_output_file_names_the_program(name: str, key: str, folder: Path) -> None:
    (folder / "a.toml").write_text('[[concepts]]\nfolder = "a"', encoding="utf-8")
    assert cli.main(["export", "a.toml", "--out", name]) == 0
    text = (folder / name).read_text(encoding="utf-8")
    assert key in (json.loads(text) if name.endswith("json") else tomlkit.parse(text))


def test_export_prints_what_the_gui_does_not_support(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "a.toml").write_text('make_grid = false\n[[concepts]]\nfolder = "a"\ntrigger = "zkw"', encoding="utf-8")
    assert cli.main(["export", "a.toml"]) == 0
    shown = capsys.readouterr().out
    assert "training does not depend on it: make_grid." in shown
    assert "concepts[1].trigger = zkw is written for images without a caption only" in shown
    assert shown.index("concepts[1].trigger") < shown.index("missing_captions") < shown.index("make_grid")
    assert "Fill in pretrained_model_name_or_path" in shown


def read_cli_config(*words: str) -> TrainConfig:
    return cli_settings.read_cli_config(cli.parse(["train", *words]))


def test_presets_override_the_file_and_flags_override_both(folder: Path) -> None:
    (folder / "a.toml").write_text('rank = 4\nepochs = 3\n[[concepts]]\nfolder = "a"', encoding="utf-8")
    config = read_cli_config("a.toml", "--preset", "style", "--preset", "low-vram", "--alpha", "2")
    assert (config.rank, config.epochs, config.alpha, config.targets) == (32, 3, 2.0, "all")
    assert config.gradient_checkpointing
    assert config == config.replace(**find_preset("Low VRAM").values)


def test_unknown_preset_is_refused() -> None:
    with pytest.raises(LoraTrainError, match="Did you mean 'SDXL'"):
        read_cli_config("--folder", "a", "--preset", "sdx")
