"""Counted nouns agree with their number: `1 image`, `2 images`, by `wording.count` and the page's `lt.count`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from lib_lora_train.core.wording import count
from tests.paths import PACKAGE, ROOT

_NOUNS = (
    "batches|blocks|buckets|bytes|captions|channels|characters|concepts|copies|duplicates|epochs|errors|faces|files|"
    "folders|images|keys|layers|lines|LoRAs|masks|matrices|minutes|models|numbers|pixels|presets|problems|prompts|"
    "repeats|resolutions|runs|samples|seconds|settings|states|steps|tags|tensors|threads|times|tokens|values|warnings|"
    "weights|words"
)
_ADJECTIVES = "decay|input|key or|latent|LoRA|more|other|queued|regularisation|such|training|warm-up"
_COUNTED = re.compile(rf"[ \u00a0](?:(?:{_ADJECTIVES}) )?(?:{_NOUNS})\b")
_VALUE = re.compile(r"\$\{((?:[^{}]|\{[^{}]*\})*)\}([^$`]*)")
_NOT_A_NUMBER = ("kind.high_lr", "reason", "where", "_kinds()", "config.family")


def uncounted(file: Path) -> Iterator[str]:
    """Each text of the file with a number before a noun in the plural that `count` did not put there."""
    text = file.read_text(encoding="utf-8")
    pairs = _python_pairs(text) if file.suffix == ".py" else _VALUE.findall(text)
    for value, after in pairs:
        is_constant = value.isupper() or value in _NOT_A_NUMBER  # constants are known to be more than one
        if _COUNTED.match(after) and not is_constant:
            yield f"{file.name}: {{{value}}}{after[:40]}"


def _python_pairs(text: str) -> Iterator[tuple[str, str]]:
    """(expression, the text after it) of all f-strings."""
    for node in ast.walk(ast.parse(text)):
        parts = node.values if isinstance(node, ast.JoinedStr) else []
        for value, after in pairwise(parts):
            if isinstance(value, ast.FormattedValue) and isinstance(after, ast.Constant):
                yield ast.unparse(value.value), str(after.value)


@pytest.mark.parametrize(
    "file",
    [*sorted(PACKAGE.rglob("*.py")), *sorted((ROOT / "javascript").glob("*.js")), ROOT / "launch.py"],
    ids=lambda file: str(file.relative_to(ROOT)),
)
def test_counted_nouns_agree_with_their_number(file: Path) -> None:
    assert list(uncounted(file)) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.py", 'f"{n} images"'),
        ("a.py", 'f"of {len(a)} LoRA files."'),
        ("a.js", "`${lt.whole(n)} steps`"),
        ("a.js", "`${a.length} more files are`"),
    ],
)
def test_a_number_before_a_plural_is_found(tmp_path: Path, name: str, text: str) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    assert len(list(uncounted(file))) == 1


def test_numbers_and_nouns_agree() -> None:
    assert [count(n, "image") for n in (0, 1, 2, 2000)] == ["0 images", "1 image", "2 images", "2,000 images"]
    assert count(1, "layer is", "layers are") == "1 layer is" and count(3, "batch", "batches") == "3 batches"
    assert count(1.0, "step") == "1 step" and count(2.5, "second") == "2.5 seconds"
