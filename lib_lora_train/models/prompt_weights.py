"""Brackets and BREAK in prompts, as the webuis read them: parts of the text, each with a weight.

(word) has the weight 1.1, (word:1.3) 1.3, [word] 1/1.1; weights of nested brackets are multiplied, and an unclosed
bracket reaches to the end. A backslash escapes a bracket. BREAK in capitals ends the 75-token chunk.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ROUND, SQUARE = 1.1, 1 / 1.1
"""The factors of (word) and [word]."""

_SYMBOL = re.compile(
    r"\\(?P<escaped>[()\[\]\\]?)|(?P<open>[(\[])|:\s*(?P<weight>[+-]?[.\d]+)\s*\)|(?P<close>[)\]])|[^\\()\[\]:]+|:"
)
BREAK = re.compile(r"\s*\bBREAK\b\s*")
"""The word between two chunks of a prompt, with the spaces around it."""
_TAG_SEPARATOR = re.compile(r"[,，、､﹐﹑\n]")  # as in dataset/captions.py
_WORD = re.compile(r"[\w'’-]*\w")
_TAG_WORDS = 3  # longer parts between commas are sentences
_ESCAPED = re.compile(r"\\([()\[\]\\])")


@dataclass(frozen=True)
class WeightedText:
    """Part of a prompt with one weight. BREAK is one of weight −1; inside brackets it is a word, as in the webuis."""

    text: str
    weight: float = 1.0

    @property
    def is_break(self) -> bool:
        """Whether a chunk ends here."""
        return self == _BREAK_PART


_BREAK_PART = WeightedText("BREAK", -1.0)


def parse_plain_prompt(text: str) -> list[WeightedText]:
    """The text without weights, split at BREAK; brackets are ordinary characters, escaped ones lose the backslash."""
    return _split_at_break(_ESCAPED.sub(r"\1", text))


def parse_weighted_prompt(text: str) -> list[WeightedText]:
    """The text with the weights of its brackets; adjacent parts of the same weight are joined."""
    parser = _Parser()
    for symbol in _SYMBOL.finditer(text):
        parser.read(symbol)
    return _join_equal(parser.finish())


def split_words(prompt: str, *, weighted: bool) -> tuple[str, ...]:
    """What to ask for in a prompt, in its order, each once: tags of up to three words, and the words of longer parts.

    `weighted`: whether brackets set weights, as in prompts but not in captions.
    """
    parsed = parse_weighted_prompt(prompt) if weighted else parse_plain_prompt(prompt)
    found: dict[str, str] = {}
    text = "".join(", " if part.is_break else part.text for part in parsed)
    for part in _TAG_SEPARATOR.split(text):
        tag = " ".join(part.split())
        for word in [tag] if len(tag.split()) <= _TAG_WORDS else _WORD.findall(tag):
            if _WORD.search(word):
                found.setdefault(word.lower(), word)
    return tuple(found.values())


def _split_at_break(text: str) -> list[WeightedText]:
    parts: list[WeightedText] = []
    for number, part in enumerate(BREAK.split(text)):
        parts += [*([_BREAK_PART] if number else []), WeightedText(part)]
    return parts


class _Parser:
    """The parts so far, and the starts of brackets that are still open."""

    def __init__(self) -> None:
        self._parts: list[WeightedText] = []
        self._open: dict[str, list[int]] = {"(": [], "[": []}

    def read(self, symbol: re.Match[str]) -> None:
        """Process the next symbol; a bracket that closes nothing is an ordinary character."""
        text = symbol.group()
        weight = _number(symbol["weight"])
        if symbol["escaped"] is not None:
            self._parts.append(WeightedText(symbol["escaped"]))
        elif symbol["open"]:
            self._open[text].append(len(self._parts))
        elif weight is not None and self._open["("]:
            self._close("(", weight)
        elif symbol["close"] and self._open["(" if text == ")" else "["]:
            self._close(*(("(", ROUND) if text == ")" else ("[", SQUARE)))
        else:
            self._parts += _split_at_break(text)

    def finish(self) -> list[WeightedText]:
        """All parts, after closing the brackets that are still open."""
        for bracket, factor in (("(", ROUND), ("[", SQUARE)):
            while self._open[bracket]:
                self._close(bracket, factor)
        return self._parts

    def _close(self, bracket: str, factor: float) -> None:
        start = self._open[bracket].pop()
        self._parts[start:] = [WeightedText(part.text, part.weight * factor) for part in self._parts[start:]]


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:  # 1.2.3
        return None


def _join_equal(parts: list[WeightedText]) -> list[WeightedText]:
    joined: list[WeightedText] = []
    for part in parts:
        last = joined[-1] if joined else None
        if last is not None and last.weight == part.weight:
            joined[-1] = WeightedText(last.text + part.text, part.weight)
        else:
            joined.append(part)
    return joined
