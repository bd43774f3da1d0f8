"""Browse lists folders under allowed roots only; uploads add images to folders of the form, and never overwrite."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from lib_lora_train.core.errors import DataError, LoraTrainError, OutputError
from lib_lora_train.ui.app import make_app
from lib_lora_train.web.route_access import PAGE_HEADER
from lib_lora_train.web.routes import PREFIX
from lib_lora_train.web.session import Session
from lib_lora_train.web.uploads import MAX_UPLOAD_BYTES, write_upload
from tests.stand_ins.ui import open_small_session, write_images


def image(kind: str = "PNG", colour: int = 90) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (colour, 20, 20)).save(buffer, kind)
    return buffer.getvalue()


def opened(tmp_path: Path) -> tuple[Session, Path]:
    """A session whose form has one folder."""
    session, _ = open_small_session(tmp_path)
    session.save_draft(session.demo_form())
    return session, tmp_path / "set"


def drop(session: Session, folder: Path, name: str, content: bytes, **values: Any) -> str:
    encoded = base64.b64encode(content).decode()
    answer = session.run_action("upload", {"folder": str(folder), "name": name, "content": encoded, **values})
    return str(answer["name"])


# --- upload -----------------------------------------------------------------------------------------


def test_dropped_images_and_captions_are_in_the_folder_and_in_the_next_scan(tmp_path: Path) -> None:
    session, folder = opened(tmp_path)
    assert drop(session, folder, "new.PNG", image()) == "new.png"
    assert drop(session, folder, "new.txt", b"zkw, dropped") == "new.txt"
    plan = session.scan(session.draft()).plan
    assert plan and len(plan.dataset.items) == 4
    assert "zkw, dropped" in {item.caption for item in plan.dataset.items}


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_every_kind_that_is_read_or_can_be_converted_is_taken(tmp_path: Path, kind: str) -> None:
    session, folder = opened(tmp_path)
    name = f"a.{kind.lower()}"
    drop(session, folder, name, image(kind))
    assert (folder / name).read_bytes() == image(kind)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.exe", b"MZ", "not an image or a caption"),
        ("a.py", b"print()", "not an image or a caption"),
        ("noending", b"x", "not an image or a caption"),
        (".png", image(), "not an image or a caption"),
        ("a.png", b"no image at all", r"a\.png|image"),
        ("a.txt", b"\0\1", "not a text file"),
        ("a.txt", b"x" * (2**20 + 1), "larger than 1 MB"),
        ("000.png", image(), "exists already"),
        ("000.txt", b"other", "exists already"),
        ("../000.png", image(), "exists already"),
    ],
)
def test_whatever_does_not_belong_is_refused_with_a_sentence(
    tmp_path: Path, name: str, content: bytes, why: str
) -> None:
    session, folder = opened(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(LoraTrainError, match=why):
        drop(session, folder, name, content)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("given", "safe"),
    [
        ("../../up.png", "up.png"),
        ("C:\\Users\\a\\win.png", "win.png"),
        ("a:b?.png", "a_b_.png"),
        ("CON.png", "_CON.png"),
        ("dot..png", "dot.png"),
        ("é名前.png", "é名前.png"),
        ("l" * 300 + ".png", "l" * 180 + ".png"),
        ("line\nbreak.png", "line_break.png"),
    ],
)
def test_names_are_made_safe(tmp_path: Path, given: str, safe: str) -> None:
    session, folder = opened(tmp_path)
    assert drop(session, folder, given, image()) == safe
    assert (folder / safe).is_file()


def test_files_go_only_into_folders_of_the_form_or_new_ones(tmp_path: Path) -> None:
    session, folder = opened(tmp_path)
    (tmp_path / "other").mkdir()
    (folder / "link").symlink_to(tmp_path / "other")
    for other in (tmp_path / "other", tmp_path, folder / "link", tmp_path / "no", tmp_path / "home" / "uploads"):
        with pytest.raises(DataError, match="not a folder of this form"):
            drop(session, other, "a.png", image())
    made = Path(session.run_action("upload-folder", {"name": "../10_red hat"})["folder"])
    assert made == tmp_path / "home" / "uploads" / "10_red hat"
    drop(session, made, "a.png", image())
    drop(session, made, "b.png", image(), inside="../2_cat")
    assert (made / "a.png").is_file() and (made / "2_cat" / "b.png").is_file()
    again = Path(session.run_action("upload-folder", {"name": "10_red hat"})["folder"])
    assert again.name == "10_red hat (2)" and list(again.iterdir()) == []


def test_a_large_image_passes_the_door_of_the_app_and_a_larger_one_is_refused(tmp_path: Path) -> None:
    session, folder = opened(tmp_path)
    client = TestClient(make_app(session), base_url="http://127.0.0.1")
    noise = Image.effect_noise((2200, 2200), 90).convert("RGB")
    buffer = io.BytesIO()
    noise.save(buffer, "BMP")
    assert len(buffer.getvalue()) > 8 * 2**20, "the limit of other requests"

    def post(action: str, content: str) -> Any:
        values = {"folder": str(folder), "name": "noise.bmp", "content": content}
        return client.post(f"{PREFIX}/page/{action}", json=values, headers={PAGE_HEADER: session.page_key})

    content = base64.b64encode(buffer.getvalue()).decode()
    assert post("browse", content).status_code == 413
    assert post("upload", content).json() == {"name": "noise.bmp"}
    assert post("upload", "A" * (MAX_UPLOAD_BYTES * 2)).status_code == 413


def test_a_failed_write_leaves_nothing_and_a_taken_name_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(b"kept")
    with pytest.raises(DataError, match="exists already"):
        write_upload(tmp_path, "a.png", b"new")
    assert (tmp_path / "a.png").read_bytes() == b"kept"
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        write_upload(tmp_path / "file" / "below", "a.png", b"new")


# --- browse -----------------------------------------------------------------------------------------


def test_browse_walks_from_the_roots_to_a_folder_with_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    write_images(tmp_path / "user" / "pictures" / "cats", 3)
    (tmp_path / "user" / ".hidden").mkdir()
    session, _ = opened(tmp_path)
    top = session.run_action("browse", {})
    assert top["above"] is None and str(tmp_path / "user") in [one["path"] for one in top["folders"]]
    pictures = session.run_action("browse", {"folder": str(tmp_path / "user")})
    assert [one["name"] for one in pictures["folders"]] == ["pictures"]
    cats = session.run_action("browse", {"folder": pictures["folders"][0]["path"]})
    assert cats["folders"][0]["images"] == 3 and cats["above"] == str(tmp_path / "user")


@pytest.mark.parametrize("folder", ["/etc", "/", "/root/../etc", "~nobody-of-this-name"])
def test_folders_outside_of_the_roots_are_not_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    session, _ = opened(tmp_path)
    with pytest.raises(DataError, match="outside of the folders"):
        session.run_action("browse", {"folder": folder})


def test_a_link_does_not_lead_out_of_the_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "link").symlink_to("/etc")
    session, _ = opened(tmp_path)
    with pytest.raises(DataError, match="outside of the folders"):
        session.run_action("browse", {"folder": str(tmp_path / "user" / "link")})


def test_a_folder_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    session, folder = opened(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        session.run_action("browse", {"folder": str(folder / "gone")})
    assert json.dumps(session.run_action("browse", {"folder": str(folder)}))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_image_that_arrives_cut_off_is_refused(tmp_path: Path, kind: str) -> None:
    session, folder = opened(tmp_path)
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 80).convert("RGB").save(buffer, kind)
    with pytest.raises(DataError, match=r"cut\.png cannot be decoded"):
        drop(session, folder, "cut.png", buffer.getvalue()[: len(buffer.getvalue()) // 2])
    assert not (folder / "cut.png").exists()


def test_sub_folder_that_is_a_file_or_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    session, folder = opened(tmp_path)
    (tmp_path / "other").mkdir()
    (folder / "link").symlink_to(tmp_path / "other")
    (folder / "broken").symlink_to(tmp_path / "missing")
    for inside in ("link", "broken", "000.png"):
        with pytest.raises(DataError, match=f"{inside} exists already and is not a folder in"):
            drop(session, folder, "a.png", image(), inside=inside)
    assert list((tmp_path / "other").iterdir()) == [] and not (tmp_path / "missing").exists()
