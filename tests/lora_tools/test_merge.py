"""Merging files of any family into one file or a checkpoint; nothing is dropped silently."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lib_lora_train.adapters.families.base import base_weight
from lib_lora_train.adapters.families.options import Options
from lib_lora_train.adapters.files.decode import parse_state
from lib_lora_train.adapters.files.lora_file import AdapterFile, read_adapter, write_adapter
from lib_lora_train.adapters.inject import inject, inject_parsed
from lib_lora_train.adapters.registry import AdapterSpec
from lib_lora_train.cli import main as cli
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import AdapterError, LoraTrainError, OutputError
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.lora_tools.merge import add_to_layers, largest_rank, merge, merge_into_file, merged_metadata
from lib_lora_train.lora_tools.merge_into_checkpoint import pair_weights, write_merged_checkpoint
from lib_lora_train.lora_tools.merge_options import MergeOptions
from lib_lora_train.models.architecture import Architecture
from lib_lora_train.web.lora_tools import LoraToolsSession
from tests.adapters.files.test_decode import diffusers
from tests.lora_tools.test_check_and_convert import FAMILIES, file_kind
from tests.stand_ins.adapters_model import TinyModel, tiny_model, trained
from tests.stand_ins.model_folders import write_model_folder
from tests.stand_ins.tiny_models import tiny_model as tiny_sd
from tests.stand_ins.tiny_models import write_tiny_checkpoint

LOCON = AdapterSpec(rank=3, alpha=1.5, targets="all", conv_rank=2, conv_alpha=1.0)
TUCKER = AdapterSpec(rank=2, alpha=1.0, targets="all", options=Options(use_tucker=True))
OTHERS = {
    **{name: spec for name, spec in FAMILIES.items() if spec.is_dora or file_kind(name) != "lora"},
    "tucker": TUCKER,
}


def file_of(model: TinyModel, spec: AdapterSpec, name: str) -> tuple[AdapterFile, dict[str, Tensor]]:
    """A trained file, and its ΔW by layer; the adapter is removed from the model."""
    adapter = trained(model, spec)
    state, diffs = adapter.state(), {key: layer.diff_weight().double() for key, layer in adapter.layers.items()}
    adapter.remove()
    return AdapterFile(Path(f"{name}.safetensors"), state, {"ss_base_model_version": "sd_v1"}), diffs


def diffs_of(model: TinyModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """ΔW by layer of a merged file."""
    adapter, left = inject_parsed(model, parse_state(state))
    assert left == ()
    diffs = {key: layer.diff_weight().double() for key, layer in adapter.layers.items()}
    adapter.remove()
    return diffs


def summed(parts: list[tuple[dict[str, Tensor], float]]) -> dict[str, Tensor]:
    keys = {key for diffs, _ in parts for key in diffs}
    return {key: sum(w * d[key] for d, w in parts if key in d) for key in keys}  # type: ignore[misc]


def off(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of a layer, relative to the layer's norm."""
    assert found.keys() == expected.keys()
    return max(float((found[key] - expected[key]).norm() / expected[key].norm()) for key in expected)


def test_merged_loras_are_their_exact_sum() -> None:
    """Other ranks, alphas and layers, one with a negative weight: adding matrices by name would give neither."""
    model = tiny_model()
    (a, first), (b, second) = file_of(model, AdapterSpec(rank=2, alpha=1.0), "a"), file_of(model, LOCON, "b")
    merged = merge([(a, 0.8), (b, -0.5)], model)
    assert merged.error < 1e-6 and merged.left_out == () and merged.change == 0
    assert (largest_rank(merged.state), largest_rank({"a.diff": torch.zeros(4, 4)})) == (5, 0)
    assert off(diffs_of(model, dict(merged.state)), summed([(first, 0.8), (second, -0.5)])) < 1e-6
    ranks = {key: t.shape[0] for key, t in merged.state.items() if key.endswith("lora_down.weight")}
    assert set(ranks.values()) == {2, 3, 5}  # convolutions of b alone, 1×1 of b alone, both
    assert all(float(merged.state[key.replace("lora_down.weight", "alpha")]) == rank for key, rank in ranks.items())


