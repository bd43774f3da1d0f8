"""How often the advisor names the best epoch and strength, on runs of the embedded tiny model.

    python benchmarks/advisor.py run [--only NAME …] [--files DIR]    train what has no result yet, and find the truth
    python benchmarks/advisor.py judge [--files DIR]                  the truth of kept images once more
    python benchmarks/advisor.py advise [--files DIR]                 the advice on kept files, where it is missing
    python benchmarks/advisor.py report                               print the table of the runs with an advice
    python benchmarks/advisor.py list                                 the runs and which of them are done

24 runs: 4, 8, 16 and 24 images; a learning rate that is too low, right or too high; with and without regularisation
images; each with one of four families and one of five concepts (`advisor_concepts.py`), two of which are kept for the
final count. Each run has a separate process. LoRA files, samples and the images behind the truth stay in `--files`,
so that a new measure can be computed without training again; everything else is one JSON per run in `advisor_runs/`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import advisor_report, families
from benchmarks.advisor_concepts import CONCEPTS, HELD_OUT, ROOT, save_concept
from benchmarks.advisor_truth import (
    CONCEPT_SCENES,
    CONTROL_SCENES,
    TruthCell,
    climb,
    draw_row,
    judge,
    read_row,
    row_file,
    save_row,
)
from lib_lora_train.adapters.files.decode import parse_file
from lib_lora_train.adapters.files.lora_file import read_adapter
from lib_lora_train.adapters.inject import Adapter, inject_parsed
from lib_lora_train.config.sample_prompts import sample_prompts
from lib_lora_train.config.train_config import Concept, TrainConfig, config_values
from lib_lora_train.core.control import Control
from lib_lora_train.core.events import EpochDone, LoraWritten, Progress, to_record
from lib_lora_train.evaluation.advisor import advise
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.runs.images.samples import read_sample_rows
from lib_lora_train.runs.measures.strength_test import StrengthTest
from lib_lora_train.runs.planning import plan_run
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.trainer import run_training

RESULTS = Path(__file__).parent / "advisor_runs"
FILES = Path(tempfile.gettempdir()) / "advisor-runs"

SIZES = (4, 8, 16, 24)
RATES = {"low": 0.2, "right": 1.0, "high": 3.0}  # of what the family learns the demo's concept with
FAMILIES = ("LoRA", "LoCon", "LoKr", "LoRA + DoRA")  # names in families.py
EPOCHS, BATCH, STEPS_PER_EPOCH = 5, 4, 24
SAMPLE_SCENES = (
    "{}, red background",
    "{}, blue background",
    "{}, small, yellow background",
    "{} and an apple, white background",
)
SAMPLE_CONTROLS = (
    "fox, blue background",
    "red star on a white background",
    "rocket on a yellow background",
)


@dataclass(frozen=True)
class Design:
    """One run of the benchmark."""

    concept: str
    images: int
    rate: str
    family: str
    regularised: bool
    seed: int

    @property
    def name(self) -> str:
        """`zorp-8-right-lora-reg`."""
        family = {"LoRA + DoRA": "dora"}.get(self.family, self.family.lower())
        return "-".join([self.concept, str(self.images), self.rate, family, "reg" if self.regularised else "plain"])

    @property
    def is_held_out(self) -> bool:
        """Whether its concept may not be looked at while rules are chosen."""
        return self.concept in {concept.trigger for concept in HELD_OUT}


def designs() -> list[Design]:
    """All runs, in an order of which every beginning is balanced.

    The full product of sizes, rates and regularisation; families and concepts rotate, so that each family meets every
    rate with and without regularisation, and each concept every family.
    """
    made = []
    for (a, size), (b, rate), (c, regularised) in product(enumerate(SIZES), enumerate(RATES), enumerate((False, True))):
        family = FAMILIES[(a + b + 2 * c) % len(FAMILIES)]
        concept = list(CONCEPTS)[(a + 2 * b + 3 * c + a * b) % len(CONCEPTS)]
        made.append(Design(concept, size, rate, family, regularised, seed=100 * a + 10 * b + c))
    return [made[index * 7 % len(made)] for index in range(len(made))]


def run_config(design: Design, files: Path) -> TrainConfig:
    """The demo's settings with the family's preset, smaller epochs and a constant rate.

    Constant, so that the epochs after the best one differ from it, as they do where people train too long.
    """
    base = families.run_config(families.RUNS[design.family])
    factor = RATES[design.rate]
    concepts = [Concept(folder=str(files / "dataset"), trigger=design.concept)]
    if design.regularised:
        concepts.append(Concept(folder=str(ROOT / "assets" / "demo" / "reg"), is_regularisation=True))
    return base.replace(
        concepts=tuple(concepts),
        output_name=design.name,
        seed=design.seed,
        epochs=EPOCHS,
        batch_size=BATCH,
        learning_rate=base.learning_rate * factor,
        text_encoder_lr=(base.text_encoder_lr or base.learning_rate) * factor,
        lr_schedule="constant",
        save_every_n_epochs=1,
        sample_every_n_epochs=1,
        measure_likeness=True,
        test_strengths=False,  # `advise` does it
        sample_prompts=(*(scene.format(design.concept) for scene in SAMPLE_SCENES), *SAMPLE_CONTROLS),
        sample_steps=6,
        comment="benchmarks/advisor.py",
    )


def save_dataset(design: Design, folder: Path) -> None:
    """Write the run's images into `folder`, with repeats that fill an epoch, half of it with regularisation."""
    share = 2 if design.regularised else 1
    repeats = max(1, round(STEPS_PER_EPOCH * BATCH / share / design.images))
    save_concept(folder / f"{repeats}_{design.concept}", CONCEPTS[design.concept], design.images, design.seed)


