"""A command that is given another file than the one it reads says what that is and which command reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_lora_train.cli import past_run
from lib_lora_train.cli.main import main
from lib_lora_train.models.embedded import EMBEDDED_CHECKPOINT
from tests.paths import ROOT

_IMAGES = ROOT / "assets" / "demo" / "train"
_PLACES = {"IMAGES": _IMAGES, "TINY": EMBEDDED_CHECKPOINT}
_TOML = "is a settings file, which `train` and `check` read."
_JSON = "is a .json file. `import` reads those of the kohya_ss GUI."
_WEIGHTS = "is a file of weights. `check` shows what a LoRA contains, `import` reads its settings."
_SETTINGS, _LORA, _IMAGE = "Choose a settings file (.toml).", "Choose a LoRA file (.safetensors).", "Choose an image."


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one file of each kind, made the current one; it is also where runs are."""
    (tmp_path / "a.toml").write_text("rank = 8", encoding="utf-8")
    (tmp_path / "a.json").write_text('{"network_dim": 8}', encoding="utf-8")
    (tmp_path / "json.toml").write_text('{"network_dim": 8}', encoding="utf-8")
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html><title>Log in</title>", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(past_run, "PROJECT_ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("export a.json", f"a.json {_JSON} {_SETTINGS}"),
        ("export json.toml", "json.toml contains JSON. Name it .json and convert it with `import`."),
        ("export empty.safetensors", f"empty.safetensors {_WEIGHTS} {_SETTINGS}"),
        ("export folder", f"folder is a folder. {_SETTINGS}"),
        ("import empty.safetensors", "empty.safetensors is empty. Download it again."),
        ("import folder", "folder is a folder. Settings can be imported from a .json"),
        ("import TINY", "saved without metadata. `check` shows what it contains."),
        ("train a.json --dry-run", f"a.json {_JSON} {_SETTINGS}"),
        ("train gone --dry-run", f"gone does not exist. {_SETTINGS}"),
        (
            "train folder --dry-run",
            "folder is a folder. Give a settings file (.toml), or a folder of images with --folder.",
        ),
        ("train --folder IMAGES --continue-from a.toml --dry-run", f"continue_from: a.toml {_TOML}"),
        ("train --folder IMAGES --continue-from gone --dry-run", "continue_from: gone does not exist."),
        ("sweep a.json --vary rank=8 --dry-run", f"a.json {_JSON} {_SETTINGS}"),
        ("sweep gone.toml --vary rank=8 --dry-run", f"gone.toml does not exist. {_SETTINGS}"),
        ("check a.json", f"a.json {_JSON} {_LORA}"),
        ("check gone.toml", f"gone.toml does not exist. {_SETTINGS}"),
        ("check page.safetensors", "page.safetensors is a web page, not a model"),
        ("convert a.toml", f"a.toml {_TOML} {_LORA}"),
        ("resize folder --rank 4", f"folder is a folder. {_LORA}"),
        ("merge gone", f"gone does not exist. {_LORA}"),
        ("heatmap gone.png", f"gone.png does not exist. {_IMAGE}"),
        ("heatmap folder", f"folder is a folder. {_IMAGE}"),
        ("heatmap --prompt fox --lora a.toml", f"a.toml {_TOML} {_LORA}"),
    ],
)
def test_a_file_of_another_kind_is_named_with_the_command_that_reads_it(
    words: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(_PLACES.get(word, word)) for word in words.split()]) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err and shown.out == ""


def test_check_fails_for_settings_with_an_unknown_key_and_says_so_in_its_help(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a.toml").write_text('rankk = 8\nlr_schedule = "cosin"\n[[concepts]]\nfolder = "a"', encoding="utf-8")
    assert main(["check", "a.toml"]) == 2
    shown = capsys.readouterr().out
    assert "error: rankk is not a setting. Did you mean 'rank'?\n" in shown
    assert "Did you mean 'cosine'?\n" in shown and "can be used" not in shown
    (folder / "a.toml").write_text('rank = 8\n[[concepts]]\nfolder = "a"', encoding="utf-8")
    assert main(["check", "a.toml"]) == 0
    assert "a.toml can be used." in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["check", "--help"])
    assert "exit status: 0, or 2 if the file cannot be used" in " ".join(capsys.readouterr().out.split())


def test_a_sweep_finds_a_past_run_by_its_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder / "outputs" / "20260101-120000-a"
    run.mkdir(parents=True)
    (run / "config.toml").write_text(
        f"output_name = 'fox'\nrank = 4\n[[concepts]]\nfolder = '{_PLACES['IMAGES']}'", encoding="utf-8"
    )
    assert main(["sweep", run.name, "--vary", "rank=8", "--dry-run"]) == 0
    assert "fox-rank8: rank 8" in capsys.readouterr().out
    assert main(["sweep", "none", "--vary", "rank=8", "--dry-run"]) == 2
    assert "none is not a run. Give the folder of one" in capsys.readouterr().err
