"""How often the measure *copies* finds the samples that really are copies of a training image, and no others.

    python benchmarks/copies.py run [--runs copy-1 many-2 …]    train and measure the runs that have no result yet
    python benchmarks/copies.py measure --runs copy-1 …          measure the kept samples of these runs once more
    python benchmarks/copies.py report                           print the tables from the results
    python benchmarks/copies.py sheet --runs copy-1 --out FILE.png --files DIR    the samples of kept files

Six runs learn one or two images for long (`copy-1` to `copy-6`), six learn 24 images (`many-1` to `many-6`), all as a
LoCon of rank 32 at the demo's rates. An image has the concept near the middle and a shape in a corner; the caption
mentions neither the shape nor where the concept is, so that only a copy has both. Without LoRA and after each of two
epochs, six samples are drawn: with the captions of two training images, with the trigger alone, and with scenes that no
image shows.

What really is a copy is decided by pixels alone (`changed_shares`), at full size, which the measure does not see. Each
run has a separate process, and its images stay in `--files`; what was measured is one JSON per run in `copies_runs/`,
so that the rule can be counted again after a change.

Runs from 100 on were looked at while the rule was chosen, those below only to count.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

import numpy as np
from PIL import Image
from tiny_sd.scenes import COLOURS, LATENT_PX, SHAPES, SIZE_PX, draw_backdrop, draw_shape

from benchmarks.advisor_concepts import BACKGROUNDS, CONCEPTS
from lib_lora_train.config.train_config import Concept, TrainConfig, read_config
from lib_lora_train.core.control import Control
from lib_lora_train.evaluation.features import image_features, similarity
from lib_lora_train.evaluation.sample_scale import CopyRule, Look, copy_rule, make_look, pixel_similarity
from lib_lora_train.formats.toml import read_toml_config
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.runs.demo.demo import demo_config
from lib_lora_train.runs.records.event_log import log_events
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.trainer import run_training

RESULTS = Path(__file__).parent / "copies_runs"
FILES = Path(tempfile.gettempdir()) / "copies-runs"
COPYING, MANY = "copy", "many"
COUNTED = tuple(f"{kind}-{number}" for kind, number in product((COPYING, MANY), range(1, 7)))
EPOCHS, SAMPLE_STEPS = 2, 8
CHANGED = 80  # of 255: a pixel of which a channel differs by more is another one
SHAPE_PX, SHIFT_PX = 32, 4
IS_COPY, IS_OTHER = 0.27, 0.3  # changed shares: of all pixels in a copy at most, of objects in another image at least


# --- the dataset -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Design:
    """One run: `copy-3` or `many-3`."""

    name: str

    @property
    def number(self) -> int:
        """What the run is drawn from at random."""
        return int(self.name.partition("-")[2])

    @property
    def is_copying(self) -> bool:
        """Whether it learns one or two images for long."""
        return self.name.startswith(COPYING)

    @property
    def images(self) -> int:
        """How many images it learns."""
        return 1 + self.number % 2 if self.is_copying else 24

    @property
    def batch(self) -> int:
        """The batch size: many images take longer to learn than to copy one."""
        return 4 if self.is_copying else 8

    @property
    def epoch_steps(self) -> int:
        """The steps of one of its epochs."""
        return 70 if self.is_copying else 60

    @property
    def trigger(self) -> str:
        """The concept, in turn."""
        return list(CONCEPTS)[self.number % len(CONCEPTS)]


def dataset_pairs(design: Design) -> list[tuple[Image.Image, str]]:
    """The images with their captions."""
    rng = random.Random(f"copies {design.name}")
    return [_draw(design.trigger, rng) for _ in range(design.images)]


def _draw(trigger: str, rng: random.Random) -> tuple[Image.Image, str]:
    """The concept near the middle, and a shape in a corner that the caption does not mention."""
    background = rng.choice(BACKGROUNDS)
    image, side = draw_backdrop(COLOURS[background], None), rng.choice((64, 72, 80))
    shape = draw_shape(
        rng.choice(SHAPES), COLOURS[rng.choice([name for name in COLOURS if name != background])], SHAPE_PX
    )
    corner = (rng.choice((0, SIZE_PX - SHAPE_PX)), rng.choice((0, SIZE_PX - SHAPE_PX)))
    image.paste(shape, corner, shape)
    middle = (SIZE_PX - side) // 2
    thing, place = CONCEPTS[trigger].draw(side), [middle + LATENT_PX * rng.randint(-2, 2) for _ in range(2)]
    image.paste(thing, (place[0], place[1]), thing)
    return image, f"{trigger}, {background} background"


def save_dataset(folder: Path, design: Design) -> list[str]:
    """Write numbered images and captions into the new `folder`; the captions."""
    folder.mkdir(parents=True)
    captions = []
    for number, (image, caption) in enumerate(dataset_pairs(design), 1):
        image.save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(caption + "\n", encoding="utf-8")
        captions.append(caption)
    return captions


# --- one run ---------------------------------------------------------------------------------------


def run_config(design: Design, data: Path, captions: Sequence[str]) -> TrainConfig:
    """The demo's settings for a LoCon; only the images differ between the two kinds of run."""
    trigger = design.trigger
    prompts = (
        captions[0],
        captions[-1],
        trigger,
        f"{trigger}, gray background",
        f"{trigger} and an apple, blue background",
    )
    return demo_config().replace(
        concepts=(Concept(folder=str(data), trigger=trigger),),
        output_name=design.name,
        seed=design.number,
        epochs=EPOCHS,
        batch_size=design.batch,
        targets="all",
        rank=32,
        sample_prompts=tuple(f"{prompt} --d {number}" for number, prompt in enumerate((*prompts, trigger), 1)),
        sample_steps=SAMPLE_STEPS,
        sample_every_n_epochs=1,
        make_grid=False,
        measure_steady_loss=False,
        measure_prompts=False,
        test_strengths=False,
        save_state=False,
        cache_to_disk=False,
    )


