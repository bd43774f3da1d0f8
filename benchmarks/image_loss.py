"""How often the images that were planted in the demo's dataset are the first three of *Images by loss*.

    python benchmarks/image_loss.py run [--seeds 1 2 …]    train the seeds that have no result yet
    python benchmarks/image_loss.py report                 print the table from the results

For each seed three images of the demo's sixteen change: a *poisoned* one (one of the tiny model's own things, with the
caption of the concept) and a *duplicate* (one of the images saved again as JPEG) are added, and one gets a *wrong
caption* (another thing, on another background). Which ones depends on the seed, and so does the training, which is a
short one: an epoch of 90 steps of 4 images. Each seed has a separate process; what was measured of every image is one
JSON per seed in `image_loss_runs/`, so that the rating can be counted again after a change.

Seeds from 100 on were looked at while the rating was chosen, those below only to count.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

from PIL import Image
from tiny_sd.emoji import NOUNS
from tiny_sd.scenes import COLOURS, LATENT_PX, SIZE_PX, Thing, draw_backdrop

from benchmarks.advisor_concepts import BACKGROUNDS, drawings
from benchmarks.seed_runs import NOTHING_DRAWN, SeedRuns, run_command, train_logged
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.control import Control
from lib_lora_train.core.generators import result_of
from lib_lora_train.evaluation.image_excess import STANDS_OUT, ImageLoss, describe_image, rate_images
from lib_lora_train.runs.demo.demo import DEMO_SET, demo_config
from lib_lora_train.runs.measures.image_list import image_from_record
from lib_lora_train.runs.measures.image_losses import measure_past_run

RUNS = SeedRuns(Path(__file__), Path(__file__).parent / "image_loss_runs")
COUNTED = tuple(range(1, 11))
BATCH = 4
POISONED, WRONG_CAPTION, DUPLICATE = "poisoned", "wrong caption", "duplicate"
KINDS = (POISONED, WRONG_CAPTION, DUPLICATE)


# --- planting --------------------------------------------------------------------------------------


def save_dataset(folder: Path, seed: int) -> dict[str, list[str]]:
    """Write the demo's images with the planted ones into the new `folder`; the file names of each kind.

    Of a duplicate, both files count: either may be left out.
    """
    rng = random.Random(f"image loss {seed}")
    shutil.copytree(next((DEMO_SET / "train").iterdir()), folder)
    wrong, twice = rng.sample(sorted(path.stem for path in folder.glob("*.png")), 2)
    image, caption = _draw_poisoned(rng)
    image.save(folder / "17.png")
    (folder / "17.txt").write_text(caption, encoding="utf-8")
    own = folder / f"{wrong}.txt"
    other = rng.choice([name for name in BACKGROUNDS if name not in own.read_text(encoding="utf-8")])
    own.write_text(f"{rng.choice(list(NOUNS))}, {other} background", encoding="utf-8")
    with Image.open(folder / f"{twice}.png") as original:
        original.convert("RGB").save(folder / "18.jpg", quality=85)
    shutil.copy(folder / f"{twice}.txt", folder / "18.txt")
    return {POISONED: ["17.png"], WRONG_CAPTION: [f"{wrong}.png"], DUPLICATE: [f"{twice}.png", "18.jpg"]}


def _draw_poisoned(rng: random.Random) -> tuple[Image.Image, str]:
    """One of the tiny model's things somewhere on a background, with the concept's caption for that background."""
    noun, background, side = rng.choice(list(NOUNS)), rng.choice(BACKGROUNDS), rng.choice((64, 80, 104))
    corner = [LATENT_PX * rng.randint(0, (SIZE_PX - side) // LATENT_PX) for _ in range(2)]
    image, thing = draw_backdrop(COLOURS[background], None), drawings().draw(Thing(noun), side)
    image.paste(thing, (corner[0], corner[1]), thing)
    return image, f"zorp, {background} background"


# --- one seed --------------------------------------------------------------------------------------


def run_config(folder: Path, seed: int) -> TrainConfig:
    """The demo's settings for a short run in which nothing is drawn."""
    demo = demo_config()
    return demo.replace(
        concepts=(Concept(folder=str(folder), trigger="zorp"), demo.concepts[1]),
        output_name=f"seed-{seed}",
        seed=seed,
        epochs=1,
        batch_size=BATCH,
        **NOTHING_DRAWN,
    )


def run_seed(seed: int) -> dict[str, Any]:
    """Train one seed and return what was measured, with image names in place of paths."""
    with tempfile.TemporaryDirectory() as place:
        root, began = Path(place), time.process_time()
        planted = save_dataset(root / "data" / "10_zorp", seed)
        host, folder = train_logged(root, run_config(root / "data", seed))
        trained = time.process_time()
        images = result_of(measure_past_run(folder, host, Control()))
        seconds = {"train": round(trained - began, 1), "measure": round(time.process_time() - trained, 1)}
        return {"seed": seed, "planted": planted, "seconds": seconds, "images": [_record(one) for one in images.images]}


