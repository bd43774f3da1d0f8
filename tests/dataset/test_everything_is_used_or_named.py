"""Everything in a data folder is used or named, nothing that is not a file is opened, and a folder without images is
refused with the right one."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from lib_lora_train.config.train_config import Concept
from lib_lora_train.core.errors import DataError
from lib_lora_train.dataset.folder_contents import scan_folder
from lib_lora_train.dataset.images import read_bytes
from lib_lora_train.dataset.scan import Dataset, scan_dataset
from lib_lora_train.dataset_tools.caption_files import load_captions
from lib_lora_train.dataset_tools.checkup import check_dataset, count_images
from lib_lora_train.web.image_tokens import ImageTokens


def _image(path: Path, image_format: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((96, 64), 50).convert("RGB").save(path, image_format)
    return path


def _scan(folder: Path, **values: object) -> Dataset:
    return scan_dataset([Concept(str(folder), **values)], ".txt")  # type: ignore[arg-type]


def _names(dataset: Dataset) -> list[str]:
    return [item.image.path.name for item in dataset.items]


def _messages(dataset: Dataset) -> str:
    return "\n".join(map(str, dataset.problems))


@pytest.fixture(autouse=True)
def limited_time() -> Iterator[None]:
    """Fails a test that waits for a pipe."""

    def end(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# --- deeper folders ---------------------------------------------------------------------------------


@pytest.mark.parametrize("deeper", ["10_zorp/face", "10_zorp/a/b", "other", "other/x/y", "0_none"])
def test_images_in_folders_that_are_not_read_are_named_with_their_number(tmp_path: Path, deeper: str) -> None:
    _image(tmp_path / "10_zorp" / "1.png")
    _image(tmp_path / deeper / "2.png")
    dataset = _scan(tmp_path)
    assert _names(dataset) == ["1.png"]
    assert f"sub-folders not read: {deeper} (1 image)" in _messages(dataset)


def test_a_deeper_folder_that_is_a_concept_itself_is_not_named(tmp_path: Path) -> None:
    _image(tmp_path / "1.png")
    _image(tmp_path / "reg" / "2.png")
    concepts = [Concept(str(tmp_path)), Concept(str(tmp_path / "reg"), is_regularisation=True)]
    assert "not read" not in _messages(scan_dataset(concepts, ".txt"))


def test_a_folder_that_links_to_its_parent_is_read_once(tmp_path: Path) -> None:
    _image(tmp_path / "1.png")
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    dataset = _scan(tmp_path)
    assert _names(dataset) == ["1.png"]
    assert "not read" not in _messages(dataset)


def test_the_originals_that_a_repair_kept_are_never_trained_on(tmp_path: Path) -> None:
    _image(tmp_path / "10_zorp" / "1.png")
    _image(tmp_path / "10_zorp-originals" / "1.png")
    dataset = _scan(tmp_path)
    assert len(dataset.items) == 1
    assert len(load_captions(tmp_path)) == 1


@pytest.mark.parametrize(
    ("image", "given", "advice"),
    [
        ("project/img/10_zok/0.png", "project", "but {0}/project/img has them in 10_zok. Enter that folder instead"),
        ("a/b/img/10_zok/0.png", "a", "but {0}/a/b/img has them in 10_zok. Enter that folder instead"),
        ("inverted/10_zok/images/0.png", "inverted", "Move them up into {0}/inverted/10_zok, whose name sets their"),
        ("inverted/10_zok/images/0.png", "inverted/10_zok", "Move them up into {0}/inverted/10_zok"),
        ("set/raw/0.png", "set", "but {0}/set/raw does. Enter that folder instead"),
        ("set/raw/0.png", "set/raw/empty", "but the folder above it does. Enter {0}/set/raw instead"),
        ("img/10_zok/0.png", "img/model", "but the folder above it does. Enter {0}/img instead"),
        ("set/0.png", "set/0.png", "is a file. Enter the folder that contains the images: {0}/set"),
    ],
)
def test_a_folder_without_images_is_refused_with_the_right_one(
    tmp_path: Path, image: str, given: str, advice: str
) -> None:
    _image(tmp_path / image)
    folder = tmp_path / given
    if not folder.is_file():
        folder.mkdir(parents=True, exist_ok=True)
    with pytest.raises(DataError) as caught:
        _scan(folder)
    assert advice.format(tmp_path) in str(caught.value)


# --- files that are not read ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "image_format", "message"),
    [
        ("x.jpg_large", "JPEG", "although they are images: x.jpg_large. Rename them, the first to x.jpg"),
        ("x", "PNG", "although they are images: x. Rename them, the first to x.png"),
        ("x.webp~", "WEBP", "the first to x.webp"),
        ("x.gif", "GIF", "not read: x.gif. Check images converts them to PNG"),
        ("x.tif", "TIFF", "not read: x.tif. Check images converts them to PNG"),
        ("x.dat", "GIF", "not read: x.dat. Save as PNG, JPEG or WebP"),
    ],
)
def test_an_image_under_another_ending_is_named(tmp_path: Path, name: str, image_format: str, message: str) -> None:
    _image(tmp_path / "1.png")
    _image(tmp_path / name, image_format)
    assert message in _messages(_scan(tmp_path))
    (finding,) = [one for one in check_dataset(tmp_path).findings if one.kind == "unsupported format"]
    assert finding.path.name == name


def test_other_files_and_captions_without_image_are_named(tmp_path: Path) -> None:
    for name in ("1.txt", "1.caption", "lost.txt", "notes.md", "Thumbs.db"):
        (tmp_path / name).write_text("zorp")
    _image(tmp_path / "1.png")
    assert _messages(_scan(tmp_path)).splitlines() == [
        f"{tmp_path}: not read, as no image has the same name: lost.txt.",
        f"{tmp_path}: not read: notes.md.",
    ]


# --- what is not a file -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["01.caption", "01.txt", "zz.png", "01-mask.png", "lost.gif"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "broken link"])
def test_what_is_not_a_file_is_never_opened(
    tmp_path: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _image(tmp_path / "01.png")
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(tmp_path)  # socket paths are limited to about a hundred bytes
        socket.socket(socket.AF_UNIX).bind(name)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nothing")
    dataset = _scan(tmp_path, use_masks=True)
    assert _names(dataset) == ["01.png"]
    assert kind == "folder" or f"not files (pipes, sockets, broken links): {name}" in _messages(dataset)
    assert [caption.image.name for caption in load_captions(tmp_path).captions] == ["01.png"]
    assert [image.path.name for image in check_dataset(tmp_path).images] == ["01.png"]
    assert scan_folder(tmp_path).files == (tmp_path / "01.png",)
    with pytest.raises(DataError):
        read_bytes(path)


def test_a_file_that_became_a_pipe_gives_no_thumbnail(tmp_path: Path) -> None:
    path = _image(tmp_path / "1.png")
    tokens = ImageTokens()
    (token,) = tokens.publish([path])
    path.unlink()
    os.mkfifo(path)
    for load in (tokens.load_image, tokens.load_thumbnail):
        with pytest.raises(DataError, match="is not a file"):
            load(token)


# --- folders that cannot be read --------------------------------------------------------------------


@pytest.fixture
def ordinary_folder() -> Iterator[Path]:
    """An empty folder, in a process for which permissions count (they do not for root)."""
    folder = Path(tempfile.mkdtemp())
    user = os.geteuid()
    if user == 0:
        os.chown(folder, 65534, -1)
        os.seteuid(65534)
    yield folder
    os.seteuid(user)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o700)
    shutil.rmtree(folder)


def test_a_sub_folder_without_permission_is_named(ordinary_folder: Path) -> None:
    _image(ordinary_folder / "1.png")
    _image(ordinary_folder / "10_x" / "2.png")
    (ordinary_folder / "10_x").chmod(0)
    assert f"{ordinary_folder / '10_x'} cannot be read: Permission denied." in _messages(_scan(ordinary_folder))


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111])
def test_a_folder_without_permission_is_refused_in_a_sentence(ordinary_folder: Path, mode: int) -> None:
    _image(ordinary_folder / "set" / "1.png")
    (ordinary_folder / "set").chmod(mode)
    for given in (ordinary_folder / "set", ordinary_folder / "set" / "inner"):
        with pytest.raises(DataError, match=r"cannot be read|none of its images can be read|does not exist"):
            _scan(given)


@pytest.mark.parametrize("name", ["x" * 300, "nul\0", "~nobody-of-this-name/x"])
def test_a_path_that_cannot_exist_is_refused_in_a_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"cannot be read|does not exist"):
        _scan(tmp_path / name)
    with pytest.raises(DataError):
        count_images(tmp_path / name)


# --- masks of other programs ------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["1-mask.png", "1_mask.png", "1-masklabel.png", "mask/1.png", "masks/1-mask.png"])
def test_masks_of_every_program_are_used_as_masks_and_never_as_images(tmp_path: Path, mask: str) -> None:
    _image(tmp_path / "1.png")
    _image(tmp_path / mask)
    (item,) = _scan(tmp_path, use_masks=True).items
    assert item.mask is not None
    assert item.mask.path == tmp_path / mask
    without = _scan(tmp_path)
    assert _names(without) == ["1.png"]
    assert "1 mask is not used" in _messages(without)
    assert len(load_captions(tmp_path)) == 1
    assert [image.path.name for image in check_dataset(tmp_path).images] == ["1.png"]


def test_conditioning_images_are_named_and_not_trained_on(tmp_path: Path) -> None:
    _image(tmp_path / "1.png")
    _image(tmp_path / "1-condlabel.png")
    dataset = _scan(tmp_path)
    assert _names(dataset) == ["1.png"]
    assert "conditioning images of another program: 1-condlabel.png" in _messages(dataset)


def test_a_sub_folder_of_images_that_is_called_masks_is_named(tmp_path: Path) -> None:
    _image(tmp_path / "1.png")
    _image(tmp_path / "masks" / "unrelated.png")
    assert "sub-folders not read: masks (1 image)" in _messages(_scan(tmp_path))


@pytest.mark.parametrize("name", ["1_0064x0064_sd.npz", "1_0064x0064_sdxl.npz", "1_te_outputs.npz", "1.npz"])
def test_caches_of_kohyas_tools_are_named_as_not_used(tmp_path: Path, name: str) -> None:
    _image(tmp_path / "1.png")
    (tmp_path / name).write_bytes(b"PK")
    assert f"caches of kohya's tools: {name}" in _messages(_scan(tmp_path))
