"""Every problem of the code, read where it is written: its first sentence has at most one colon."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from typing import Any

from lib_lora_train.core.wording import located
from tests.paths import PACKAGE

_TOOL: Any = importlib.import_module("tools.make_error_page")
UNKNOWN: str = _TOOL.UNKNOWN
_PLACES = {"Problem": 1, "Noted": 1, "error_at": 0, "warning_at": 0, "hint_at": 0, "warn": 0, "hint": 0}
"""What makes a problem → which argument is the setting; the next one is the message."""


def sentences() -> Iterator[str]:
    """The first sentence of each problem at a setting; parts that only a run knows are …, or 1 at the beginning."""
    for file in sorted(PACKAGE.rglob("*.py")):
        source = _TOOL.Source(file.read_text(encoding="utf-8"))
        for call in (node for node in ast.walk(source.tree) if isinstance(node, ast.Call)):
            place = _PLACES.get(call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", ""))
            if place is None or len(call.args) < place + 2:
                continue
            for where in source.texts(call.args[place]):
                for text in source.texts(call.args[place + 1]) if where.strip(UNKNOWN) else ():
                    yield located(where, re.sub(f"^{UNKNOWN}+", "1", text)).split(". ")[0]


def test_a_problem_has_one_colon_at_most() -> None:
    found = list(sentences())
    assert len(found) > 150, "the reader of the sources finds fewer than there are"
    assert [sentence for sentence in found if len(re.findall(f": (?!{UNKNOWN})", sentence)) > 1] == []
