"""Captions: found beside an image and given their trigger.

A caption is a list of tags separated by commas; a sentence is one tag. The trigger stands in the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lib_lora_train.core.errors import DataError, Problem

CAPTION_EXTENSIONS = (".caption", ".txt")
"""ScannedDataset for after the ending that was asked for."""

_SENTENCE_ENDS = (".", ",", ";", ":", "!", "?")


# --- files --------------------------------------------------------------------------------------


def list_caption_extensions(extension: str) -> tuple[str, ...]:
    """The endings to look for, in lower case: `extension` (its dot may be missing), then the usual ones."""
    first = f".{extension.strip().lstrip('.').lower()}"
    return tuple(dict.fromkeys((first, *CAPTION_EXTENSIONS) if first != "." else CAPTION_EXTENSIONS))


def read_caption(image_path: Path, extension: str) -> str | None:
    """The caption of an image in one line, None when it has no caption file; DataError if that cannot be read."""
    path = find_caption_file(image_path, extension, index_by_extension(image_path.parent.iterdir()))
    return None if path is None else read_caption_file(path)[0].joined


def index_by_extension(files: Iterable[Path]) -> dict[tuple[str, str], Path]:
    """Files by (name without ending, ending in lower case); `a.tags.txt` has the endings `.txt` and `.tags.txt`."""
    found = {}
    for file in sorted(files):
        parts = file.name.split(".")
        for cut in range(1, len(parts)):
            found[".".join(parts[:cut]), "." + ".".join(parts[cut:]).lower()] = file
    return found


def find_caption_file(image_path: Path, extension: str, beside: Mapping[tuple[str, str], Path]) -> Path | None:
    """The caption file among the files of a folder (`index_by_extension`)."""
    keys = ((image_path.stem, ending) for ending in list_caption_extensions(extension))
    return next((beside[key] for key in keys if key in beside), None)


@dataclass(frozen=True)
class CaptionText:
    """What a caption file says: all of it in one line, and its lines, each of which may be a caption of its own."""

    joined: str
    lines: tuple[str, ...] = ()


def read_caption_file(path: Path) -> tuple[CaptionText, Problem | None]:
    """The caption, and what is odd about the file (its encoding), if anything.

    UTF-8 with or without byte order mark and UTF-16 with one; other bytes are taken as Latin-1, where each
    has a meaning. DataError when the file cannot be read.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    text, is_unicode = decode_caption(raw)
    lines = tuple(filter(None, (" ".join(line.split()) for line in text.replace("\0", "").splitlines())))
    found = CaptionText(_one_line(lines), lines)
    if is_unicode:
        return found, None
    reason = "is not UTF-8; it was read as Latin-1. Save it as UTF-8 if letters look wrong."
    return found, Problem("warning", str(path), reason)


def decode_caption(raw: bytes) -> tuple[str, bool]:
    """The text of a caption file, and whether its bytes are Unicode; other bytes are taken as Latin-1."""
    has_utf16_mark = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return raw.decode("utf-16" if has_utf16_mark else "utf-8-sig"), True
    except UnicodeDecodeError:
        return raw.decode("latin-1"), False


def _one_line(lines: Iterable[str]) -> str:
    """Lines joined: with a blank after a mark that ends a phrase, else with a comma (one tag per line)."""
    joined = ""
    for line in lines:
        if joined:
            joined += " " if joined.endswith(_SENTENCE_ENDS) else ", "
        joined += line
    return joined


# --- words --------------------------------------------------------------------------------------


def split_tags(caption: str, brackets: str = "{}") -> list[str]:
    """The tags of a caption, without blanks around them and without empty ones.

    A comma within a pair of `brackets` parts nothing; where these do not pair up they are letters.
    """
    return [tag for tag in (part.strip() for part in _parts(caption, brackets)) if tag]


def _parts(caption: str, brackets: str) -> list[str]:
    """The caption cut at its commas, but not within brackets."""
    if not any(bracket in caption for bracket in brackets):
        return caption.split(",")
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(caption):
        if letter in brackets and caption[place - 1 : place] != "\\":
            depth += 1 if brackets.index(letter) % 2 == 0 else -1
        elif letter == "," and depth == 0:
            parts.append(caption[start:place])
            start = place + 1
        if depth < 0:
            break
    return [*parts, caption[start:]] if depth == 0 else caption.split(",")


def put_trigger_first(caption: str, trigger: str, separator: str = "") -> str:
    """The caption with its trigger in front, once.

    A tag that holds the trigger as a whole word is moved to the front; where there is none, the trigger is put
    there as a tag of its own. Letter case does not matter, as the text encoder does not see it. Where `separator`
    parts the caption, the trigger stands before the first of them.
    """
    trigger = ", ".join(split_tags(trigger))
    if not trigger:
        return caption.strip()
    front, mark, rest = caption.partition(separator) if separator else (caption, "", "")
    if mark:
        others = [
            ", ".join(tag for tag in split_tags(part) if tag.lower() not in trigger_tags(trigger))
            for part in rest.split(separator)
        ]
        return f" {separator} ".join((put_trigger_first(front, trigger), *others))
    tags = [tag for tag in split_tags(caption) if tag.lower() not in trigger_tags(trigger)]
    if len(tags) < len(split_tags(caption)):  # it was there as a tag
        return ", ".join((trigger, *tags))
    first = next((tag for tag in tags if has_word(tag, trigger)), None)
    if first is None:
        return ", ".join((trigger, *tags))
    tags.remove(first)
    return ", ".join((first, *tags))


def has_word(text: str, word: str) -> bool:
    """True when `text` holds `word` as a whole word, in any letter case."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def trigger_tags(trigger: str) -> list[str]:
    """The trigger's tags in lower case."""
    return [tag.lower() for tag in split_tags(trigger)]
