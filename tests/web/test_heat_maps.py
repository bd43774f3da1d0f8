"""Heat maps on the page: samples are drawn again as they were, other images are looked at with their captions."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from lib_lora_train.config.sample_prompts import SamplePrompt
from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import DataError, HostError
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.runs.images.epoch_grid import GridChoice, read_sheets
from lib_lora_train.runs.images.grid_generator import GridGenerator
from lib_lora_train.runs.records.event_log import log_events
from lib_lora_train.runs.trainer import run_training
from lib_lora_train.sampling.infotext import infotext, read_sample_settings, write_image
from lib_lora_train.sampling.used_sampler import UsedSampler
from lib_lora_train.web.heat_maps import HeatMapSession
from lib_lora_train.web.image_tokens import ImageTokens
from lib_lora_train.web.routes import PREFIX, install_routes, make_api
from tests.stand_ins.run_parts import RunSetup, small_run_setup
from tests.stand_ins.ui import open_small_session


class Opened:
    """A finished run with samples and its dataset, and a session over them."""

    def __init__(self, setup: RunSetup) -> None:
        self.run = setup
        list(
            log_events(run_training(setup.config, setup.host, folder=setup.folder, control=Control()), setup.folder.log)
        )
        self.tokens = ImageTokens()
        self.runner = SimpleNamespace(host=setup.host, active_run="")
        self.session = HeatMapSession(self.runner, setup.folder.root.parent, self.tokens, lambda: setup.config)  # type: ignore[arg-type]

    def token(self, path: Path) -> str:
        return self.tokens.publish([path])[0]

    def made(self, **values: Any) -> dict[str, Any]:
        """The status once the maps are made."""
        self.session.start(values)
        self.session.task.wait(120)
        return self.session.status({})


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    from tests.paths import ROOT

    place = tmp_path_factory.mktemp("run")
    host = StandaloneHost(None, None, place, "cpu")
    setup = small_run_setup(host, ROOT / "assets" / "demo", place)
    prompts = ("zorp on grass --s 2 --l 3 --d 5 --n blue --w 128 --h 64",)
    return Opened(setup._replace(config=setup.config.replace(sample_prompts=prompts, epochs=1, sample_sampler="Euler")))


def _png(url: str) -> Image.Image:
    kind, _, content = url.partition(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_a_sample_is_drawn_again_as_it_was_with_the_lora_of_its_epoch(opened: Opened) -> None:
    sample = opened.run.folder.sample(1, 1)
    token = opened.token(sample)
    shown = opened.session.open({"token": token})
    assert shown["words"] == ["zorp on grass"] and shown["is_drawn"]
    assert [one["file"] for one in shown["loras"]] == [shown["lora"]] and Path(shown["lora"]).is_file()
    assert opened.made(token=token)["state"] == "done"
    found = opened.session.show({"token": token, "texts": ["zorp", "grass"], "layers": "all"})
    with Image.open(sample) as before:
        drawn, old = _png(found["image"]).convert("RGB"), before.convert("RGB")
        # The file has 16 bits of what the run had in 32.
        assert max(abs(a - b) for a, b in zip(drawn.tobytes(), old.tobytes(), strict=True)) <= 8
    assert [one["word"] for one in found["maps"]] == ["zorp", "grass"]
    assert all(_png(one["layer"]).size == (128, 64) and 0 < one["peak"] < 1 for one in found["maps"])


def test_a_sample_without_lora_is_drawn_again_bit_by_bit(opened: Opened) -> None:
    sample = opened.run.folder.sample(0, 1)
    token = opened.token(sample)
    assert opened.session.open({"token": token})["lora"] == ""
    opened.made(token=token)
    with Image.open(sample) as before:
        assert _png(opened.session.show({"token": token})["image"]).tobytes() == before.convert("RGB").tobytes()


def test_the_lora_can_be_left_out_and_put_in(opened: Opened) -> None:
    token = opened.token(opened.run.folder.sample(1, 1))
    lora = opened.session.open({"token": token})["lora"]
    layers = {}
    for file in ("", lora):
        opened.made(token=token, file=file)
        layers[file] = opened.session.show({"token": token, "file": file, "texts": ["zorp"]})["maps"][0]["layer"]
    assert layers[""] != layers[lora]
    image = opened.token(next(iter(Path(opened.run.config.concepts[0].folder).glob("*.png"))))
    assert lora in [one["file"] for one in opened.session.open({"token": image})["loras"]]


def test_a_sample_that_the_webui_drew_is_looked_at_as_it_is(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib_lora_train.web.heat_map_requests.read_sample_settings", lambda _: None)
    token = opened.token(opened.run.folder.sample(1, 1))
    assert not opened.session.open({"token": token})["is_drawn"]
    assert opened.made(token=token)["state"] == "done"


def test_an_image_is_looked_at_with_its_caption_file_or_the_text_that_is_typed(opened: Opened) -> None:
    image = next(iter(sorted(Path(opened.run.config.concepts[0].folder).glob("*.png"))))
    token = opened.token(image)
    caption = image.with_suffix(".txt").read_text(encoding="utf-8").strip()
    assert all(word in caption for word in opened.session.open({"token": token})["words"])
    assert opened.session.open({"token": token, "text": "a hat, grass"})["words"] == ["a hat", "grass"]
    opened.made(token=token, text="a hat, grass")
    found = opened.session.show({"token": token, "text": "a hat, grass", "texts": ["hat"]})
    assert len(found["maps"]) == 1
    with pytest.raises(DataError, match="“dog” is not in the prompt. Choose among: a hat, grass"):  # noqa: RUF043
        opened.session.show({"token": token, "text": "a hat, grass", "texts": ["dog"]})


def test_an_image_that_has_changed_is_looked_at_again(opened: Opened, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.new("RGB", (64, 64), "red").save(file)
    asked = {"token": opened.token(file), "text": "a red hat"}
    opened.made(**asked)
    assert opened.session.show(asked)["image"]
    Image.new("RGB", (96, 64), "blue").save(file)
    os.utime(file, ns=(1, 1))
    with pytest.raises(DataError, match="no heat maps yet"):
        opened.session.show(asked)
    opened.made(**asked)
    assert _png(opened.session.show(asked)["image"]).size == (96, 64)


def test_maps_that_are_not_made_and_images_that_are_gone_are_errors(opened: Opened, tmp_path: Path) -> None:
    image = opened.token(next(iter(Path(opened.run.config.concepts[0].folder).glob("*.png"))))
    with pytest.raises(DataError, match="no heat maps yet"):
        opened.session.show({"token": image, "text": "never seen", "texts": ["never"]})
    with pytest.raises(DataError, match="no longer there"):
        opened.session.open({"token": "0"})
    with pytest.raises(DataError, match="no longer there"):
        opened.session.open({"path": str(tmp_path / "gone.png")})


def test_a_damaged_lora_is_a_sentence_in_the_status(opened: Opened, tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"nothing")
    status = opened.made(token=opened.token(opened.run.folder.sample(1, 1)), file=str(broken))
    assert status["state"] == "failed" and "broken.safetensors is not a safetensors file" in status["message"]


def test_another_model_is_not_loaded_beside_a_run(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened.runner, "active_run", "other")
    target = SimpleNamespace(is_loaded=False, checkpoint=None)
    monkeypatch.setattr(opened.runner, "host", SimpleNamespace(run_target=lambda _: target))
    with pytest.raises(HostError, match="other is training"):
        opened.session.start({"token": opened.token(opened.run.folder.sample(1, 1)), "file": "x"})


def test_a_samples_settings_are_read_from_its_infotext(opened: Opened, tmp_path: Path) -> None:
    read = read_sample_settings(opened.run.folder.sample(1, 1))
    assert read is not None
    prompt, sampler = read
    assert (prompt.prompt, prompt.negative, prompt.seed, prompt.steps, prompt.cfg) == ("zorp on grass", "blue", 5, 2, 3)
    assert (prompt.width, prompt.height, sampler) == (128, 64, "Euler")
    plain = tmp_path / "plain.png"
    Image.new("RGB", (8, 8)).save(plain)
    assert read_sample_settings(plain) is None and read_sample_settings(tmp_path / "gone.png") is None


def test_other_programs_request_them_over_http(tmp_path: Path, opened: Opened) -> None:
    session, _ = open_small_session(tmp_path)
    app = make_api()
    install_routes(app, session)
    session._actions.update(opened.session.actions())
    client = TestClient(app)
    image = next(iter(Path(opened.run.config.concepts[0].folder).glob("*.png")))
    asked = {"path": str(image), "text": "a zorp on grass"}
    assert client.post(f"{PREFIX}/heatmap", json=asked).status_code == 200
    opened.session.task.wait(120)
    assert client.post(f"{PREFIX}/heatmap/status", json={}).json()["state"] == "done"
    found = client.post(f"{PREFIX}/heatmap/maps", json={**asked, "texts": ["zorp"]}).json()
    assert found["maps"][0]["word"] == "zorp" and found["image"].startswith("data:image/png;base64,")
    wrong = client.post(f"{PREFIX}/heatmap/maps", json={**asked, "texts": ["dog"]})
    assert wrong.status_code == 422 and "“dog” is not in the prompt" in wrong.json()["detail"]["message"]
    assert client.post(f"{PREFIX}/heatmap/cancel", json={}).status_code == 200


# --- the cells of a grid, and other images of a run ------------------------------------------------


@pytest.fixture(scope="module")
def cells(opened: Opened) -> tuple[Path, Path]:
    """Two cells of a grid of the run: without LoRA, and its epoch at half strength."""
    generator = GridGenerator(opened.run.host, opened.run.folder.root.parent)
    generator.start(GridChoice(run=opened.run.folder.root.name, strengths=(0.5,)))
    generator.wait(120)
    sheet = read_sheets(opened.run.folder)[0]
    without, half = (opened.run.folder.epoch_grids / row.cells[0] for row in sheet.rows)
    return without, half


def test_a_cell_of_a_grid_is_looked_at_with_its_prompt_its_lora_and_its_strength(
    opened: Opened, cells: tuple[Path, Path]
) -> None:
    for path, strength in zip(cells, (1.0, 0.5), strict=True):
        shown = opened.session.open({"token": opened.token(path), "as_it_is": True})
        assert shown["words"] == ["zorp on grass"] and not shown["is_drawn"]
        assert bool(shown["lora"]) is (path is cells[1]) and shown["strength"] == strength


def test_the_map_of_an_image_as_it_is_lies_on_that_image_with_and_without_its_lora(
    opened: Opened, cells: tuple[Path, Path]
) -> None:
    token, layers = opened.token(cells[1]), {}
    for name, more in (("half", {}), ("full", {"strength": 1.0}), ("without", {"file": ""})):
        lora = {"file": opened.session.open({"token": token})["lora"]} if name == "full" else {}
        asked = {"token": token, "as_it_is": True, **lora, **more}
        assert opened.made(**asked)["state"] == "done"
        found = opened.session.show({**asked, "texts": ["zorp"]})
        layers[name] = found["maps"][0]["layer"]
        with Image.open(cells[1]) as cell:
            assert _png(found["image"]).tobytes() == cell.convert("RGB").tobytes()
    assert len(set(layers.values())) == 3


def test_a_cell_is_drawn_again_at_its_strength(opened: Opened, cells: tuple[Path, Path]) -> None:
    token = opened.token(cells[1])
    assert opened.session.open({"token": token})["is_drawn"]
    opened.made(token=token)
    with Image.open(cells[1]) as cell:
        assert _png(opened.session.show({"token": token})["image"]).tobytes() == cell.convert("RGB").tobytes()


def test_in_a_webui_a_cell_is_never_drawn_by_another_sampler(
    opened: Opened, cells: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(opened.run.host), "sampler_names", lambda _: ("Euler", "DPM++ 2M"))
    assert not opened.session.open({"token": opened.token(cells[1])})["is_drawn"]


def test_several_words_have_one_map_between_those_of_each(opened: Opened, cells: tuple[Path, Path]) -> None:
    asked = {"token": opened.token(cells[1]), "as_it_is": True}
    opened.made(**asked)
    both = opened.session.show({**asked, "texts": ["zorp", "grass"], "joined": True})["maps"]
    each = opened.session.show({**asked, "texts": ["zorp", "grass"]})["maps"]
    assert [one["word"] for one in both] == ["zorp, grass"] and len(each) == 2
    low, high = sorted(one["peak"] for one in each)
    assert both[0]["peak"] <= high + 1e-6 and both[0]["peak"] >= low / 2
    assert opened.session.show({**asked, "texts": [], "joined": True})["maps"] == []


def test_the_images_behind_the_advice_and_the_tags_know_what_they_were_drawn_from(opened: Opened) -> None:
    folder, lora = (
        opened.run.folder,
        Path(opened.session.open({"token": opened.token(opened.run.folder.sample(1, 1))})["lora"]),
    )
    prompt = SamplePrompt("a zorp", "", 64, 64, 3, 2, 3.0)
    for path, name, strength in (
        (folder.strength_sample(1, 1.5, 1), lora.stem, 1.5),
        (folder.tag_image("", "a zorp", 1), "", 1.0),
    ):
        text = infotext(prompt, sampler=UsedSampler("Euler"), clip_skip=1, model="tiny", lora=name, strength=strength)
        write_image(path, Image.new("RGB", (64, 64)), text)
        shown = opened.session.open({"token": opened.token(path), "as_it_is": True})
        assert (shown["words"], shown["strength"]) == (["a zorp"], strength)
        assert shown["lora"] == (str(lora) if name else "")
