"""Settings survive a round trip through TOML; bad files get one clear sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_lora_train.config.train_config import Concept, TrainConfig, read_config
from lib_lora_train.core.errors import ConfigError, OutputError
from lib_lora_train.formats.toml import read_toml_config, write_toml_config


def test_written_settings_are_read_back_equal(tmp_path: Path) -> None:
    config = TrainConfig(
        concepts=(
            Concept(str(tmp_path / 'a "quoted" folder'), repeats=3, trigger="zörp, hat", class_word="cat"),
            Concept(str(tmp_path / "reg"), is_regularisation=True),
        ),
        checkpoint=str(tmp_path / "model.safetensors"),
        unet_lr=1e-5,
        alpha=8.0,
        max_steps=10**7,
        comment='a "note"\nwith \\ two lines',
        sample_prompts=("zorp --w 512", "a cat, 猫 --n bad"),
        output_dir=str(tmp_path),
    )
    path = tmp_path / "run.toml"
    write_toml_config(path, config)
    assert read_config(read_toml_config(path)) == (config, ())
    assert [p.name for p in tmp_path.iterdir()] == ["run.toml"]


def test_default_settings_are_read_back_equal(tmp_path: Path) -> None:
    write_toml_config(tmp_path / "run.toml", TrainConfig())
    assert read_config(read_toml_config(tmp_path / "run.toml")) == (TrainConfig(), ())


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "run.toml"
    path.write_text(
        'checkpoint = "model.safetensors"\nvae = ""\noutput_dir = "../out"\n'
        f"[[concepts]]\nfolder = 'cats'\n[[concepts]]\nfolder = '{tmp_path / 'abs'}'\n"
    )
    monkeypatch.chdir(tmp_path)
    config, problems = read_config(read_toml_config(Path("sub/run.toml")))
    assert not problems
    assert config.checkpoint == str(tmp_path / "sub" / "model.safetensors")
    assert (config.vae, config.output_dir) == ("", str(tmp_path / "out"))
    assert [c.folder for c in config.concepts] == [str(tmp_path / "sub" / "cats"), str(tmp_path / "abs")]


def test_written_paths_are_valid_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    write_toml_config(tmp_path / "run" / "run.toml", TrainConfig(concepts=(Concept("cats"),)))
    config, _ = read_config(read_toml_config(tmp_path / "run" / "run.toml"))
    assert config.concepts[0].folder == str(tmp_path / "cats")


def test_a_home_folder_is_expanded(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('output_dir = "~/loras"')
    assert read_toml_config(tmp_path / "run.toml")["output_dir"] == str(Path.home() / "loras")


def test_values_of_the_wrong_type_are_left_for_read_config(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("checkpoint = 3\nconcepts = [1, {folder = 2}, {trigger = 'x'}]\nranks = 4")
    _, problems = read_config(read_toml_config(tmp_path / "run.toml"))
    assert {problem.where for problem in problems} == {"concepts[1]", "ranks"}


@pytest.mark.parametrize("content", [b"rank = ", b"rank = 4\nrank = 5", b"= 3", b"[concepts", b"\xff\xfe\x00"])
def test_invalid_toml_is_reported_with_the_file_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"run\.toml is not"):
        read_toml_config(path)


def test_a_byte_order_mark_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("rank = 4", encoding="utf-8-sig")
    assert read_toml_config(tmp_path / "run.toml") == {"rank": 4}


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml does not exist"):
        read_toml_config(tmp_path / "none.toml")


def test_an_unwritable_path_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_toml_config(tmp_path / "none" / "run.toml", TrainConfig())


def test_a_windows_path_is_kept_on_every_system(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(r"checkpoint = 'C:\models\a.safetensors'")
    assert read_toml_config(tmp_path / "run.toml")["checkpoint"] == r"C:\models\a.safetensors"


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        (r'folder = "C:\Users\me\pics"', '"C:/Users/me/pics"'),
        (r'folder = "D:\photos\zok"', r"'D:\photos\zok' in single quotes"),
        (r'folder = "C:\new\to train"', "folder contains a line break or tab"),
    ],
)
def test_a_windows_path_in_double_quotes_is_explained(line: str, advice: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(f'output_name = "a"\n\n[[concepts]]\n{line}\n', encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        read_toml_config(path)
    assert advice in str(refused.value) and "backslash" in str(refused.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_settings_are_read_in_every_unicode_encoding_with_a_mark(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes('output_name = "имя"\n'.encode(encoding))
    assert read_toml_config(path)["output_name"] == "имя"


def test_settings_in_a_code_page_are_refused_with_advice(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes('output_name = "имя"\n'.encode("cp1251"))
    with pytest.raises(ConfigError, match=r"is not UTF-8 text\. Save it as UTF-8"):
        read_toml_config(path)
