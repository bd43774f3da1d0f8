"""Settings files as text, whatever editor saved them."""

from __future__ import annotations

import codecs
from pathlib import Path

from lib_lora_train.core.errors import SettingsFileError
from lib_lora_train.core.user_paths import explain_wrong_path

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text_file(path: Path, ending: str) -> str:
    """The text in UTF-8, or in UTF-16 or UTF-32 with its byte order mark; SettingsFileError if it cannot be read."""
    if reason := explain_wrong_path(path, ending):
        raise SettingsFileError(path, f"{reason} Choose a settings file ({ending}).")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingsFileError(path, f"cannot be read: {error.strerror or error}.") from error
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        raise SettingsFileError(path, "is not UTF-8 text. Save it as UTF-8.") from None