def test_both_matrices_of_a_merged_lora_have_the_same_norm_and_an_empty_one_stays_empty() -> None:
    """So that none leaves the range of fp16. fp32 products of square roots: 1e-6."""
    model = tiny_model()
    file, _ = file_of(model, AdapterSpec(rank=2, alpha=1.0), "a")
    no_up, no_down = (
        replace(file, state={key: torch.zeros_like(t) if side in key else t for key, t in file.state.items()})
        for side in ("lora_up", "lora_down")
    )
    state = merge([(file, 100.0), (no_up, 1.0), (no_down, 1.0)], model).state
    for key in (key for key in state if key.endswith("lora_up.weight")):
        up, down = state[key], state[key.replace("lora_up", "lora_down")]
        assert float(up[:, :2].norm()) == pytest.approx(float(down[:2].norm()), rel=1e-6)
        assert not up[:, 2:4].any() and not down[4:].any()
        assert torch.isfinite(up).all() and torch.isfinite(down).all()


def test_a_bias_is_added_to_the_layers_own_and_named_where_there_is_none() -> None:
    model = tiny_sd("sd1")
    attention = model.unet.mid_block.attentions[0]
    layers = {
        "lora_unet_mid_block_attentions_0_proj_in": attention.proj_in,
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q": attention.transformer_blocks[0].attn1.to_q,
    }
    before = {key: layer.weight.clone() for key, layer in layers.items()}
    bias, state = attention.proj_in.bias.clone(), {}
    for key, layer in layers.items():
        state[f"{key}.diff"] = torch.ones(layer.weight.shape)
        state[f"{key}.diff_b"] = torch.ones(len(layer.weight))
    _, without = layers
    changed = add_to_layers([(AdapterFile(Path("a.safetensors"), state, {}), 0.5)], model)
    assert changed == (2, (f"{without}.diff_b",))
    assert torch.equal(attention.proj_in.bias, bias + 0.5)
    assert all(torch.equal(layer.weight, before[key] + 0.5) for key, layer in layers.items())


def test_files_with_other_keys_merge_into_the_same_layers() -> None:
    model = tiny_model()
    file, diffs = file_of(model, AdapterSpec(rank=2, alpha=2.0), "a")
    foreign = AdapterFile(Path("b.safetensors"), diffusers(dict(file.state), model), {})
    merged = merge([(file, 1.0), (foreign, 1.0)], model)
    assert off(diffs_of(model, dict(merged.state)), summed([(diffs, 2.0)])) < 1e-6


@pytest.mark.parametrize("name", OTHERS)
def test_any_family_merges_exactly_into_a_diff(name: str) -> None:
    model = tiny_model()
    (a, first), (b, second) = file_of(model, LOCON, "a"), file_of(model, OTHERS[name], "b")
    with pytest.raises(AdapterError, match=r"set a rank, or merge to diff"):
        merge([(a, 1.0), (b, 0.5)], model)
    merged = merge([(a, 1.0), (b, 0.5)], model, to="diff")
    assert merged.error < 1e-6 and merged.left_out == ()
    assert off(diffs_of(model, dict(merged.state)), summed([(first, 1.0), (second, 0.5)])) < 1e-5
    biases = [key for key in b.state if key.endswith("diff_b")]
    assert all(torch.equal(merged.state[key], b.state[key] * 0.5) for key in biases)


def test_a_smaller_rank_is_the_best_and_its_error_is_measured() -> None:
    """Eckart & Young: the error is the norm of the omitted singular values."""
    model = tiny_model()
    (a, first), (b, second) = file_of(model, AdapterSpec(rank=4), "a"), file_of(model, OTHERS["loha"], "b")
    expected = summed([(first, 1.0), (second, 1.0)])
    merged = merge([(a, 1.0), (b, 1.0)], model, rank=3)
    lost = sum(float(torch.linalg.svdvals(diff.flatten(1))[3:].square().sum()) for diff in expected.values())
    whole = sum(float(diff.square().sum()) for diff in expected.values())
    assert merged.error == pytest.approx((lost / whole) ** 0.5, rel=1e-4)
    found = diffs_of(model, dict(merged.state))
    missed = sum(float((found[key] - diff).square().sum()) for key, diff in expected.items())
    assert merged.error == pytest.approx((missed / whole) ** 0.5, rel=1e-4)