def run_one(design: Design, files: Path) -> dict[str, Any]:
    """Train, and return what was measured; the run's files are in `files`, which is emptied first."""
    shutil.rmtree(files, ignore_errors=True)
    began, repeats = time.process_time(), round(design.epoch_steps * design.batch / design.images)
    captions = save_dataset(files / "data" / f"{repeats}_x", design)
    config, host = run_config(design, files / "data", captions), StandaloneHost(None, None, files / "lora", "cpu")
    folder = RunFolder(files / "run")
    folder.root.mkdir()
    for _ in log_events(run_training(config, host, folder=folder, control=Control()), folder.log):
        pass
    seconds = round(time.process_time() - began)
    return measure_kept(design, files) | {"seconds": seconds}


def measure_kept(design: Design, files: Path) -> dict[str, Any]:
    """What can be measured of a run's samples, which are in `files`."""
    folder = RunFolder(files / "run")
    config, _ = read_config(read_toml_config(folder.config, is_ours=True))
    host = StandaloneHost(None, None, files / "lora", "cpu")
    training = [image for image, _ in dataset_pairs(design)]
    samples = {path.stem: _read(path) for path in sorted(folder.samples.glob("epoch-*.png"))}
    return _measured(design, host, config, training, samples)


def _read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _make_looks(host: StandaloneHost, config: TrainConfig, images: Sequence[Image.Image]) -> list[Look]:
    model = host.load_model(config)
    return [make_look(*pair) for pair in zip(images, image_features(model, images, side=128), strict=True)]


def _measured(
    design: Design,
    host: StandaloneHost,
    config: TrainConfig,
    training: Sequence[Image.Image],
    samples: Mapping[str, Image.Image],
) -> dict[str, Any]:
    """Features, pixels and changed shares of each pair of training images, and of each sample with each of them."""
    looks, drawn = _make_looks(host, config, training), _make_looks(host, config, list(samples.values()))

    def compared(one: Look, image: Image.Image, number: int) -> list[float]:
        other = looks[number]
        values = similarity(one.features, other.features), pixel_similarity(one.thumbnail, other.thumbnail)
        return [round(value, 4) for value in (*values, *changed_shares(image, training[number]))]

    return {
        "name": design.name,
        "images": design.images,
        "pairs": [compared(looks[a], training[a], b) for a, b in combinations(range(len(training)), 2)],
        "samples": {
            stem: [compared(look, samples[stem], number) for number in range(len(training))]
            for stem, look in zip(samples, drawn, strict=True)
        },
    }


def changed_shares(first: Image.Image, second: Image.Image) -> tuple[float, float]:
    """How many pixels of two images differ, as a share of those that stand out in either of them, at most 1.

    Of all pixels, and of those that stand out, which a copy on another background does not change. One image is moved
    by up to `SHIFT_PX` so that it is least. What stands out differs from the colour of the border.
    """
    one, other = (np.asarray(image.convert("RGB"), dtype=np.int16) for image in (first, second))
    inner = slice(SHIFT_PX, -SHIFT_PX)
    part, mine, theirs = one[inner, inner], _standing_out(one)[inner, inner], _standing_out(other)
    height, width = part.shape[:2]
    steps = range(2 * SHIFT_PX + 1)
    whole, objects = 1.0, 1.0
    for y, x in product(steps, steps):
        place = (slice(y, y + height), slice(x, x + width))
        differs, stands_out = np.abs(part - other[place]).max(2) > CHANGED, mine | theirs[place]
        number = max(1, int(stands_out.sum()))
        whole = min(whole, int(differs.sum()) / number)
        objects = min(objects, int((differs & stands_out).sum()) / number)
    return whole, objects


def _standing_out(image: Any) -> Any:
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    return np.abs(image - np.median(border, axis=0)).max(2) > CHANGED


def run_missing(names: Sequence[str]) -> None:
    """Train each run without a result, each in a separate process."""
    for name in names:
        if not _result(name).exists():
            code = subprocess.run([sys.executable, __file__, "one", "--runs", name], env=dict(os.environ)).returncode
            print(f"{name}: {'failed' if code else 'done'}", flush=True)


