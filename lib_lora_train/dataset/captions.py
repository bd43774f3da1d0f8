"""Caption files: finding and reading them, splitting captions into tags, putting the trigger word first.

A caption is a list of tags separated by commas, which may be full-width ones; a sentence counts as one tag.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lib_lora_train.core.errors import Problem
from lib_lora_train.core.words import has_word
from lib_lora_train.dataset.caption_encoding import decode_caption, list_readings, shorten
from lib_lora_train.dataset.images import read_bytes

CAPTION_EXTENSIONS = (".caption", ".txt")
"""Tried after the extension that the settings name."""

_COMMAS = ",，、､﹐﹑"
"""Commas of Latin, Chinese and Japanese keyboards."""

_SENTENCE_ENDS = (".", *_COMMAS, ";", ":", "!", "?", "。")
_ANY_COMMA = re.compile(f"[{_COMMAS}]")


# --- files --------------------------------------------------------------------------------------


def list_caption_extensions(extension: str) -> tuple[str, ...]:
    """The extensions to try, in lower case: `extension` (with or without its dot), then the usual ones."""
    first = f".{extension.strip().lstrip('.').lower()}"
    return tuple(dict.fromkeys((first, *CAPTION_EXTENSIONS) if first != "." else CAPTION_EXTENSIONS))


def index_by_extension(files: Iterable[Path]) -> dict[tuple[str, str], Path]:
    """Files by (stem, extension in lower case); `a.tags.txt` has both the extensions `.txt` and `.tags.txt`."""
    found = {}
    for file in sorted(files):
        parts = file.name.split(".")
        for cut in range(1, len(parts)):
            found[".".join(parts[:cut]), "." + ".".join(parts[cut:]).lower()] = file
    return found


def find_caption_file(image_path: Path, extension: str, files: Mapping[tuple[str, str], Path]) -> Path | None:
    """The caption file of an image among the files of its folder (as from `index_by_extension`)."""
    keys = ((image_path.stem, candidate) for candidate in list_caption_extensions(extension))
    return next((files[key] for key in keys if key in files), None)


@dataclass(frozen=True)
class CaptionText:
    """The content of a caption file: all of it as one line, and its lines, each of which can be a caption itself."""

    joined: str
    lines: tuple[str, ...] = ()


def read_caption_file(path: Path) -> tuple[CaptionText, Problem | None]:
    """The caption, and a warning if its encoding is not Unicode. DataError if the file cannot be read."""
    raw = read_bytes(path)
    text, is_unicode = decode_caption(raw)
    lines = tuple(filter(None, (" ".join(line.split()) for line in text.replace("\0", "").splitlines())))
    caption = CaptionText(join_lines(lines), lines)
    if is_unicode:
        return caption, None
    name = list_readings(raw)[0].name
    reason = f"is not UTF-8; read as {name}: {shorten(caption.joined)!r}. Choose its encoding in the dataset check."
    return caption, Problem("warning", str(path), reason)


def strip_caption(text: str) -> str:
    """The text without NUL bytes and without whitespace at both ends."""
    return text.replace("\0", "").strip()


def join_lines(lines: Iterable[str]) -> str:
    """The lines joined by a space after punctuation, otherwise by a comma (one tag per line)."""
    joined = ""
    for line in lines:
        if joined:
            joined += " " if joined.endswith(_SENTENCE_ENDS) else ", "
        joined += line
    return joined


# --- words --------------------------------------------------------------------------------------


def split_tags(caption: str, brackets: str = "{}") -> list[str]:
    """The tags of a caption, stripped, without empty ones.

    Commas inside a pair of `brackets` do not split. If the brackets are unbalanced, they are ordinary characters.
    """
    return [tag for tag in (part.strip() for part in _split_at_commas(caption, brackets)) if tag]


def _split_at_commas(caption: str, brackets: str) -> list[str]:
    """The caption split at the commas outside brackets."""
    if not any(bracket in caption for bracket in brackets):
        return _ANY_COMMA.split(caption)
    parts, depth, start = [], 0, 0
    for index, letter in enumerate(caption):
        if letter in brackets and caption[index - 1 : index] != "\\":
            depth += 1 if brackets.index(letter) % 2 == 0 else -1
        elif letter in _COMMAS and depth == 0:
            parts.append(caption[start:index])
            start = index + 1
        if depth < 0:
            break
    return [*parts, caption[start:]] if depth == 0 else _ANY_COMMA.split(caption)


def put_trigger_first(caption: str, trigger: str, separator: str = "") -> str:
    """The caption with the trigger word first, exactly once.

    A tag that contains the trigger as a whole word is moved to the front; if there is none, the trigger is added as a
    tag. Case is ignored, since the text encoder does not see it. If the caption contains `separator`, the trigger is
    put before the first one.
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
    if len(tags) < len(split_tags(caption)):  # the trigger was a tag already
        return ", ".join((trigger, *tags))
    first = next((tag for tag in tags if has_word(tag, trigger)), None)
    if first is None:
        return ", ".join((trigger, *tags))
    tags.remove(first)
    return ", ".join((first, *tags))


def trigger_tags(trigger: str) -> list[str]:
    """The tags of the trigger word, in lower case."""
    return [tag.lower() for tag in split_tags(trigger)]
