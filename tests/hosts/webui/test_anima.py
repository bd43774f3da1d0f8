"""Anima in Forge Neo: its transformer is shared, its VAE and text encoder are used where they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lib_lora_train.adapters.inject import inject
from lib_lora_train.adapters.registry import AdapterSpec
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import ModelError
from lib_lora_train.core.events import StepDone
from lib_lora_train.evaluation.cross_attention import attention_layers
from lib_lora_train.evaluation.features import feature_layer
from lib_lora_train.hosts.webui.host import WebuiHost
from lib_lora_train.hosts.webui.neo import _has_decoder
from lib_lora_train.models.latent_cache import LatentCache, Posterior
from lib_lora_train.models.latents import decode_latents, encode_images, pixels_to_tensor
from lib_lora_train.models.prompts import encode_prompts
from lib_lora_train.training.loop import train
from lib_lora_train.training.text_conditions import TextConditions
from tests.stand_ins.tiny_anima import TEXT_WIDTH
from tests.stand_ins.training_parts import small_config, started
from tests.stand_ins.webui.anima import AnimaWorld
from tests.stand_ins.webui.worlds import host_in


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AnimaWorld:
    return AnimaWorld(monkeypatch, tmp_path / "Lora")


@pytest.fixture
def host(world: AnimaWorld) -> WebuiHost:
    world.generate()
    return host_in(world)


def test_the_transformer_is_shared_and_images_stay_the_same(world: AnimaWorld, host: WebuiHost) -> None:
    before = world.generate()
    model = host.load_model(TrainConfig())
    assert (model.spec.architecture, model.schedule.prediction_type) == ("anima", "rectified_flow")
    adapter = inject(model, AdapterSpec(rank=2, text_encoder=False), seed=0)
    with host.lease(model):
        theirs = world.parts[0].get_parameter("blocks.0.self_attn.k_proj.weight")
        ours = model.unet.get_submodule("transformer_blocks.0.attn1.to_k").get_base_layer().weight
        assert ours.untyped_storage().data_ptr() == theirs.untyped_storage().data_ptr()
    assert world.generate() == before
    adapter.remove()
    assert world.generate() == before


def test_loras_of_the_prompt_are_removed_for_a_turn(world: AnimaWorld, host: WebuiHost) -> None:
    model = host.load_model(TrainConfig())
    with host.lease(model):
        clean = model.unet.get_parameter("transformer_blocks.1.attn1.to_q.weight").clone()
    image = world.generate("other")
    with host.lease(model):
        assert torch.equal(model.unet.get_parameter("transformer_blocks.1.attn1.to_q.weight"), clean)
    assert world.generate("other") == image


def test_a_model_that_was_loaded_again_is_found(world: AnimaWorld, host: WebuiHost) -> None:
    model = host.load_model(TrainConfig())
    with host.lease(model):
        first = encode_prompts(model, ["a cat"], 1).hidden
    world.switch_to(1)
    world.switch_to(0)
    with host.lease(model):
        assert torch.equal(encode_prompts(model, ["a cat"], 1).hidden, first)
        assert world.engine.calls == ["a cat"]


def test_images_pass_through_the_webuis_own_vae(world: AnimaWorld, host: WebuiHost) -> None:
    model, image = host.load_model(TrainConfig()), Image.effect_noise((32, 16), 80).convert("RGB")
    with host.lease(model):
        (posterior,) = encode_images(model, [image])
        assert posterior is not None and not posterior.std.any()
        vae = world.parts[1]
        theirs = vae.encode(pixels_to_tensor(image)[None, :, None])[0, :, 0]  # type: ignore[operator]
        assert torch.equal(posterior.mean, theirs)
        (decoded,) = decode_latents(model, model.latent_format.scaled(posterior.mean)[None])
        assert decoded.size == image.size


def test_prompts_are_encoded_as_the_webui_does_and_leave_no_trace(world: AnimaWorld, host: WebuiHost) -> None:
    model = host.load_model(TrainConfig())
    with host.lease(model):
        plain = encode_prompts(model, ["a (cat)"], 1, is_weighted=False).hidden
        weighted = encode_prompts(model, ["a (cat)"], 1).hidden
    assert plain.shape == (1, 512, TEXT_WIDTH)
    assert torch.equal(weighted[0, :2], 2 * plain[0, :2])
    assert world.engine.calls == [r"a \(cat\)", "a (cat)"]
    assert not world.infotext


def test_brackets_are_not_escaped_where_the_webui_reads_them_literally(world: AnimaWorld, host: WebuiHost) -> None:
    world.shared.opts.emphasis = "None"
    model = host.load_model(TrainConfig())
    with host.lease(model):
        encode_prompts(model, ["a [cat]"], 1, is_weighted=False)
    assert world.engine.calls == ["a [cat]"]


def test_break_is_a_space_in_captions_without_weights(world: AnimaWorld, host: WebuiHost) -> None:
    """In Neo it would get the weight −1."""
    model = host.load_model(TrainConfig())
    with host.lease(model):
        encode_prompts(model, ["a fox BREAK red hat"], 1, is_weighted=False)
    assert world.engine.calls == ["a fox red hat"]


def test_a_long_caption_is_cut_and_leaves_its_neighbours_alone(host: WebuiHost) -> None:
    model = host.load_model(TrainConfig())
    conditions = TextConditions(trained=False, clip_skip=1)
    with host.lease(model):
        alone = conditions.encode(model, ["fox"]).hidden
        beside = conditions.encode(model, ["fox", "word " * 700]).hidden
    assert beside.shape == (2, 512, TEXT_WIDTH)
    assert torch.equal(beside[:1], alone)


def test_cached_captions_depend_on_how_the_webui_reads_brackets(world: AnimaWorld, host: WebuiHost) -> None:
    model = host.load_model(TrainConfig())
    conditions = TextConditions(trained=False, clip_skip=1, weighted=True)
    with host.lease(model):
        conditions.encode(model, ["a (fox)"])
        world.shared.opts.emphasis = "Ignore"
        conditions.encode(model, ["a (fox)"])
    assert world.engine.calls == ["a (fox)"] * 2


def test_prior_preservation_holds_the_transformers_own_answers(world: AnimaWorld, host: WebuiHost) -> None:
    """Before the first step they are those of the LoRA, in all bits; after the run the webui's images are the same."""
    before, found = world.generate(), []
    model = host.load_model(TrainConfig())
    for kind in ("off", "class"):
        config = small_config(prior_preservation=kind, train_text_encoder=False, epochs=1, resolution=64)
        with host.lease(model):
            training = started(model, config)
        noise = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(0))
        posteriors: dict[int, Posterior | Path] = {n: Posterior(noise[n], torch.zeros(16, 8, 8)) for n in range(4)}
        training.latents = LatentCache(posteriors, frozenset())
        found.append([event for event in train(training, host=host, control=Control()) if isinstance(event, StepDone)])
        training.adapter.remove()
    assert len(found[0]) == len(found[1]) > 1
    assert found[0][0].loss == found[1][0].loss
    assert found[0][-1].loss != found[1][-1].loss
    assert "red, small, on grass" in world.engine.calls
    assert world.generate() == before


def test_a_video_vae_is_recognised_in_any_folder(tmp_path: Path) -> None:
    file = tmp_path / "any.safetensors"
    save_file({"decoder.conv1.weight": torch.zeros(1)}, file)
    assert _has_decoder(file)


@pytest.mark.parametrize("look", ["heat maps", "features"])
def test_what_needs_a_unet_says_so(host: WebuiHost, look: str) -> None:
    model = host.load_model(TrainConfig())
    with host.lease(model), pytest.raises(ModelError, match="cannot be read from Anima"):
        attention_layers(model) if look == "heat maps" else feature_layer(model)
