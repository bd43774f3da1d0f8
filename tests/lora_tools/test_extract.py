"""A LoRA from two checkpoints: merged into the base it gives the other one, and what is lost is what theory says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib_lora_train.adapters.files.lora_file import read_adapter
from lib_lora_train.cli.main import main
from lib_lora_train.core.errors import AdapterError, LoraTrainError, ModelError
from lib_lora_train.lora_tools.extract import ExtractOptions, extract, write_extracted
from lib_lora_train.lora_tools.merge_into_checkpoint import write_merged_checkpoint
from lib_lora_train.lora_tools.rank_rule import RankRule
from lib_lora_train.models.architecture import Architecture
from tests.lora_tools.test_merge_into_anima import write_checkpoint as write_anima
from tests.stand_ins.tiny_models import write_tiny_checkpoint

UNET = "model.diffusion_model."
LINEAR = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
CONV = f"{UNET}input_blocks.1.0.in_layers.2.weight"
POINT = f"{UNET}input_blocks.1.1.proj_in.weight"
TEXT = "cond_stage_model.transformer.text_model.encoder.layers.3.mlp.fc1.weight"
FIRST = f"{UNET}input_blocks.0.0.weight"
NORM = f"{UNET}input_blocks.1.1.norm.weight"
KEYS = {
    LINEAR: "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
    CONV: "lora_unet_down_blocks_0_resnets_0_conv1",
    POINT: "lora_unet_down_blocks_0_attentions_0_proj_in",
    TEXT: "lora_te_text_model_encoder_layers_3_mlp_fc1",
}
EVERYTHING = ExtractOptions(RankRule(10_000), targets="full")


def write_tuned(base: Path, name: str, changed: Mapping[str, Tensor], *, dtype: torch.dtype | None = None) -> Path:
    """The checkpoint beside it, with its metadata, and `changed` added to some tensors."""
    with safe_open(str(base), framework="pt") as file:
        metadata = file.metadata()
    tensors = {key: tensor + changed[key] if key in changed else tensor for key, tensor in load_file(base).items()}
    path = base.with_name(name)
    save_file({key: tensor.to(dtype or tensor.dtype) for key, tensor in tensors.items()}, path, metadata=metadata)
    return path


def noise(base: Path, *names: str) -> dict[str, Tensor]:
    """A change of these tensors, or of all that are matrices outside the VAE and the embeddings."""
    generator = torch.Generator().manual_seed(1)
    tensors = load_file(base)
    wanted = names or [
        key
        for key, tensor in tensors.items()
        if tensor.dim() > 1
        and not key.startswith("first_stage_model.")
        and "embedding" not in key
        and "projection" not in key
    ]
    return {key: 0.02 * torch.randn(tensors[key].shape, generator=generator) for key in wanted}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "base.safetensors", "sd1", dtype=torch.float32)


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_the_lora_of_full_rank_turns_the_base_into_the_other_checkpoint(kind: Architecture, tmp_path: Path) -> None:
    """Merged by names and shapes that this tool does not decide, so a layer under a wrong name would show.

    fp32 on weights near 0.1: sums round at 1e-8, products at 1e-7.
    """
    base = write_tiny_checkpoint(tmp_path / "base.safetensors", kind, dtype=torch.float32, shallow=True)
    changed = noise(base)
    if kind == "sd2":  # the last layer of OpenCLIP-H never reaches the UNet, so no LoRA has it
        changed = {key: change for key, change in changed.items() if ".resblocks.23." not in key}
    tuned = write_tuned(base, "tuned.safetensors", changed)
    found = extract(base, tuned, EVERYTHING, precision="fp32")
    assert found.converted.error < 1e-6 and found.outside == 0 and found.notes == ()
    path = tmp_path / "lora.safetensors"
    write_extracted(path, found)
    merged = write_merged_checkpoint(base, [(read_adapter(path), 1.0)], tmp_path / "merged.safetensors")
    assert merged.left_out == ()
    expected, got = load_file(tuned), load_file(merged.path)
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_the_error_is_the_root_of_the_sum_of_the_squared_values_left_out(base: Path) -> None:
    """Eckart & Young (1936), with singular values from float64."""
    changed = noise(base, *KEYS)
    tuned = write_tuned(base, "tuned.safetensors", changed)
    before, after = load_file(base), load_file(tuned)
    ranks = {LINEAR: 5, POINT: 5, TEXT: 5, CONV: 2}
    values = {
        name: torch.linalg.svdvals((after[name].double() - before[name].double()).flatten(1)).square() for name in KEYS
    }
    found = extract(base, tuned, ExtractOptions(RankRule(5, conv_rank=2)), precision="fp32")
    assert dict(found.ranks) == {KEYS[name]: rank for name, rank in ranks.items()}, "layers that are equal are left out"
    lost = {name: float(values[name][rank:].sum()) for name, rank in ranks.items()}
    whole = {name: float(values[name].sum()) for name in KEYS}
    # The difference is fp32, 6e-8 of the weights, whose change is a tenth of them.
    for name in KEYS:
        assert found.converted.layer_errors[KEYS[name]] == pytest.approx(math.sqrt(lost[name] / whole[name]), rel=1e-5)
    assert found.converted.error == pytest.approx(math.sqrt(sum(lost.values()) / sum(whole.values())), rel=1e-5)
    assert found.worst.startswith(f"{KEYS[CONV]} (")


def test_what_a_lora_cannot_hold_is_measured(base: Path) -> None:
    changed = noise(base, LINEAR, FIRST, NORM, TEXT, "first_stage_model.decoder.conv_in.weight")
    tuned = write_tuned(base, "tuned.safetensors", changed)
    squares = {name: float(change.double().square().sum()) for name, change in changed.items()}
    found = extract(base, tuned, ExtractOptions(RankRule(64)))
    outside = squares[FIRST] + squares[NORM]
    whole = outside + squares[LINEAR] + squares[TEXT]
    assert found.outside == pytest.approx(math.sqrt(outside / whole), rel=1e-4)
    assert found.notes == ("The VAEs differ, too. A LoRA holds no VAE: use that of tuned.",)
    without = extract(base, tuned, ExtractOptions(RankRule(64), text_encoder=False))
    assert set(without.ranks) == {KEYS[LINEAR]}
    assert without.outside == pytest.approx(math.sqrt((outside + squares[TEXT]) / whole), rel=1e-4)


def test_a_checkpoint_that_predicts_something_else_is_pointed_out(base: Path) -> None:
    tuned = write_tuned(base, "tuned.safetensors", noise(base, LINEAR))
    with safe_open(str(tuned), framework="pt") as file:
        metadata = file.metadata()
    save_file({**load_file(tuned), "v_pred": torch.tensor([])}, tuned, metadata=metadata)  # the webuis' marker
    (note,) = extract(base, tuned, ExtractOptions(RankRule(4), targets="attention")).notes
    assert note.startswith("base predicts epsilon, tuned v_prediction: a LoRA for base cannot change that")


def test_kernels_larger_than_a_point_have_their_own_rank_and_every_layer_is_reported(base: Path) -> None:
    tuned = write_tuned(base, "tuned.safetensors", noise(base, LINEAR, POINT, CONV))
    seen: list[tuple[int, int]] = []
    rule = RankRule(5, conv_rank=3)
    ranks = extract(base, tuned, ExtractOptions(rule), on_layer=lambda *at: seen.append(at)).ranks
    assert {name: ranks[KEYS[name]] for name in (LINEAR, POINT, CONV)} == {LINEAR: 5, POINT: 5, CONV: 3}
    total = seen[0][1]
    assert total > 100 and seen == [(done, total) for done in range(total + 1)]


def test_a_rule_gives_every_layer_its_own_rank(base: Path) -> None:
    flat, steep = noise(base, LINEAR)[LINEAR], torch.ones(load_file(base)[POINT].shape) * 0.01
    tuned = write_tuned(base, "tuned.safetensors", {LINEAR: flat, POINT: steep})
    ranks = extract(base, tuned, ExtractOptions(RankRule(rule="sv_fro", threshold=0.9))).ranks
    assert ranks[KEYS[POINT]] == 2, "one value is enough, and one more, as in sd-scripts"
    assert ranks[KEYS[LINEAR]] > 20


def test_clamping_cuts_the_values_at_the_quantile_of_both_signs(base: Path) -> None:
    tuned = write_tuned(base, "tuned.safetensors", noise(base, LINEAR))
    rule = RankRule(4)
    plain, clamped = (
        dict(extract(base, tuned, ExtractOptions(rule, clamp_quantile=q), precision="fp32").converted.state)
        for q in (1, 0.9)
    )
    change = load_file(tuned)[LINEAR].double() - load_file(base)[LINEAR].double()
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    both = torch.cat([(left * values)[:, :4].flatten(), right[:4].flatten()])
    limit = float(np.quantile(torch.cat([both, -both]).numpy(), 0.9))
    up, down = (clamped[f"{KEYS[LINEAR]}.lora_{side}.weight"].double() for side in ("up", "down"))
    expected = (left * values)[:, :4].clamp(-limit, limit) @ right[:4].clamp(-limit, limit)
    # numpy interpolates between neighbours, which differ by 1e-3 here; half of the values are mirrored ones
    torch.testing.assert_close(up @ down, expected, rtol=0, atol=1e-4)
    assert float(up.abs().max()) == pytest.approx(limit, rel=5e-3)
    unclamped = [plain[f"{KEYS[LINEAR]}.lora_{side}.weight"] for side in ("up", "down")]
    assert float(unclamped[0].norm()) == pytest.approx(float(unclamped[1].norm()), rel=1e-5), "fp32, sums of squares"
    exact = unclamped[0] @ unclamped[1]
    assert (exact - up @ down).norm() > 0.01 * exact.norm(), "the limit was reached"


def test_rounding_is_no_difference(base: Path) -> None:
    half = write_tuned(base, "half.safetensors", {}, dtype=torch.float16)
    with pytest.raises(AdapterError, match=r"base.safetensors and half.safetensors do not differ .* beyond rounding"):
        extract(base, half, EVERYTHING)
    tuned = write_tuned(base, "tuned.safetensors", noise(base, LINEAR), dtype=torch.bfloat16)
    found = extract(base, tuned, EVERYTHING)
    assert set(found.ranks) == {KEYS[LINEAR]} and found.outside == 0


def test_the_file_says_what_it_is_for_and_nothing_is_overwritten(base: Path, tmp_path: Path) -> None:
    found = extract(
        base, write_tuned(base, "tuned.safetensors", noise(base, LINEAR, CONV)), ExtractOptions(RankRule(4))
    )
    path = tmp_path / "new.safetensors"
    write_extracted(path, found)
    metadata = read_adapter(path).metadata
    assert metadata["ss_base_model_version"] == "sd_v1" and metadata["ss_sd_model_name"] == "base.safetensors"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["ss_output_name"] == "new" and metadata["ss_network_dim"] == "4"
    with pytest.raises(LoraTrainError, match="already exists"):
        write_extracted(path, found)


def test_an_anima_is_extracted_in_its_own_spelling(tmp_path: Path) -> None:
    write_anima(tmp_path / "base.safetensors")
    base = tmp_path / "base.safetensors"
    name = next(key for key in load_file(base) if key.endswith("blocks.0.mlp.layer1.weight"))
    tuned = write_tuned(base, "tuned.safetensors", noise(base, name))
    found = extract(base, tuned, EVERYTHING, precision="fp32")
    assert {key.rpartition(".lora_")[0] for key in found.converted.state} == {"diffusion_model.blocks.0.mlp.layer1"}
    path = tmp_path / "lora.safetensors"
    write_extracted(path, found)
    merged = write_merged_checkpoint(base, [(read_adapter(path), 1.0)], tmp_path / "merged.safetensors")
    torch.testing.assert_close(load_file(merged.path)[name], load_file(tuned)[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ExtractOptions(RankRule()), "Give the new rank"),
        (replace(EVERYTHING, targets="some"), "'some' is not a choice of layers. Choose one of attention"),
        (replace(EVERYTHING, clamp_quantile=0.5), "clamp_quantile must be above 0.5 and at most 1, not 0.5"),
        (replace(EVERYTHING, clamp_quantile=1.5), "not 1.5"),
        (replace(EVERYTHING, clamp_quantile=math.nan), "not nan"),
    ],
)
def test_options_out_of_range_are_refused_before_anything_is_read(options: ExtractOptions, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        extract(Path("nowhere"), Path("nowhere"), options)


def test_files_that_do_not_belong_together_are_refused(base: Path, tmp_path: Path) -> None:
    lora = tmp_path / "lora.safetensors"
    write_extracted(lora, extract(base, write_tuned(base, "t.safetensors", noise(base, LINEAR)), EVERYTHING))
    other = write_tiny_checkpoint(tmp_path / "sd2.safetensors", "sd2")
    textless = tmp_path / "textless.safetensors"
    save_file({k: t for k, t in load_file(base).items() if not k.startswith("cond_stage_model.")}, textless)
    started: list[int] = []
    for first, second, message in [
        (base, base, "base.safetensors is given twice"),
        (base, other, "base.safetensors is SD1, and sd2.safetensors is SD2. Choose two checkpoints of the same kind"),
        (base, lora, "lora.safetensors: This is a LoRA, not a checkpoint"),
        (base, textless, "textless.safetensors: .*text encoder"),
        (base, tmp_path / "none.safetensors", "none.safetensors does not exist"),
        (base, tmp_path / "old.ckpt", "old.ckpt"),
    ]:
        with pytest.raises((AdapterError, ModelError), match=message):
            extract(first, second, EVERYTHING, on_layer=lambda done, _total: started.append(done))
    assert not started, "no work begins"


def test_models_of_one_kind_with_other_shapes_are_refused_with_the_first_tensor(base: Path) -> None:
    tensors = load_file(base)
    for name, tensor in tensors.items():
        if name.startswith("cond_stage_model.") and ".mlp.fc1." in name:
            tensors[name] = torch.cat([tensor, tensor])
        if name.startswith("cond_stage_model.") and name.endswith(".mlp.fc2.weight"):
            tensors[name] = torch.cat([tensor, tensor], dim=1)
    wide = base.with_name("wide.safetensors")
    with safe_open(str(base), framework="pt") as file:
        save_file(tensors, wide, metadata=file.metadata())
    first = r"text_encoder_1\.encoder\.layers\.0\.mlp\.fc1\.bias"
    with pytest.raises(AdapterError, match=rf"have \d+ tensors of different shapes, the first is {first}\."):
        extract(base, wide, EVERYTHING)


def test_extract_on_the_command_line(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tuned(base, "tuned.safetensors", noise(base, LINEAR, FIRST))
    assert main(["extract", "base.safetensors", "tuned.safetensors", "--rank", "4", "--unet-only"]) == 0
    said = capsys.readouterr().out
    assert "Saved to tuned-rank4.safetensors" in said and "1 layer." in said and "Rank 4." in said
    assert "% of the change in these layers, most in lora_unet_down_blocks_0_" in said
    assert "% of the whole change is outside of them" in said
    assert main(["extract", "base.safetensors", "tuned.safetensors", "--rank", "4"]) == 2
    assert "exists" in capsys.readouterr().err
    assert main(["extract", "base.safetensors", "gone.safetensors", "--rank", "4", "--out", "nowhere/x"]) == 2
    assert "The folder nowhere does not exist" in capsys.readouterr().err, "before minutes of work"