def _record(image: ImageLoss) -> dict[str, Any]:
    """The image's values, with five digits of each loss."""
    values = asdict(image)
    nearest = [(Path(path).name, round(alike, 4)) for path, alike in image.nearest]
    losses = {
        name: [float(f"{loss:.5g}") for loss in value]
        for name, value in values.items()
        if isinstance(value, tuple) and name != "nearest"
    }
    return {**losses, "path": Path(image.path).name, "group": Path(image.group).name, "nearest": nearest}


# --- counting --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """A seed's planted images: their places in the list by kind, from 1, and the names of the first three.

    `marked` and `wrongly_marked`: how many of the planted and of the other images are marked as standing out.
    """

    seed: int
    places: Mapping[str, int]
    first: tuple[str, ...]
    marked: int
    wrongly_marked: int
    others: int

    @property
    def is_right(self) -> bool:
        """Whether the three are the first three."""
        return sorted(self.places.values()) == [1, 2, 3]


def judge(record: Mapping[str, Any]) -> Outcome:
    """Where the planted images of a seed are in the list; of a duplicate, the file that comes first."""
    rated = rate_images([image_from_record(one) for one in record["images"]])
    names = [one.image.path for one in rated]
    places = {kind: min(names.index(name) + 1 for name in of) for kind, of in record["planted"].items()}
    planted = {name for of in record["planted"].values() for name in of}
    marked = [one.image.path for one in rated if one.score >= STANDS_OUT]
    wrong = sum(name not in planted for name in marked)
    return Outcome(record["seed"], places, tuple(names[:3]), len(marked) - wrong, wrong, len(names) - len(planted))


def count_first_by_loss(records: Sequence[Mapping[str, Any]], *, lowest: bool) -> dict[str, int]:
    """For comparison: how often each kind is among the first three by the loss itself, or by how far it fell."""
    found = dict.fromkeys(KINDS, 0)
    for record in records:
        images = [image_from_record(one) for one in record["images"]]
        rated = {one.image.path: -one.fell if lowest else -one.image.loss for one in rate_images(images)}
        first = sorted(rated, key=lambda name: rated[name])[: len(KINDS)]
        for kind, names in record["planted"].items():
            found[kind] += any(name in first for name in names)
    return found


def report(seeds: Sequence[int]) -> str:
    """The table as Markdown, and the counts below it."""
    records = list(RUNS.read(seeds))
    outcomes = [judge(record) for record in records]
    lines = [f"| seed | {' | '.join(KINDS)} | first three |", f"| --- |{' ---: |' * len(KINDS)} --- |"]
    for one in outcomes:
        places = " | ".join(str(one.places[kind]) for kind in KINDS)
        lines.append(f"| {one.seed} | {places} | {'yes' if one.is_right else 'no: ' + ', '.join(one.first)} |")
    total = len(outcomes)
    lines += ["", f"All three first: {sum(one.is_right for one in outcomes)} of {total}."]
    for kind in KINDS:
        found = sum(one.places[kind] <= len(KINDS) for one in outcomes)
        lines.append(f"{kind.capitalize()} among the first three: {found} of {total}.")
    lines.append(
        f"Marked as standing out: {sum(one.marked for one in outcomes)} of {3 * total} planted images, "
        f"{sum(one.wrongly_marked for one in outcomes)} of {sum(one.others for one in outcomes)} others."
    )
    by_loss, by_fall = (count_first_by_loss(records, lowest=lowest) for lowest in (False, True))
    lines += ["", "For comparison, among the first three of other orders:", ""]
    lines += [f"| | {' | '.join(KINDS)} |", f"| --- |{' ---: |' * len(KINDS)}"]
    lines.append(f"| highest loss first | {' | '.join(str(by_loss[kind]) for kind in KINDS)} |")
    lines.append(f"| loss that fell most first | {' | '.join(str(by_fall[kind]) for kind in KINDS)} |")
    return "\n".join(lines)


def show(seed: int) -> str:
    """The whole list of a seed, with the reasons."""
    record = next(RUNS.read([seed]))
    kinds = {name: kind for kind, names in record["planted"].items() for name in names}
    rated = rate_images([image_from_record(one) for one in record["images"]])
    return "\n".join(
        f"{one.image.path:8}{kinds.get(one.image.path, ''):15}{one.score:6.1f}{one.excess:+7.0%}  {describe_image(one)}"
        for one in rated
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "one", "report", "show"))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(COUNTED))
    options = parser.parse_args()
    run_command(options, RUNS, run_seed=run_seed, show=show, report=report)


if __name__ == "__main__":
    main()
