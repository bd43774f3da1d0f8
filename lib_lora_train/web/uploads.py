"""Browse and upload: the folders on this machine that the page lists, and images that are dropped onto it.

Only folders below the `roots` are listed. Files are written only into folders of the form or into new ones of the
page's own, only images and captions, and never over a file that exists.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.config.validation.validate import unusable_name
from lib_lora_train.core.errors import DataError, OutputError
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.core.writable import failed_write_advice
from lib_lora_train.dataset.captions import CAPTION_EXTENSIONS
from lib_lora_train.dataset.folder_contents import scan_folder
from lib_lora_train.dataset.images import CONVERTIBLE_EXTENSIONS, IMAGE_EXTENSIONS, check_complete, decoding

MAX_UPLOAD_BYTES = 64 * 2**20
"""Of one image; a caption has at most `_MAX_CAPTION_BYTES`."""
_MAX_CAPTION_BYTES = 2**20
_MAX_LISTED = 500
_MOUNTS = ("/mnt", "/media", "/Volumes", "/data", "/workspace")
_READABLE = (*IMAGE_EXTENSIONS, *CONVERTIBLE_EXTENSIONS)


class FolderSession:
    """Actions of the page. `home` is the folder of the runs; uploads without a folder go to new ones there."""

    def __init__(self, home: Path, config: Callable[[], TrainConfig]) -> None:
        self._uploads = home / "uploads"
        self._config = config

    def actions(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        """The actions that the page can request, by name."""
        return {"browse": self.browse, "upload-folder": self.new_folder, "upload": self.upload}

    # --- browsing ------------------------------------------------------------------------------
    def browse(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The sub-folders of `folder` with the number of their images, and the folder above; the roots without one.

        DataError for a folder that is outside of the roots or cannot be read.
        """
        text = str(values.get("folder", "")).strip()
        if not text:
            return {"folder": "", "above": None, "images": 0, "more": 0, "folders": _listed(self._roots())}
        folder = user_path(text)
        if not self._is_below_roots(folder):
            raise DataError(f"{folder} is outside of the folders that Browse shows. Type its path into the field.")
        contents = scan_folder(folder)
        if contents.failure:
            raise DataError(f"{folder} cannot be read: {contents.failure}. Choose another folder.")
        above = str(folder.parent) if self._is_below_roots(folder.parent) and folder.parent != folder else ""
        return {
            "folder": str(folder),
            "above": above,
            "images": len(contents.images),
            "more": max(0, len(contents.subfolders) - _MAX_LISTED),
            "folders": _listed(contents.subfolders[:_MAX_LISTED]),
        }

    def _folders(self) -> list[Path]:
        """The folders of the form."""
        return [user_path(concept.folder).absolute() for concept in self._config().concepts if concept.folder]

    def _roots(self) -> list[Path]:
        """The user's home, the folders beside those of the form, the uploads, and where other disks are mounted."""
        beside = [folder.parent for folder in self._folders()]
        places = [Path.home(), self._uploads, *beside, *map(Path, _MOUNTS)]
        folders = [place for place in places if place.is_dir() and place.parent != place]
        drives = [Path(drive) for drive in getattr(os, "listdrives", list)()]  # on Windows, from Python 3.12 on
        return list(dict.fromkeys([*folders, *drives]))

    def _is_below_roots(self, folder: Path) -> bool:
        return any(_is_inside(folder, root) for root in self._roots())

    # --- uploading -----------------------------------------------------------------------------
    def new_folder(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A new empty folder for uploads, named as similar to `name` as is safe."""
        name = _safe_name(str(values.get("name", ""))) or "images"
        for number in range(1, 1000):
            folder = self._uploads / (name if number == 1 else f"{name} ({number})")
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise OutputError(
                    f"{folder} cannot be created: {error.strerror or error}. {failed_write_advice(error)}"
                ) from error
            return {"folder": str(folder)}
        raise OutputError(f"{self._uploads} has too many folders called {name}. Rename the one that you drop.")

    def upload(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Write one file into `folder` or its sub-folder `inside`; the name it has there.

        DataError for a folder that is not in the form, another kind of file, or a name that is taken.
        """
        folder, name = user_path(str(values["folder"])), str(values["name"])
        if not self._may_write(folder):
            raise DataError(f"{folder} is not a folder of this form. Enter it as the folder of a concept first.")
        inside = _safe_name(str(values.get("inside", "")))
        given = Path(re.split(r"[\\/]", name)[-1])
        ending = given.suffix.lower()
        safe = f"{_safe_name(given.stem) or 'image'}{ending}"
        content = _decode(str(values["content"]), name)
        _require_kind(content, ending, name)
        return {"name": write_upload(_folder_inside(folder, inside), safe, content).name}

    def _may_write(self, folder: Path) -> bool:
        """Whether it is a folder of the form, or one that was made for uploads."""
        is_own = _is_inside(folder, self._uploads) and not _is_inside(self._uploads, folder)
        is_in_form = any(_is_inside(folder, one) and _is_inside(one, folder) for one in self._folders())
        return folder.is_dir() and (is_own or is_in_form)


def _is_inside(folder: Path, root: Path) -> bool:
    """Whether the folder is `root` or in it; links are followed."""
    try:
        return folder.resolve().is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError):
        return False


