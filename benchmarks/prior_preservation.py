"""What keeps the tiny model's other things best while it learns the demo's creature: images, or its own answers?

    python benchmarks/prior_preservation.py run [--seeds 1 2 …] [--ways none class …]   train what has no result yet
    python benchmarks/prior_preservation.py report [--seeds 1 2 …]                      print the tables

Every way trains the same concept images equally often, with the demo's settings: 100 batches of 8, or with
regularisation images 200, half of which are of these. The class word is `dog`, which the tiny model knows. `images` are
the demo's, of all kinds of things; `drawn images` are those of the command `regularise --prompts captions`; `prompts`
lists the captions of `images`, without the images. The two masked ways train on drawings of the same creature, whose
masks are exact.

Measured after every fifth of a run: the held-out loss on the concept, the drift of the held-out images of other things
(`drift`), and that of three groups of prompts: the class, other animals, and things. A drift of 1 is what leaving out
the prompt changes. After the last: the share of 32 images of new prompts and seeds that show the concept, and of 6 of
other things.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from statistics import mean, median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

from PIL import Image, ImageChops
from tiny_sd.classifier import background_of
from tiny_sd.mascot import caption_mascot_scene, draw_mascot_scene, render_mascot_scene

from benchmarks.advisor_concepts import BACKGROUNDS, COMPANION_EVERY, drawings
from benchmarks.seed_runs import NOTHING_DRAWN
from benchmarks.way_runs import WayRuns, run_command
from lib_lora_train.adapters.inject import Adapter
from lib_lora_train.config.sample_prompts import SamplePrompt
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.control import Control
from lib_lora_train.core.events import StepDone
from lib_lora_train.core.generators import result_of
from lib_lora_train.core.measures import BLEED, DRIFT
from lib_lora_train.dataset.planner import make_plan
from lib_lora_train.dataset.scan import read_dataset
from lib_lora_train.evaluation.prompt_effect import PromptEffect, TriggerPrompt
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.runs.demo.demo import DEMO_SET, DemoEvaluator, demo_config
from lib_lora_train.runs.images.regularisation_images import draw_regularisation_images, wanted_images
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.trainer import run_training
from lib_lora_train.sampling.sample import sample_images

SEEDS = (1, 2, 3)
CLASS, EPOCHS, MASKED_IMAGES = "dog", 5, 16
FINAL_SEEDS = tuple(range(1, 9))
GROUPS: Mapping[str, tuple[str, ...]] = {
    "class": ("dog, blue background", "dog, small, yellow background", "dog and an apple, green background"),
    "animals": ("fox, blue background", "cat on a yellow background", "frog, small, red background"),
    "things": (
        "rocket on a yellow background",
        "red star on a white background",
        "a green circle on a purple background",
        "a house on a pink background",
    ),
}
BACKGROUND_PROMPTS = tuple(f"zorp, {colour} background" for colour in ("red", "blue", "gray", "black"))
BACKGROUND_SEEDS = (11, 12, 13, 14)
NEIGHBOURS = tuple(path.read_text(encoding="utf-8").strip() for path in sorted((DEMO_SET / "reg").rglob("*.txt")))
WAYS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "images": {},
    "drawn images": {},
    "class": {"prior_preservation": "class"},
    "empty": {"prior_preservation": "empty"},
    "prompts": {"prior_preservation": "prompts", "prior_preservation_prompts": NEIGHBOURS},
    "mask": {},
    "mask and prior": {"masked_prior_preservation_weight": 1.0},
}
RUNS = WayRuns(Path(__file__), Path(__file__).parent / "prior_preservation_runs", list(WAYS))


def way_config(way: str, seed: int, folder: Path) -> TrainConfig:
    """The demo's settings; nothing is drawn but what the benchmark measures."""
    is_masked, is_drawn = way.startswith("mask"), way == "drawn images"
    concept = Concept(folder=str(DEMO_SET / "train"), trigger="zorp", class_word=CLASS)
    if is_masked:
        save_masked_concept(folder / "10_zorp", seed)
        concept = Concept(folder=str(folder), trigger="zorp", class_word=CLASS, use_masks=True)
    others = [demo_config().concepts[1]] if way == "images" else []
    if is_drawn:
        drawn = draw_class(demo_config().replace(concepts=(concept,)), folder)
        others = [Concept(folder=str(drawn), is_regularisation=True)]
    return demo_config().replace(
        concepts=(concept, *others),
        output_name="prior",
        seed=seed,
        epochs=EPOCHS,
        **NOTHING_DRAWN,
        **WAYS[way],
    )


def draw_class(config: TrainConfig, folder: Path) -> Path:
    """The folder of the images that the command `regularise` draws for the captions, two for each image."""
    wanted = wanted_images(make_plan(read_dataset(config), config), config, prompts="captions", per_image=2)
    host = StandaloneHost(None, None, folder / "lora", "cpu")
    work = draw_regularisation_images(
        wanted, config, host, folder=folder / "drawn", prompts="captions", control=Control()
    )
    return result_of(work).folders[0]


def save_masked_concept(folder: Path, seed: int) -> None:
    """Write `MASKED_IMAGES` drawings of the demo's creature with captions and masks into the new `folder`."""
    folder.mkdir(parents=True)
    rng = random.Random(f"masked {seed}")
    for number in range(MASKED_IMAGES):
        background = BACKGROUNDS[number % len(BACKGROUNDS)]
        scene = draw_mascot_scene(rng, background, with_companion=number % COMPANION_EVERY == COMPANION_EVERY - 1)
        image = render_mascot_scene(scene, drawings())
        without = render_mascot_scene(scene, drawings(), lambda side: Image.new("RGBA", (side, side)))
        mask = ImageChops.difference(image, without).convert("L").point(lambda value: 255 if value else 0)
        image.save(folder / f"{number:02}.png")
        mask.save(folder / f"{number:02}-mask.png")
        (folder / f"{number:02}.txt").write_text(caption_mascot_scene(scene) + "\n", encoding="utf-8")