def test_what_does_not_fit_is_listed_by_file() -> None:
    model = tiny_model()
    (a, _), (b, _) = file_of(model, AdapterSpec(rank=2), "a"), file_of(model, OTHERS["full"], "b")
    odd = AdapterFile(a.path, {**a.state, "bundle_emb.word.clip_l": torch.ones(4)}, {})
    merged = merge([(odd, 1.0), (b, 1.0)], model, rank=4)
    assert "a.safetensors: bundle_emb.word.clip_l" in merged.left_out
    assert any(name.endswith("diff_b") for name in merged.left_out), "a LoRA has no bias"
    elsewhere = {"lora_unet_x.lora_down.weight": torch.ones(1, 4), "lora_unet_x.lora_up.weight": torch.ones(4, 1)}
    with pytest.raises(AdapterError, match="No layer of c"):
        merge([(a, 1.0), (AdapterFile(Path("c.safetensors"), elsewhere, {}), 1.0)], model)


def test_invalid_conversions_are_refused(tmp_path: Path) -> None:
    model = tiny_model()
    file, _ = file_of(model, AdapterSpec(rank=2), "a")
    with pytest.raises(AdapterError, match="two or more LoRA files"):
        merge([(file, 1.0)], model)
    with pytest.raises(AdapterError, match="lora or diff"):
        merge([(file, 1.0), (file, 1.0)], model, to="doc")
    with pytest.raises(LoraTrainError, match="3 weights for 2 files"):
        pair_weights([file, file], [1.0, 2.0, 3.0])
    (tmp_path / "a.safetensors").write_bytes(b"kept")
    with pytest.raises(LoraTrainError, match="already exists"):
        merge_into_file(
            tmp_path / "a.safetensors", [(file, 1.0), (file, 1.0)], model, to="lora", rank=0, precision="fp16"
        )
    assert (tmp_path / "a.safetensors").read_bytes() == b"kept"


