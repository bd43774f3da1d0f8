"""How well each adapter family learns the demo's concept on the embedded tiny model, and what it costs.

    python benchmarks/families.py [--only lora lokr …] [--out DIR]
    python benchmarks/families.py --table           print the table of docs/methods.md from benchmarks/families.json

Every family trains on the demo's images and loss with its own preset at higher learning rates, in a separate process;
the results go to benchmarks/families.json. `share`: how many of 32 images of new prompts and seeds show the concept;
`leak`: the same for 6 images of other things. `drift`: how far predictions for other captions moved, relative to the
effect of the caption itself (0: not at all). `seconds` is the CPU time of training alone, `memory` the process's peak.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from lib_lora_train.config.presets import find_preset
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.control import Control
from lib_lora_train.core.events import LoraWritten
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.models.embedded import EMBEDDED_CHECKPOINT
from lib_lora_train.runs.demo.demo import DemoEvaluator, demo_config
from lib_lora_train.runs.records.folder import new_run_folder
from lib_lora_train.runs.trainer import run_training

RESULTS = Path(__file__).with_suffix(".json")
CONCEPT_SEEDS = tuple(range(1, 9))  # 32 images


@dataclass(frozen=True)
class Run:
    """A family's preset, the factor on its learning rates, and the number of epochs of 320 images."""

    preset: str
    rates: int = 50
    epochs: int = 6


# The tiny model needs learning rates far above those of real models, by a factor that differs between families: the
# effect of a family's parameters on a layer depends on its width. Fifty times the preset's rates unless that is too low
# or too high, and twelve epochs if six are too few.
RUNS: dict[str, Run] = {
    "LoRA": Run("LoRA"),
    "LoCon": Run("LoCon"),
    "LoRA + DoRA": Run("DoRA", 100),
    "LoHa": Run("LoHa"),
    "LoKr": Run("LoKr", 100),
    "DyLoRA": Run("DyLoRA", 25, epochs=12),
    "GLoRA": Run("GLoRA"),
    "(IA)³": Run("IA3", 20, epochs=12),
    "Diag-OFT": Run("Diag-OFT"),
    "BOFT": Run("BOFT", 20),
    "Native": Run("Native", 100),
}


def run_config(run: Run) -> TrainConfig:
    """The demo's settings with the family's preset."""
    values = dict(find_preset(run.preset).values)
    for name in ("learning_rate", "text_encoder_lr"):
        values[name] *= run.rates
    plain = demo_config().replace(**values, output_name="family", epochs=run.epochs)
    return plain.replace(sample_every_n_epochs=0, make_grid=False, save_every_n_epochs=run.epochs)


def train_and_measure(run: Run, out: Path) -> dict[str, Any]:
    """Train one family and return its results; it is measured only before the first and after the last epoch."""
    config = run_config(run)
    evaluator, numbers = DemoEvaluator(config, concept_seeds=()), []
    calls, marks = 0, []

    def measure(model: Any, adapter: Any) -> Mapping[str, float]:
        nonlocal calls
        calls += 1
        if calls not in (1, run.epochs + 1):
            return {}
        marks.append(time.process_time())
        if calls > 1:  # before training no image shows the concept
            evaluator.concept_seeds = CONCEPT_SEEDS
        numbers.append(evaluator.measure(model, adapter))
        marks.append(time.process_time())
        return numbers[-1]

    host = StandaloneHost(None, None, out / "Lora")
    events = run_training(config, host, folder=new_run_folder(out, "f"), control=Control(), measure=measure)
    *_, written = (event for event in events if isinstance(event, LoraWritten))
    before, last = numbers
    return {
        "share": last["concept_share"],
        "leak": last["leak_share"],
        "loss_fall": 1 - last["concept_loss"] / before["concept_loss"],
        "drift": last["drift"],
        "kilobytes": Path(written.path).stat().st_size / 1024,
        "seconds": marks[2] - marks[1],
        "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        **dataclasses.asdict(run),
        "steps": written.step,
        "batch": config.batch_size * config.gradient_accumulation,
        "weights": hashlib.sha256(EMBEDDED_CHECKPOINT.read_bytes()).hexdigest()[:10],
    }


def table() -> str:
    """The results as Markdown."""
    lines = [
        "| family | preset | rates | steps | share | leak | drift | file | time | memory | weights |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, row in json.loads(RESULTS.read_text(encoding="utf-8")).items():
        cells = [
            row["preset"],
            f"× {row['rates']}",
            f"{row['steps']} of {row['batch']}",
            *(f"{row[key]:.0%}" for key in ("share", "leak")),
            f"{row['drift']:.2f}",
            f"{row['kilobytes']:,.0f} KB",
            f"{row['seconds']:.0f} s",
            f"{row['memory_mib']:,.0f} MiB",
            f"`{row['weights'][:4]}`",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.table:
        print(table())
        return
    if options.one:
        print(json.dumps(train_and_measure(RUNS[options.one], options.out)))
        return
    out = options.out or Path(tempfile.mkdtemp(prefix="families-"))
    for name in options.only:
        command = [sys.executable, __file__, "--one", name, "--out", str(out)]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=dict(os.environ))
        results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        results[name] = json.loads(result.stdout.splitlines()[-1])
        ordered = {family: results[family] for family in RUNS if family in results}
        RESULTS.write_text(json.dumps(ordered, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(name, json.dumps(results[name]), flush=True)


if __name__ == "__main__":
    main()
