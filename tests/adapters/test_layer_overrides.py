"""Ranks and learning-rate factors by pattern go to exactly the layers whose name fits, in every part of the model."""

from __future__ import annotations

import fnmatch
import re
from typing import Any

import pytest
import torch

from lib_lora_train.adapters.inject import Adapter, inject
from lib_lora_train.adapters.registry import spec_from_config
from lib_lora_train.config.layer_patterns import LayerRule, parse_layer_ranks, parse_layer_weights
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.config.validation.validate import validate
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.formats.kohya.importer import Imported, from_gui, from_script
from lib_lora_train.models import layer_matching
from lib_lora_train.models.layer_matching import fits
from lib_lora_train.models.unet_layers import ldm_layer_names
from lib_lora_train.runs.estimates.memory import unet_pass
from lib_lora_train.runs.estimates.trained_parameters import count_parameters, unet_ranks
from tests.stand_ins.tiny_models import tiny_model

ARCHITECTURES = ["sd1", "sdxl"]


def adapted(architecture: Any, **values: Any) -> Adapter:
    config = TrainConfig(rank=4, alpha=2.0, targets="all", conv_rank=2, conv_alpha=2.0).replace(**values)
    return inject(tiny_model(architecture), spec_from_config(config), seed=1)


def sizes(adapter: Adapter) -> dict[str, tuple[int, float]]:
    """Key in files → rank and alpha, as they are saved."""
    state = adapter.state()
    return {key: (state[f"{key}.lora_down.weight"].shape[0], float(state[f"{key}.alpha"])) for key in adapter.layers}


def names(architecture: Any) -> dict[str, tuple[str, ...]]:
    """Key in files → all names of the layer."""
    model = tiny_model(architecture)
    layers = [n for n, module in model.unet.named_modules() if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))]
    original = ldm_layer_names(layers)
    adapter = inject(model, spec_from_config(TrainConfig(rank=4, targets="all")), seed=1)
    found: dict[str, tuple[str, ...]] = {}
    for key, target in adapter._targets.items():
        plain = target.name
        is_unet = key.startswith("lora_unet")
        found[key] = (plain, original[plain] if is_unet else f"text_model.{plain.removeprefix('text_model.')}", key)
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "pattern",
    [
        "*attn2*",
        "*.attn1.to_q",
        "*resnets*",
        "*in_layers*",
        "text_model.*",
        "lora_te*fc1",
        "*",
        "re:.*attn[12].to_[kv]",
    ],
)
def test_a_pattern_gives_its_rank_to_the_layers_that_fit(architecture: Any, pattern: str) -> None:
    before, after = sizes(adapted(architecture)), sizes(adapted(architecture, layer_ranks=(f"{pattern} = 3/6",)))
    for key, spellings in names(architecture).items():
        is_fitting = any(
            re.fullmatch(pattern[3:], name) if pattern.startswith("re:") else fnmatch.fnmatchcase(name, pattern)
            for name in spellings
        )
        assert after[key] == ((3, 6.0) if is_fitting else before[key])


def test_a_rank_without_alpha_keeps_the_scale_also_of_convolutions() -> None:
    after = sizes(adapted("sd1", layer_ranks=("* = 8",)))
    assert {rank for rank, _ in after.values()} == {8}
    assert {key: alpha / 8 for key, (_, alpha) in after.items()} == {
        key: alpha / rank for key, (rank, alpha) in sizes(adapted("sd1")).items()
    }


def test_the_first_pattern_counts_and_0_leaves_out() -> None:
    found = sizes(adapted("sd1", layer_ranks=("*attn1.to_q = 0", "*attn1* = 5", "*attn* = 6")))
    assert not any("attn1_to_q" in key for key in found)
    assert {rank for key, (rank, _) in found.items() if "attn1" in key} == {5}
    assert {rank for key, (rank, _) in found.items() if "attn2" in key} == {6}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_layers_rate_is_scaled_by_its_factor(architecture: Any) -> None:
    """One step of plain gradient descent on a loss with gradient 1 moves every weight by its learning rate."""
    adapter = adapted(architecture, layer_lr_weights=("*attn1* = 0.5", "text_model.*fc1 = 3", "*attn2.to_q = 0"))
    rates = dict.fromkeys(adapter.groups, 0.01)
    before = {key: {n: t.clone() for n, t in layer.state().items()} for key, layer in adapter.layers.items()}
    groups, group_rates = adapter.parameter_groups(rates)
    optimizer = torch.optim.SGD([{"params": group, "lr": group_rates[name]} for name, group in groups.items()])
    sum(parameter.sum() for group in groups.values() for parameter in group).backward()  # type: ignore[union-attr]
    optimizer.step()
    assert not any("attn2_to_q" in key for key in adapter.layers)
    for key, layer in adapter.layers.items():
        factor = 0.5 if "attn1" in key else 3.0 if key.endswith("mlp_fc1") else 1.0
        for name, tensor in layer.state().items():
            if name != "alpha":
                moved = before[key][name] - tensor
                assert torch.allclose(moved, torch.full_like(moved, 0.01 * factor), atol=1e-6), (key, name)


