"""What `python launch.py test` runs: the linters, the type checker and all tests; with arguments only pytest."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_checks(pytest_arguments: Sequence[str]) -> int:
    """Run all checks, pytest last, whose summary then comes last; 0 only if all pass."""
    failed = [name for name, command in checks(pytest_arguments) if not passes(name, command)]
    if failed and failed != ["pytest"]:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def checks(pytest_arguments: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Name and `python -m` arguments of every check; with arguments for pytest only pytest."""
    if pytest_arguments:
        return [("pytest", ["pytest", *pytest_arguments])]
    workers = str(min(os.cpu_count() or 1, 4))  # each takes up to 3 GB
    distribution = ["-n", workers, "--dist", "loadfile", "--no-loadscope-reorder"]  # in the order of tests/conftest.py
    return [
        ("ruff check", ["ruff", "check", "."]),
        ("ruff format", ["ruff", "format", "--check", "."]),
        ("mypy", ["mypy"]),
        ("pytest", ["pytest", *distribution, "--durations=10"]),
    ]


def passes(name: str, command: Sequence[str]) -> bool:
    """Run one check from the repository root; whether it passed."""
    print(f"── {name}", flush=True)
    began = time.monotonic()
    status = subprocess.call([sys.executable, "-m", *command], cwd=ROOT)
    if name != "pytest":
        print(f"   {'passed' if status == 0 else 'FAILED'} in {time.monotonic() - began:.0f} s", flush=True)
    return status == 0


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # Windows' encoding for pipes lacks ─
    sys.exit(run_checks(sys.argv[1:]))
