"""Image tokens: thumbnails are small and upright, and only published images can be requested."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from lib_lora_train.web.image_tokens import THUMBNAIL_PX, ImageTokens
from lib_lora_train.web.routes import install_routes, make_api
from tests.stand_ins.ui import open_small_session, write_images

_ORIENTATION = 0x0112


def opened(thumbnail: bytes) -> Image.Image:
    return Image.open(io.BytesIO(thumbnail))


@pytest.mark.parametrize(("mode", "name"), [("RGB", "a.png"), ("RGBA", "b.png"), ("P", "c.png"), ("L", "d.jpg")])
def test_thumbnails_of_all_image_modes_are_small(tmp_path: Path, mode: str, name: str) -> None:
    Image.new(mode, (900, 300)).save(tmp_path / name)
    tokens = ImageTokens()
    (token,) = tokens.publish([tmp_path / name])
    assert opened(tokens.load_thumbnail(token)).size == (THUMBNAIL_PX, THUMBNAIL_PX // 3)


def test_thumbnails_are_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[_ORIENTATION] = 6  # a quarter turn
    Image.new("RGB", (400, 200)).save(tmp_path / "turned.jpg", exif=exif)
    tokens = ImageTokens()
    (token,) = tokens.publish([tmp_path / "turned.jpg"])
    assert opened(tokens.load_thumbnail(token)).size == (THUMBNAIL_PX // 2, THUMBNAIL_PX)


def test_a_changed_image_gets_a_new_thumbnail(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "set", 1)
    tokens = ImageTokens()
    (token,) = tokens.publish([folder / "000.png"])
    before = tokens.load_thumbnail(token)
    Image.new("RGB", (50, 50), (255, 255, 255)).save(folder / "000.png")
    assert tokens.load_thumbnail(token) != before


def test_files_that_are_not_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not an image"):
        ImageTokens().publish([tmp_path / "lora.safetensors"])


def test_tokens_cannot_be_guessed(tmp_path: Path) -> None:
    assert ImageTokens().publish([tmp_path / "a.png"]) != ImageTokens().publish([tmp_path / "a.png"])


def test_the_routes_serve_published_images_only(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    app = make_api()
    install_routes(app, session)
    client = TestClient(app)
    session.scan(session.demo_form())
    token = client.get("/lora-train/v1/images?page=0").json()["images"][0]["token"]
    assert client.get(f"/lora-train/v1/thumbnail/{token}").headers["content-type"] == "image/jpeg"
    assert client.get(f"/lora-train/v1/image/{token}").headers["content-type"] == "image/png"
    for wrong in ("0" * 24, "..%2F..%2Fetc%2Fpasswd", str(tmp_path / "set" / "000.png")):
        assert client.get(f"/lora-train/v1/image/{wrong}").status_code == 404
        assert client.get(f"/lora-train/v1/thumbnail/{wrong}").status_code == 404


def test_samples_are_served_by_token(tmp_path: Path) -> None:
    session, runner = open_small_session(tmp_path)
    path = write_images(tmp_path / "samples", 1) / "000.png"
    runner.events = [{"kind": "SampleDrawn", "path": str(path), "epoch": 1, "prompt": "zkw", "seed": 1}]
    app = make_api()
    install_routes(app, session)
    client = TestClient(app)
    token = client.get("/lora-train/v1/status?since=0&after=0").json()["events"][0]["token"]
    assert client.get(f"/lora-train/v1/image/{token}").content == path.read_bytes()
