"""The runs of a benchmark that compares ways: each trains once for each seed, into one JSON in the way's folder."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.seed_runs import SeedRuns


@dataclass(frozen=True)
class WayRuns:
    """The results of the benchmark `script`; each of the `ways` has its own folder in `folder`."""

    script: Path
    folder: Path
    ways: Sequence[str]

    def read(self, way: str, seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
        """The results of a way that exist."""
        return self._of(way).read(seeds)

    def run_missing(
        self, ways: Sequence[str], seeds: Sequence[int], run_way: Callable[[str, int], Mapping[str, Any]]
    ) -> None:
        """Train each way and seed without a result, in this process."""
        self.folder.mkdir(exist_ok=True)
        for seed in seeds:
            for way in ways:
                if not list(self.read(way, [seed])):
                    self._of(way).write(seed, run_way(way, seed))
                    print(f"seed {seed}, {way}: done", flush=True)

    def _of(self, way: str) -> SeedRuns:
        name = way.replace(" ", "-").replace("*", "star").replace(",", "")
        return SeedRuns(self.script, self.folder / name)


def run_command(
    description: str | None,
    runs: WayRuns,
    default_seeds: Sequence[int],
    *,
    run_way: Callable[[str, int], Mapping[str, Any]],
    report: Callable[[Sequence[int]], str],
) -> None:
    """Read the command line, and train what is missing (`run`) or print the report (`report`)."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "report"))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(default_seeds))
    parser.add_argument("--ways", nargs="+", choices=list(runs.ways), default=list(runs.ways))
    options = parser.parse_args()
    if options.command == "report":
        print(report(options.seeds))
    else:
        runs.run_missing(options.ways, options.seeds, run_way)
