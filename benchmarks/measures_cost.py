"""How much longer a run takes with everything that it measures after every epoch.

    python benchmarks/measures_cost.py [--epochs 6]

Trains the demo's images once, with samples after every epoch and all measures on, and counts the processor's seconds
inside and outside of the measuring. Both are of one run, so that other programs disturb them alike; only the ratio
counts. Results are in `measures_cost.md`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import families
from lib_lora_train.core.control import Control
from lib_lora_train.core.events import Event
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.runs import trainer
from lib_lora_train.runs.records.folder import RunFolder

_MEASURED: dict[str, Any] = {
    "measure_steady_loss": True,
    "measure_prompts": True,
    "measure_likeness": True,
    "test_strengths": False,  # once, after the training
}


class Stopwatch:
    """Counts the processor's seconds inside of a function that yields events, whoever calls it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def around(self, function: Any) -> Any:
        """The same function, counted."""

        def counted(*arguments: Any) -> Iterator[Event]:
            events, seconds = function(*arguments), 0.0
            while True:
                began = time.process_time()
                event = next(events, None)
                seconds += time.process_time() - began
                if event is None:
                    self.seconds.append(seconds)
                    return
                yield event

        return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()
    stopwatch = Stopwatch()
    trainer.measure_epoch = stopwatch.around(trainer.measure_epoch)  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as place:
        host = StandaloneHost(None, None, Path(place) / "lora", "cpu")
        config = families.run_config(families.RUNS["LoRA"]).replace(
            epochs=options.epochs, sample_every_n_epochs=1, sample_steps=20, cache_to_disk=False, **_MEASURED
        )
        folder = RunFolder(Path(place) / "run")
        folder.root.mkdir()
        host.load_model(config)
        began = time.process_time()
        for _ in trainer.run_training(config, host, folder=folder, control=Control()):
            pass
        total = time.process_time() - began
    measuring = sum(stopwatch.seconds)
    print(f"{total:.0f} s, of these {measuring:.1f} s measuring: {total / (total - measuring):.3f} × the run without")
    print("without LoRA and after each epoch:", " ".join(f"{seconds:.1f}" for seconds in stopwatch.seconds), "s")


if __name__ == "__main__":
    main()
