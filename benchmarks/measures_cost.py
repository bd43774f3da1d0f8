"""How much longer a run takes with everything that it measures after every epoch.

    python benchmarks/measures_cost.py [--rounds 3]

Each round trains the demo's images with its samples alone (A) and with all measures of an epoch too (B), in the order
A B B A, in one process. The processor's time counts, not the clock's, so that other programs matter less; only the
ratio counts. The strength test comes once, after the training, and is timed apart.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import families
from lib_lora_train.core.control import Control
from lib_lora_train.core.events import PhaseEnded
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.runs.folder import RunFolder
from lib_lora_train.runs.trainer import run_training

_OFF = {"measure_steady_loss": False, "measure_prompts": False, "measure_likeness": False, "test_strengths": False}
_ON = {"measure_steady_loss": True, "measure_prompts": True, "measure_likeness": True, "test_strengths": False}
_EPOCHS = 3


def measure(host: StandaloneHost, values: dict[str, Any]) -> tuple[float, float]:
    """The processor's seconds of a run, and the clock's seconds of its strength test."""
    base = families.run_config(families.RUNS["LoRA"])
    with tempfile.TemporaryDirectory() as place:
        folder, tested = RunFolder(Path(place) / "run"), 0.0
        folder.root.mkdir()
        host.lora_dir = Path(place) / "lora"
        config = base.replace(epochs=_EPOCHS, sample_every_n_epochs=1, sample_steps=20, cache_to_disk=False, **values)
        began = time.process_time()
        for event in run_training(config, host, folder=folder, control=Control()):
            if isinstance(event, PhaseEnded) and event.phase == "strengths":
                tested = event.seconds
        return time.process_time() - began, tested


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        host = StandaloneHost(None, None, Path(place), "cpu")
        measure(host, _OFF)  # imports, and the checkpoint is read
        plain: list[float] = []
        full: list[float] = []
        for number in range(options.rounds):
            for values, times in ((_OFF, plain), (_ON, full), (_ON, full), (_OFF, plain)):
                times.append(measure(host, values)[0])
            ratio = statistics.median(full) / statistics.median(plain)
            print(
                f"round {number + 1}: {ratio:.3f} × ({_list(plain)} s alone, {_list(full)} s with measures)", flush=True
            )
        seconds, tested = measure(host, {**_OFF, "test_strengths": True})
        print(
            f"strength test: {tested:.1f} s after a run of {statistics.median(plain):.1f} s, {seconds:.1f} s together"
        )


def _list(values: list[float]) -> str:
    return " ".join(f"{value:.1f}" for value in values)


if __name__ == "__main__":
    main()
