"""Ranks, alphas and learning-rate weights per block; dropout; max norm."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from lib_lora_train.adapters.block_weights import BlockOverrides, BlockSettings, resolve_blocks
from lib_lora_train.adapters.dropout import DropoutRates, DropoutState
from lib_lora_train.adapters.families.options import RankSettings
from lib_lora_train.adapters.inject import inject
from lib_lora_train.adapters.registry import AdapterSpec
from lib_lora_train.config.block_lists import parse_alphas, parse_ranks, parse_weights
from lib_lora_train.config.family_catalog import families_with
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.models.architecture import Architecture
from lib_lora_train.models.infer_spec import infer_spec
from tests.stand_ins.adapters_model import SPEC, TinyModel, tiny_model, trained
from tests.stand_ins.tiny_models import full_shapes

DROPS = DropoutRates(dropout=0.3, rank_dropout=0.3, module_dropout=0.3)


def full_size(architecture: Architecture) -> list[str]:
    """Layer names of the whole UNet, without its weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**infer_spec(full_shapes(architecture)).unet)
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return [name for name, module in unet.named_modules() if isinstance(module, kinds)]


# --- lists --------------------------------------------------------------------------------------


def test_curves_match_kohya() -> None:
    assert parse_weights("linear", 3, (12, 9)) == (0.0, 0.5, 1.0)
    assert parse_weights("reverse_linear+.25", 3, (12, 9)) == (1.25, 0.75, 0.25)
    assert parse_weights("sine", 3, (12, 9)) == pytest.approx((0.0, math.sqrt(0.5), 1.0))
    assert parse_weights("cosine", 3, (12, 9)) == pytest.approx((1.0, math.sqrt(0.5), 0.0))
    assert parse_weights("zeros", 2, (12, 9)) == (0.0, 0.0)


def test_lists_may_have_spaces_or_brackets() -> None:
    assert parse_ranks(", ".join(["4"] * 25)) == (4,) * 25
    assert parse_alphas("[" + ",".join(["0.5"] * 23) + "]") == (0.5,) * 23
    assert parse_ranks("") == ()


@pytest.mark.parametrize("text", ["4,4", "a,b", ",".join(["-1"] * 25), ",".join(["1.5"] * 25), "nan"])
def test_invalid_lists_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"numbers|list|below|whole"):
        parse_ranks(text)


# --- blocks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("architecture", "count"), [("sd1", 25), ("sdxl", 23)])
def test_blocks_are_numbered_as_kohya_does(architecture: Architecture, count: int) -> None:
    overrides = BlockOverrides(ranks=",".join(str(number + 1) for number in range(count)))
    blocks = resolve_blocks(full_size(architecture), overrides, architecture=architecture)
    number = {name: (block.rank or 0) - 1 for name, block in blocks.items()}
    first_attention = (
        "down_blocks.0.attentions.0.proj_in" if architecture == "sd1" else "down_blocks.1.attentions.0.proj_in"
    )
    expected = {
        "sd1": {first_attention: 1, "mid_block.attentions.0.proj_in": 12, "up_blocks.0.resnets.0.conv1": 13},
        "sdxl": {first_attention: 5, "mid_block.attentions.0.proj_in": 11, "up_blocks.0.attentions.0.proj_in": 13},
    }[architecture]
    expected["up_blocks.3.attentions.2.proj_in" if architecture == "sd1" else "up_blocks.2.resnets.2.conv1"] = (
        24 if architecture == "sd1" else 21
    )
    expected["down_blocks.0.downsamplers.0.conv"] = 3 if architecture == "sd1" else 4
    expected |= {"time_embedding.linear_1": 0, "conv_out": count - 1}
    expected["conv_in"] = 0 if architecture == "sd1" else 1
    assert {name: number[name] for name in expected} == expected


def test_layers_outside_the_blocks_have_the_learning_rate_of_the_nearest_block() -> None:
    """kohya's lists for the down and the up blocks have 12 weights each for SD1."""
    overrides = BlockOverrides(down_weights=",".join(["0.25"] + ["1"] * 11), up_weights=",".join(["1"] * 11 + ["0.5"]))
    blocks = resolve_blocks(full_size("sd1"), overrides, architecture="sd1")
    assert blocks["time_embedding.linear_1"].lr_weight == 0.25 and blocks["conv_out"].lr_weight == 0.5


