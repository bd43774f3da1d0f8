"""The command `heatmap`: one file for each word, nothing overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lib_lora_train.cli.main import main


def _run(*arguments: object) -> int:
    return main(["heatmap", *map(str, arguments), "--cpu"])


def test_an_image_has_a_file_for_each_word_of_its_caption(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (64, 96), "red").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("fox, red hat, C++, c", encoding="utf-8")
    out = tmp_path / "out"
    out.mkdir()
    assert _run(tmp_path / "a.png", "--out", out) == 0
    names = ["a-C.png", "a-c-2.png", "a-fox.png", "a-red_hat.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    with Image.open(out / "a-fox.png") as made:
        assert made.size == (64, 96) and made.mode == "RGB"
    assert "fox: at most" in capsys.readouterr().out
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert _run(tmp_path / "a.png", "--out", out) == 2
    assert "already exists" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in out.iterdir()}


def test_a_prompt_is_drawn_and_kept_beside_its_maps(tmp_path: Path) -> None:
    assert (
        _run("--prompt", "a fox --s 1 --d 3", "--words", "fox", "--layers", "all", "--out", tmp_path, "--name", "x")
        == 0
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-fox.png", "x.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Give an image, or a prompt"),
        (("--prompt", "a fox --s 1", "--words", "dog"), "“dog” is not in the prompt"),
        (("--prompt", "a fox --s 0"), "--s 0 is outside"),
        (("--prompt", "a fox", "--name", "a/b"), "The name"),
        (("--prompt", "a fox", "--clip-skip", "99"), "clip_skip"),
        (("--prompt", "a fox", "--sampler", "Heun"), "sample_sampler"),
        (("--prompt", "a fox", "--lora", "gone.safetensors"), "gone.safetensors does not exist"),
        (("gone.png", "--prompt", "a fox"), "gone.png"),
        (("--prompt", "--s 1"), "no words"),
    ],
)
def test_what_is_wrong_is_a_sentence_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert _run(*arguments, "--out", tmp_path) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_folder_that_does_not_exist_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--prompt", "a fox", "--out", tmp_path / "gone") == 2
    assert "does not exist. Create it" in capsys.readouterr().err