# --- one run -------------------------------------------------------------------------------------


def run_one(design: Design, files: Path) -> dict[str, Any]:
    """Train, find the truth, and return the run's record. Its files are in `files`, which is emptied first."""
    shutil.rmtree(files, ignore_errors=True)
    files.mkdir(parents=True)
    save_dataset(design, files / "dataset")
    config, host = run_config(design, files), StandaloneHost(None, None, files / "lora", "cpu")
    began, events = time.process_time(), []
    folder = RunFolder(files / "run")
    folder.root.mkdir()
    for event in run_training(config, host, folder=folder, control=Control()):
        if not isinstance(event, Progress):
            events.append(event)
        if isinstance(event, EpochDone):
            print(f"  epoch {event.epoch}: loss {event.mean_loss:.3f}", flush=True)
    trained = time.process_time()
    lora = {event.epoch: Path(event.path) for event in events if isinstance(event, LoraWritten) and event.epoch}
    truth = find_truth(host.load_model(config), design, lora, files / "truth")
    record = {
        **dataclasses.asdict(design),
        "name": design.name,
        "held_out": design.is_held_out,
        "config": _relative(config_values(config), files),
        "events": _relative([to_record(event) for event in events], files),
        "lora_files": _relative({epoch: str(path) for epoch, path in lora.items()}, files),
        "truth": truth,
        "cpu_seconds": {"run": round(trained - began), "truth": round(time.process_time() - trained)},
    }
    return advise_again(record, files)


def find_truth(model: DiffusionModel, design: Design, lora: dict[int, Path], images: Path) -> dict[str, Any]:
    """The scenes and, for each epoch and strength, a cell; the images are written to the folder `images`."""
    images.mkdir()
    detector, before, cells = CONCEPTS[design.concept].detector, draw_row(model, design.concept), []
    save_row(images / row_file(0, 0), before)
    for epoch, path in sorted(lora.items()):
        adapter, _ = inject_parsed(model, parse_file(read_adapter(path)))

        def cell_at(strength: float, epoch: int = epoch, adapter: Adapter = adapter) -> TruthCell:
            with adapter.strength(strength):
                row = draw_row(model, design.concept)
            save_row(images / row_file(epoch, strength), row)
            return judge(detector, strength, row, before)

        found = climb(cell_at)
        adapter.remove()
        cells += [_cell_record(epoch, cell) for cell in found]
        print(f"  truth of epoch {epoch}:", *(f"{cell.truth:.2f}" for cell in found), flush=True)
    return {"scenes": {"concept": CONCEPT_SCENES, "control": CONTROL_SCENES}, "cells": cells}


def judge_again(record: dict[str, Any], images: Path) -> dict[str, Any]:
    """The record with the truth of its kept images, after a change of the detector or of what damage is."""
    detector, before = CONCEPTS[record["concept"]].detector, read_row(images / row_file(0, 0))
    cells = []
    for old in record["truth"]["cells"]:
        row = read_row(images / row_file(old["epoch"], old["drawn_at"]))
        cell = dataclasses.replace(judge(detector, old["drawn_at"], row, before), strength=old["strength"])
        cells.append(_cell_record(old["epoch"], cell))
    return {**record, "truth": {**record["truth"], "cells": cells}}


