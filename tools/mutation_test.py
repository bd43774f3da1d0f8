"""Changes the program in one small place at a time, and reports which changes no test notices.

    pip install cosmic-ray==8.7.0
    python tools/mutation_test.py record tests/training tests/adapters tests/runs
    python tools/mutation_test.py run lib_lora_train/training --share 0.2
    python tools/mutation_test.py report

`record` runs the tests once and notes which lines each of them executes and how long it takes. `run` lets each mutant
meet the tests that execute its line, until one fails. `report` prints the counts and the survivors. Everything is kept
in `mutation-tests/`, so an interrupted run continues, and no source file is changed: a mutant exists only in the
process that tests it. Needs `os.fork`, so Linux or macOS. `mutants` makes them.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import gc
import importlib
import importlib.machinery
import importlib.util
import itertools
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from mutants import KINDS, ROOT, Mutant, changed_lines, choose_mutants, mutated_source, source_of

sys.path.insert(0, str(ROOT))  # for the modules and the tests that are run

FOLDER = ROOT / "mutation-tests"
_TIMES, _LINES, _RESULTS = FOLDER / "times.json", FOLDER / "lines.coverage", FOLDER / "results.jsonl"

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_FIRST_TESTS = 25  # most mutants fail one of these; only the others need the tests that take long
_LEAST_SECONDS, _TIMES_SLOWER = 60.0, 10.0  # a test that takes this long has met an endless loop
_IMPORTED_ONCE = ("torch", "diffusers.optimization", "diffusers.schedulers", "transformers.optimization", "peft",
                  "diffusers.models.unets.unet_2d_condition", "diffusers.models.autoencoders.autoencoder_kl",
                  "transformers.models.clip.modeling_clip", "pytest", "hypothesis",
                  "lib_lora_train.models.diffusion_model")  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, or 1 if a mutant survived."""
    parser = argparse.ArgumentParser(prog="python tools/mutation_test.py")
    commands = parser.add_subparsers(dest="command", required=True)
    record = commands.add_parser("record", help="run the tests once")
    record.add_argument("tests", nargs="+")
    run = commands.add_parser("run", help="test mutants of files or folders")
    run.add_argument("paths", nargs="+")
    run.add_argument("--share", type=float, default=1.0, help="test a random part of them, such as 0.2")
    run.add_argument("--seed", type=int, default=0, help="of the random part")
    run.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="only mutants of these kinds")
    run.add_argument("--seconds", type=float, help="a mutant meets only so many seconds of tests; the rest by --again")
    run.add_argument("--again", action="store_true", help="only those that survived before")
    commands.add_parser("report", help="counts and survivors")
    options = parser.parse_args(arguments)
    FOLDER.mkdir(exist_ok=True)
    if options.command == "record":
        return record_tests(options.tests)
    if options.command == "run":
        chosen = choose_mutants(options.paths, options.kinds, share=options.share, seed=options.seed)
        run_mutants(chosen, max_seconds=options.seconds, only_survivors=options.again)
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


# Rewritten assertions and other packages' plugins cost a second for each mutant.
_PYTEST = ("-q", "--assert=plain", "-p", "no:cacheprovider", f"--basetemp={FOLDER / 'tmp'}")


def tests_of(mutant: Mutant) -> list[str]:
    """The tests that execute the mutant's statement: first each function's fastest case, then each one's second…

    For what is executed on import, such as a constant, all tests that execute anything in the file.
    """
    contexts = _contexts(mutant.path)
    lines = contexts.keys() if _runs_on_import(mutant) else _statement_lines(mutant)
    found = {test for line in lines for test in contexts.get(line, ())} & _seconds().keys()
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
    tree = ast.parse(source_of(ROOT / mutant.path))
    starts = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt) and node.lineno <= mutant.line]
    return range(max(starts, default=mutant.line), mutant.line + 1)


def _runs_on_import(mutant: Mutant) -> bool:
    """Whether the mutant is outside all functions, so that whichever test came first has executed it."""
    functions = (node for node in ast.walk(ast.parse(source_of(ROOT / mutant.path))) if isinstance(node, _FUNCTIONS))
    return not any(one.body[0].lineno <= mutant.line <= (one.end_lineno or 0) for one in functions)


# --- one against the other ------------------------------------------------------------------------


def run_mutants(mutants: Sequence[Mutant], *, max_seconds: float | None = None, only_survivors: bool = False) -> None:
    """Test each in a separate process and write the outcome; those already tested are left out."""
    known = read_results()
    if only_survivors:
        mutants = [mutant for mutant in mutants if known.get(_key(mutant)) == "survived"]
    else:
        mutants = [mutant for mutant in mutants if _key(mutant) not in known]
    _import_once()
    for number, mutant in enumerate(mutants, 1):
        started = time.monotonic()
        outcome = try_mutant(mutant, max_seconds)
        seconds = round(time.monotonic() - started, 1)
        line = {**asdict(mutant), "change": changed_lines(mutant), "outcome": outcome, "seconds": seconds}
        with _RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        print(f"{number}/{len(mutants)} {outcome:9} {mutant.path}:{mutant.line}  {line['change']}", flush=True)


def _import_once() -> None:
    """What no mutant changes, so that its process need not import it again."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    for name in _IMPORTED_ONCE:
        importlib.import_module(name)
    gc.freeze()  # pytest collects garbage twice, and need not look through PyTorch for it


def try_mutant(mutant: Mutant, max_seconds: float | None = None) -> str:
    """`killed` if a test fails, `timeout` if one does not end, `survived`, or `untested` if no test runs the line."""
    source, tests = mutated_source(mutant), _first(tests_of(mutant), max_seconds)
    for part in (tests[:_FIRST_TESTS], tests[_FIRST_TESTS:]):
        code = _run_in_child(mutant.path, source, part) if part else 0
        if code:
            return "timeout" if code == -signal.SIGALRM else "killed"
    return "survived" if tests else "untested"


def _first(tests: Sequence[str], max_seconds: float | None) -> Sequence[str]:
    """The first of them that together take no longer, but one at least."""
    if max_seconds is None:
        return tests
    ends = itertools.accumulate(_seconds()[test] for test in tests)
    return tests[: max(1, sum(end <= max_seconds for end in ends))]


def _run_in_child(path: str, source: str, tests: Sequence[str]) -> int:
    """The exit code of pytest in a fork of this process, in which `path` has the mutated source; -n for signal n."""
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            finder = _MutantFinder(path, source)
            _forget_package_with(finder.name)
            sys.meta_path.insert(0, finder)
            os._exit(int(importlib.import_module("pytest").main(["-x", *_PYTEST, *tests], plugins=[_Alarm()])))
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _forget_package_with(name: str) -> None:
    """Have the whole package imported again if the module already is, since others hold its original functions."""
    if name in sys.modules:
        package = name.partition(".")[0]
        for known in [one for one in sys.modules if one.partition(".")[0] == package]:
            del sys.modules[known]


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