def test_a_rank_or_weight_of_zero_excludes_a_block_and_nothing_else_does() -> None:
    excluded = [BlockSettings(rank=0), BlockSettings(lr_weight=0.0), BlockSettings(4, None, 0.0)]
    trained_ones = [BlockSettings(), BlockSettings(rank=1), BlockSettings(1, 1.0, 1.0), BlockSettings(lr_weight=0.01)]
    assert all(block.is_excluded for block in excluded)
    assert not any(block.is_excluded for block in trained_ones)


def test_a_setting_that_is_not_given_is_that_of_the_run() -> None:
    """Only ranks, or only the weights of one part: every other block has the weight 1 and no rank of its own."""
    ranks = resolve_blocks(full_size("sd1"), BlockOverrides(ranks=",".join(["4"] * 25)), architecture="sd1")
    assert {(block.rank, block.alpha, block.lr_weight) for block in ranks.values()} == {(4, None, 1.0)}
    none = resolve_blocks(full_size("sd1"), BlockOverrides(), architecture="sd1")
    assert {(block.rank, block.alpha, block.lr_weight) for block in none.values()} == {(None, None, 1.0)}
    down = resolve_blocks(full_size("sd1"), BlockOverrides(down_weights="zeros"), architecture="sd1")
    weights = {name.partition(".")[0]: block.lr_weight for name, block in down.items()}
    assert (weights["down_blocks"], weights["mid_block"], weights["up_blocks"]) == (0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("settings", "block", "is_wide", "expected"),
    [
        (RankSettings(8, 4.0), BlockSettings(), True, (8, 4.0)),
        (RankSettings(8, 4.0), BlockSettings(rank=16), True, (16, 8.0)),
        (RankSettings(8, 4.0), BlockSettings(rank=16, alpha=1.0), False, (16, 1.0)),
        (RankSettings(8, 4.0, 2, 1.0), BlockSettings(rank=16, alpha=3.0), True, (2, 1.0)),
        (RankSettings(8, 4.0, 2, 1.0), BlockSettings(rank=16), False, (16, 8.0)),
        (RankSettings(8, 4.0, None, 1.0), BlockSettings(rank=16), True, (16, 2.0)),
    ],
)
def test_a_wide_kernel_has_its_own_rank_if_one_is_set_and_else_the_blocks(
    settings: RankSettings, block: BlockSettings, is_wide: bool, expected: tuple[int, float]
) -> None:
    """A block with a rank and no alpha keeps the scale, alpha / rank."""
    assert settings.for_layer(block, is_wide=is_wide) == expected


def test_a_list_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(AdapterError, match=r"block_ranks has 23 numbers, but this model has 25"):
        resolve_blocks(full_size("sd1"), BlockOverrides(ranks=",".join(["4"] * 23)), architecture="sd1")


def test_ranks_weights_and_excluded_blocks_apply_to_layers() -> None:
    """The tiny UNet has 4 blocks down, one in the middle and 4 up; curves fit every size."""
    spec = AdapterSpec(rank=2, targets="all", text_encoder=False, blocks=BlockOverrides(down_weights="linear"))
    adapter = inject(tiny_model(), spec, seed=1)
    assert not any("down_blocks_0_resnets_0" in key for key in inject_keys(adapter, 0.0))
    assert len(adapter.groups["unet"]) == len(adapter.lr_weights["unet"]) == 3
    assert sorted(adapter.lr_weights["unet"]) == pytest.approx([1 / 3, 2 / 3, 1.0])
    groups, rates = adapter.parameter_groups({"unet": 3e-4})
    assert sorted(rates.values()) == pytest.approx([1e-4, 2e-4, 3e-4])
    assert {id(p) for group in groups.values() for p in group} == {id(p) for p in adapter.groups["unet"]}


def inject_keys(adapter: Any, weight: float) -> list[str]:
    return [key for key, target in adapter._targets.items() if target.lr_weight == weight]


