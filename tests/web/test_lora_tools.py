"""The Tools panel: files are checked and converted, and nothing is overwritten."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from lib_lora_train.adapters.files.lora_file import read_adapter, write_adapter
from lib_lora_train.cli import main as cli
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import AdapterError, LoraTrainError
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.models.embedded import EMBEDDED_CHECKPOINT
from lib_lora_train.web.extraction import ExtractSession
from lib_lora_train.web.lora_tools import LoraToolsSession

_LAYER = "lora_unet_mid_block_attentions_0_proj_in"


def write_lora(path: Path, *, value: float = 0.01) -> Path:
    """A LoRA of rank 4 on one layer of a made-up model."""
    state = {
        f"{_LAYER}.lora_down.weight": torch.full((4, 32, 1, 1), value),
        f"{_LAYER}.lora_up.weight": torch.full((32, 4, 1, 1), 0.5),
        f"{_LAYER}.alpha": torch.tensor(4.0),
    }
    write_adapter(path, state, metadata={"ss_output_name": "small"}, precision="fp32")
    return path


def test_a_good_file_is_described(tmp_path: Path) -> None:
    answer = LoraToolsSession().check({"file": f'"{write_lora(tmp_path / "small.safetensors")}"'})
    assert answer["facts"][0].startswith("small.safetensors: lora")
    assert any("rank: 4 × 1" in line for line in answer["facts"])
    assert (answer["problems"], answer["broken"]) == ([], False)


def test_a_broken_file_is_reported(tmp_path: Path) -> None:
    answer = LoraToolsSession().check({"file": str(write_lora(tmp_path / "a.safetensors", value=float("nan")))})
    assert answer["broken"]
    assert "NaN" in answer["problems"][0]


@pytest.mark.parametrize("file", ["", "  ", "nowhere.safetensors", "a.ckpt"])
def test_a_path_that_is_not_a_lora_file_is_an_error(file: str) -> None:
    for action in LoraToolsSession().actions().values():
        with pytest.raises(AdapterError):
            action({"file": file})


def test_an_invalid_rank_and_an_existing_output_are_errors_before_anything_is_loaded(tmp_path: Path) -> None:
    file = write_lora(tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match="'many' is not a valid rank"):
        LoraToolsSession().convert({"file": str(file), "rank": "many"})
    existing = write_lora(tmp_path / "a-rank8.safetensors")
    before = existing.read_bytes()
    with pytest.raises(LoraTrainError, match="already exists"):
        LoraToolsSession().convert({"file": str(file), "rank": "8"})
    assert existing.read_bytes() == before


def test_a_lora_is_converted_to_its_exact_difference(tmp_path: Path) -> None:
    """On the embedded model: up @ down, as alpha equals the rank; fp16 keeps 11 bits, 2⁻¹¹ relative."""
    unet = StandaloneHost(None, None, tmp_path).load_model(TrainConfig(precision="fp32")).unet
    name, layer = next((n, m) for n, m in unet.named_modules() if n.endswith("attn1.to_q"))
    key = "lora_unet_" + name.replace(".", "_")
    generator = torch.Generator().manual_seed(1)
    down, up = (torch.randn(shape, generator=generator) for shape in ((4, layer.in_features), (layer.out_features, 4)))
    state = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(4.0)}
    file = tmp_path / "a.safetensors"
    write_adapter(file, state, metadata={"ss_sd_model_hash": "0123abcd"}, precision="fp32")
    answer = LoraToolsSession().convert({"file": str(file), "to": "diff"})
    assert (Path(answer["path"]).name, answer["left_out"]) == ("a-diff.safetensors", [])
    assert answer["warnings"] == []  # the difference of a LoRA is the same on every model
    assert 0 < answer["error"] < 2**-11, "includes the loss of rounding to 16 bits"
    torch.testing.assert_close(
        read_adapter(Path(answer["path"])).state[f"{key}.diff"].float(), up @ down, rtol=2**-10, atol=1e-4
    )


def _two_loras(folder: Path) -> list[Path]:
    """Plain LoRAs on a layer of the embedded model, with another name in their metadata."""
    unet = StandaloneHost(None, None, folder).load_model(TrainConfig(precision="fp32")).unet
    name, layer = next((n, m) for n, m in unet.named_modules() if n.endswith("attn1.to_q"))
    key = "lora_unet_" + name.replace(".", "_")
    down, up = torch.full((4, layer.in_features), 0.01), torch.full((layer.out_features, 4), 0.5)
    state = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(4.0)}
    paths = [folder / f"{stem}.safetensors" for stem in ("a", "b")]
    for path in paths:
        write_adapter(path, state, metadata={"ss_output_name": "old", "modelspec.title": "old"}, precision="fp32")
    return paths


def test_convert_and_merge_take_a_name_which_becomes_the_alias(tmp_path: Path) -> None:
    first, second = _two_loras(tmp_path)
    session = LoraToolsSession()
    converted = session.convert({"file": str(first), "rank": "2", "name": " best hat "})
    merged = session.merge({"files": f"{first}\n{second}: 0.5", "name": "hats"})
    into = shutil.copytree(EMBEDDED_CHECKPOINT.parent, tmp_path / "sd") / EMBEDDED_CHECKPOINT.name
    baked = session.merge({"files": str(first), "to": "checkpoint", "checkpoint": str(into), "name": "model with hat"})
    names = [Path(answer["path"]).relative_to(tmp_path).as_posix() for answer in (converted, merged, baked)]
    assert names == ["best hat.safetensors", "hats.safetensors", "sd/model with hat.safetensors"]
    assert read_adapter(tmp_path / names[0]).metadata["modelspec.title"] == "best hat"
    assert [read_adapter(tmp_path / name).metadata["ss_output_name"] for name in names[:2]] == ["best hat", "hats"]
    out = tmp_path / "folder"
    out.mkdir()
    assert cli.main(["merge", str(first), str(second), "--name", "cli", "--out", str(out)]) == 0
    assert read_adapter(out / "cli.safetensors").metadata["ss_output_name"] == "cli"
    assert cli.main(["convert", str(first), "--name", "x", "--out", str(tmp_path / "nowhere")]) != 0


def test_files_are_merged_by_another_way_and_with_block_weights(tmp_path: Path) -> None:
    first, second = _two_loras(tmp_path)
    session, zeros = LoraToolsSession(), ",".join("0" for _ in range(17))
    values = {"files": f"{first}: 0.5: {zeros}\n{second}", "to": "rank", "rank": "2"}
    plain = session.merge(values)
    (key,) = {name.partition(".")[0] for name in read_adapter(first).state}
    up, down = (read_adapter(Path(plain["path"])).state[f"{key}.lora_{side}.weight"].float() for side in ("up", "down"))
    # Both matrices of the second file are constant; fp16 keeps 11 bits of each.
    torch.testing.assert_close(up @ down, torch.full((len(up), down.shape[1]), 4 * 0.01 * 0.5), rtol=2**-9, atol=0)
    answer = session.merge({**values, "method": "dare", "density": "0.25", "seed": "3"})
    assert Path(answer["path"]).name == "a+b-dare-rank2.safetensors"
    assert answer["change"] > 1 and answer["error"] > 0 and plain["change"] == 0
    assert (
        "merged by dare, density 0.25, seed 3: a" in read_adapter(Path(answer["path"])).metadata["ss_training_comment"]
    )
    for wrong, message in [
        ({"method": "ties", "to": "lora"}, "The result of ties has no low rank"),
        ({"method": "ties", "to": "checkpoint"}, "Only a sum can be merged into a checkpoint"),
        ({"method": "some"}, "'some' is not a merge method"),
        ({"method": "dare", "density": "much"}, "density must be above 0"),
        ({"seed": "-1"}, "'-1' is not a valid seed"),
        ({"files": f"{first}: 1: 1,2\n{second}"}, "2 block weights instead of 17 or 26"),
    ]:
        with pytest.raises(LoraTrainError, match=message):
            session.merge({**values, **wrong, "name": "new"})
    command = ["merge", str(first), str(second), "--out", str(tmp_path / "cli"), "--rank", "2"]
    assert cli.main([*command, "--method", "della", "--block-weights", zeros]) == 0
    assert cli.main([*command, "--name", "x", "--out", str(tmp_path), "--method", "ties", "--into"]) != 0


def test_a_lora_is_resized_by_a_rule_or_to_a_rank(tmp_path: Path) -> None:
    session, file = LoraToolsSession(), str(write_lora(tmp_path / "a.safetensors"))
    answer = session.resize({"file": file, "rule": "", "threshold": "", "rank": "2", "conv_rank": ""})
    assert Path(answer["path"]).name == "a-rank2.safetensors"
    # The layer's matrix has rank 1, so nothing but the rounding of the file to 16 bit is lost.
    assert answer["ranks"] == "rank 2" and answer["error"] < 1e-3
    answer = session.resize({"file": file, "rule": "sv_fro", "threshold": "0.5", "rank": 1, "conv_rank": ""})
    assert Path(answer["path"]).name == "a-sv_fro0.5.safetensors" and answer["ranks"] == "rank 1"
    for values, message in [
        ({"rule": "", "rank": ""}, "Give the new rank"),
        ({"rule": "", "rank": "many"}, "'many' is not a valid rank"),
        ({"rule": "sv_fro", "threshold": "some"}, "sv_fro must be above 0 and at most 1, not 0"),
    ]:
        with pytest.raises(AdapterError, match=message):
            session.resize({"file": file, **values})


@pytest.mark.parametrize(
    "name",
    ["../x", "a/b", "a\\b", ".x", "con", "best.", "x.safetensors", "a:1", "b", "carded", "with image", "w" * 300],
)
def test_every_tool_has_the_rule_for_names_and_never_overwrites(tmp_path: Path, name: str) -> None:
    """Existing cards and previews count too: the new file would take them over."""
    file = write_lora(tmp_path / "a.safetensors")
    write_lora(tmp_path / "b.safetensors")
    (tmp_path / "carded.json").write_text("{}", encoding="utf-8")
    (tmp_path / "with image.preview.png").write_bytes(b"x")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    session = LoraToolsSession()
    with pytest.raises(LoraTrainError):
        session.convert({"file": str(file), "name": name})
    with pytest.raises(LoraTrainError):
        session.resize({"file": str(file), "rank": "2", "name": name})
    with pytest.raises(LoraTrainError):
        session.edit_metadata({"file": str(file), "entries": {}, "name": name})
    with pytest.raises(LoraTrainError):
        ExtractSession(lambda: tmp_path).start({"checkpoint": "a", "tuned": "b", "rank": "2", "name": name})
    for to in ("lora", "diff", "rank", "checkpoint"):
        with pytest.raises(LoraTrainError):
            session.merge({"files": f"{file}\n{file}", "to": to, "name": name, "checkpoint": str(tmp_path / "c")})
    resize, extract = ["resize", str(file), "--rank=2"], ["extract", "a", "b", "--rank=2"]
    merges = (["merge", str(file), str(file)], ["merge", str(file), "--into"])
    edit = ["metadata", str(file), "--strip"]
    for command in (["convert", str(file)], resize, extract, edit, *merges):
        assert cli.main([*command, f"--name={name}", "--out", str(tmp_path)]) != 0
    existing = str(tmp_path / "b.safetensors")
    for command in (["convert", str(file)], resize, extract, edit, ["merge", str(file), str(file)]):
        assert cli.main([*command, "--out", existing]) != 0
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
