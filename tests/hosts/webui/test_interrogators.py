"""The webui's own DeepBooru and BLIP: listed if present, used under its lock, unloaded as the webui does."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import HostError
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.hosts.webui.host import WebuiHost
from tests.stand_ins.interrogators import DeepBooru, Interrogator, install_interrogators
from tests.stand_ins.webui.a1111 import A1111World
from tests.stand_ins.webui.forge import ForgeWorld
from tests.stand_ins.webui.reforge import ReforgeWorld
from tests.stand_ins.webui.worlds import host_in

World = A1111World | ForgeWorld


@pytest.fixture(params=[A1111World, ForgeWorld, ReforgeWorld])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    made: World = request.param(monkeypatch, tmp_path / "Lora")
    return made


@pytest.fixture
def host(world: World) -> WebuiHost:
    return host_in(world)


@pytest.fixture
def taggers(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[DeepBooru, Interrogator]:
    return install_interrogators(monkeypatch, world, tmp_path / "models")


def test_missing_taggers_are_not_listed(host: WebuiHost) -> None:
    assert host.tagger_names() == ()
    with pytest.raises(HostError, match="has no DeepBooru"), host.tagger("DeepBooru"):
        pass


def test_deepbooru_returns_all_scores_and_is_unloaded(host: WebuiHost, taggers: tuple[DeepBooru, Interrogator]) -> None:
    assert host.tagger_names() == ("DeepBooru", "BLIP")
    booru, _ = taggers
    with host.tagger("DeepBooru") as tagger:
        found = tagger(Image.new("RGBA", (40, 20), (255, 51, 0)))
    scores = {tag.name: tag.score for tag in found.tags}
    assert scores == pytest.approx({"red_light": 1, "green_light": 0.2, "blue_light": 0, "rating:safe": 1}, abs=1e-6)
    assert [tag.kind for tag in found.tags] == ["general", "general", "general", "rating"]
    assert booru.log == ["start", "stop"] and not booru.world.queue_lock.is_held


def test_blip_returns_its_sentence_and_is_unloaded(host: WebuiHost, taggers: tuple[DeepBooru, Interrogator]) -> None:
    with host.tagger("BLIP") as tagger:
        found = tagger(Image.new("L", (40, 20)))
    assert (found.sentence, found.tags) == ("an image of 40 by 20", ())
    assert taggers[1].log == ["start", "stop"] and not taggers[1].world.queue_lock.is_held


def test_tagging_survives_a_users_own_interrogation(host: WebuiHost, taggers: tuple[DeepBooru, Interrogator]) -> None:
    """The webui's buttons take no lock and unload the model when they are done."""
    with host.tagger("DeepBooru") as tagger:
        taggers[0].stop()
        assert tagger(Image.new("RGB", (4, 4))).tags


def test_models_stay_loaded_if_the_webui_is_set_so(host: WebuiHost, taggers: tuple[DeepBooru, Interrogator]) -> None:
    taggers[0].opts.keep = True
    with host.tagger("DeepBooru"):
        pass
    assert taggers[0].model is not None and taggers[0].model.is_on_card


@pytest.mark.parametrize("name", ["DeepBooru", "BLIP"])
def test_missing_model_is_reported_and_not_downloaded(
    host: WebuiHost, taggers: tuple[DeepBooru, Interrogator], name: str
) -> None:
    for one in taggers:
        for file in one.folder.iterdir():
            file.unlink()
    with pytest.raises(HostError, match=rf"{name}'s model is not in .* img2img once"), host.tagger(name):
        pass
    assert not taggers[0].world.queue_lock.is_held


def test_damaged_model_is_reported_and_discarded(host: WebuiHost, taggers: tuple[DeepBooru, Interrogator]) -> None:
    booru, _ = taggers
    file = booru.folder / "model.pt"
    file.write_bytes(b"half")
    with (
        pytest.raises(
            HostError, match=r"DeepBooru failed \(RuntimeError: PytorchStreamReader failed reading zip archive\)"
        ),
        host.tagger("DeepBooru"),
    ):
        pass
    file.write_bytes(b"tags")
    with host.tagger("DeepBooru") as tagger:
        assert tagger(Image.new("RGB", (4, 4))).tags


def test_model_too_large_for_the_gpu_is_reported_and_unloaded(
    host: WebuiHost, taggers: tuple[DeepBooru, Interrogator]
) -> None:
    _, blip = taggers
    blip.is_too_large = True
    with pytest.raises(HostError, match=r"BLIP failed \(OutOfMemoryError: CUDA out of memory"), host.tagger("BLIP"):
        pass
    assert blip.log == ["stop"] and not blip.world.queue_lock.is_held


def test_tagger_leaves_the_trained_model_unchanged(
    world: World, host: WebuiHost, taggers: tuple[DeepBooru, Interrogator]
) -> None:
    model = host.load_model(TrainConfig())
    before = world.weights()
    with host.tagger("DeepBooru") as tagger:
        tagger(Image.new("RGB", (4, 4)))
    with host.lease(model):
        assert world.weights() == before


def test_tagger_inside_a_lease_is_refused(host: WebuiHost, taggers: tuple[DeepBooru, Interrogator]) -> None:
    with (
        host.lease(),
        pytest.raises(HostError, match="cannot be nested"),
        host.tagger("DeepBooru"),
    ):
        pass


def test_standalone_host_has_no_taggers_and_says_what_to_use(tmp_path: Path) -> None:
    host = StandaloneHost(None, None, tmp_path, "cpu")
    assert host.tagger_names() == ()
    with pytest.raises(HostError, match=r"needs a webui.*WD14"):
        host.tagger("BLIP")
