"""Images that the webui draws itself: any sampler of it, its own checkpoint, and what a user does meanwhile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import HostError, InterruptedDrawing, ModelAwayError
from lib_lora_train.hosts.host import GenerationRequest
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.hosts.webui.host import WebuiHost
from lib_lora_train.hosts.webui.txt2img import sampler_and_scheduler
from tests.stand_ins.tiny_models import write_tiny_checkpoint
from tests.stand_ins.webui import WORLDS, ClassicWorld, World, host_in

ORDER = GenerationRequest("a fox", "blurry", 64, 128, seed=3, steps=4, cfg=5.0, clip_skip=2)


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    (tmp_path / "Lora").mkdir()
    (tmp_path / "Lora" / "zok-000001.safetensors").touch()
    return WORLDS[request.param](monkeypatch, tmp_path / "Lora")


@pytest.fixture
def host(world: World) -> WebuiHost:
    return host_in(world)


def colour(image: Image.Image) -> str:
    """The stand-in draws the hash of the weights that the image was made with."""
    return bytes(image.getpixel((0, 0))).hex()  # type: ignore[arg-type]


def test_a_painting_is_a_generation_of_the_webuis_own(world: World, host: WebuiHost) -> None:
    painter = host.painter("DPM++ 2M Karras")
    plain, styled = painter.draw(ORDER), painter.draw(replace(ORDER, lora="zok-000001"))
    assert colour(plain.image) == world.generate()[:6] and colour(styled.image) == world.generate("zok-000001")[:6]
    assert colour(plain.image) != colour(styled.image) and plain.image.size == (64, 128)
    asked = world.drawing.asked[-1]
    assert (asked.prompt, asked.negative_prompt) == ("a fox <lora:zok-000001:1>", "blurry")
    named = (asked.sampler_name, getattr(asked, "scheduler", ""))
    assert named == (("DPM++ 2M Karras", "") if isinstance(world, ClassicWorld) else ("DPM++ 2M", "Karras"))
    assert (asked.seed, asked.steps) == (3, 4)
    assert asked.override_settings == {"CLIP_stop_at_last_layers": 2}
    assert asked.do_not_save_samples and asked.do_not_save_grid and asked.is_closed
    assert painter.model_name == "checkpoint-0" and styled.infotext.startswith("a fox <lora:zok-000001:1>\n")


def test_drawing_between_two_turns_leaves_the_weights_for_training_pristine(world: World, host: WebuiHost) -> None:
    model = host.load_model(TrainConfig())
    with host.lease(model):
        before = model.unet.conv_in.weight.sum().item()
    host.painter("Euler", model).draw(replace(ORDER, lora="zok-000001"))
    with host.lease(model) as lent:
        assert lent.unet.conv_in.weight.sum().item() == before
        assert world.weights() == world.drawn("")


@pytest.mark.parametrize(
    ("name", "sampler", "scheduler"),
    [
        ("Euler", "Euler", "Automatic"),
        ("Euler a SGM", "Euler a", "SGM Uniform"),
        ("DPM++ 2M karras", "DPM++ 2M", "Karras"),
    ],
)
def test_samplers_may_carry_their_scheduler(world: World, name: str, sampler: str, scheduler: str) -> None:
    if isinstance(world, ClassicWorld):
        pytest.skip("Forge Classic has no schedulers of their own")
    assert sampler_and_scheduler(name) == (sampler, scheduler)


@pytest.mark.parametrize("name", ["Euler z", "DPM++ 2M Funny", "", "Karras"])
def test_a_sampler_the_webui_lacks_is_refused_not_replaced(world: World, host: WebuiHost, name: str) -> None:
    with pytest.raises(HostError, match=r"no sampler called .*It has DPM"):
        host.painter(name)
    assert host.sampler_names() == tuple(world.drawing.names)


def test_a_lora_the_webui_does_not_find_is_told(world: World, host: WebuiHost) -> None:
    with pytest.raises(HostError, match="does not find elsewhere-000001"):
        host.painter("Euler").draw(replace(ORDER, lora="elsewhere-000001"))
    assert world.drawing.asked == []


def test_nothing_is_drawn_with_another_checkpoint(world: World, host: WebuiHost) -> None:
    """Neither with one that is loaded, nor by loading one that was only chosen."""
    model = host.load_model(TrainConfig())
    painter = host.painter("Euler", model)
    world.choose(5)
    with pytest.raises(ModelAwayError, match="is chosen in the webui"):
        painter.draw(ORDER)
    world.switch_to(5)
    with pytest.raises(ModelAwayError, match="checkpoint-5 is loaded now"):
        painter.draw(ORDER)
    assert world.drawing.asked == []
    world.switch_to(0)
    assert painter.draw(ORDER).image.size == (64, 128)


def test_the_webui_does_not_draw_for_a_run_on_another_file(world: World, host: WebuiHost, tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "mine.safetensors", "sd1", seed=3)
    model = host.load_model(TrainConfig(checkpoint=str(tmp_path / "mine.safetensors")))
    with pytest.raises(HostError, match="has checkpoint-0 loaded and would draw with it, not with mine"):
        host.painter("Euler", model)


@pytest.mark.parametrize("button", ["interrupted", "stopping_generation", "skipped"])
def test_an_interrupted_image_is_not_taken_for_a_whole_one(world: World, host: WebuiHost, button: str) -> None:
    setattr(world.drawing.state, button, True)  # of an earlier generation: forgotten
    painter = host.painter("Euler")
    painter.draw(ORDER)
    world.drawing.at_image = lambda: setattr(world.drawing.state, button, True)
    with pytest.raises(InterruptedDrawing):
        painter.draw(ORDER)
    assert not world.queue_lock.is_held and world.drawing.state.job == ""


def test_what_the_webui_fails_with_is_told(world: World, host: WebuiHost) -> None:
    def fail() -> None:
        raise RuntimeError("CUDA out of memory")

    world.drawing.at_image = fail
    with pytest.raises(HostError, match=r"could not draw the image \(CUDA out of memory\)"):
        host.painter("Euler").draw(ORDER)
    assert not world.queue_lock.is_held and world.drawing.asked[-1].is_closed


def test_no_painting_inside_a_lease(host: WebuiHost) -> None:
    painter = host.painter("Euler")
    with host.lease(), pytest.raises(HostError, match="already leased"):
        painter.draw(ORDER)


def test_without_a_webui_nothing_paints() -> None:
    host: Any = StandaloneHost(None, None, Path("Lora"), "cpu")
    assert host.sampler_names() == ()
    with pytest.raises(HostError, match="there is none here"):
        host.painter("Euler")
