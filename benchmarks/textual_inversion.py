"""How well does textual inversion teach the tiny model the demo's creature, and what does it cost?

    python benchmarks/textual_inversion.py run [--seeds 1 2 …] [--ways "4 vectors" …]   train what has no result yet
    python benchmarks/textual_inversion.py report [--seeds 1 2 …]                       print the table

Every way trains the 16 images of the demo without regularisation images in batches of 8: 120 steps at a constant
learning rate of 0.05, ten times SD1's, since the tiny model's token embeddings are about ten times as long. The vectors
start from the class word `dog`, which the tiny model knows; `from *` has none. A LoRA
on the same images is in `prior_preservation.py` as `none`.

Measured after every 20 steps: the held-out loss on the concept, the share of 16 images of new prompts and seeds that
show the creature, and of 6 of other things; the drift of the held-out images of other things; and the mean length of
the vectors.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.seed_runs import NOTHING_DRAWN
from benchmarks.way_runs import WayRuns, run_command
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.control import Control
from lib_lora_train.core.events import StepDone
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.methods.trained_part import TrainedPart
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.runs.demo.demo import DEMO_SET, DemoEvaluator, demo_config
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.trainer import run_training

SEEDS = (1,)
EPOCHS, IMAGE_SEEDS = 6, (1, 2, 3, 4)
_INVERSION: Mapping[str, Any] = {
    "method": "textual_inversion",
    "learning_rate": 0.05,
    "text_encoder_lr": None,
    "rank": TrainConfig().rank,
    "lr_schedule": "constant",
    "optimizer_args": "weight_decay=0",
}
WAYS: Mapping[str, Mapping[str, Any]] = {
    "1 vector": {**_INVERSION, "embedding_vectors": 1},
    "4 vectors": {**_INVERSION, "embedding_vectors": 4},
    "8 vectors": {**_INVERSION, "embedding_vectors": 8},
    "4 vectors from *": {**_INVERSION, "embedding_vectors": 4, "embedding_init_text": "*"},
    "4 vectors, norm kept": {**_INVERSION, "embedding_vectors": 4, "preserve_embedding_norm": True},
}
RUNS = WayRuns(Path(__file__), Path(__file__).parent / "textual_inversion_runs", list(WAYS))


class Measurement:
    """Measures an epoch; the first call must be without what is trained."""

    def __init__(self, config: TrainConfig) -> None:
        self.rows: list[dict[str, float]] = []
        self._demo = DemoEvaluator(config)

    def measure(self, model: DiffusionModel, part: TrainedPart) -> dict[str, float]:
        """The demo's values, and how long the vectors are."""
        self._demo.concept_seeds = IMAGE_SEEDS if self.rows else ()
        vectors = [one.detach() for name, group in part.groups.items() if name.startswith("embedding") for one in group]
        lengths = {"length": float(vectors[0].norm(dim=-1).mean())} if vectors else {}
        self.rows.append({**self._demo.measure(model, part), **lengths})
        return {}


def run_way(way: str, seed: int) -> dict[str, Any]:
    """Train, and return what was measured."""
    concept = Concept(folder=str(DEMO_SET / "train"), trigger="zorp", class_word="dog")
    config = demo_config().replace(
        concepts=(concept,), output_name="inversion", seed=seed, epochs=EPOCHS, **NOTHING_DRAWN, **WAYS[way]
    )
    with tempfile.TemporaryDirectory() as place:
        root, measurement, seconds = Path(place), Measurement(config), list[float]()
        (root / "run").mkdir()
        host = StandaloneHost(None, None, root / "models" / "Lora", "cpu")
        run = run_training(config, host, folder=RunFolder(root / "run"), control=Control(), measure=measurement.measure)
        for event in run:
            if isinstance(event, StepDone):
                seconds.append(event.seconds)
        files = sorted(root.rglob("inversion-*.safetensors"))
        rows = [{name: round(value, 5) for name, value in row.items()} for row in measurement.rows]
        size = files[-1].stat().st_size
        return {"seed": seed, "way": way, "bytes": size, "seconds per step": round(median(seconds), 2), "rows": rows}


def report(seeds: Sequence[int]) -> str:
    """Means over the seeds, after every second epoch's share and after the last."""
    shown = range(2, EPOCHS + 1, 2)
    head = ["seeds", *(f"share after {20 * epoch} steps" for epoch in shown), "others", "fall of its loss", "drift"]
    head += ["length", "KiB", "s per step"]
    lines = [f"| | {' | '.join(head)} |", f"| --- |{' ---: |' * len(head)}"]
    for way in WAYS:
        records = list(RUNS.read(way, seeds))
        if not records:
            continue
        rows = [one["rows"] for one in records]
        values = [mean(row[epoch]["concept_share"] for row in rows) for epoch in shown]
        values += [mean(row[-1]["leak_share"] for row in rows)]
        values += [mean(1 - row[-1]["concept_loss"] / row[0]["concept_loss"] for row in rows)]
        values += [mean(row[-1]["drift"] for row in rows), mean(row[-1].get("length", 0.0) for row in rows)]
        cells = [str(len(records)), *(f"{value:.2f}" for value in values)]
        cells += [f"{mean(one['bytes'] for one in records) / 1024:.0f}"]
        cells += [f"{mean(one['seconds per step'] for one in records):.2f}"]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(__doc__, RUNS, SEEDS, run_way=run_way, report=report)