def test_a_blocks_learning_rate_is_scaled_by_its_weight() -> None:
    """Adam's first step is the learning rate times the gradient's sign."""
    spec = AdapterSpec(rank=2, targets="standard", text_encoder=False, blocks=BlockOverrides(down_weights="sine+1"))
    model = tiny_model()
    adapter = inject(model, spec, seed=1)
    before = {name: [p.detach().clone() for p in group] for name, group in adapter.groups.items()}
    groups, rates = adapter.parameter_groups({"unet": 1e-3})
    optimizer = torch.optim.Adam([{"params": group, "lr": rates[name]} for name, group in groups.items()])
    model.predict().square().mean().backward()
    optimizer.step()
    for parameter, old, weight in zip(adapter.groups["unet"], before["unet"], adapter.lr_weights["unet"], strict=True):
        assert float((parameter - old).detach().abs().max()) == pytest.approx(1e-3 * weight, rel=1e-3)


def test_a_block_with_a_rank_and_no_alpha_keeps_the_scale() -> None:
    model = SimpleNamespace(architecture="sd1")
    tiny = tiny_model()
    spec = AdapterSpec(rank=4, alpha=2.0, text_encoder=False, blocks=BlockOverrides(down_weights="zeros+1"))
    layer = next(iter(inject(TinyModel(tiny.unet, tiny.text_encoders, model), spec, seed=1).layers.values()))
    assert spec.options_for(layer.base_layer, "x", BlockSettings(rank=8)).scale == 0.5


# --- dropouts -----------------------------------------------------------------------------------


def gradient(model: TinyModel, adapter: Any, *counters: int, rates: DropoutRates = DROPS) -> torch.Tensor:
    (parameter,) = adapter.groups["unet"]
    parameter.grad = None
    with adapter.training(rates, 7, *counters):
        model.predict().square().sum().backward()
    found: torch.Tensor = parameter.grad.clone()
    return found


@pytest.mark.parametrize(
    "rates", [DropoutRates(dropout=0.3), DropoutRates(rank_dropout=0.3), DropoutRates(module_dropout=0.3), DROPS]
)
def test_dropout_depends_on_step_and_nothing_else(rates: DropoutRates) -> None:
    model = tiny_model()
    adapter = trained(model)
    first = gradient(model, adapter, 3, 0, rates=rates)
    others = [gradient(model, adapter, *counters, rates=rates) for counters in ((4, 0), (3, 1))]
    torch.manual_seed(99)
    assert torch.equal(gradient(model, adapter, 3, 0, rates=rates), first)
    assert not any(torch.equal(other, first) for other in others)


def test_dropout_is_the_same_when_checkpointing_repeats_the_forward_pass() -> None:
    model = tiny_model()
    adapter = trained(model)
    expected = gradient(model, adapter, 1, 0)
    model.unet.enable_gradient_checkpointing()
    model.unet.train()
    # The same kernels on the same inputs; only the order of accumulation may differ.
    torch.testing.assert_close(gradient(model, adapter, 1, 0), expected, rtol=1e-5, atol=1e-5)


def test_samples_and_files_have_no_dropout() -> None:
    model = tiny_model()
    adapter = trained(model)
    before = model.predict()
    gradient(model, adapter, 1, 0)
    assert torch.equal(model.predict(), before)


@pytest.mark.parametrize("rates", [DropoutRates(dropout=0.25), DropoutRates(rank_dropout=0.25)])
def test_dropout_keeps_the_mean(rates: DropoutRates) -> None:
    """Averaged over many masks, the layer's output equals that without dropout."""
    model = tiny_model()
    adapter = trained(model)
    layer = next(layer for key, layer in adapter.layers.items() if key.endswith("attn1_to_q"))
    x = torch.randn(1, 3, 32)
    plain, answers = layer(x), []
    for draw in range(2000):
        with adapter.training(rates, 1, draw):
            answers.append(layer(x).detach())
    mean = torch.stack(answers).mean(0)
    spread = torch.stack(answers).std(0) / 2000**0.5
    assert float(((mean - plain.detach()).abs() - 5 * spread).max()) < 0


def test_module_dropout_drops_whole_layers() -> None:
    model = tiny_model()
    adapter = trained(model)
    layer = next(iter(adapter.layers.values()))
    x = torch.randn(1, layer.base_layer.in_channels, 4, 4)
    seen = set()
    for draw in range(40):
        with adapter.training(DropoutRates(module_dropout=0.5), 1, draw):
            seen.add(torch.equal(layer(x), layer.base_layer(x)))
    assert seen == {True, False}


