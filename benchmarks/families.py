"""What each adapter family learns of the demo's concept on the embedded tiny model, and what it costs.

    python benchmarks/families.py [--only lora lokr …] [--epochs 6] [--out DIR]
    python benchmarks/families.py --table           the table of docs/methods.md, from benchmarks/families.json

Every family trains with the demo's pictures and equal batches and steps, at the settings below, in a process of its
own; the numbers go into benchmarks/families.json. `share`: of 32 pictures of new prompts and seeds, how many show the
concept; `leak`: of 6 pictures of other things. `drift`: how far answers to other captions moved, in units of what the
caption itself does (0: not at all). `seconds` is processor time of training alone; `memory` the process's peak.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from lib_lora_train.config import TrainConfig
from lib_lora_train.demo import Examiner, demo_config
from lib_lora_train.events import LoraWritten
from lib_lora_train.hosts.standalone import EMBEDDED_CHECKPOINT, StandaloneHost
from lib_lora_train.jobs import run_job
from lib_lora_train.run_folder import new_run_folder
from lib_lora_train.train.control import Control

RESULTS = Path(__file__).with_suffix(".json")
CONCEPT_SEEDS = tuple(range(1, 9))  # 32 pictures

# The demo's learning rates are some fifty times those of real models. A family's first step should move W about as far
# as LoRA's does, which decides its rate here; the presets have the rates for real models.
SETTINGS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "LoCon": {"targets": "all", "conv_rank": 4},
    "LoRA + DoRA": {"dora": True, "learning_rate": 4e-3},
    "LoHa": {"family": "loha", "rank": 4, "learning_rate": 8e-3},
    "LoKr": {
        "family": "lokr",
        "lokr_factor": 2,
        "full_matrix": True,
        "learning_rate": 5e-3,
        "text_encoder_lr": 2e-3,
    },
    "DyLoRA": {"family": "dylora", "dylora_unit": 4, "batch_size": 1, "gradient_accumulation": 8},
    "GLoRA": {"family": "glora", "learning_rate": 4e-3},
    "(IA)³": {"family": "ia3", "learning_rate": 1.5e-1, "text_encoder_lr": 5e-2},
    "Diag-OFT": {"family": "oft", "rank": 8, "learning_rate": 3e-3},
    "BOFT": {"family": "boft", "rank": 4, "learning_rate": 1e-3},
    "Native": {"family": "full", "learning_rate": 5e-4, "text_encoder_lr": 2e-4},
}


def config_of(name: str, epochs: int) -> TrainConfig:
    """The demo's settings with the family's own."""
    plain = demo_config().replace(epochs=epochs, sample_every_n_epochs=0, make_grid=False, save_every_n_epochs=epochs)
    return plain.replace(output_name="family", **SETTINGS[name])


def measured(name: str, epochs: int, out: Path) -> dict[str, Any]:
    """Train one family and tell its numbers; measuring is done before the first and after the last epoch only."""
    config = config_of(name, epochs)
    examiner, numbers = Examiner(config, concept_seeds=()), []
    calls, marks = 0, []

    def measure(model: Any, adapter: Any) -> Mapping[str, float]:
        nonlocal calls
        calls += 1
        if calls not in (1, epochs + 1):
            return {}
        marks.append(time.process_time())
        if calls > 1:  # before training nothing shows the concept
            examiner.concept_seeds = CONCEPT_SEEDS
        numbers.append(examiner.measure(model, adapter))
        marks.append(time.process_time())
        return numbers[-1]

    host = StandaloneHost(None, None, out / "Lora")
    events = run_job(config, host, folder=new_run_folder(out, "f"), control=Control(), measure=measure)
    files = [event.path for event in events if isinstance(event, LoraWritten)]
    before, last = numbers
    return {
        "share": last["concept_share"],
        "leak": last["leak_share"],
        "loss_fall": 1 - last["concept_loss"] / before["concept_loss"],
        "drift": last["drift"],
        "kilobytes": Path(files[-1]).stat().st_size / 1024,
        "seconds": marks[2] - marks[1],
        "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "epochs": epochs,
        "settings": SETTINGS[name],
        "weights": hashlib.sha256(EMBEDDED_CHECKPOINT.read_bytes()).hexdigest()[:10],
    }


def table() -> str:
    """The results as Markdown."""
    lines = [
        "| family | settings | share | leak | drift | file | time | memory | weights |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, row in json.loads(RESULTS.read_text(encoding="utf-8")).items():
        cells = [
            _told(row["settings"]),
            *(f"{row[key]:.0%}" for key in ("share", "leak")),
            f"{row['drift']:.2f}",
            f"{row['kilobytes']:,.0f} KB",
            f"{row['seconds']:.0f} s",
            f"{row['memory_mib']:,.0f} MiB",
            f"`{row['weights'][:4]}`",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _told(settings: Mapping[str, Any]) -> str:
    """What differs from the demo's settings, shortly."""
    shown = {"learning_rate": "UNet", "text_encoder_lr": "text", "gradient_accumulation": "accumulation"}
    pairs = ((shown.get(name, name), value) for name, value in settings.items() if name != "family")
    told = [
        name if value is True else f"{name} {value:g}" if isinstance(value, (int, float)) else f"{name} {value}"
        for name, value in pairs
    ]
    return ", ".join(told).replace("_", " ") or "the demo's"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.table:
        print(table())
        return
    if options.one:
        print(json.dumps(measured(options.one, options.epochs, options.out)))
        return
    out = options.out or Path(tempfile.mkdtemp(prefix="families-"))
    for name in options.only:
        command = [sys.executable, __file__, "--one", name, "--epochs", str(options.epochs), "--out", str(out)]
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=dict(os.environ))
        known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        known[name] = json.loads(answer.stdout.splitlines()[-1])
        ordered = {family: known[family] for family in SETTINGS if family in known}
        RESULTS.write_text(json.dumps(ordered, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(name, json.dumps(known[name]), flush=True)


if __name__ == "__main__":
    main()