def test_the_memory_estimate_counts_the_same_parameters() -> None:
    config = TrainConfig(rank=4, targets="all", train_text_encoder=False, layer_ranks=("*attn2* = 0", "*ff* = 7"))
    model = tiny_model("sd1")
    adapter = inject(model, spec_from_config(config), seed=0)
    trace, _ = unet_pass(model.spec, config, positions=64, tokens=77)
    layers = {layer.name: layer for layer in trace.layers}
    ranks = unet_ranks(layers.values(), config, architecture="sd1")
    counted = sum(count_parameters(layers[name], config, rank) for name, rank in ranks.items())
    assert counted == sum(parameter.numel() for parameter in adapter.groups["unet"])


@pytest.mark.parametrize(
    "line", ["", "attn", "= 3", "a = b", "a = -1", "a = nan", "a = 1.5", "a = 2000", "a = 4/0", "re:( = 4"]
)
def test_lines_that_cannot_be_read_are_named(line: str) -> None:
    assert [p.where for p in validate(TrainConfig(layer_ranks=(line,))) if p.where == "layer_ranks"] == ["layer_ranks"]
    with pytest.raises(ValueError, match=r".+"):
        parse_layer_ranks([line])


def test_a_pattern_that_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is tested with a harmless match and no time at all."""
    monkeypatch.setattr(layer_matching, "_SECONDS", 1e-9)
    rule = LayerRule("re:(?:.*a){3}.*b", 1)
    with pytest.raises(ValueError, match="takes too long"):
        fits(rule, ["a" * 5000])
    with pytest.raises(AdapterError, match="takes too long"):
        adapted("sd1", layer_ranks=("re:(?:.*_){6}.*none = 4",))


def test_a_model_without_any_layer_left_is_refused() -> None:
    with pytest.raises(AdapterError, match="Turn on"):
        adapted("sd1", layer_ranks=("* = 0",))


# --- from kohya ------------------------------------------------------------------------------------


def lokr(*arguments: str, **values: Any) -> Imported:
    rates = {"learning_rate": 1e-4, "unet_lr": 1e-4, "text_encoder_lr": 5e-5}
    given = {"network_dim": 8, "network_alpha": 4, "network_args": list(arguments), **rates, **values}
    return from_script({"network_module": "networks.lokr", **given})


_ORIGINAL = (
    *("input_blocks.4.1.transformer_blocks.0.attn1.to_q", "input_blocks.4.1.transformer_blocks.0.attn2.to_k"),
    *("output_blocks.0.1.transformer_blocks.3.ff.net.2", "middle_block.1.proj_in"),
    *("text_model.encoder.layers.0.self_attn.q_proj", "text_model.encoder.layers.3.mlp.fc2"),
)


@pytest.mark.parametrize(
    ("excluded", "included"),
    [
        ([".*attn2.*"], []),
        ([".*attn.*", ".*mlp.*"], [".*attn1.*"]),
        ([".*"], [r".*ff\.net.*", "text_model.*"]),
        (["input_blocks.*"], [".*to_k"]),
    ],
)
def test_excluded_layers_are_those_that_kohya_excludes(excluded: list[str], included: list[str]) -> None:
    arguments = [f"exclude_patterns={excluded}"] + ([f"include_patterns={included}"] if included else [])
    rules = parse_layer_ranks(lokr(*arguments).config.layer_ranks)
    for name in _ORIGINAL:
        is_excluded = any(re.fullmatch(p, name) for p in excluded) and not any(re.fullmatch(p, name) for p in included)
        assert any(fits(rule, [name]) for rule in rules) == is_excluded


def test_ranks_and_rates_by_pattern_are_imported() -> None:
    imported = lokr("network_reg_dims=.*attn1.*=4,.*ff.*=0", "network_reg_lrs=.*attn2.*=2e-4,text_model.*fc1=1e-5")
    config = imported.config
    assert config.layer_ranks == ("re:.*attn1.* = 4/4", "re:.*ff.* = 0")
    weights = {rule.pattern: rule.value for rule in parse_layer_weights(config.layer_lr_weights)}
    assert weights == pytest.approx({"re:.*attn2.*": 2.0, "re:text_model.*fc1": 0.2})
    assert [ignored.key for ignored in imported.ignored if not ignored.is_harmless] == []


def test_a_rate_for_parts_with_different_rates_is_reported() -> None:
    assert any("text encoders get" in p.message for p in lokr("network_reg_lrs=.*=2e-4").problems)
    assert not any(
        "text encoders get" in p.message for p in lokr("network_reg_lrs=.*=2e-4", text_encoder_lr=1e-4).problems
    )


def test_networks_that_ignore_patterns_get_none() -> None:
    imported = from_gui({"LoRA_type": "Standard", "network_reg_dims": ".*=4", "exclude_patterns": ".*"})
    assert imported.config.layer_ranks == ()
    assert all(ignored.is_harmless for ignored in imported.ignored)
