"""Changes the program in one small place at a time, and reports which changes no test notices.

    pip install cosmic-ray==8.7.0
    python -m tools.mutation_test record tests/training tests/adapters tests/runs
    python -m tools.mutation_test run lib_lora_train/training --share 0.2
    python -m tools.mutation_test report

`record` runs the tests once and notes which lines each of them executes and how long it takes. `run` lets each mutant
meet the tests that execute its line, until one fails. `report` prints the counts and the survivors. Everything is kept
in `mutation-tests/`, so an interrupted run continues, and no source file is changed: a mutant exists only in the
process that tests it. Needs `os.fork`, so Linux or macOS.

cosmic-ray finds and makes most of the mutants. Of its operators, those that only repeat another one are left out
(`_BINARY`, `_COMPARISON`): + becomes -, but not also *, /, // and <<. It deletes no statements; `_DELETION` does.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.machinery
import importlib.util
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "mutation-tests"
_TIMES, _LINES, _RESULTS = FOLDER / "times.json", FOLDER / "lines.coverage", FOLDER / "results.jsonl"

_BINARY = {"Add_Sub", "Sub_Add", "Mul_Div", "Mul_Add", "Div_Mul", "Div_Sub", "Pow_Mul", "FloorDiv_Div", "FloorDiv_Mul",
           "Mod_FloorDiv", "Mod_Mul", "BitAnd_BitOr", "LShift_RShift"}  # fmt: skip
_COMPARISON = {"Eq_NotEq", "NotEq_Eq", "Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt",
               "Is_IsNot", "IsNot_Is"}  # fmt: skip
_UNARY = {"Delete_USub", "Delete_Not", "Delete_Invert"}
_DELETION = "delete/statement"
_CHOSEN = {"ReplaceBinaryOperator": _BINARY, "ReplaceComparisonOperator": _COMPARISON, "ReplaceUnaryOperator": _UNARY}

_FIRST_TESTS = 25  # most mutants fail one of these; only the others need the tests that take long
_LEAST_SECONDS, _TIMES_SLOWER = 20.0, 10.0  # a test that takes this long has met an endless loop
_IMPORTED_ONCE = ("torch", "diffusers.optimization", "diffusers.schedulers", "transformers.optimization", "peft",
                  "diffusers.models.unets.unet_2d_condition", "diffusers.models.autoencoders.autoencoder_kl",
                  "transformers.models.clip.modeling_clip", "pytest", "hypothesis",
                  "lib_lora_train.models.diffusion_model")  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change: the `occurrence`-th place in `path` at which `operator` applies, cosmic-ray's or `_DELETION`."""

    path: str
    operator: str
    occurrence: int
    line: int


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, or 1 if a mutant survived."""
    parser = argparse.ArgumentParser(prog="python -m tools.mutation_test")
    commands = parser.add_subparsers(dest="command", required=True)
    record = commands.add_parser("record", help="run the tests once")
    record.add_argument("tests", nargs="+")
    run = commands.add_parser("run", help="test mutants of files or folders")
    run.add_argument("paths", nargs="+")
    run.add_argument("--share", type=float, default=1.0, help="test a random part of them, such as 0.2")
    run.add_argument("--seed", type=int, default=0, help="of the random part")
    run.add_argument("--again", action="store_true", help="only those that survived before")
    commands.add_parser("report", help="counts and survivors")
    options = parser.parse_args(arguments)
    FOLDER.mkdir(exist_ok=True)
    if options.command == "record":
        return record_tests(options.tests)
    if options.command == "run":
        run_mutants(choose_mutants(options.paths, options.share, options.seed), only_survivors=options.again)
    return print_report()


# --- the tests ------------------------------------------------------------------------------------


class _Recorder:
    """A pytest plugin that notes each test's lines and duration."""

    def __init__(self, coverage: Any) -> None:
        self.coverage = coverage
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.coverage.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.failed.add(report.nodeid)


def record_tests(tests: Sequence[str]) -> int:
    """Run them, and add their lines and durations to those of earlier calls; pytest's exit code."""
    coverage = importlib.import_module("coverage").Coverage(
        data_file=str(_LINES), source=["lib_lora_train"], config_file=False
    )
    recorder = _Recorder(coverage)
    if _LINES.exists():
        coverage.load()
    coverage.start()
    code = int(importlib.import_module("pytest").main([*_PYTEST, *tests], plugins=[recorder]))
    coverage.stop()
    coverage.save()
    earlier = _seconds()
    times = {test: time for test, time in {**earlier, **recorder.seconds}.items() if test not in recorder.failed}
    _TIMES.write_text(json.dumps(times, indent=0), encoding="utf-8")
    return code