def _folder_inside(folder: Path, name: str) -> Path:
    """The sub-folder of that name, the folder itself for ""; DataError if it is a file, or leads out of the folder."""
    inside = folder / name
    if os.path.lexists(inside) and not (inside.is_dir() and _is_inside(inside, folder)):
        raise DataError(f"{inside} exists already and is not a folder in {folder}. Rename the folder that you drop.")
    return inside


def write_upload(folder: Path, name: str, content: bytes) -> Path:
    """Write a new file; DataError if the name is taken, OutputError, with nothing left, if it cannot be written."""
    path = folder / name
    try:
        folder.mkdir(exist_ok=True)
        with path.open("xb") as file:
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                path.unlink()
                raise
    except FileExistsError:
        raise DataError(f"{name} exists already in {folder}. Rename one of the two; nothing was overwritten.") from None
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror or error}. {failed_write_advice(error)}"
        ) from error
    return path


def _listed(folders: list[Path] | tuple[Path, ...]) -> list[dict[str, Any]]:
    return [
        {"path": str(path), "name": path.name or str(path), "images": len(scan_folder(path).images)} for path in folders
    ]


def _safe_name(text: str) -> str:
    """The text as a name of a file or folder on every system; "" if nothing is left."""
    shown = "".join(letter if letter.isprintable() else "_" for letter in re.split(r"[\\/]", text)[-1])
    name = re.sub(r'[<>:"|?*]', "_", shown).strip(". ")
    name = name.encode("utf-8", "replace")[:180].decode("utf-8", "ignore").strip(". ")
    return f"_{name}" if name and unusable_name(name) else name


def _decode(text: str, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise DataError(f"{name} did not arrive completely. Drop it again.") from None


def _require_kind(content: bytes, ending: str, name: str) -> None:
    """DataError unless it is an image that decodes here, or a caption, of a usual size."""
    limit = _MAX_CAPTION_BYTES if ending in CAPTION_EXTENSIONS else MAX_UPLOAD_BYTES
    if ending not in (*_READABLE, *CAPTION_EXTENSIONS):
        raise DataError(f"{name} is not an image or a caption. Drop {_kinds()} files, or .txt files with captions.")
    if len(content) > limit:
        raise DataError(f"{name} is larger than {limit // 2**20} MB. Shrink it, or copy it into the folder yourself.")
    if ending in CAPTION_EXTENSIONS:
        if b"\0" in content:
            raise DataError(f"{name} is not a text file, so it was not uploaded.")
        return
    with decoding(Path(name)):
        check_complete(content)


def _kinds() -> str:
    return ", ".join(extension.lstrip(".") for extension in IMAGE_EXTENSIONS)


def large_bodies(prefix: str) -> Mapping[str, int]:
    """The limits of the requests that carry an image: a third more than the image, as base64, and some names."""
    return {f"{prefix}/page/upload": MAX_UPLOAD_BYTES * 4 // 3 + 2**20}