class Measurement:
    """Measures an epoch; the first call must be without LoRA."""

    def __init__(self, config: TrainConfig) -> None:
        self.rows: list[dict[str, float]] = []
        self._config = config
        self._demo = DemoEvaluator(config)
        trigger = [TriggerPrompt("zorp, blue background", "zorp", CLASS)]
        self._groups = {
            name: PromptEffect(trigger if name == "class" else [], prompts, size=(128, 128), clip_skip=config.clip_skip)
            for name, prompts in GROUPS.items()
        }

    def measure(self, model: DiffusionModel, adapter: Adapter) -> dict[str, float]:
        """The demo's values, the drift of each group of prompts, and what the last epoch draws."""
        is_last = len(self.rows) == self._config.epochs
        self._demo.concept_seeds = FINAL_SEEDS if is_last else ()
        row = dict(self._demo.measure(model, adapter))
        for name, effect in self._groups.items():
            if not effect.is_prepared:
                effect.prepare(model, lambda: None)
            found = effect.measure(model, lambda: None)
            row[f"drift of {name}"] = found[DRIFT]
            row |= {BLEED: found[BLEED]} if BLEED in found else {}
        if is_last and self._config.concepts[0].use_masks:
            row["background"] = self._background_share(model)
        self.rows.append(row)
        return {}

    def _background_share(self, model: DiffusionModel) -> float:
        """The share of images of the concept that have the background of their prompt."""
        side, steps, cfg = self._config.resolution, self._config.sample_steps, self._config.sample_cfg
        samples = [
            SamplePrompt(text, "", side, side, seed, steps, cfg)
            for text in BACKGROUND_PROMPTS
            for seed in BACKGROUND_SEEDS
        ]
        images = sample_images(model, samples, sampler=self._config.sample_sampler, clip_skip=self._config.clip_skip)
        pairs = zip(images, samples, strict=True)
        return mean(f"{background_of(image)} background" in sample.prompt for image, sample in pairs)


def run_way(way: str, seed: int) -> dict[str, Any]:
    """Train, and return what was measured."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        config = way_config(way, seed, root / "data")
        measurement, seconds = Measurement(config), list[float]()
        (root / "run").mkdir()
        host = StandaloneHost(None, None, root / "lora", "cpu")
        run = run_training(config, host, folder=RunFolder(root / "run"), control=Control(), measure=measurement.measure)
        for event in run:
            if isinstance(event, StepDone):
                seconds.append(event.seconds)
        rows = [{name: round(value, 5) for name, value in row.items()} for row in measurement.rows]
        return {"seed": seed, "way": way, "seconds per step": round(median(seconds), 2), "rows": rows}


# --- the tables ------------------------------------------------------------------------------------

DRIFTS = ("drift", *(f"drift of {name}" for name in GROUPS))


def fall(rows: Sequence[Mapping[str, float]], epoch: int) -> float:
    """By how much the held-out loss on the concept has fallen after an epoch."""
    return 1 - rows[epoch]["concept_loss"] / rows[0]["concept_loss"]


def drift_at_fall(rows: Sequence[Mapping[str, float]], name: str, wanted: float) -> float:
    """A drift where the concept loss had fallen by `wanted`, on straight lines between epochs; NaN if it never did."""
    for epoch in range(1, len(rows)):
        before, after = fall(rows, epoch - 1), fall(rows, epoch)
        if before < wanted <= after:
            part = (wanted - before) / (after - before)
            return rows[epoch - 1][name] + part * (rows[epoch][name] - rows[epoch - 1][name])
    return float("nan")


def report(seeds: Sequence[int]) -> str:
    """Means over the seeds: after the last epoch, and where all had learnt as much."""
    found = {way: list(RUNS.read(way, seeds)) for way in WAYS}
    found = {way: records for way, records in found.items() if records}
    lines = ["After the last epoch, means over the seeds:", ""]
    columns = ("concept_share", "leak_share", "fall", "base_loss", *DRIFTS, BLEED, "background")
    lines += [f"| | seeds | {' | '.join(columns)} |", f"| --- |{' ---: |' * (len(columns) + 1)}"]
    for way, records in found.items():
        last = [{**one["rows"][-1], "fall": fall(one["rows"], -1)} for one in records]
        cells = [mean(row.get(name, float("nan")) for row in last) for name in columns]
        lines.append(f"| {way} | {len(records)} | {' | '.join('–' if isnan(x) else f'{x:.3f}' for x in cells)} |")
    for ways in (list(WAYS)[:6], list(WAYS)[6:]):
        records = [one for way in ways for one in found.get(way, [])]
        if not records:
            continue
        wanted = min(max(fall(one["rows"], epoch) for epoch in range(len(one["rows"]))) for one in records)
        wanted = int(100 * wanted) / 100
        lines += ["", f"Where the held-out concept loss had fallen by {wanted:.0%}, mean (lowest to highest):", ""]
        lines += [f"| | {' | '.join(DRIFTS)} |", f"| --- |{' ---: |' * len(DRIFTS)}"]
        for way in ways:
            cells = []
            for name in DRIFTS:
                values = [drift_at_fall(one["rows"], name, wanted) for one in found.get(way, [])]
                cells.append(f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})" if values else "–")
            lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(__doc__, RUNS, SEEDS, run_way=run_way, report=report)