def advise_again(record: dict[str, Any], files: Path) -> dict[str, Any]:
    """The record with the trials and the advice that the program comes to on the kept files and samples of a run."""
    design = next(one for one in designs() if one.name == record["name"])
    config, host, folder = (
        run_config(design, files),
        StandaloneHost(None, None, files / "lora", "cpu"),
        RunFolder(files / "run"),
    )
    loras = {int(epoch): files / path for epoch, path in record["lora_files"].items()}
    began = time.process_time()
    test = StrengthTest(
        host=host,
        model=host.load_model(config),
        control=Control(),
        config=config,
        folder=folder,
        plan=plan_run(config).plan,
        files=loras,
        samples=read_sample_rows(folder, len(sample_prompts(config)), (0, *loras)),
    )
    for _ in test.run():
        pass
    advice = advise(test.trials, advisor_report.measured(record))
    return {
        **record,
        "trials": [dataclasses.asdict(trial) for trial in test.trials],
        "advice": dataclasses.asdict(advice) if advice else None,
        "advice_cpu_seconds": round(time.process_time() - began),
    }


def _cell_record(epoch: int, cell: TruthCell) -> dict[str, Any]:
    return {"epoch": epoch, "truth": cell.truth, **dataclasses.asdict(cell)}


def _relative(value: Any, root: Path) -> Any:
    """The same JSON value with the paths below `root`, and those of this repository, made relative to it."""
    if isinstance(value, dict):
        return {key: _relative(one, root) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_relative(one, root) for one in value]
    if isinstance(value, str):
        return value.replace(f"{root}/", "").replace(f"{ROOT}/", "")
    return value


# --- all runs ------------------------------------------------------------------------------------


def run_missing(only: list[str], files: Path, results: Path) -> None:
    """Run what has no result yet, one process after another."""
    results.mkdir(parents=True, exist_ok=True)
    for design in designs():
        path = results / f"{design.name}.json"
        if path.exists() or (only and design.name not in only):
            continue
        print(design.name, flush=True)
        began = time.monotonic()
        command = [sys.executable, __file__, "one", design.name, "--files", str(files), "--results", str(results)]
        if subprocess.run(command, env=dict(os.environ)).returncode:
            print(f"  {design.name} failed and is left out.", flush=True)
            continue
        print(f"  {time.monotonic() - began:.0f} s", flush=True)


def write_result(design: Design, files: Path, results: Path) -> None:
    """Run one design and write its record, completely or not at all."""
    _write_record(run_one(design, files / design.name), results)


def _write_record(record: dict[str, Any], results: Path) -> None:
    text = json.dumps(record, ensure_ascii=False) + "\n"
    partial = results / f"{record['name']}.part"
    partial.write_text(text, encoding="utf-8")
    partial.replace(results / f"{record['name']}.json")


def read_results(results: Path) -> Iterator[dict[str, Any]]:
    """The records of the runs that are done, in the order of the design."""
    for design in designs():
        path = results / f"{design.name}.json"
        if path.exists():
            yield json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "one", "judge", "advise", "report", "list"))
    parser.add_argument("name", nargs="?", help="for `one`: the run, in this process")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[])
    parser.add_argument("--files", type=Path, default=FILES, help="where LoRA files and images are kept")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--jobs", type=int, choices=(1,), default=1, help="one process at a time")
    options = parser.parse_args()
    by_name = {design.name: design for design in designs()}
    if options.command == "list":
        for name, design in by_name.items():
            done = (options.results / f"{name}.json").exists()
            print(f"{name:32}{'held out' if design.is_held_out else 'choosing':10}{'done' if done else ''}")
    elif options.command == "report":
        print(advisor_report.report([record for record in read_results(options.results) if "advice" in record]))
    elif options.command == "judge":
        for record in read_results(options.results):
            _write_record(judge_again(record, options.files / record["name"] / "truth"), options.results)
    elif options.command == "advise":
        for record in read_results(options.results):
            if "advice" not in record and (not options.only or record["name"] in options.only):
                print(record["name"], flush=True)
                _write_record(advise_again(record, options.files / record["name"]), options.results)
    elif options.command == "one":
        write_result(by_name[options.name], options.files, options.results)
    else:
        unknown = [name for name in options.only if name not in by_name]
        if unknown:
            parser.error(f"unknown runs: {', '.join(unknown)}; `list` prints all of them")
        run_missing(options.only, options.files, options.results)


if __name__ == "__main__":
    main()
