"""Adapters on whole models: only the selected layers change, and everything can be undone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from lib_lora_train.adapters.dropout import DropoutRates
from lib_lora_train.adapters.files.decode import parse_state
from lib_lora_train.adapters.inject import inject, inject_parsed
from lib_lora_train.adapters.registry import AdapterSpec, spec_from_config
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import AdapterError
from tests.stand_ins.adapters_model import SPEC, TinyModel, tiny_model, trained


def test_fresh_adapter_changes_no_bit_of_the_prediction() -> None:
    model = tiny_model()
    before = model.predict()
    inject(model, AdapterSpec(rank=2, alpha=1.0, targets="all"), seed=1)
    assert torch.equal(model.predict(), before)


def test_remove_restores_the_same_modules_and_weights() -> None:
    model = tiny_model()
    roots = (model.unet, *model.text_encoders)
    modules = [list(root.named_modules()) for root in roots]
    weights = [{name: tensor.clone() for name, tensor in root.state_dict().items()} for root in roots]
    hooks = [(len(root._forward_hooks), len(root._forward_pre_hooks)) for root in roots]
    adapter = trained(model)
    model.predict().sum().backward()
    adapter.remove()
    for root, named, tensors, counts in zip(roots, modules, weights, hooks, strict=True):
        assert all(a is b for (_, a), (_, b) in zip(root.named_modules(), named, strict=True))
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in root.state_dict().items())
        assert (len(root._forward_hooks), len(root._forward_pre_hooks)) == counts


def test_enabled_and_strength_are_restored_even_after_errors() -> None:
    model = tiny_model()
    base = model.predict()
    adapter = trained(model)
    full = model.predict()
    with adapter.enabled(False):
        assert torch.equal(model.predict(), base)
        with adapter.enabled(True):
            assert torch.equal(model.predict(), full)
    with pytest.raises(KeyError), adapter.strength(0.5):
        half = model.predict()
        raise KeyError
    assert torch.equal(model.predict(), full)
    assert not torch.equal(half, full) and not torch.equal(half, base)


def test_strength_scales_the_difference_of_one_layer() -> None:
    model = tiny_model()
    adapter = trained(model)
    layer = next(iter(adapter.layers.values()))
    x = torch.randn(1, layer.base_layer.in_channels, 4, 4)
    base, full = layer.base_layer(x), layer(x)
    with adapter.strength(0.25):
        # One rounding of the scale at rank size.
        torch.testing.assert_close(layer(x) - base, (full - base) * 0.25, rtol=1e-3, atol=1e-6)


def test_state_round_trip_restores_prediction() -> None:
    model = tiny_model()
    adapter = trained(model)
    expected, state = model.predict(), adapter.state()
    adapter.remove()
    again = inject(model, SPEC, seed=99)
    again.load_state(state)
    assert torch.equal(model.predict(), expected)
    assert all(torch.equal(tensor, state[key]) for key, tensor in again.state().items())
    assert list(again.state()) == list(state)


def test_state_is_a_copy() -> None:
    adapter = trained(tiny_model())
    state = adapter.state()
    before = {key: tensor.clone() for key, tensor in state.items()}
    with torch.no_grad():
        for (parameter,) in adapter.groups.values():
            parameter.zero_()
    assert all(torch.equal(tensor, before[key]) for key, tensor in state.items())


def test_load_state_uses_the_files_alpha_or_else_the_rank() -> None:
    adapter = trained(tiny_model())
    state = adapter.state()
    first, second = list(adapter.layers)[:2]
    state[f"{first}.alpha"] = torch.tensor(5.0)
    del state[f"{second}.alpha"]
    adapter.load_state(state)
    assert adapter.layers[first].scale == 2.5
    assert adapter.layers[second].scale == 1.0


def test_load_state_names_what_does_not_fit_and_changes_nothing() -> None:
    adapter = trained(tiny_model())
    before = adapter.state()
    state = {key: torch.zeros_like(tensor) for key, tensor in before.items()}
    first = next(iter(adapter.layers))
    del state[f"{first}.lora_up.weight"]
    state["lora_unet_elsewhere.lora_up.weight"] = torch.zeros(1)
    state[f"{first}.lora_down.weight"] = torch.zeros(9, 32, 1, 1)
    with pytest.raises(AdapterError, match=r"1 missing .*lora_up.*1 unknown .*elsewhere.*1 of another shape .*\(9, 32"):
        adapter.load_state(state)
    assert all(torch.equal(tensor, before[key]) for key, tensor in adapter.state().items())


def test_initial_weights_depend_only_on_seed_and_name() -> None:
    whole = inject(tiny_model(), AdapterSpec(rank=2, targets="all"), seed=1).state()
    part = inject(tiny_model(), AdapterSpec(rank=2, targets="attention", text_encoder=False), seed=1).state()
    other = inject(tiny_model(), AdapterSpec(rank=2, targets="attention", text_encoder=False), seed=2).state()
    assert all(torch.equal(tensor, whole[key]) for key, tensor in part.items())
    down = [key for key in part if key.endswith("lora_down.weight")]
    assert not any(torch.equal(part[key], other[key]) for key in down)
    assert len({float(part[key].flatten()[0]) for key in down}) == len(down)


def test_initial_weights_ignore_the_global_generator() -> None:
    torch.manual_seed(11)
    first = inject(tiny_model(), SPEC, seed=1).state()
    state = torch.get_rng_state()
    adapter = inject(tiny_model(), SPEC, seed=1)
    assert all(torch.equal(tensor, first[key]) for key, tensor in adapter.state().items())
    torch.set_rng_state(state)


def test_second_adapter_is_refused() -> None:
    model = tiny_model()
    adapter = inject(model, SPEC, seed=1)
    with pytest.raises(AdapterError, match="already has an adapter"):
        inject(model, SPEC, seed=1)
    adapter.remove()
    inject(model, SPEC, seed=1)


def test_nothing_to_train_is_refused_before_any_change() -> None:
    model = tiny_model()
    with pytest.raises(AdapterError, match="No layer would be trained"):
        inject(model, AdapterSpec(unet=False, text_encoder=False), seed=1)
    assert all(parameter.requires_grad for parameter in model.unet.parameters())


def test_error_for_an_unknown_family_lists_the_known_ones() -> None:
    with pytest.raises(AdapterError, match=r"'lore'.*lora"):
        inject(tiny_model(), AdapterSpec(family="lore"), seed=1)


def test_layers_that_cannot_be_adapted_are_listed() -> None:
    model = tiny_model()
    model.unet.down_blocks[0].attentions[0].proj_in = nn.Conv2d(32, 32, 1, groups=2)
    adapter = inject(model, SPEC, seed=1)
    assert adapter.skipped == ("down_blocks.0.attentions.0.proj_in",)
    assert "lora_unet_down_blocks_0_attentions_0_proj_in" not in adapter.layers


def test_only_the_selected_groups_are_trained() -> None:
    assert list(inject(tiny_model(), AdapterSpec(text_encoder=False), seed=1).groups) == ["unet"]
    assert list(inject(tiny_model(), AdapterSpec(unet=False), seed=1).groups) == ["text_encoder"]
    model = tiny_model()
    two = TinyModel(model.unet, (*model.text_encoders, *tiny_model().text_encoders), model.spec)
    adapter = inject(two, SPEC, seed=1)
    assert list(adapter.groups) == ["unet", "text_encoder_1", "text_encoder_2"]


def test_norms_match_the_updates() -> None:
    adapter = trained(tiny_model())
    for key, norm in adapter.norms().items():
        assert norm == pytest.approx(float(adapter.layers[key].diff_weight().norm()), rel=1e-5)


def test_moving_or_casting_the_model_keeps_weights_in_the_buffer() -> None:
    model = tiny_model()
    adapter = trained(model)
    state = adapter.state()
    model.unet.to(torch.bfloat16)
    (parameter,) = adapter.groups["unet"]
    assert parameter.dtype == torch.float32
    assert all(torch.equal(tensor, state[key]) for key, tensor in adapter.state().items())


def test_peft_can_disable_the_layers() -> None:
    model = tiny_model()
    base = model.predict()
    trained(model)
    tuners = [m for root in (model.unet, *model.text_encoders) for m in root.modules() if isinstance(m, BaseTunerLayer)]
    for tuner in tuners:
        tuner.enable_adapters(False)
    assert torch.equal(model.predict(), base)
    for tuner in tuners:
        tuner.enable_adapters(True)
    assert not torch.equal(model.predict(), base)


def test_everything_but_the_adapter_is_frozen() -> None:
    model = tiny_model()
    state = trained(model).state()
    roots = (model.unet, *model.text_encoders)
    assert not any(parameter.requires_grad for root in roots for parameter in root.parameters())
    again = tiny_model()
    inject_parsed(again, parse_state(state))
    assert not any(one.requires_grad for root in (again.unet, *again.text_encoders) for one in root.parameters())


@pytest.mark.parametrize(
    ("targets", "places"),
    [("attention", set()), ("standard", {"attentions"}), ("all", {"attentions", "resnets"})],
)
def test_norms_are_trained_in_the_blocks_of_the_preset(targets: str, places: set[str]) -> None:
    plain, adapter = (
        inject(tiny_model(), AdapterSpec("full", targets=targets, train_norm=is_on), seed=1) for is_on in (False, True)
    )
    norms = {key for key, layer in adapter.layers.items() if isinstance(layer.base_layer, (nn.GroupNorm, nn.LayerNorm))}
    assert adapter.layers.keys() - norms == plain.layers.keys()
    assert {place for place in ("attentions", "resnets", "conv_norm_out") for key in norms if place in key} == places


@pytest.mark.parametrize(
    ("architecture", "encoders", "packed"), [("sd1", 1, []), ("sd2", 1, ["te"]), ("sdxl", 2, ["te2"])]
)
def test_ia3_adapts_the_whole_attention_of_an_openclip_text_encoder(
    architecture: str, encoders: int, packed: list[str]
) -> None:
    """A1111 ignores a file that lacks a part of what it packs into one tensor."""
    texts = tuple(tiny_model().text_encoders[0] for _ in range(encoders))
    model = TinyModel(tiny_model().unet, texts, SimpleNamespace(architecture=architecture))
    keys = list(inject(model, AdapterSpec("ia3", unet=False), seed=1).layers)
    assert sorted({key.split("_")[1] for key in keys if key.endswith(("q_proj", "out_proj"))}) == packed
    assert any(key.endswith("k_proj") for key in keys) and not any(key.endswith("fc1") for key in keys)


def test_a_family_without_a_scale_has_alpha_equal_to_its_rank() -> None:
    layers = inject(tiny_model(), AdapterSpec("glora", rank=4, alpha=1.0), seed=1).layers.values()
    assert {layer.scale for layer in layers} == {1.0}


def test_without_dropout_only_dylora_draws_and_only_in_training() -> None:
    """It trains a random number of ranks in each micro-batch."""
    for family, draws in (("lora", False), ("dylora", True)):
        model = tiny_model()
        adapter = trained(model, AdapterSpec(family, rank=4, alpha=1.0))
        plain, found = model.predict(), []
        for counter in range(12):
            with adapter.training(DropoutRates(), 7, counter):
                found.append(model.predict())
        assert (len({tuple(output.flatten().tolist()) for output in found}) > 1) == draws
        assert torch.equal(model.predict(), plain)


@pytest.mark.parametrize("width", [3, 99])
def test_layers_of_a_file_that_are_of_another_size_are_listed_and_the_others_are_used(width: int) -> None:
    """GLoRA multiplies its matrices with the layer's weight, which fails for another width."""
    model = tiny_model()
    adapter = trained(model, AdapterSpec("glora", rank=2, text_encoder=False, targets="attention"))
    state, key = adapter.state(), next(iter(adapter.layers))
    adapter.remove()
    for name in ("a1.weight", "b1.weight"):
        state[f"{key}.{name}"] = torch.ones(2, width)
    state[f"{key}.a2.weight"] = torch.ones(width, 2)
    again, left = inject_parsed(model, parse_state(state))
    assert left == (key,)
    assert set(again.layers) == set(adapter.layers) - {key}


def test_the_spec_of_a_files_adapter_is_that_of_its_first_layer() -> None:
    state = trained(tiny_model(), AdapterSpec("loha", rank=3, alpha=2.0)).state()
    adapter, left = inject_parsed(tiny_model(), parse_state(state))
    assert left == () and (adapter.spec.family, adapter.spec.rank, adapter.spec.alpha) == ("loha", 3, 2.0)


def test_optimiser_groups_have_a_rate_for_each_weight() -> None:
    adapter = inject(tiny_model(), AdapterSpec(rank=2), seed=1)
    adapter.lr_weights["unet"] = [0.5]
    groups, rates = adapter.parameter_groups({"unet": 1e-3, "text_encoder": 1e-4})
    assert rates == {"unet x0.5": 5e-4, "text_encoder": 1e-4}
    assert groups["unet x0.5"][0] is adapter.groups["unet"][0] and len(groups["text_encoder"]) == 1


def test_spec_follows_the_settings() -> None:
    config = TrainConfig(rank=8, alpha=None, targets="all", train_text_encoder=False)
    assert spec_from_config(config) == AdapterSpec("lora", 8, 8.0, "all", unet=True, text_encoder=False)
