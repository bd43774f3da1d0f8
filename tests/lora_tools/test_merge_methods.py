"""Ways to merge: each against its paper's definition, or against PEFT where it has the same."""

from __future__ import annotations

import pytest
import torch
from peft.utils import merge_utils
from torch import Tensor

from lib_lora_train.adapters.layer_block_weights import BASE, unet_block_weights
from lib_lora_train.adapters.registry import AdapterSpec
from lib_lora_train.cli import main as cli
from lib_lora_train.config.merge_methods import METHODS
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.lora_tools.merge import add_to_layers, merge
from lib_lora_train.lora_tools.merge_methods import average_of_elected, combine, drop, drop_small_values, trim
from lib_lora_train.lora_tools.merge_options import MergeOptions
from tests.lora_tools.test_merge import LOCON, diffs_of, file_of, off, summed
from tests.stand_ins.adapters_model import tiny_model
from tests.stand_ins.tiny_models import tiny_model as tiny_sd


def some_deltas(count: int = 3, shape: tuple[int, ...] = (13, 17)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("density", [0.2, 0.5, 0.99])
def test_ties_is_that_of_peft_on_the_weighted_updates(density: float) -> None:
    deltas = [weight * delta for weight, delta in zip((1.0, 0.5, -0.8), some_deltas(), strict=True)]
    theirs = merge_utils.ties(deltas, torch.ones(3), density)
    ours = combine(deltas, MergeOptions("ties", density), key="a")
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)  # the same sums of three numbers, fp32


def test_ties_value_by_value() -> None:
    """Yadav et al. 2023, figure 1: trim, elect the sign with the larger sum, average those that have it."""
    a, b = torch.tensor([[3.0, -2.0, 0.1, 4.0]]), torch.tensor([[-1.0, -4.0, 5.0, 0.2]])
    assert trim(a, 0.5).tolist() == [[3, 0, 0, 4]]
    assert average_of_elected([a, b]).tolist() == [[3, -3, pytest.approx(2.55), pytest.approx(2.1)]]
    assert average_of_elected([torch.zeros(1, 2), torch.zeros(1, 2)]).tolist() == [[0, 0]]
    tied = [torch.tensor([[2.0]]), torch.tensor([[-2.0]])]
    assert average_of_elected(tied).tolist() == [[2]], "plus wins a tie, as in PEFT"
    assert merge_utils.calculate_majority_sign_mask(torch.stack(tied)).flatten().tolist() == [1, 0]


def test_dare_drops_at_random_and_keeps_the_expected_value() -> None:
    """Yu et al. 2024: each value is 0 or 1/(1 − p) of itself. 40,000 draws: the mean is within 5 standard errors."""
    delta = torch.ones(200, 200)
    thinned = drop(delta, 0.3, torch.Generator().manual_seed(1))
    assert sorted(set(thinned.flatten().tolist())) == pytest.approx([0, 1 / 0.3])
    error = (0.3 * 0.7) ** 0.5 / 0.3 / 200
    assert float(thinned.mean()) == pytest.approx(1, abs=5 * error)
    deltas = some_deltas(2)
    kept = combine(deltas, MergeOptions("dare", 0.3), key="a")
    values = torch.stack([torch.zeros_like(kept), deltas[0] / 0.3, deltas[1] / 0.3, (deltas[0] + deltas[1]) / 0.3])
    assert float((kept - values).abs().min(0).values.max()) < 1e-6, "every value is a sum of what was kept"
    both = (kept - values[3]).abs() < 1e-6
    assert 0.02 < float(both.double().mean()) < 0.17, "0.3²: each file has its own draws"