def write_result(name: str, record: Mapping[str, Any]) -> None:
    """Write the result of a run, completely or not at all."""
    RESULTS.mkdir(exist_ok=True)
    partial = _result(name).with_suffix(".part")
    partial.write_text(json.dumps(record) + "\n", encoding="utf-8")
    partial.replace(_result(name))


def _result(name: str) -> Path:
    return RESULTS / f"{name}.json"


def read_results(names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The results that exist."""
    for name in names:
        if _result(name).exists():
            yield json.loads(_result(name).read_text(encoding="utf-8"))


# --- counting --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """Of samples that really are copies and of those that are none: how many there are, and how many were called so.

    `unclear`: those that were not counted.
    """

    copies: int
    found: int
    others: int
    alarms: int
    unclear: int

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def count_epoch(record: Mapping[str, Any], epoch: int, rule: CopyRule | None = None) -> Counts:
    """The counts of the samples of one epoch, with the measure's own rule or another one."""
    rule = rule or copy_rule([(features, pixels) for features, pixels, *_ in record["pairs"]])
    samples = [alike for stem, alike in record["samples"].items() if stem.startswith(f"epoch-{epoch:06}")]
    called = [any(rule.is_copy(features, pixels) for features, pixels, *_ in alike) for alike in samples]
    whole = [min(one[2] for one in alike) for alike in samples]
    objects = [min(one[3] for one in alike) for alike in samples]
    copies = [found for found, share in zip(called, whole, strict=True) if share <= IS_COPY]
    others = [found for found, share in zip(called, objects, strict=True) if share >= IS_OTHER]
    return Counts(len(copies), sum(copies), len(others), sum(others), len(samples) - len(copies) - len(others))


def count_run(record: Mapping[str, Any], rule: CopyRule | None = None) -> Counts:
    """The counts of all epochs of a run, those without LoRA too."""
    return sum((count_epoch(record, epoch, rule) for epoch in range(EPOCHS + 1)), Counts(0, 0, 0, 0, 0))


def nearest_pair_rule(record: Mapping[str, Any]) -> CopyRule:
    """For comparison: without fixed bounds, a copy is nearer than any two training images are to each other."""
    pairs = record["pairs"] or [(0.9, 0.9)]
    return CopyRule(max(features for features, *_ in pairs), max(pixels for _, pixels, *_ in pairs))


def report(names: Sequence[str]) -> str:
    """The table as Markdown, and the counts below it."""
    lines = [
        "| run | images | copies found | false alarms | unclear | copies after each epoch |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    records = list(read_results(names))
    for record in records:
        one = count_run(record)
        epochs = ", ".join(str(count_epoch(record, epoch).copies) for epoch in range(1, EPOCHS + 1))
        found, alarms = f"{one.found} of {one.copies}" if one.copies else "–", f"{one.alarms} of {one.others}"
        lines.append(f"| {record['name']} | {record['images']} | {found} | {alarms} | {one.unclear} | {epochs} |")
    for kind, title in ((COPYING, "Runs on one or two images"), (MANY, "Runs on 24 images")):
        mine = [record for record in records if record["name"].startswith(kind)]
        total = sum(map(count_run, mine), Counts(0, 0, 0, 0, 0))
        before = sum((count_run(record, nearest_pair_rule(record)) for record in mine), Counts(0, 0, 0, 0, 0))
        lines += [
            "",
            f"{title}: {total.found} of {total.copies} copies found, {total.alarms} false alarms in {total.others} "
            f"samples that are none; {total.unclear} unclear. Without fixed bounds: {before.found} found, "
            f"{before.alarms} false alarms.",
        ]
    return "\n".join(lines)


def draw_sheet(name: str, files: Path, path: Path) -> None:
    """Draw the training images of a run, up to eight, and below them its samples, a row for each epoch."""
    training = [image for image, _ in dataset_pairs(Design(name))][:8]
    samples = [_read(file) for file in sorted((files / name / "run" / "samples").glob("epoch-*.png"))]
    sheet = Image.new("RGB", (8 * 132, (2 + EPOCHS) * 132), "white")
    for place, image in enumerate(training):
        sheet.paste(image, (place * 132, 0))
    for place, image in enumerate(samples):
        sheet.paste(image, (place % 6 * 132, (1 + place // 6) * 132))
    sheet.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "one", "measure", "report", "sheet"))
    parser.add_argument("--runs", nargs="+", default=list(COUNTED))
    parser.add_argument("--files", type=Path, default=FILES)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.command == "run":
        run_missing(options.runs)
    elif options.command == "one":
        write_result(options.runs[0], run_one(Design(options.runs[0]), options.files / options.runs[0]))
    elif options.command == "measure":
        for name in options.runs:
            write_result(name, next(read_results([name]), {}) | measure_kept(Design(name), options.files / name))
    elif options.command == "report":
        print(report(options.runs))
    elif options.command == "sheet":
        draw_sheet(options.runs[0], options.files, options.out)


if __name__ == "__main__":
    main()
