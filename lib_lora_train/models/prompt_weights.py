"""What brackets and BREAK mean in a prompt, as the webuis read it: pieces of text, each with a weight.

(word) weighs 1.1, (word:1.3) 1.3, [word] 1/1.1; weights of nested brackets are multiplied, a bracket that is never
closed reaches to the end. A backslash takes a bracket its meaning. BREAK in capitals ends the 75-token chunk.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ROUND, SQUARE = 1.1, 1 / 1.1
"""What (word) and [word] multiply a weight by."""

_SYMBOL = re.compile(
    r"\\(?P<escaped>[()\[\]\\]?)|(?P<open>[(\[])|:\s*(?P<weight>[+-]?[.\d]+)\s*\)|(?P<close>[)\]])|[^\\()\[\]:]+|:"
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_ESCAPED = re.compile(r"\\([()\[\]\\])")


@dataclass(frozen=True)
class MatrixView:
    """Text of one weight. BREAK is a piece of weight −1; within brackets it is a word, as in the webuis."""

    text: str
    weight: float = 1.0

    @property
    def is_break(self) -> bool:
        """Whether a chunk ends here."""
        return self == _BREAK_PIECE


_BREAK_PIECE = MatrixView("BREAK", -1.0)


def plain_pieces(text: str) -> list[MatrixView]:
    """The text without weights, parted at BREAK; brackets are letters, escaped ones too, without their backslash."""
    return [piece for part in _parted(_ESCAPED.sub(r"\1", text)) for piece in part]


def weighted_pieces(text: str) -> list[MatrixView]:
    """The text with the weights that its brackets say; neighbours of the same weight are one piece."""
    reader = _Reader()
    for symbol in _SYMBOL.finditer(text):
        reader.read(symbol)
    return _merged(reader.finished())


def _parted(text: str) -> list[list[MatrixView]]:
    parts = _BREAK.split(text)
    return [[*([_BREAK_PIECE] if number else []), MatrixView(part)] for number, part in enumerate(parts)]


class _Reader:
    """The pieces so far, and where the brackets opened that are not closed yet."""

    def __init__(self) -> None:
        self._pieces: list[MatrixView] = []
        self._open: dict[str, list[int]] = {"(": [], "[": []}

    def read(self, symbol: re.Match[str]) -> None:
        """Take the next symbol in; a bracket that closes nothing is a letter."""
        text = symbol.group()
        weight = _number(symbol["weight"])
        if symbol["escaped"] is not None:
            self._pieces.append(MatrixView(symbol["escaped"]))
        elif symbol["open"]:
            self._open[text].append(len(self._pieces))
        elif weight is not None and self._open["("]:
            self._close("(", weight)
        elif symbol["close"] and self._open["(" if text == ")" else "["]:
            self._close(*(("(", ROUND) if text == ")" else ("[", SQUARE)))
        else:
            self._pieces += [piece for part in _parted(text) for piece in part]

    def finished(self) -> list[MatrixView]:
        """All pieces, with the brackets closed that the text left open."""
        for bracket, factor in (("(", ROUND), ("[", SQUARE)):
            while self._open[bracket]:
                self._close(bracket, factor)
        return self._pieces

    def _close(self, bracket: str, factor: float) -> None:
        start = self._open[bracket].pop()
        self._pieces[start:] = [MatrixView(piece.text, piece.weight * factor) for piece in self._pieces[start:]]


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:  # 1.2.3
        return None


def _merged(pieces: list[MatrixView]) -> list[MatrixView]:
    merged: list[MatrixView] = []
    for piece in pieces:
        last = merged[-1] if merged else None
        if last is not None and last.weight == piece.weight:
            merged[-1] = MatrixView(last.text + piece.text, piece.weight)
        else:
            merged.append(piece)
    return merged