def test_module_dropout_drops_the_share_that_is_set_and_each_layer_on_its_own() -> None:
    """Of 4,000 draws of two layers; five standard errors are 0.024 for a tenth, and 0.008 for both at once."""
    draws = [DropoutState(DropoutRates(module_dropout=0.1), 1, (step, 0)) for step in range(4000)]
    first, second = ([state.skips_layer(key) for state in draws] for key in ("one", "another"))
    assert sum(first) / 4000 == pytest.approx(0.1, abs=0.024) and sum(second) / 4000 == pytest.approx(0.1, abs=0.024)
    both = sum(a and b for a, b in zip(first, second, strict=True))
    assert both / 4000 == pytest.approx(0.01, abs=0.008)


# --- limited norms ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "has_scalar"),
    [
        *((family, False) for family in families_with("scale_weight_norms")),
        *((family, True) for family in families_with("scale_weight_norms") if family in families_with("scalar")),
    ],
)
def test_longer_updates_are_scaled_down_to_the_limit(family: str, has_scalar: bool) -> None:
    adapter = trained(tiny_model(), AdapterSpec(family=family, rank=2, alpha=1.0, has_scalar=has_scalar))
    before = {key: layer.diff_weight().clone() for key, layer in adapter.layers.items()}
    norms = sorted(adapter.norms().values())
    most = norms[len(norms) // 2] * 1.001
    scaled, average, largest = adapter.norm_limit(most).apply().tolist()
    assert scaled == sum(norm > most for norm in norms) > 0
    after = adapter.norms()
    assert largest == pytest.approx(max(after.values()), rel=1e-4) and largest <= most * 1.0001
    assert average == pytest.approx(sum(after.values()) / len(after), rel=1e-4)
    for key, layer in adapter.layers.items():
        expected = before[key] * min(1.0, most / float(before[key].norm()))
        torch.testing.assert_close(layer.diff_weight(), expected, rtol=1e-4, atol=1e-6)


def test_limit_scales_both_matrices_by_the_root_as_kohya_does() -> None:
    adapter = trained(tiny_model())
    key, norm = max(adapter.norms().items(), key=lambda entry: entry[1])
    named = {name: tensor.clone() for name, tensor in adapter.layers[key].slices.fp32().items()}
    adapter.norm_limit(norm / 4).apply()
    for name, tensor in adapter.layers[key].slices.fp32().items():
        torch.testing.assert_close(tensor, named[name] * 0.5)


def test_limit_leaves_an_update_of_zero_and_scales_small_ones_too() -> None:
    adapter = inject(tiny_model(), AdapterSpec(rank=2, alpha=1.0), seed=1)
    state = adapter.state()
    assert adapter.norm_limit(1e-3).apply().tolist() == [0.0, 0.0, 0.0]
    assert all(torch.equal(tensor, state[key]) for key, tensor in adapter.state().items())
    with torch.no_grad():
        for group in adapter.groups.values():
            for parameter in group:
                parameter.fill_(1e-3)  # norms far below 1
    smallest = min(adapter.norms().values())
    scaled, _, largest = adapter.norm_limit(smallest / 4).apply().tolist()
    assert smallest < 1e-2 and scaled == len(adapter.layers)
    assert largest == pytest.approx(smallest / 4, rel=1e-4)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_limit_applies_where_only_one_part_is_trained(part: str) -> None:
    spec = AdapterSpec(rank=2, alpha=1.0, unet=part == "unet", text_encoder=part == "text_encoder")
    adapter = trained(tiny_model(), spec)
    most = max(adapter.norms().values()) / 2
    assert adapter.norm_limit(most).apply()[2].item() == pytest.approx(most, rel=1e-4)


def test_limit_reports_but_does_not_scale_unscalable_families() -> None:
    adapter = trained(tiny_model(), AdapterSpec(family="oft", rank=2))
    state = adapter.state()
    scaled, _, largest = adapter.norm_limit(1e-3).apply().tolist()
    assert scaled == 0 and largest == pytest.approx(max(adapter.norms().values()), rel=1e-4)
    assert all(torch.equal(tensor, state[key]) for key, tensor in adapter.state().items())


def test_batched_norms_match_single_ones() -> None:
    adapter = trained(tiny_model(), AdapterSpec(rank=2, alpha=1.0, targets="all", train_norm=True))
    for key, norm in adapter.norms().items():
        assert norm == pytest.approx(float(adapter.layers[key].diff_weight().norm()), rel=1e-4)
    assert SPEC.rank == 2
