"""The values that a request carries, checked once before an action uses them.

A field means the same in every action, so its name says its kind. Actions may then use a value without asking what
it is: a wrong one never reaches them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from lib_lora_train.core.errors import LoraTrainError

_LARGEST = 2**31 - 1
_LONGEST_TEXT = 1_000_000
_LONGEST_CONTENT = 90_000_000  # an image of 64 MiB as base64


class RequestValues(dict[str, Any]):
    """Checked values; looking up one that is missing raises LoraTrainError with its name."""

    def __missing__(self, name: str) -> Any:
        raise LoraTrainError(f"The request lacks {name!r}. Reload the page.")


def read_values(values: Mapping[str, Any]) -> RequestValues:
    """`values` without those that are null; LoraTrainError naming the first one of a wrong kind."""
    return RequestValues(
        {name: _read(name, value, FIELDS.get(name, _is_plain)) for name, value in values.items() if value is not None}
    )


def _read(name: str, value: Any, is_usable: Callable[[Any], bool]) -> Any:
    if is_usable(value):
        return value
    meaning = (is_usable.__doc__ or "").rstrip(".")
    raise LoraTrainError(f"{name} in the request must be {meaning}, not {_shown(value)}. Reload the page.")


def _shown(value: Any) -> str:
    text = repr(value).encode("unicode_escape").decode("ascii")
    return text if len(text) <= 60 else f"{text[:60]}…"


# --- kinds ----------------------------------------------------------------------------------------


def _is_text(value: Any) -> bool:
    """text."""
    return _is_path(value) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _is_path(value: Any) -> bool:
    """the name of a file or folder."""
    return (  # names that are not UTF-8 arrive with Python's surrogates \udc80 to \udcff
        isinstance(value, str)
        and len(value) <= _LONGEST_TEXT
        and "\0" not in value
        and not any("\ud800" <= letter <= "\udc7f" or "\udd00" <= letter <= "\udfff" for letter in value)
    )


def _is_content(value: Any) -> bool:
    """the content of a file as base64."""
    return isinstance(value, str) and len(value) <= _LONGEST_CONTENT and value.isascii()


def _is_whole(value: Any) -> bool:
    """a whole number."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _is_count(value: Any) -> bool:
    """a whole number from 0."""
    return _is_whole(value) and value >= 0


def _is_number(value: Any) -> bool:
    """a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_flag(value: Any) -> bool:
    """true or false."""
    return isinstance(value, bool)


def _is_typed_number(value: Any) -> bool:
    """a number or text."""
    return _is_number(value) or _is_text(value)


def _is_text_or_flag(value: Any) -> bool:
    """text, or true or false."""
    return _is_flag(value) or _is_path(value)


def _is_plain(value: Any) -> bool:
    """text, a number, or true or false."""
    return _is_flag(value) or _is_number(value) or _is_path(value)


def _is_list_of_texts(value: Any) -> bool:
    """a list of texts."""
    return isinstance(value, (list, tuple)) and all(map(_is_text, value))


def _is_list_of_paths(value: Any) -> bool:
    """a list of files or folders."""
    return isinstance(value, (list, tuple)) and all(map(_is_path, value))


def _is_choices(value: Any) -> bool:
    """texts by number."""
    return isinstance(value, dict) and all(str(key).isdecimal() and _is_text(text) for key, text in value.items())


def _is_axes(value: Any) -> bool:
    """pairs of a setting and its values."""
    return isinstance(value, (list, tuple)) and all(_is_list_of_texts(pair) and len(pair) == 2 for pair in value)


def _is_table(value: Any) -> bool:
    """a table of settings."""
    return isinstance(value, dict)


def _is_list_of_whole_numbers(value: Any) -> bool:
    """a list of whole numbers."""
    return isinstance(value, (list, tuple)) and all(map(_is_whole, value))


def _is_frame(value: Any) -> bool:
    """four numbers."""
    return isinstance(value, (list, tuple)) and len(value) == 4 and all(map(_is_number, value))


_FILTER: Mapping[str, Callable[[Any], bool]] = {
    "all_of": _is_text,
    "any_of": _is_text,
    "none_of": _is_text,
    "text": _is_text,
    "fewest": _is_typed_number,
    "most": _is_typed_number,
    "untagged": _is_flag,
}


def _is_filter(value: Any) -> bool:
    """a filter of captions."""
    return isinstance(value, dict) and all(
        inner is None or _FILTER.get(name, _is_plain)(inner) for name, inner in value.items()
    )


FIELDS: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(
        ("checkpoint", "file", "folder", "image", "list", "model", "path", "run", "tuned", "vae"), _is_path
    ),
    **dict.fromkeys(("edit", "exclude", "existing", "id", "kind", "layers", "name", "prompts"), _is_text),
    **dict.fromkeys(("ema", "method", "precision", "targets"), _is_text),
    **dict.fromkeys(
        ("rule", "sampler", "scope", "tagger", "text", "to", "token", "trigger", "typed", "upscaler", "words"), _is_text
    ),
    **dict.fromkeys(("page", "number", "place"), _is_whole),
    **dict.fromkeys(("as_it_is", "blanks", "escape", "joined", "strip", "text_encoder"), _is_flag),
    **dict.fromkeys(("clamp", "density", "seed"), _is_typed_number),
    **dict.fromkeys(("general", "character", "conv_rank", "rank", "strengths", "threshold"), _is_typed_number),
    **dict.fromkeys(("prompt", "record", "seen", "tag"), _is_text),
    **dict.fromkeys(("skip", "swap"), _is_list_of_whole_numbers),
    "inside": _is_text,
    "sweep": _is_path,
    "runs": _is_list_of_paths,
    "axes": _is_axes,
    **dict.fromkeys(("entries", "settings", "vary"), _is_table),
    "content": _is_content,
    "report": _is_count,
    "folders": _is_list_of_paths,
    "encodings": _is_choices,
    "count": _is_count,
    "strength": _is_number,
    "more_epochs": _is_count,
    "files": _is_text_or_flag,
    "texts": _is_list_of_texts,
    "selected": _is_list_of_paths,
    "frame": _is_frame,
    "filter": _is_filter,
}
"""The kind of every field that an action knows, by name."""