def test_merged_metadata_keeps_what_all_files_agree_on() -> None:
    model = tiny_model()
    file, _ = file_of(model, AdapterSpec(rank=2), "a")
    other = AdapterFile(Path("b.safetensors"), file.state, {"ss_base_model_version": "sd_v2", "ss_v2": "True"})
    assert "ss_base_model_version" not in merged_metadata([(file, 1.0), (other, 1.0)])
    metadata = merged_metadata([(file, 1.0), (file, 0.5)])
    assert metadata["ss_base_model_version"] == "sd_v1" and metadata["modelspec.merged_from"] == "a × 1, a × 0.5"
    assert metadata["ss_training_comment"] == "merged: a × 1, a × 0.5"
    dare = merged_metadata([(file, 1.0), (file, 0.5)], MergeOptions("dare", 0.4, seed=7))
    assert dare["ss_training_comment"] == "merged by dare, density 0.4, seed 7: a × 1, a × 0.5"


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_a_merged_checkpoint_matches_the_model_with_both_loras(kind: Architecture, tmp_path: Path) -> None:
    """SD2's and SDXL's OpenCLIP keeps q, k and v in one tensor; half precision rounds each weight once."""
    checkpoint = write_tiny_checkpoint(tmp_path / "model.safetensors", kind, shallow=True)
    (tmp_path / "model.yaml").write_text("kept: beside", encoding="utf-8")
    before = checkpoint.read_bytes()
    config = TrainConfig(checkpoint=str(checkpoint), precision="fp32")
    model = StandaloneHost(None, None, tmp_path, "cpu").load_model(config)
    files, diffs = [], []
    for spec in (AdapterSpec(rank=2, alpha=1.0, targets="all"), AdapterSpec("full", targets="full", train_norm=True)):
        adapter = inject(model, spec, seed=1)
        with torch.no_grad():
            for (parameter,) in adapter.groups.values():
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
        files.append(AdapterFile(Path("a.safetensors"), adapter.state(), {}))
        diffs.append({key: layer.diff_weight() for key, layer in adapter.layers.items()})
        expected = {
            key: base_weight(layer.base_layer).clone() for key, layer in adapter.layers.items()
        }  # of the larger one
        adapter.remove()
    weights = (1.0, 0.5)
    baked = write_merged_checkpoint(checkpoint, pair_weights(files, list(weights)), tmp_path / "new.safetensors")
    assert baked.left_out == () and baked.layers == len(expected)
    assert checkpoint.read_bytes() == before
    assert (tmp_path / "new.yaml").read_text(encoding="utf-8") == "kept: beside"

    new = StandaloneHost(None, None, tmp_path, "cpu").load_model(config.replace(checkpoint=str(baked.path)))
    adapter = inject(new, AdapterSpec("full", targets="full", train_norm=True), seed=1)
    for key, layer in adapter.layers.items():
        wanted = expected[key] + sum(w * d[key] for d, w in zip(diffs, weights, strict=True) if key in d)
        # fp16 keeps 11 bits of each weight.
        torch.testing.assert_close(base_weight(layer.base_layer), wanted, rtol=2**-10, atol=1e-6)
    old, now = load_file(checkpoint), load_file(baked.path)
    assert {key: t.dtype for key, t in now.items()} == {key: t.dtype for key, t in old.items()}
    assert all(torch.equal(now[key], old[key]) for key in old if key.startswith("first_stage_model."))
    with pytest.raises(LoraTrainError, match="already exists"):
        write_merged_checkpoint(checkpoint, pair_weights(files, []), baked.path)


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_merging_into_a_model_folder_writes_another_one(kind: Architecture, tmp_path: Path) -> None:
    """With the weights that the same merge into one file gives; whatever else the folder needs is copied."""
    model = tiny_sd(kind)
    adapter = inject(model, AdapterSpec(rank=2, alpha=1.0, targets="all"), seed=1)
    with torch.no_grad():
        for (parameter,) in adapter.groups.values():
            parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    files = pair_weights([AdapterFile(Path("a.safetensors"), adapter.state(), {})], [0.5])
    expected = {key: base_weight(layer.base_layer) + 0.5 * layer.diff_weight() for key, layer in adapter.layers.items()}
    adapter.remove()
    folder = write_model_folder(tmp_path / "fox-v1.5", model, shard="100KB")
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"the old weights in another precision")
    (folder / "fox-fp16.ckpt").write_bytes(b"all of the old weights in one file")
    (folder / "README.md").write_text("about the fox", encoding="utf-8")
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    baked = write_merged_checkpoint(folder, files, tmp_path / "merged-v2.0.safetensors")
    assert baked.path == tmp_path / "merged-v2.0" and baked.left_out == () and baked.layers == len(expected)
    assert {file: file.read_bytes() for file in before} == before, "the folder is as it was"
    names = {file.relative_to(folder) for file in before if "fp16" not in file.name}
    assert {file.relative_to(baked.path) for file in baked.path.rglob("*") if file.is_file()} == names
    config = TrainConfig(checkpoint=str(baked.path), precision="fp32")
    new = inject(
        StandaloneHost(None, None, tmp_path, "cpu").load_model(config), AdapterSpec(rank=2, targets="all"), seed=1
    )
    for key, layer in new.layers.items():
        torch.testing.assert_close(base_weight(layer.base_layer), expected[key], rtol=1e-5, atol=1e-6)
    with pytest.raises(LoraTrainError, match="already exists"):
        write_merged_checkpoint(folder, files, tmp_path / "merged-v2.0.safetensors")


