"""The mutants of source files: the program with one small change each. `mutation_test` runs them.

cosmic-ray finds and makes most of them. Of its operators, those that only repeat another one are left out (`_BINARY`,
`_COMPARISON`): + becomes -, but not also *, /, // and <<. It deletes no statements; `_DELETION` does.
"""

from __future__ import annotations

import ast
import importlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_BINARY = {"Add_Sub", "Sub_Add", "Mul_Div", "Mul_Add", "Div_Mul", "Div_Sub", "Pow_Mul", "FloorDiv_Div", "FloorDiv_Mul",
           "Mod_FloorDiv", "Mod_Mul", "BitAnd_BitOr", "LShift_RShift"}  # fmt: skip
_COMPARISON = {"Eq_NotEq", "NotEq_Eq", "Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt",
               "Is_IsNot", "IsNot_Is"}  # fmt: skip
_UNARY = {"Delete_USub", "Delete_Not", "Delete_Invert"}
_DELETION = "delete/statement"
_CHOSEN = {"ReplaceBinaryOperator": _BINARY, "ReplaceComparisonOperator": _COMPARISON, "ReplaceUnaryOperator": _UNARY}

KINDS = ("operator", "number", "statement", "other")


@dataclass(frozen=True)
class Mutant:
    """One change: the `occurrence`-th place in `path` at which `operator` applies, cosmic-ray's or `_DELETION`."""

    path: str
    operator: str
    occurrence: int
    line: int


def choose_mutants(
    paths: Sequence[str], kinds: Sequence[str] = KINDS, *, share: float = 1.0, seed: int = 0
) -> list[Mutant]:
    """The mutants of all files below `paths`, or a random share of them, in their order."""
    files = sorted({file for path in paths for file in _python_files(ROOT / path)})
    found = (mutant for file in files for mutant in (*_mutants(file), *_deletions(file)))
    mutants = [mutant for mutant in found if _kind(mutant.operator) in kinds]
    if share >= 1:
        return mutants
    chosen = random.Random(seed).sample(range(len(mutants)), round(share * len(mutants)))
    return [mutants[number] for number in sorted(chosen)]


def _python_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def _mutants(file: Path) -> Iterator[Mutant]:
    trees, plugins = importlib.import_module("cosmic_ray.ast"), importlib.import_module("cosmic_ray.plugins")
    tree = trees.get_ast(source_of(file))
    for name in plugins.operator_names():
        operator_class = plugins.get_operator(name)
        if _is_chosen(name) and not operator_class.arguments():
            operator = operator_class()
            places = (start for node in trees.ast_nodes(tree) for start, _ in operator.mutation_positions(node))
            for occurrence, (line, column) in enumerate(places):
                mutant = Mutant(file.relative_to(ROOT).as_posix(), name, occurrence, line)
                if not _is_in_signature(file, line, column) and _is_possible(mutant):
                    yield mutant


def _kind(operator: str) -> str:
    """Which of `KINDS` it is."""
    name = operator.removeprefix("core/").partition("_")[0]
    return "operator" if name in _CHOSEN else {"NumberReplacer": "number", _DELETION: "statement"}.get(name, "other")


def _is_chosen(operator: str) -> bool:
    kind, _, change = operator.removeprefix("core/").partition("_")
    return kind not in _CHOSEN or change in _CHOSEN[kind]


def _is_in_signature(file: Path, line: int, column: int) -> bool:
    """Whether the place is the * before keyword-only arguments."""
    return source_of(file).splitlines()[line - 1][column:].startswith("*,")


def _is_possible(mutant: Mutant) -> bool:
    """Whether the result is Python; cosmic-ray itself fails on `except module.Error`."""
    try:
        compile(mutated_source(mutant), "mutant", "exec")
    except (SyntaxError, AttributeError):
        return False
    return True


@cache
def source_of(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def mutated_source(mutant: Mutant) -> str:
    """The whole file with the change in it."""
    if mutant.operator == _DELETION:
        return _without_statement(source_of(ROOT / mutant.path), mutant.occurrence)
    mutating, plugins = importlib.import_module("cosmic_ray.mutating"), importlib.import_module("cosmic_ray.plugins")
    source = source_of(ROOT / mutant.path)
    found = mutating.mutate_code(source, plugins.get_operator(mutant.operator)(), mutant.occurrence)
    assert isinstance(found, str), mutant
    return found


def changed_lines(mutant: Mutant) -> str:
    """The line as it is and as it would be: `x + 1  →  x - 1`."""
    before = source_of(ROOT / mutant.path).splitlines()
    after = mutated_source(mutant).splitlines()
    return next((f"{old.strip()}  →  {new.strip()}" for old, new in zip(before, after, strict=False) if old != new), "")


# --- deleted statements ---------------------------------------------------------------------------


def _deletions(file: Path) -> list[Mutant]:
    path = file.relative_to(ROOT).as_posix()
    return [
        Mutant(path, _DELETION, number, statement.lineno)
        for number, statement in enumerate(_deletable_statements(source_of(file)))
    ]


@cache
def _deletable_statements(source: str) -> list[ast.stmt]:
    """The statements without which the rest still makes sense, in their order.

    Calls, `yield`, `x.y = …`, `x += …`, `del`, `raise`, `break`, `continue` and a plain `return`; not `x = …`, which
    would only leave a name undefined.
    """
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt) and _is_deletable(node)]
    return sorted(found, key=lambda statement: (statement.lineno, statement.col_offset))


def _is_deletable(statement: ast.stmt) -> bool:
    match statement:
        case ast.Expr(value=ast.Constant()):  # a docstring
            return False
        case ast.Assign(targets=targets):
            return all(isinstance(target, (ast.Attribute, ast.Subscript)) for target in targets)
        case ast.Return(value=value):
            return value is None
    return isinstance(statement, (ast.Expr, ast.AugAssign, ast.Delete, ast.Raise, ast.Break, ast.Continue))


def _without_statement(source: str, number: int) -> str:
    """The file with `pass` in the place of the statement, or with an empty `yield`, to keep a generator one."""
    statement = _deletable_statements(source)[number]
    yields = any(isinstance(node, (ast.Yield, ast.YieldFrom)) for node in ast.walk(statement))
    first, last = statement.lineno - 1, (statement.end_lineno or statement.lineno) - 1
    lines = source.encode().splitlines(keepends=True)  # columns count bytes
    before, after = lines[first][: statement.col_offset], lines[last][statement.end_col_offset :]
    lines[first : last + 1] = [before + (b"yield from ()" if yields else b"pass") + after] + [b"\n"] * (last - first)
    return b"".join(lines).decode()
