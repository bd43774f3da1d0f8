"""The runs of a benchmark that trains once for each seed: separate processes, and one JSON per seed in a folder."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.control import Control
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.runs.records.event_log import log_events
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.trainer import run_training

NOTHING_DRAWN: Mapping[str, Any] = {
    "sample_prompts": (),
    "sample_every_n_epochs": 0,
    "make_grid": False,
    "measure_steady_loss": False,
    "measure_prompts": False,
    "save_state": False,
    "cache_to_disk": False,
}
"""Settings of a run that only trains and saves its LoRA."""


@dataclass(frozen=True)
class SeedRuns:
    """`script` is the benchmark, which trains a seed with `one --seeds SEED`; its results are in `folder`."""

    script: Path
    folder: Path

    def run_missing(self, seeds: Sequence[int]) -> None:
        """Train each seed without a result, each in a separate process."""
        for seed in seeds:
            if not self._result(seed).exists():
                command = [sys.executable, str(self.script), "one", "--seeds", str(seed)]
                code = subprocess.run(command, env=dict(os.environ)).returncode
                print(f"seed {seed}: {'failed' if code else 'done'}", flush=True)

    def write(self, seed: int, record: Mapping[str, Any]) -> None:
        """Write a seed's result, completely or not at all."""
        self.folder.mkdir(exist_ok=True)
        partial = self._result(seed).with_suffix(".part")
        partial.write_text(json.dumps(record) + "\n", encoding="utf-8")
        partial.replace(self._result(seed))

    def read(self, seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
        """The results that exist."""
        for seed in seeds:
            if self._result(seed).exists():
                yield json.loads(self._result(seed).read_text(encoding="utf-8"))

    def _result(self, seed: int) -> Path:
        return self.folder / f"seed-{seed}.json"


def run_command(
    options: argparse.Namespace,
    runs: SeedRuns,
    *,
    run_seed: Callable[[int], Mapping[str, Any]],
    show: Callable[[int], str],
    report: Callable[[Sequence[int]], str],
) -> None:
    """Do what `options.command` says (run, one, show or report) for `options.seeds`."""
    if options.command == "run":
        runs.run_missing(options.seeds)
    elif options.command == "one":
        runs.write(options.seeds[0], run_seed(options.seeds[0]))
    elif options.command == "show":
        print("\n\n".join(map(show, options.seeds)))
    else:
        print(report(options.seeds))


def train_logged(root: Path, config: TrainConfig) -> tuple[StandaloneHost, RunFolder]:
    """Train in `root`, and return where: the host, whose model is loaded, and the run's folder with its log."""
    host, folder = StandaloneHost(None, None, root / "lora", "cpu"), RunFolder(root / "run")
    folder.root.mkdir()
    for _ in log_events(run_training(config, host, folder=folder, control=Control()), folder.log):
        pass
    return host, folder