def test_della_drops_small_values_of_each_row_more_often() -> None:
    """Deep et al. 2024, section 3.1, with ε = 0.2: chances from 0.4 to 0.6 over the ranks of a row of five."""
    row = torch.tensor([[0.5, -3.0, 1.0, 2.0, -0.1]])
    chances = torch.tensor([0.45, 0.6, 0.5, 0.55, 0.4], dtype=torch.float64)
    rows = row.expand(40_000, 5)
    thinned = drop_small_values(rows, 0.5, torch.Generator().manual_seed(1)).double()
    # a share of 40,000 draws has a standard error of at most 0.0025
    assert ((thinned != 0).double().mean(0) - chances).abs().max() < 5 * 0.0025
    kept = thinned.abs().max(0).values * row[0].sign()
    torch.testing.assert_close(kept, row[0].double() / chances, rtol=1e-6, atol=0)
    pair = drop_small_values(torch.tensor([[1.0, 2.0]]).expand(40_000, 2), 0.5, torch.Generator().manual_seed(1))
    assert pair.max(0).values.tolist() == pytest.approx([1 / 0.4, 2 / 0.6])
    for density in (0.05, 0.97, 1.0):
        assert torch.isfinite(drop_small_values(row[:, :1], density, torch.Generator().manual_seed(1))).all()
        assert torch.isfinite(drop_small_values(row, density, torch.Generator().manual_seed(1))).all()
    assert torch.equal(drop_small_values(row, 1.0, torch.Generator().manual_seed(1)), row)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_file_and_all_is_kept_at_density_1(method: str) -> None:
    deltas = some_deltas(2)
    first, again, other = (combine(deltas, MergeOptions(method, 0.5, seed), key="a") for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (method in ("sum", "ties"))
    whole = combine(deltas, MergeOptions(method, 1.0), key="a")
    expected = deltas[0] + deltas[1] if method in ("sum", "dare") else average_of_elected(deltas)
    torch.testing.assert_close(whole, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", ["ties", "della"])
def test_files_are_merged_layer_by_layer_and_the_distance_from_the_sum_is_measured(method: str) -> None:
    model = tiny_model()
    (a, first), (b, second) = file_of(model, AdapterSpec(rank=2, alpha=1.0), "a"), file_of(model, LOCON, "b")
    options = MergeOptions(method, 0.4, seed=2)
    merged = merge([(a, 0.8), (b, -0.5)], model, to="diff", options=options)
    expected = {
        key: combine(
            [w * d[key].float() for w, d in ((0.8, first), (-0.5, second)) if key in d], options, key=key
        ).double()
        for key in {**first, **second}
    }
    found, plain = diffs_of(model, dict(merged.state)), summed([(first, 0.8), (second, -0.5)])
    # fp32 products; a value that is trimmed by a hair on one side only would be larger
    assert off(found, expected) < 1e-3
    moved = sum(float((found[key] - plain[key]).square().sum()) for key in plain)
    whole = sum(float(plain[key].square().sum()) for key in plain)
    assert merged.error < 1e-6 and merged.change == pytest.approx((moved / whole) ** 0.5, rel=1e-3)
    low = merge([(a, 0.8), (b, -0.5)], model, rank=3, options=options)
    lost = sum(float(torch.linalg.svdvals(delta.flatten(1))[3:].square().sum()) for delta in found.values())
    size = sum(float(delta.square().sum()) for delta in found.values())
    assert low.error == pytest.approx((lost / size) ** 0.5, rel=1e-3), "Eckart & Young"


def test_options_that_cannot_work_are_refused() -> None:
    model = tiny_model()
    file, _ = file_of(model, AdapterSpec(rank=2), "a")
    files = [(file, 1.0), (file, 1.0)]
    for options, message in [
        (MergeOptions("median"), "'median' is not a merge method. Choose one of sum, ties"),
        (MergeOptions("ties", 0.0), "density must be above 0 and at most 1, not 0"),
        (MergeOptions("dare", 1.5), "density must be above 0 and at most 1, not 1.5"),
        (MergeOptions("ties"), "The result of ties has no low rank. Set a rank, or merge to diff"),
        (MergeOptions(blocks=("1,2",)), "2 block weights instead of 17 or 26"),
        (MergeOptions(blocks=("1,x",)), "'1,x' are not block weights"),
        (MergeOptions(blocks=("", "", "")), "3 lists of block weights for 2 files"),
    ]:
        with pytest.raises(AdapterError, match=message):
            merge(files, model, options=options)


LISTS = {
    "sd1": (
        17,
        {
            "down_blocks.0.resnets.0.conv1": 1,
            "down_blocks.0.downsamplers.0.conv": None,
            "down_blocks.2.attentions.1.proj_in": 6,
            "mid_block.attentions.0.proj_in": 7,
            "up_blocks.0.resnets.0.conv1": None,
            "up_blocks.1.attentions.0.proj_in": 8,
            "up_blocks.3.attentions.2.proj_out": 16,
        },
    ),
    "sdxl": (
        12,
        {
            "down_blocks.0.resnets.0.conv1": None,
            "down_blocks.1.attentions.0.proj_in": 1,
            "down_blocks.2.attentions.1.proj_in": 4,
            "mid_block.resnets.1.conv1": 5,
            "up_blocks.0.attentions.0.proj_in": 6,
            "up_blocks.1.attentions.2.proj_in": 11,
            "up_blocks.2.resnets.0.conv1": None,
        },
    ),
}
"""The list's length, and some layers with their block's position in it, by sd-scripts' tables; None: not in it."""


@pytest.mark.parametrize("kind", LISTS)
def test_block_weights_have_the_order_of_sd_scripts(kind: str) -> None:
    length, layers = LISTS[kind]
    model = tiny_sd(kind, shallow=False)  # type: ignore[arg-type]
    weights = unet_block_weights(model, "[" + ", ".join(str(10 + n) for n in range(length)) + "]")
    assert weights[BASE] == 10
    assert {name: weights[name] for name in layers} == {
        name: 1.0 if position is None else 10 + position for name, position in layers.items()
    }


def test_block_weights_scale_the_updates_of_a_file() -> None:
    model = tiny_sd("sd1")
    file, diffs = file_of(model, AdapterSpec(rank=2, alpha=1.0), "a")  # type: ignore[arg-type]
    only_middle = ",".join("0.5" if n == 0 else "2" if n == 7 else "0" for n in range(17))
    merged = merge([(file, 1.0), (file, 1.0)], model, options=MergeOptions(blocks=("", only_middle)))
    found = diffs_of(model, dict(merged.state))  # type: ignore[arg-type]
    for key, diff in diffs.items():
        factor = 1.5 if key.startswith("lora_te") else 3.0 if "mid_block" in key else 1.0
        torch.testing.assert_close(found[key], factor * diff, rtol=1e-4, atol=1e-6)
    before = model.unet.mid_block.attentions[0].proj_in.weight.clone()
    key = "lora_unet_mid_block_attentions_0_proj_in"
    add_to_layers([(file, 1.0)], model, [only_middle])
    changed = (model.unet.mid_block.attentions[0].proj_in.weight - before).double()
    torch.testing.assert_close(changed, 2 * diffs[key].view_as(changed), rtol=1e-3, atol=1e-6)


def test_every_method_is_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["merge", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert all(f"{name}: {method.purpose}" in said for name, method in METHODS.items())
