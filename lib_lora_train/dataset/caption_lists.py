"""One file with the captions of many images: kohya's fine-tuning metadata and diffusers' metadata.jsonl.

.json   {"1.png": {"caption": "a fox", "tags": "red, big"}, …}; the ending may be missing, the path may be absolute
.jsonl  {"image_path": "1.png", "caption": …, "tags": …} or {"file_name": "1.png", "text": …}, one in each line
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lib_lora_train.core.errors import DataError
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.dataset.caption_encoding import decode_caption
from lib_lora_train.dataset.captions import CaptionText, join_lines
from lib_lora_train.dataset.images import read_bytes

_NAME_KEYS = ("image_path", "file_name", "image")
_CAPTION_KEYS = ("caption", "text", "prompt")
_ADVICE = "It must be a .json or .jsonl with the names of images and their captions."


@dataclass(frozen=True)
class CaptionList:
    """Captions by image. `path` is the file they are from, `names` the images as it spells them."""

    path: Path
    names: tuple[str, ...]
    captions: Mapping[str, CaptionText]

    def find(self, image: Path, root: Path) -> CaptionText | None:
        """The caption of an image in the folder `root` or below it; None if the list does not have it."""
        places = [image.as_posix(), image.absolute().as_posix(), image.resolve().as_posix(), image.name]
        if image.is_relative_to(root):
            places.insert(0, image.relative_to(root).as_posix())
        spelt = (name for place in places for name in (place, _without_ending(place)))
        return next((self.captions[name] for name in spelt if name in self.captions), None)


def read_caption_list(path: Path) -> CaptionList:
    """The captions in the file; DataError with what is wrong with it."""
    text = decode_caption(read_bytes(path))[0]
    try:
        found = list(_from_lines(text) if path.suffix.lower() == ".jsonl" else _from_table(json.loads(text)))
    except (ValueError, RecursionError) as error:
        reason = error if isinstance(error, _NotAListError) else "is not valid JSON"
        raise DataError(f"{path} {reason}. {_ADVICE}") from None
    if not found:
        raise DataError(f"{path} has no captions. {_ADVICE}")
    return CaptionList(path, tuple(name for name, _ in found), _by_spelling(found))


def caption_list_path(given: str, folder: Path) -> Path:
    """The file that a concept names: a path, or a name in the concept's folder."""
    path = user_path(given)
    return path if path.is_absolute() else folder / path


def common_folder(found: CaptionList) -> str:
    """The folder of all images if the list has absolute paths, else ""."""
    parents = {PurePosixPath(name).parent for name in found.names}
    return str(parents.pop()) if len(parents) == 1 and PurePosixPath(found.names[0]).is_absolute() else ""


class _NotAListError(ValueError):
    """JSON of another structure; the text completes the sentence “FILE …”."""


def _from_lines(text: str) -> Iterator[tuple[str, CaptionText]]:
    for number, line in enumerate(text.split("\n"), start=1):  # texts may hold other line breaks, such as U+2028
        if not line.strip():
            continue
        entry = json.loads(line)
        name = next((entry[key] for key in _NAME_KEYS if key in entry), None) if isinstance(entry, dict) else None
        if not isinstance(name, str):
            raise _NotAListError(f"names no image in line {number}")
        yield _spelt(name), _caption(entry)


def _from_table(values: Any) -> Iterator[tuple[str, CaptionText]]:
    if not isinstance(values, dict):
        raise _NotAListError("is not a table of images")
    for name, entry in values.items():
        if isinstance(entry, str):
            yield _spelt(name), _text([entry])
        elif isinstance(entry, dict):
            yield _spelt(name), _caption(entry)
        else:
            raise _NotAListError(f"has no caption for {name}")


def _caption(entry: Mapping[str, Any]) -> CaptionText:
    """Caption and tags, one after the other, as sd-scripts joins them."""
    parts = [next((entry[key] for key in _CAPTION_KEYS if entry.get(key)), ""), entry.get("tags") or ""]
    return _text(", ".join(map(str, part)) if isinstance(part, list) else str(part) for part in parts)


def _text(parts: Iterable[str]) -> CaptionText:
    joined = ", ".join(filter(None, map(str.strip, parts)))
    lines = tuple(filter(None, (" ".join(line.split()) for line in joined.replace("\0", "").splitlines())))
    return CaptionText(join_lines(lines), lines)


def _spelt(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./")


def _without_ending(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix else name


def _by_spelling(found: Iterable[tuple[str, CaptionText]]) -> dict[str, CaptionText]:
    """The captions under every spelling of their image; a bare name only where one image has it."""
    entries = dict(found)
    bare = Counter(PurePosixPath(name).name for name in entries)
    captions = dict(entries)
    for name, caption in entries.items():
        short = PurePosixPath(name).name
        spellings = [_without_ending(name), *([short, _without_ending(short)] if bare[short] == 1 else [])]
        for spelling in spellings:
            captions.setdefault(spelling, caption)
    return captions
