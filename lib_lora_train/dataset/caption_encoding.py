"""The text of caption files that are not Unicode: how it may read, the most probable reading first.

A few bytes of an old encoding never say for certain which one it is. Training uses the first reading and reports it;
nothing writes a reading to disk until the user has chosen it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import lru_cache

from lib_lora_train.core.errors import DataError

ENCODINGS = {
    "cp1252": "Western (Windows-1252)",
    "cp1251": "Cyrillic (Windows-1251)",
    "cp932": "Japanese (Shift-JIS)",
    "cp949": "Korean (EUC-KR)",
    "gb18030": "Chinese (GB 18030)",
    "big5": "Chinese (Big5)",
    "cp1250": "Central European (Windows-1250)",
    "cp1254": "Turkish (Windows-1254)",
    "cp1253": "Greek (Windows-1253)",
    "cp1257": "Baltic (Windows-1257)",
    "cp1255": "Hebrew (Windows-1255)",
    "cp1256": "Arabic (Windows-1256)",
    "cp874": "Thai (Windows-874)",
    "cp1258": "Vietnamese (Windows-1258)",
    "euc_jp": "Japanese (EUC-JP)",
    "koi8_r": "Cyrillic (KOI8-R)",
    "cp866": "Cyrillic (DOS 866)",
    "cp850": "Western (DOS 850)",
    "mac_roman": "Western (Mac)",
}
"""Python's name → what the page calls it, the more common ones first."""

_UNICODE_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_DETECTED_BYTES = 4096
_PUNCTUATION = "‘’‚“”„–—…«»·×°、。，「」『』・！？（）：；～"


@dataclass(frozen=True)
class Reading:
    """A text in one of `ENCODINGS`."""

    encoding: str
    text: str

    @property
    def name(self) -> str:
        """What the page calls the encoding."""
        return ENCODINGS[self.encoding]


def decode_caption(raw: bytes) -> tuple[str, bool]:
    """(text, whether the bytes are Unicode): UTF-8, or UTF-16 with its mark; else the most probable reading."""
    unicode = decode_unicode(raw)
    return (unicode, True) if unicode is not None else (list_readings(raw)[0].text, False)


def decode_unicode(raw: bytes) -> str | None:
    """The text if the bytes are UTF-8, with or without its mark, or UTF-16 with its mark; else None."""
    encoding = next((name for mark, name in _UNICODE_MARKS if raw.startswith(mark)), "utf-8")
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        return None


def decode_as(raw: bytes, encoding: str) -> str:
    """The text in one of `ENCODINGS`; DataError if the bytes do not fit it."""
    try:
        if encoding in ENCODINGS:
            return raw.decode(encoding)
    except UnicodeDecodeError:
        pass
    raise DataError(f"It cannot be read as {ENCODINGS.get(encoding, encoding)}. Choose another encoding.")


@lru_cache(maxsize=20_000)
def list_readings(raw: bytes) -> tuple[Reading, ...]:
    """Every different reading of bytes that are not Unicode, the most probable first; at least one.

    charset-normalizer rates how much a text looks like letters thrown together; of equal ones the more common
    encoding comes first.
    """
    from charset_normalizer import from_bytes

    found = from_bytes(raw[:_DETECTED_BYTES], cp_isolation=list(ENCODINGS), threshold=1.0, preemptive_behaviour=False)
    disorder = {name: match.chaos for match in found for name in match.could_be_from_charset}
    readings: dict[str, Reading] = {}
    for encoding in ENCODINGS:
        with contextlib.suppress(UnicodeDecodeError):
            text = raw.decode(encoding)
            rating = disorder.get(encoding, 1.0)
            if text not in readings or rating < disorder.get(readings[text].encoding, 1.0):
                readings[text] = Reading(encoding, text)
    by_rating = sorted(readings.values(), key=lambda one: (disorder.get(one.encoding, 1.0), _count_odd(one.text)))
    return tuple(by_rating)  # never empty: in mac_roman every byte is a character


def _count_odd(text: str) -> int:
    """The number of characters that captions hardly have: symbols, half-width kana, Chinese beside Korean ones."""
    beyond_ascii = [letter for letter in text if letter > "\x7f" and letter not in _PUNCTUATION]
    is_korean = any("가" <= letter <= "힣" for letter in beyond_ascii)
    return sum(
        not letter.isalpha() or "\uff61" <= letter <= "\uff9f" or (is_korean and "一" <= letter <= "鿿")
        for letter in beyond_ascii
    )


def shorten(text: str, length: int = 60) -> str:
    """The text as one line of at most `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"
