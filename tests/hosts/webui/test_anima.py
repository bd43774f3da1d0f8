"""Anima in Forge Neo: its transformer is shared, its VAE and text encoder are used where they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from lib_lora_train.adapters.inject import inject
from lib_lora_train.adapters.registry import AdapterSpec
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.hosts.webui.host import WebuiHost
from lib_lora_train.models.latents import decode_latents, encode_images, pixels_to_tensor
from lib_lora_train.models.prompts import encode_prompts
from tests.stand_ins.tiny_anima import TEXT_WIDTH
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