def test_a_model_folder_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    model = tiny_sd("sd1")
    adapter = inject(model, AdapterSpec(rank=2), seed=1)
    files = pair_weights([AdapterFile(Path("a.safetensors"), adapter.state(), {})], [])
    adapter.remove()
    folder = write_model_folder(tmp_path / "fox", model)
    monkeypatch.setattr("lib_lora_train.lora_tools.new_model_folder.save_file", full)
    with pytest.raises(OutputError, match=r"Free some space there, or choose another folder\.$"):
        write_merged_checkpoint(folder, files, tmp_path / "new.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["fox"]


def test_command_and_panel_merge_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the embedded model; the panel writes beside the first file, and the new checkpoint beside the old one."""
    model = StandaloneHost(None, None, tmp_path, device="cpu").load_model(TrainConfig())
    paths = []
    for name in ("a", "b"):
        adapter = inject(model, AdapterSpec(rank=2, targets="attention", text_encoder=False), seed=1)
        with torch.no_grad():
            adapter.groups["unet"][0].normal_(std=0.05)
        paths.append(tmp_path / f"{name}.safetensors")
        write_adapter(paths[-1], adapter.state(), metadata={}, precision="fp32")
        adapter.remove()
    out = tmp_path / "out.safetensors"
    arguments = ["merge", *map(str, paths), "--weights", "1", "0.5", "--out", str(out), "--cpu"]
    assert cli.main(arguments) == 0
    assert "Error: 0.0" in capsys.readouterr().out
    assert set(_ranks(out)) == {4}
    listed = f"{paths[0]}\n\n{paths[1]}: 0.5\n"
    answer = LoraToolsSession().merge({"files": listed, "to": "rank", "rank": "3"})
    assert Path(answer["path"]) == tmp_path / "a+b-rank3.safetensors" and 0 < answer["error"] < 1
    assert set(_ranks(Path(answer["path"]))) == {3}
    checkpoint = write_tiny_checkpoint(tmp_path / "model.safetensors", "sd1")
    answer = LoraToolsSession(lambda: checkpoint).merge({"files": listed, "to": "checkpoint"})
    assert Path(answer["path"]) == tmp_path / "model+a+b.safetensors"
    assert answer["left_out"], "the layers that are wider in the embedded model"
    assert answer["warnings"] == []
    with pytest.raises(LoraTrainError, match="nowhere"):
        LoraToolsSession().merge({"files": listed, "to": "diff", "checkpoint": str(tmp_path / "nowhere.safetensors")})
    with pytest.raises(LoraTrainError, match="Enter LoRA files"):
        LoraToolsSession().merge({"files": " \n"})


def test_command_and_panel_warn_about_another_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A DoRA trained on another checkpoint than the embedded one; the LoRA beside it names none."""
    model = StandaloneHost(None, None, tmp_path, device="cpu").load_model(TrainConfig())
    adapter = inject(model, AdapterSpec(rank=2, targets="attention", text_encoder=False, is_dora=True), seed=1)
    file, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    metadata = {"ss_sd_model_hash": "0123abcd", "ss_sd_model_name": "fox.safetensors"}
    write_adapter(file, adapter.state(), metadata=metadata, precision="fp32")
    adapter.remove()
    plain = {key: tensor for key, tensor in read_adapter(file).state.items() if "dora" not in key}
    write_adapter(other, plain, metadata={}, precision="fp32")
    warning = "a.safetensors was trained on fox.safetensors (0123abcd)"
    for answer in (
        LoraToolsSession().convert({"file": str(file), "to": "diff"}),
        LoraToolsSession().merge({"files": f"{file}\n{other}", "to": "rank", "rank": "2"}),
    ):
        assert [sentence.startswith(warning) for sentence in answer["warnings"]] == [True]
    for command, files in (("convert", [file]), ("merge", [file, other])):
        place = tmp_path / f"{command}.safetensors"
        assert cli.main([command, *map(str, files), "--to", "diff", "--out", str(place)]) == 0
        assert f"warning: {warning}" in capsys.readouterr().out


def _ranks(path: Path) -> list[int]:
    return [t.shape[0] for key, t in read_adapter(path).state.items() if key.endswith("lora_down.weight")]
