"""Captions: found beside a picture, given their trigger, and drawn anew for every showing.

A caption is a list of tags separated by commas; a sentence is one tag. The trigger stands in the first.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib_lora_train.config import TrainConfig
from lib_lora_train.errors import DataError, Problem

CAPTION_ENDINGS = (".caption", ".txt")
"""Looked for after the ending that was asked for."""

_SENTENCE_ENDS = (".", ",", ";", ":", "!", "?")


@dataclass(frozen=True)
class CaptionRule:
    """How a caption is varied: `dropout` is a probability, `keep_tokens` a number of tags at the front."""

    shuffle: bool = False
    keep_tokens: int = 0
    dropout: float = 0.0
    trigger: str = ""


def caption_rule(config: TrainConfig, trigger: str) -> CaptionRule:
    """The rule that a config describes for the captions of a concept."""
    return CaptionRule(config.shuffle_captions, config.keep_tokens, config.caption_dropout, trigger)


# --- files --------------------------------------------------------------------------------------


def caption_endings(extension: str) -> tuple[str, ...]:
    """The endings to look for, in lower case: `extension` (its dot may be missing), then the usual ones."""
    first = f".{extension.strip().lstrip('.').lower()}"
    return tuple(dict.fromkeys((first, *CAPTION_ENDINGS) if first != "." else CAPTION_ENDINGS))


def read_caption(image_path: Path, extension: str) -> str | None:
    """The caption of a picture in one line, None when it has no caption file; DataError if that cannot be read."""
    path = find_caption(image_path, extension, by_ending(image_path.parent.iterdir()))
    return None if path is None else read_caption_file(path)[0]


def by_ending(files: Iterable[Path]) -> dict[tuple[str, str], Path]:
    """Files by (name without ending, ending in lower case); `a.tags.txt` has the endings `.txt` and `.tags.txt`."""
    found = {}
    for file in sorted(files):
        parts = file.name.split(".")
        for cut in range(1, len(parts)):
            found[".".join(parts[:cut]), "." + ".".join(parts[cut:]).lower()] = file
    return found


def find_caption(image_path: Path, extension: str, beside: Mapping[tuple[str, str], Path]) -> Path | None:
    """The caption file among the files of a folder (`by_ending`)."""
    keys = ((image_path.stem, ending) for ending in caption_endings(extension))
    return next((beside[key] for key in keys if key in beside), None)


def read_caption_file(path: Path) -> tuple[str, Problem | None]:
    """The caption in one line, and what is odd about the file (its encoding), if anything.

    UTF-8 with or without byte order mark and UTF-16 with one; other bytes are taken as Latin-1, where each
    has a meaning. DataError when the file cannot be read.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    has_utf16_mark = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return _one_line(raw.decode("utf-16" if has_utf16_mark else "utf-8-sig")), None
    except UnicodeDecodeError:
        reason = "is not UTF-8; it was read as Latin-1. Save it as UTF-8 if letters look wrong."
        return _one_line(raw.decode("latin-1")), Problem("warning", str(path), reason)


def _one_line(text: str) -> str:
    """Lines joined: with a blank after a mark that ends a phrase, else with a comma (one tag per line)."""
    joined = ""
    for line in text.replace("\0", "").splitlines():
        words = " ".join(line.split())
        if words and joined:
            joined += " " if joined.endswith(_SENTENCE_ENDS) else ", "
        joined += words
    return joined


# --- words --------------------------------------------------------------------------------------


def split_tags(caption: str) -> list[str]:
    """The tags of a caption, without blanks around them and without empty ones."""
    return [tag for tag in (part.strip() for part in caption.split(",")) if tag]


def with_trigger(caption: str, trigger: str) -> str:
    """The caption with its trigger in front, once.

    A tag that holds the trigger as a whole word is moved to the front; where there is none, the trigger is put
    there as a tag of its own. Letter case does not matter, as the text encoder does not see it.
    """
    trigger = ", ".join(split_tags(trigger))
    if not trigger:
        return caption.strip()
    tags = [tag for tag in split_tags(caption) if tag.lower() not in _trigger_tags(trigger)]
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


def _trigger_tags(trigger: str) -> list[str]:
    return [tag.lower() for tag in split_tags(trigger)]


def draw_caption(caption: str, rule: CaptionRule, generator: random.Random) -> str:
    """The caption as one showing of its picture sees it: dropped, or else shuffled behind the kept tags.

    Dropout leaves the trigger alone; without one, the empty caption. The order is kohya's: dropout first.
    Two numbers are drawn whatever the settings, so that one setting does not change the luck of the other.
    """
    is_dropped = generator.random() < rule.dropout
    order_seed = generator.getrandbits(63)
    if is_dropped:
        return rule.trigger
    if not rule.shuffle:
        return caption
    tags = split_tags(caption)
    kept = max(rule.keep_tokens, _trigger_length(tags, rule.trigger))
    flexible = tags[kept:]
    random.Random(order_seed).shuffle(flexible)
    return ", ".join(tags[:kept] + flexible)


def _trigger_length(tags: Sequence[str], trigger: str) -> int:
    """How many tags at the front belong to the trigger."""
    wanted = _trigger_tags(trigger)
    if not wanted or not tags:
        return 0
    return len(wanted) if [tag.lower() for tag in tags[: len(wanted)]] == wanted else 1