_PYTEST = ("-q", "-p", "no:cacheprovider", "-p", "no:cov", "-p", "no:xdist", f"--basetemp={FOLDER / 'tmp'}")


def tests_of(mutant: Mutant) -> list[str]:
    """The tests that execute the mutant's statement: first each function's fastest case, then each one's second…

    For what is executed on import, such as a constant, all tests that execute anything in the file.
    """
    contexts = _contexts(mutant.path)
    found = {test for line in _statement_lines(mutant) for test in contexts.get(line, ())} & _seconds().keys()
    found = found or {test for tests in contexts.values() for test in tests} & _seconds().keys()
    fastest = sorted(found, key=lambda test: _seconds()[test])
    seen: Counter[str] = Counter()
    turn = {test: _count(seen, test.partition("[")[0]) for test in fastest}
    return sorted(fastest, key=lambda test: turn[test])


def _count(seen: Counter[str], name: str) -> int:
    """How often the name has been seen before."""
    seen[name] += 1
    return seen[name] - 1


@cache
def _contexts(path: str) -> dict[int, list[str]]:
    data = importlib.import_module("coverage").CoverageData(str(_LINES))
    data.read()
    return dict(data.contexts_by_lineno(str(ROOT / path)))


@cache
def _seconds() -> dict[str, float]:
    """Test → seconds, as recorded; nothing before `record`."""
    return dict(json.loads(_TIMES.read_text(encoding="utf-8"))) if _TIMES.exists() else {}


def _statement_lines(mutant: Mutant) -> range:
    """The lines from the beginning of the innermost statement to the mutant."""
    tree = ast.parse(_source(ROOT / mutant.path))
    starts = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt) and node.lineno <= mutant.line]
    return range(max(starts, default=mutant.line), mutant.line + 1)


# --- the mutants ----------------------------------------------------------------------------------


def choose_mutants(paths: Sequence[str], share: float = 1.0, seed: int = 0) -> list[Mutant]:
    """The mutants of all files below `paths`, or a random share of them, in their order."""
    files = sorted({file for path in paths for file in _python_files(ROOT / path)})
    mutants = [mutant for file in files for mutant in (*_mutants(file), *_deletions(file))]
    if share >= 1:
        return mutants
    chosen = random.Random(seed).sample(range(len(mutants)), round(share * len(mutants)))
    return [mutants[number] for number in sorted(chosen)]


def _python_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def _mutants(file: Path) -> Iterator[Mutant]:
    trees, plugins = importlib.import_module("cosmic_ray.ast"), importlib.import_module("cosmic_ray.plugins")
    tree = trees.get_ast(_source(file))
    for name in plugins.operator_names():
        operator_class = plugins.get_operator(name)
        if _is_chosen(name) and not operator_class.arguments():
            operator = operator_class()
            places = (start for node in trees.ast_nodes(tree) for start, _ in operator.mutation_positions(node))
            for occurrence, (line, column) in enumerate(places):
                mutant = Mutant(file.relative_to(ROOT).as_posix(), name, occurrence, line)
                if not _is_in_signature(file, line, column) and _is_possible(mutant):
                    yield mutant


def _is_chosen(operator: str) -> bool:
    kind, _, change = operator.removeprefix("core/").partition("_")
    return kind not in _CHOSEN or change in _CHOSEN[kind]


def _is_in_signature(file: Path, line: int, column: int) -> bool:
    """Whether the place is the * before keyword-only arguments."""
    return _source(file).splitlines()[line - 1][column:].startswith("*,")


def _is_possible(mutant: Mutant) -> bool:
    """Whether the result is Python; cosmic-ray itself fails on `except module.Error`."""
    try:
        compile(mutated_source(mutant), "mutant", "exec")
    except (SyntaxError, AttributeError):
        return False
    return True


