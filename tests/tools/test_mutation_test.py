"""The mutation tool: a mutant exists in one process only, and is met by the tests of its lines."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.paths import ROOT

TOOL: Any = importlib.import_module("mutation_test")
MUTANTS: Any = importlib.import_module("mutants")
MODULE = "lib_lora_train/core/seeding.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the tool forks")
@pytest.mark.parametrize(("change", "code"), [("", 0), ("raise RuntimeError", 1)])
@pytest.mark.parametrize("known", ["sys", "lib_lora_train.core.seeding"])
def test_only_the_tests_process_sees_the_mutant(change: str, code: int, known: str) -> None:
    """The file stays as it is; the tests of a module that cannot be imported fail, even if the original one was."""
    before = (ROOT / MODULE).read_bytes()
    call = f"tool._run_in_child({MODULE!r}, source + {change!r}, ['tests/core/test_seeding.py'])"
    imports = f"import sys; sys.path.insert(0, 'tools'); import mutation_test as tool, {known}"
    script = f"{imports}; source = open({MODULE!r}).read(); print({call})"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert bool(int(run.stdout)) == bool(code)
    assert (ROOT / MODULE).read_bytes() == before


def test_each_test_function_comes_once_before_any_comes_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"a[1]": 0.1, "a[2]": 0.2, "a[3]": 0.3, "b[1]": 5.0, "c": 1.0, "elsewhere": 0.0}
    lines = {7: ["a[1]", "a[2]", "b[1]"], 8: ["a[3]", "c", "failing"], 20: ["elsewhere"]}
    monkeypatch.setattr(TOOL, "_seconds", lambda: seconds)
    monkeypatch.setattr(TOOL, "_contexts", lambda path: lines)
    monkeypatch.setattr(TOOL, "_statement_lines", lambda mutant: range(7, 9))
    monkeypatch.setattr(TOOL, "_runs_on_import", lambda mutant: False)
    mutant = TOOL.Mutant(MODULE, "core/AddNot", 0, 8)
    assert TOOL.tests_of(mutant) == ["a[1]", "c", "b[1]", "a[2]", "a[3]"]


def test_a_first_pass_runs_only_so_many_seconds_of_tests_but_one_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TOOL, "_seconds", lambda: {"a": 2.0, "b": 3.0, "c": 1.0})
    limits = {None: ["a", "b", "c"], 5.5: ["a", "b"], 5.0: ["a", "b"], 2.5: ["a"], 0.5: ["a"]}
    assert {limit: TOOL._first(["a", "b", "c"], limit) for limit in limits} == limits


def test_a_line_of_no_test_gets_all_tests_of_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Constants are computed on import, before the first test."""
    monkeypatch.setattr(TOOL, "_seconds", lambda: {"a": 2.0, "b": 1.0})
    monkeypatch.setattr(TOOL, "_contexts", lambda path: {3: [""], 9: ["a", "b"]})
    monkeypatch.setattr(TOOL, "_statement_lines", lambda mutant: range(3, 4))
    assert TOOL.tests_of(TOOL.Mutant(MODULE, "core/NumberReplacer", 0, 3)) == ["b", "a"]


def test_a_constant_that_one_test_happened_to_import_gets_all_tests_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half.py").write_text("SIDE = 2\n\n\ndef half(x):\n    return x / SIDE\n", encoding="utf-8")
    monkeypatch.setattr(TOOL, "ROOT", tmp_path)
    monkeypatch.setattr(TOOL, "_seconds", lambda: {"a": 1.0, "b": 2.0, "c": 3.0})
    monkeypatch.setattr(TOOL, "_contexts", lambda path: {1: ["c"], 4: ["c"], 5: ["a", "b"]})
    assert TOOL.tests_of(TOOL.Mutant("half.py", "core/NumberReplacer", 0, 1)) == ["a", "b", "c"]
    assert TOOL.tests_of(TOOL.Mutant("half.py", "core/ReplaceBinaryOperator_Div_Mul", 0, 5)) == ["a", "b"]


def test_mutants_are_found_and_change_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cosmic_ray")
    (tmp_path / "half.py").write_text("def half(x, *, y):\n    return x / 2 + y\n", encoding="utf-8")
    monkeypatch.setattr(MUTANTS, "ROOT", tmp_path)
    found = {MUTANTS.mutated_source(mutant).splitlines()[1].strip() for mutant in MUTANTS.choose_mutants(["half.py"])}
    assert {"return x / 2 - y", "return x * 2 + y"} <= found
    numbers = MUTANTS.choose_mutants(["half.py"], ["number"])
    changed = {MUTANTS.mutated_source(mutant).splitlines()[1].strip() for mutant in numbers}
    assert changed == {"return x / 3 + y", "return x / 1 + y"}
    assert MUTANTS.choose_mutants(["half.py"], share=0.5, seed=1) == MUTANTS.choose_mutants(
        ["half.py"], share=0.5, seed=1
    )


def test_statements_are_deleted_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those without which a name is undefined; what yields still yields; the other lines keep their numbers."""
    lines = [
        "def steps(x):",
        '    """Docs."""',
        "    y = 1",
        "    x.y = y; y += 1",
        "    yield é(y)",
        "    save(",
        "        x)",
    ]
    (tmp_path / "steps.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setattr(MUTANTS, "ROOT", tmp_path)
    found = [MUTANTS.mutated_source(mutant).splitlines() for mutant in MUTANTS._deletions(tmp_path / "steps.py")]
    changes = [[(i, new) for i, (old, new) in enumerate(zip(lines, one, strict=True)) if old != new] for one in found]
    assert changes == [
        [(3, "    pass; y += 1")],
        [(3, "    x.y = y; pass")],
        [(4, "    yield from ()")],
        [(5, "    pass"), (6, "")],
    ]
