"""A LoRA at another rank: the rules against their definitions, the result against a dense decomposition."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lib_lora_train.adapters.files.decode import parse_state
from lib_lora_train.adapters.files.lora_file import AdapterFile, read_adapter, write_adapter
from lib_lora_train.cli.main import main
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.lora_tools.rank_rule import RankRule, describe_ranks
from lib_lora_train.lora_tools.resize import resize

LINEAR, CONV, TUCKER = "lora_unet_a", "lora_unet_b", "lora_unet_c"
LAYERS = (LINEAR, CONV, TUCKER)


def some_file(rank: int = 6, alpha: float = 3.0) -> AdapterFile:
    """A linear layer (10, 12), a 3×3 convolution (9, 7) and one with a core (8, 5), and a norm layer."""
    make = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=make)

    return AdapterFile(
        Path("some.safetensors"),
        {
            f"{LINEAR}.lora_up.weight": draw(10, rank),
            f"{LINEAR}.lora_down.weight": draw(rank, 12),
            f"{CONV}.lora_up.weight": draw(9, rank, 1, 1),
            f"{CONV}.lora_down.weight": draw(rank, 7, 3, 3),
            f"{TUCKER}.lora_up.weight": draw(8, rank, 1, 1),
            f"{TUCKER}.lora_mid.weight": draw(rank, rank, 3, 3),
            f"{TUCKER}.lora_down.weight": draw(rank, 5, 1, 1),
            **{f"{layer}.alpha": torch.tensor(alpha) for layer in LAYERS},
            "lora_unet_d.w_norm": draw(4),
            "lora_unet_d.b_norm": draw(4),
        },
        {"ss_network_dim": str(rank), "ss_output_name": "some"},
    )


def deltas(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """ΔW by layer, flattened to (out, in · kernel), float64, from the definition alone."""
    found = {}
    for layer in LAYERS:
        up = state[f"{layer}.lora_up.weight"].double().flatten(1)
        down = state[f"{layer}.lora_down.weight"].double()
        if f"{layer}.lora_mid.weight" in state:
            middle = state[f"{layer}.lora_mid.weight"].double()
            parts = [middle[:, r, None] * down[r].reshape(1, -1, 1, 1) for r in range(middle.shape[1])]
            down = torch.stack(parts).sum(0)
        scale = float(state[f"{layer}.alpha"]) / up.shape[1]
        found[layer] = scale * up @ down.flatten(1)
    return found


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (RankRule(3), 3),
        (RankRule(9), 4),
        (RankRule(rule="sv_ratio", threshold=3), 2 + 1),  # above 8/3; and one more, as sd-scripts
        (RankRule(rule="sv_ratio", threshold=2), 1 + 1),  # 4 is not above 8/2
        (RankRule(rule="sv_ratio", threshold=2.01), 2 + 1),
        (RankRule(rule="sv_cumulative", threshold=0.8), 2 + 1),  # 12 of 15
        (RankRule(rule="sv_cumulative", threshold=0.81), 3 + 1),
        (RankRule(rule="sv_cumulative", threshold=1), 4),
        (RankRule(rule="sv_fro", threshold=0.9), 2 + 1),  # √64 is 87% of √85, √80 is 97%
        (RankRule(rule="sv_fro", threshold=0.85), 1 + 1),
        (RankRule(1, rule="sv_fro", threshold=0.9), 1),  # no more than the rank
    ],
)
def test_a_rule_keeps_the_values_that_its_definition_says(rule: RankRule, kept: int) -> None:
    rule.check()
    assert rule.rank_of(torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64)) == kept


def test_a_convolution_has_its_own_limit_and_a_layer_of_zeros_keeps_rank_1() -> None:
    values = torch.tensor([8.0, 4.0, 2.0, 1.0])
    assert [RankRule(3, conv_rank=2).rank_of(values, is_conv=conv) for conv in (False, True)] == [3, 2]
    assert RankRule(3).rank_of(values, is_conv=True) == 3
    assert RankRule(rule="sv_fro", threshold=0.9).rank_of(torch.zeros(4)) == 1


@pytest.mark.parametrize("rule", [RankRule(2, conv_rank=4), RankRule(rule="sv_fro", threshold=0.9), RankRule(64)])
def test_every_layer_is_the_nearest_matrix_of_its_rank_and_the_loss_is_measured(rule: RankRule) -> None:
    file = some_file()
    resized = resize(file, rule, precision="fp32")
    before, after = deltas(dict(file.state)), deltas(dict(resized.converted.state))
    for layer in LAYERS:
        left, values, right = torch.linalg.svd(before[layer], full_matrices=False)
        rank = resized.ranks[layer]
        best = left[:, :rank] * values[:rank] @ right[:rank]
        # The file is fp32; its matrices have entries near 1 and ΔW near 10.
        torch.testing.assert_close(after[layer], best, rtol=1e-5, atol=1e-5)
        assert float(resized.converted.state[f"{layer}.alpha"]) == rank
    squares = sum(float((after[layer] - before[layer]).square().sum()) for layer in LAYERS)
    whole = sum(float(before[layer].square().sum()) for layer in LAYERS)
    # The error comes from a difference of Gram matrices, which rounds at 1e-16 of their size, 1e-8 of the norm.
    assert resized.converted.error == pytest.approx((squares / whole) ** 0.5, rel=1e-6, abs=1e-7)


def test_norm_layers_stay_and_the_file_has_the_same_shapes_as_any_lora() -> None:
    file = some_file()
    resized = resize(file, RankRule(2), precision="fp32")
    for key in ("lora_unet_d.w_norm", "lora_unet_d.b_norm"):
        assert torch.equal(resized.converted.state[key], file.state[key])
    parsed = parse_state(resized.converted.state)
    assert not parsed.unknown and {layer.kind for layer in parsed.layers.values()} == {"lora", "norm"}
    assert resized.converted.state[f"{TUCKER}.lora_down.weight"].shape == (2, 5, 3, 3)
    assert describe_ranks(resized.ranks) == "rank 2"
    assert describe_ranks({"a": 2, "b": 4, "c": 9}) == "ranks 2 to 9, 5.0 on average"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (RankRule(), "Give the new rank, or one of sv_ratio"),
        (RankRule(-1), "A rank must be 1 or more"),
        (RankRule(4, conv_rank=0), "A rank must be 1 or more"),
        (RankRule(rule="sv"), "'sv' is not a rule for ranks. Choose one of sv_ratio"),
        (RankRule(rule="sv_ratio", threshold=1), "sv_ratio must be above 1, not 1"),
        (RankRule(rule="sv_ratio", threshold=float("nan")), "sv_ratio must be above 1, not nan"),
        (RankRule(rule="sv_fro", threshold=1.1), "sv_fro must be above 0 and at most 1, not 1.1"),
        (RankRule(rule="sv_cumulative", threshold=0), "sv_cumulative must be above 0 and at most 1, not 0"),
    ],
)
def test_a_rule_out_of_range_is_refused(rule: RankRule, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        resize(some_file(), rule)


def test_files_without_plain_layers_are_refused_with_what_to_do(tmp_path: Path) -> None:
    loha = {f"lora_unet_a.hada_w{n}_{side}": torch.ones(2, 2) for n in (1, 2) for side in "ab"}
    for state, what in [
        ({**some_file().state, **{key.replace("_a.", "_z."): value for key, value in loha.items()}},
         r"has 1 layer of another family \(loha\)"),
        ({"lora_unet_d.w_norm": torch.ones(4), "lora_unet_d.b_norm": torch.ones(4)}, "has no layer whose rank"),
    ]:  # fmt: skip
        with pytest.raises(AdapterError, match=f"some.safetensors {what}.*Convert it to a LoRA of a rank"):
            resize(AdapterFile(Path("some.safetensors"), state, {}), RankRule(4))


def test_resize_on_the_command_line_writes_a_new_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = some_file()
    write_adapter(tmp_path / "some.safetensors", file.state, metadata=file.metadata, precision="fp32")
    assert main(["resize", "some.safetensors", "--rank", "4", "--conv-rank", "2"]) == 0
    said = capsys.readouterr().out
    assert "Saved to some-rank4.safetensors" in said and "Ranks 2 to 4, 2.7 on average." in said
    written = read_adapter(tmp_path / "some-rank4.safetensors")
    assert written.metadata["ss_network_dim"] == "4" and written.metadata["ss_output_name"] == "some-rank4"
    assert {len(written.state[f"{layer}.lora_down.weight"]) for layer in LAYERS} == {4, 2}
    assert main(["resize", "some.safetensors", "--sv-fro", "0.9"]) == 0
    assert (tmp_path / "some-sv_fro0.9.safetensors").is_file()
    capsys.readouterr()
    assert main(["resize", "some.safetensors", "--rank", "4"]) == 2, "nothing is overwritten"
    assert "exists" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["resize", "some.safetensors", "--sv-fro", "0.9", "--sv-ratio", "2"])
    assert "not allowed with" in capsys.readouterr().err