@cache
def _source(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def mutated_source(mutant: Mutant) -> str:
    """The whole file with the change in it."""
    if mutant.operator == _DELETION:
        return _without_statement(_source(ROOT / mutant.path), mutant.occurrence)
    mutating, plugins = importlib.import_module("cosmic_ray.mutating"), importlib.import_module("cosmic_ray.plugins")
    source = _source(ROOT / mutant.path)
    found = mutating.mutate_code(source, plugins.get_operator(mutant.operator)(), mutant.occurrence)
    assert isinstance(found, str), mutant
    return found


def changed_lines(mutant: Mutant) -> str:
    """The line as it is and as it would be: `x + 1  →  x - 1`."""
    before = _source(ROOT / mutant.path).splitlines()
    after = mutated_source(mutant).splitlines()
    return next((f"{old.strip()}  →  {new.strip()}" for old, new in zip(before, after, strict=False) if old != new), "")


# --- deleted statements ---------------------------------------------------------------------------


def _deletions(file: Path) -> list[Mutant]:
    path = file.relative_to(ROOT).as_posix()
    return [
        Mutant(path, _DELETION, number, statement.lineno)
        for number, statement in enumerate(_deletable_statements(_source(file)))
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


# --- one against the other ------------------------------------------------------------------------


def run_mutants(mutants: Sequence[Mutant], *, only_survivors: bool = False) -> None:
    """Test each in a separate process and write the outcome; those already tested are left out."""
    known = read_results()
    if only_survivors:
        mutants = [mutant for mutant in mutants if known.get(_key(mutant)) == "survived"]
    else:
        mutants = [mutant for mutant in mutants if _key(mutant) not in known]
    _import_once()
    for number, mutant in enumerate(mutants, 1):
        started = time.monotonic()
        outcome = try_mutant(mutant)
        seconds = round(time.monotonic() - started, 1)
        line = {**asdict(mutant), "change": changed_lines(mutant), "outcome": outcome, "seconds": seconds}
        with _RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        print(f"{number}/{len(mutants)} {outcome:9} {mutant.path}:{mutant.line}  {line['change']}", flush=True)


def _import_once() -> None:
    """What no mutant changes, so that its process need not import it again."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in _IMPORTED_ONCE:
        importlib.import_module(name)


def try_mutant(mutant: Mutant) -> str:
    """`killed` if a test fails, `timeout` if one does not end, `survived`, or `untested` if no test runs the line."""
    source, tests = mutated_source(mutant), tests_of(mutant)
    for part in (tests[:_FIRST_TESTS], tests[_FIRST_TESTS:]):
        code = _run_in_child(mutant.path, source, part) if part else 0
        if code:
            return "timeout" if code == -signal.SIGALRM else "killed"
    return "survived" if tests else "untested"


def _run_in_child(path: str, source: str, tests: Sequence[str]) -> int:
    """The exit code of pytest in a fork of this process, in which `path` has the mutated source; -n for signal n."""
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            sys.meta_path.insert(0, _MutantFinder(path, source))
            os._exit(int(importlib.import_module("pytest").main(["-x", *_PYTEST, *tests], plugins=[_Alarm()])))
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class _Alarm:
    """A pytest plugin that ends the process if a test takes much longer than it should."""

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        signal.setitimer(signal.ITIMER_REAL, max(_LEAST_SECONDS, _TIMES_SLOWER * _seconds().get(nodeid, 0.0)))

    def pytest_sessionfinish(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)


class _MutantFinder:
    """Gives one module another source than that of its file."""

    def __init__(self, path: str, source: str) -> None:
        self.name = path.removesuffix(".py").replace("/", ".")
        self.path, self.source = path, source

    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, ROOT / self.path, loader=_MutantLoader(self))


class _MutantLoader(importlib.machinery.SourceFileLoader):
    def __init__(self, finder: _MutantFinder) -> None:
        super().__init__(finder.name, str(ROOT / finder.path))
        self._source = finder.source

    def get_code(self, fullname: str) -> Any:  # noqa: ARG002  importlib's signature
        return compile(self._source, self.path, "exec")


# --- the outcome ----------------------------------------------------------------------------------


def _key(mutant: Mutant) -> str:
    return f"{mutant.path} {mutant.operator} {mutant.occurrence}"


def read_results() -> dict[str, str]:
    """Mutant → its last outcome."""
    lines = _RESULTS.read_text(encoding="utf-8").splitlines() if _RESULTS.exists() else []
    rows = [json.loads(line) for line in lines]
    return {f"{row['path']} {row['operator']} {row['occurrence']}": row["outcome"] for row in rows}


def print_report() -> int:
    """Counts per folder, and the survivors; 1 if there are any."""
    counts: dict[str, Counter[str]] = {}
    for (path, operator, occurrence), outcome in ((key.split(), outcome) for key, outcome in read_results().items()):
        counts.setdefault(str(Path(path).parent), Counter())[outcome] += 1
        if outcome in ("survived", "untested"):
            print(f"{outcome} {path}: {changed_lines(Mutant(path, operator, int(occurrence), 0))}")
    for folder, count in sorted(counts.items()):
        print(f"{folder}: {count.total()} mutants, " + ", ".join(f"{count[name]} {name}" for name in sorted(count)))
    return int(any(count["survived"] or count["untested"] for count in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
