"""Metadata in a new file: what was set is there, what is private is gone, the tensors are the same bytes."""

from __future__ import annotations

import base64
import errno
import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lib_lora_train.adapters.files.lora_file import read_adapter, write_adapter
from lib_lora_train.cli.main import main
from lib_lora_train.core.errors import AdapterError, LoraTrainError, OutputError
from lib_lora_train.core.safetensors_header import Header
from lib_lora_train.lora_tools.edit_metadata import (
    THUMBNAIL,
    MetadataEdit,
    describe_metadata,
    edit_metadata,
    without_folders,
    write_edited,
)
from lib_lora_train.lora_tools.metadata_fields import FIELDS
from lib_lora_train.web.lora_tools import LoraToolsSession
from tests.paths import ROOT

METADATA = {
    "ss_output_name": "old",
    "ss_sd_model_name": "/home/ann/models/base v1.safetensors",
    "ss_datasets": json.dumps([{"image_dir": "C:\\Users\\ann\\pics\\10_cat", "tags": {"a cat": 3}}]),
    "ss_training_comment": "from /home/ann/notes.txt, see https://example.org/a/b",
    "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
}


def write_lora(path: Path) -> Path:
    state = {"lora_unet_a.lora_up.weight": torch.randn(4, 2), "lora_unet_a.lora_down.weight": torch.randn(2, 4)}
    write_adapter(path, state, metadata=METADATA, precision="fp16")
    return path


@pytest.mark.parametrize(
    ("text", "stripped"),
    [
        ("/home/ann/a b/base v1.safetensors", "base v1.safetensors"),
        ("C:\\Users\\ann\\base.ckpt", "base.ckpt"),
        ("~/loras/", "loras"),
        ("see /home/ann/x.txt and D:/y/z.png", "see x.txt and z.png"),
        ('{"/home/ann/10_cat": {"n": 1}}', '{"10_cat": {"n": 1}}'),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("runwayml/stable-diffusion-v1-5", "runwayml/stable-diffusion-v1-5"),
        ("1girl, solo/duo, 1/2", "1girl, solo/duo, 1/2"),
        ('{"a":  1}', '{"a":  1}'),
        ('["/home/ann/Bär.png"]', '["Bär.png"]'),
        ("0.5", "0.5"),
    ],
)
def test_paths_lose_their_folders_and_nothing_else_changes(text: str, stripped: str) -> None:
    assert without_folders(text) == stripped


def test_an_edited_file_has_the_same_tensors_and_the_new_entries(tmp_path: Path) -> None:
    old, new, picture = write_lora(tmp_path / "old.safetensors"), tmp_path / "new.safetensors", tmp_path / "p.png"
    Image.new("RGB", (800, 400), (200, 10, 10)).save(picture)
    before = old.read_bytes()
    values = {"trigger": "zok, zok style", "license": "CC-BY-4.0", "ss_training_comment": "", "mine": "yes"}
    write_edited(old, new, MetadataEdit(values, strip=True, preview=picture))
    assert old.read_bytes() == before
    assert all(torch.equal(tensor, load_file(new)[key]) for key, tensor in load_file(old).items())
    found = read_adapter(new).metadata
    assert found["modelspec.trigger_phrase"] == "zok, zok style" and found["modelspec.license"] == "CC-BY-4.0"
    assert found["modelspec.sai_model_spec"] == "1.0.1" and found["modelspec.title"] == "new" and found["mine"] == "yes"
    assert found["ss_output_name"] == "new" and "ss_training_comment" not in found
    assert found["sshs_model_hash"] == read_adapter(old).metadata["sshs_model_hash"], "it covers the tensors alone"
    assert "sshs_legacy_hash" not in found
    assert "ann" not in json.dumps({key: value for key, value in found.items() if key != THUMBNAIL})
    kind, _, data = found[THUMBNAIL].partition(",")
    assert kind == "data:image/jpeg;base64" and Image.open(io.BytesIO(base64.b64decode(data))).size == (256, 128)
    with pytest.raises(LoraTrainError, match="already exists"):
        write_edited(old, new, MetadataEdit())


def test_paths_stay_unless_they_are_stripped() -> None:
    assert (
        edit_metadata(METADATA, MetadataEdit({"trigger": "zok"}), name="new").items()
        >= {
            **METADATA,
            "ss_output_name": "new",
        }.items()
    )


def test_long_values_are_cut_and_images_are_not_shown() -> None:
    values = {"c": "x" * 300, "b": "y" * 301, THUMBNAIL: "data:image/jpeg;base64," + "A" * 39_977}
    assert describe_metadata(Header(values, ())) == [
        f"b: {'y' * 300}… (301 characters)",
        f"c: {'x' * 300}",
        "modelspec.thumbnail: an image of 40 kB",
    ]


def test_bad_files_are_one_sentence(tmp_path: Path) -> None:
    old, broken = write_lora(tmp_path / "old.safetensors"), tmp_path / "broken.safetensors"
    broken.write_bytes(b"no")
    with pytest.raises(AdapterError, match=r"old.safetensors cannot be read as an image"):
        write_edited(old, tmp_path / "new.safetensors", MetadataEdit(preview=old))
    with pytest.raises(AdapterError, match=r"broken.safetensors is not a safetensors file"):
        write_edited(broken, tmp_path / "new.safetensors", MetadataEdit())
    assert not (tmp_path / "new.safetensors").exists()


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = write_lora(tmp_path / "old.safetensors")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match=r"new.safetensors could not be written: No space left on device"):
        write_edited(old, tmp_path / "new.safetensors", MetadataEdit(strip=True))
    assert list(tmp_path.iterdir()) == [old]


def test_metadata_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lora(tmp_path / "old.safetensors")
    assert main(["metadata", "old.safetensors"]) == 0
    assert "ss_sd_model_name: /home/ann/models" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["old.safetensors"]
    command = ["metadata", "old.safetensors", "--strip", "--trigger", "zok", "--set", "mine=a=b"]
    assert main(command) == 0
    found = read_adapter(tmp_path / "old-edited.safetensors").metadata
    assert (found["modelspec.trigger_phrase"], found["mine"]) == ("zok", "a=b")
    assert main(command) == 2, "nothing is overwritten"
    assert main(["metadata", "old.safetensors", "--set", "mine", "--name", "x"]) == 2
    assert "'mine' has no value. Write KEY=VALUE" in capsys.readouterr().err


def test_every_field_is_on_the_page() -> None:
    page = (ROOT / "javascript" / "lora_train_tools.js").read_text(encoding="utf-8")
    assert all(f'["{name}", "' in page for name in FIELDS)


def test_metadata_in_tools(tmp_path: Path) -> None:
    file, session = write_lora(tmp_path / "old.safetensors"), LoraToolsSession()
    shown = session.show_metadata({"file": str(file)})
    assert any(line.startswith("ss_datasets: [") for line in shown["facts"]) and shown["fields"]["trigger"] == ""
    fields = {"title": "Zok", "trigger": "zok", "license": "", "author": "", "description": ""}
    answer = session.edit_metadata({"file": str(file), "entries": fields, "strip": True, "name": "new", "image": ""})
    assert Path(answer["path"]).name == "new.safetensors"
    again = session.show_metadata({"file": answer["path"]})
    assert again["fields"] == fields and not any("ann" in line for line in again["facts"])
    with pytest.raises(LoraTrainError):
        session.edit_metadata({"file": str(file), "entries": {}, "strip": True, "name": "new", "image": ""})
