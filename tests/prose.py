"""What people read: string literals, docstrings and comments of Python and JavaScript files, and Markdown text."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Words and phrases that native speakers would not use here, and what to write instead.
BANNED: dict[str, str] = {
    r"anew|afresh": "again",
    r"told|tells?(?! (\S+ ){0,4}apart)": "report, say, show",
    r"mend(s|ed|ing)?": "fix",
    r"shall": "must, should, or the plain present",
    r"wherever": "if, where",
    r"pictures?": "image",
    r"data sets?": "dataset",
    r"lend(s|ing)?|lent": "share, provide; the lease",
    r"obey(s|ed)?": "apply, follow",
    r"judg(e[sd]?|ing|ements?)": "validate, check, rate",
    r"of (its|their|his|one's) own": "its own …, separate",
    r"of our own": "our own …",
    r"lies? in|where (it|they) lies?": "is in, its folder",
    r"lying in": "in",
    r"st[ao]nds? against|stood against": "must be fixed",
    r"is meant of": "refers to",
    r"so (many|much|few)(?= (times|epochs|steps|images|pixels|more|bytes|units))": "N, this many",
    r"(by|at most|from|of) so (many|much|few)": "N, this many",
    r"what is (told|said)": "messages",
    r"gives? way|gave way": "is overridden by",
    r"(is|are) there for": "is for",
    r"as it stands|as they stand": "unchanged",
    r"half as slow again": "about 50% slower",
    r"for want of": "because there is no",
    r"(go|goes|going|gone|went) on": "continue, resume",
    r"counts? wholly": "counts in full",
    r"(?<!there )(?<!There )(is|are) no (file|folder|number|list|colour|rank|LoRA|run|option|part|image|text|score)": (
        "is not a …"
    ),
    r"is much(?=[:.,])": "is high",
    r"has little hold": "has little effect",
    r"does without": "does not need",
    r"it ended with a fault": "it failed unexpectedly",
}
_PATTERNS = {re.compile(rf"\b(?:{words})\b", re.IGNORECASE): advice for words, advice in BANNED.items()}
_PATTERNS[re.compile(r"(?:(?<=[\d…])|\A) %(?=[\s.,;:)]|\Z)")] = "no space before %"  # \A: after a value in an f-string

_FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"`[^`\n]+`|\]\([^)\s]+\)|<[^>\n]+>")
_JS_TEXT = re.compile(
    r"//(?P<line>[^\n]*)|/\*(?P<block>.*?)\*/"
    r'|"(?P<double>(?:[^"\\\n]|\\.)*)"|\'(?P<single>(?:[^\'\\\n]|\\.)*)\'|`(?P<template>(?:[^`\\]|\\.)*)`',
    re.DOTALL,
)


@dataclass(frozen=True)
class Text:
    """A piece of prose and the line that it begins on."""

    line: int
    text: str


def find_banned(path: Path) -> Iterator[str]:
    """A sentence for every banned word or phrase in the prose of a .py, .js or .md file."""
    readers = {".py": _python_texts, ".js": _javascript_texts, ".md": _markdown_texts}
    for piece in readers[path.suffix](path.read_text(encoding="utf-8")):
        for pattern, advice in _PATTERNS.items():
            for match in pattern.finditer(piece.text):
                line = piece.line + piece.text.count("\n", 0, match.start())
                yield f"{path.name}:{line}: “{match[0]}” → {advice}"


def _python_texts(source: str) -> Iterator[Text]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield Text(token.start[0], token.string)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield Text(node.lineno, node.value)


def _javascript_texts(source: str) -> Iterator[Text]:
    for match in _JS_TEXT.finditer(source):
        text = next((value for value in match.groupdict().values() if value), "")
        text = re.sub(r"\$\{[^}]*\}", "…", text)  # expressions in templates are code
        yield Text(1 + source.count("\n", 0, match.start()), text)


def _markdown_texts(source: str) -> Iterator[Text]:
    for code in (_FENCE, _CODE):
        source = code.sub(lambda match: "\n" * match[0].count("\n") or "…", source)
    yield Text(1, source)
