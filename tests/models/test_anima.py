"""Anima: its transformer is grafted, its latents have a mean for each channel, and its captions are encoded once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.loaders import single_file_utils
from torch import Tensor, nn

from lib_lora_train.core.errors import ModelError
from lib_lora_train.models.checkpoint import shapes_of
from lib_lora_train.models.graft import graft
from lib_lora_train.models.infer_anima import anima_tensors, infer_anima_spec, is_anima, require_text_adapter
from lib_lora_train.models.infer_spec import infer_spec
from lib_lora_train.models.kinds.anima import LATENTS, original_name
from lib_lora_train.models.kinds.registry import kind_of
from lib_lora_train.models.text_encoding import TextCondition
from tests.stand_ins.tiny_anima import (
    PREFIX,
    PUBLISHED,
    TEXT_WIDTH,
    Sizes,
    adapter_tensors,
    transformer_shapes,
    transformer_tensors,
)


def published_shapes() -> dict[str, tuple[int, ...]]:
    return {PREFIX + name: shape for name, shape in transformer_shapes(PUBLISHED)}


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return transformer_tensors()


def test_the_published_sizes_are_read_from_the_shapes() -> None:
    spec = infer_spec(published_shapes())
    assert (spec.architecture, spec.prediction_type, spec.own_resolution) == ("anima", "rectified_flow", 1024)
    assert (spec.unet["num_layers"], spec.unet["num_attention_heads"], spec.unet["attention_head_dim"]) == (28, 16, 128)


@pytest.mark.parametrize("blocks", [28, 40])
def test_every_depth_is_grafted_whole(blocks: int) -> None:
    shapes = {PREFIX + name: shape for name, shape in transformer_shapes(Sizes(blocks=blocks))}
    (network,) = kind_of("anima").networks(infer_spec(shapes))
    named = dict(network.module.named_parameters())
    assert {PREFIX + network.source(name).name for name in named} == shapes.keys()
    assert all(tuple(p.shape) == shapes[PREFIX + network.source(name).name] for name, p in named.items())


def test_names_are_those_of_diffusers_own_conversion() -> None:
    original = {f"net.{name}": torch.empty(0) for name, _ in transformer_shapes(PUBLISHED)}
    converted = single_file_utils.convert_cosmos_transformer_checkpoint_to_diffusers(dict(original))
    assert {f"net.{original_name(name)}" for name in converted} == original.keys()


def test_every_weight_is_shared_and_the_prediction_has_gradients(tensors: dict[str, Tensor]) -> None:
    grafted = graft(tensors, infer_spec(shapes_of(tensors)))
    assert {row.status for row in grafted.report} == {"shared"} and grafted.vae is None
    model: Any = SimpleNamespace(unet=grafted.unet, dtype=torch.float32, device=torch.device("cpu"))
    noisy = torch.randn(2, 16, 6, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    condition = TextCondition(torch.randn(2, 512, TEXT_WIDTH, generator=torch.Generator().manual_seed(2)), None)
    prediction = kind_of("anima").predict(model, noisy, torch.tensor([300.0, 900.0]), condition, None)
    assert prediction.shape == (2, 16, 6, 4)
    torch.autograd.backward(prediction.sum())
    assert noisy.grad is not None and bool(noisy.grad.abs().sum() > 0)


def test_the_transformer_gets_one_frame_the_time_as_sigma_and_an_empty_padding_mask() -> None:
    calls: dict[str, Tensor] = {}

    class Recorder(nn.Module):
        def forward(self, **values: Tensor) -> SimpleNamespace:
            calls.update(values)
            return SimpleNamespace(sample=values["hidden_states"][:, :16])

    model: Any = SimpleNamespace(unet=Recorder(), dtype=torch.float32, device=torch.device("cpu"))
    noisy = torch.randn(1, 16, 4, 4)
    kind_of("anima").predict(
        model, noisy, torch.tensor([250.0], dtype=torch.float64), TextCondition(torch.zeros(1, 2, 2), None), None
    )
    assert torch.equal(calls["hidden_states"][:, :16, 0], noisy)
    assert not calls["hidden_states"][:, 16].any()
    assert (calls["timestep"].tolist(), calls["timestep"].dtype) == ([0.25], torch.float32)


def test_latents_are_scaled_by_channel() -> None:
    latent = torch.randn(2, 16, 3, 2, dtype=torch.float64)
    scaled = LATENTS.scaled(latent)
    for channel, (mean, deviation) in enumerate(zip(LATENTS.means, LATENTS.deviations, strict=True)):
        assert torch.equal(scaled[:, channel], (latent[:, channel] - mean) / deviation)
    # A division and a multiplication by the same number leave at most two roundings of float64.
    assert torch.allclose(LATENTS.unscaled(scaled), latent, rtol=0, atol=1e-14)


def test_the_means_are_those_of_qwen_images_vae() -> None:
    from diffusers import AutoencoderKLQwenImage

    with torch.device("meta"):
        config: Any = AutoencoderKLQwenImage(base_dim=8).config
    assert tuple(config.latents_mean) == LATENTS.means and tuple(config.latents_std) == LATENTS.deviations


@pytest.mark.parametrize(
    ("targets", "layers"),
    # sd-scripts' Anima trainer adapts the 10 linear layers of attention and feed-forward of each block.
    [("attention", 28 * 8), ("standard", 28 * 10), ("all", 28 * 16), ("full", 28 * 16 + 6)],
)
def test_targets_count_as_in_sd_scripts(targets: str, layers: int) -> None:
    (network,) = kind_of("anima").networks(infer_spec(published_shapes()))
    names = [name for name, module in network.module.named_modules() if isinstance(module, nn.Linear)]
    assert sum(kind_of("anima").is_target(name, targets) for name in names) == layers


def test_layers_are_named_as_in_the_checkpoint_and_found_by_diffusers_names() -> None:
    kind, name = kind_of("anima"), "transformer_blocks.3.attn2.to_out.0"
    key = "lora_unet_blocks_3_cross_attn_output_proj"
    assert kind.lora_keys([name]) == {name: key}
    assert kind.lora_aliases([name]) == {"lora_unet_transformer_blocks_3_attn2_to_out_0": key, key: key}


@pytest.mark.parametrize("name", ["transformer_block.3.attn2.to_q", "time_embed.t_embedderx.linear_1", ""])
def test_a_name_that_no_anima_has_is_not_translated(name: str) -> None:
    with pytest.raises(KeyError):
        original_name(name)


@pytest.mark.parametrize("prefix", [PREFIX, "net.", ""])
def test_checkpoints_of_every_spelling_are_recognised(prefix: str) -> None:
    names = {**transformer_tensors(prefix=prefix), **adapter_tensors(prefix=prefix)}
    assert is_anima(names)
    assert anima_tensors(names).keys() == transformer_tensors().keys()
    assert infer_anima_spec(shapes_of(anima_tensors(names)), infer_hints()).architecture == "anima"


def infer_hints() -> Any:
    from lib_lora_train.models.architecture import CheckpointHints

    return CheckpointHints()


def test_a_checkpoint_without_text_adapter_is_named() -> None:
    require_text_adapter([*transformer_tensors(), *adapter_tensors()])
    with pytest.raises(ModelError, match="no text adapter"):
        require_text_adapter(transformer_tensors())


def test_another_cosmos_model_is_refused() -> None:
    shapes = {**published_shapes(), f"{PREFIX}x_embedder.proj.1.weight": (2048, 4 * 18)}
    with pytest.raises(ModelError, match="has 17 input channels, but an Anima has 16"):
        infer_spec(shapes)
