"""The webui's own upscalers: under its lock, never a silent replacement, never a download."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from lib_lora_train.core.errors import GenerationInterrupted, HostError
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.hosts.webui.host import WebuiHost
from tests.stand_ins.webui.a1111 import A1111World
from tests.stand_ins.webui.forge import ForgeWorld
from tests.stand_ins.webui.modules import install, module_of
from tests.stand_ins.webui.worlds import host_in

World = A1111World | ForgeWorld
IMAGE = Image.new("RGB", (40, 30), (9, 90, 200))


class Upscaler:
    """Like a webui upscaler: works in steps of 8 px and returns silently once Interrupt was pressed."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.scales: list[float] = []
        self.failure: Exception | None = None
        self.interrupts = False
        self.is_damaged = False

    def upscale(self, image: Image.Image, scale: float, path: str) -> Image.Image:
        assert self.world.queue_lock.is_held, "the webui computes under its lock"
        if self.failure:
            raise self.failure
        self.scales.append(scale)
        if self.interrupts:
            self.world.txt2img.state.interrupted = True
        if self.world.txt2img.state.interrupted:
            return image
        size = (int(image.width * scale) // 8 * 8, int(image.height * scale) // 8 * 8)
        return self.do_upscale(image, path).resize(size)

    def do_upscale(self, image: Image.Image, path: str) -> Image.Image:
        """The image at four times the size, or unchanged if the model file cannot be read."""
        if self.is_damaged:
            return image
        return Image.new("RGB", (4 * image.width, 4 * image.height), (200, 90, 9))


@pytest.fixture(params=[A1111World, ForgeWorld], ids=["a1111", "forge"])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    (tmp_path / "Lora").mkdir()
    made: World = request.param(monkeypatch, tmp_path / "Lora")
    return made


@pytest.fixture
def upscaler(world: World, monkeypatch: pytest.MonkeyPatch) -> Upscaler:
    """The webui's list of upscalers and its `resize_image`, which uses the first one for an unknown name."""
    from modules import shared  # the stand-in

    scaler = Upscaler(world)
    entries = [
        SimpleNamespace(name="None", data_path=None, scaler=scaler),
        SimpleNamespace(name="Lanczos", data_path=None, scaler=scaler),
        SimpleNamespace(name="4x-there", data_path="/models/4x.pth", local_data_path="/models/4x.pth", scaler=scaler),
        SimpleNamespace(name="4x-away", data_path="https://nowhere/4x.pth", scaler=scaler),
    ]

    def resize_image(mode: int, image: Image.Image, width: int, height: int, upscaler_name: str) -> Image.Image:
        chosen = next((one for one in entries if one.name == upscaler_name), entries[0])
        scale = max(width / image.width, height / image.height)
        larger: Image.Image = chosen.scaler.upscale(image, scale, chosen.data_path)
        return larger.resize((width, height))

    monkeypatch.setattr(shared, "sd_upscalers", entries, raising=False)
    install(monkeypatch, module_of("modules.images", resize_image=resize_image))
    return scaler


@pytest.fixture
def host(world: World) -> WebuiHost:
    return host_in(world)


def test_only_upscalers_that_need_no_download_are_listed(host: WebuiHost, upscaler: Upscaler) -> None:
    assert host.upscaler_names() == ("Lanczos", "4x-there")


def test_upscaler_without_a_file_is_listed_once_its_folder_has_a_model(
    host: WebuiHost, upscaler: Upscaler, tmp_path: Path
) -> None:
    from modules import shared  # the stand-in

    ldsr = SimpleNamespace(model_url="https://nowhere/model.ckpt", model_path=str(tmp_path / "LDSR"), user_path=None)
    shared.sd_upscalers.append(SimpleNamespace(name="LDSR", data_path=None, local_data_path=None, scaler=ldsr))
    assert "LDSR" not in host.upscaler_names()
    (tmp_path / "LDSR").mkdir()
    (tmp_path / "LDSR" / "model.ckpt").write_bytes(b"weights")
    assert "LDSR" in host.upscaler_names()


def test_image_is_enlarged_to_the_exact_size_under_the_lock(world: World, host: WebuiHost, upscaler: Upscaler) -> None:
    larger = host.upscale(IMAGE, (101, 76), "4x-there")
    assert (larger.size, larger.mode, larger.getpixel((50, 40))) == ((101, 76), "RGB", (200, 90, 9))
    assert upscaler.scales == [pytest.approx(76 / 30)]
    assert not world.queue_lock.is_held


@pytest.mark.parametrize("name", ["4x-away", "4x-unknown", "None", ""])
def test_upscaler_that_is_not_listed_is_refused(host: WebuiHost, upscaler: Upscaler, name: str) -> None:
    with pytest.raises(HostError, match="Choose another"):
        host.upscale(IMAGE, (80, 60), name)
    assert upscaler.scales == []


def test_webui_failure_is_reported_with_its_reason(host: WebuiHost, upscaler: Upscaler, world: World) -> None:
    upscaler.failure = RuntimeError("CUDA out of memory")
    with pytest.raises(HostError, match="out of memory"):
        host.upscale(IMAGE, (80, 60), "4x-there")
    assert not world.queue_lock.is_held


def test_interrupt_is_reported_and_an_earlier_one_ignored(world: World, host: WebuiHost, upscaler: Upscaler) -> None:
    world.txt2img.state.interrupted = True  # from an earlier generation
    assert host.upscale(IMAGE, (80, 60), "4x-there").getpixel((9, 9)) == (200, 90, 9)
    upscaler.interrupts = True
    with pytest.raises(GenerationInterrupted):
        host.upscale(IMAGE, (80, 60), "4x-there")


def test_standalone_host_has_no_upscalers(tmp_path: Path) -> None:
    host: Any = StandaloneHost(None, None, tmp_path, "cpu")
    assert host.upscaler_names() == ()
    with pytest.raises(HostError, match="Lanczos"):
        host.upscale(IMAGE, (80, 60), "4x-there")


def test_unreadable_upscaler_model_is_reported_and_not_replaced_by_lanczos(
    world: World, host: WebuiHost, upscaler: Upscaler
) -> None:
    upscaler.is_damaged = True
    with pytest.raises(HostError, match="could not use 4x-there"):
        host.upscale(IMAGE, (101, 76), "4x-there")
    assert "do_upscale" not in vars(upscaler), "the webui's upscaler is restored"
    upscaler.is_damaged = False
    assert host.upscale(IMAGE, (101, 76), "4x-there").size == (101, 76)
