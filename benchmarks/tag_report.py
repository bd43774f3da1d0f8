"""How often the report on tags names a thief, an ignored tag and a bleeding pair that were planted, and nothing else.

    python benchmarks/tag_report.py run [--seeds 1 2 …]    train and measure the seeds that have no result yet
    python benchmarks/tag_report.py report                 print the table from the results
    python benchmarks/tag_report.py show --seeds 1         print the whole report of a seed
    python benchmarks/tag_report.py sheet --seeds 1 --out FILE.png    draw the dataset of a seed

Twenty images of the demo's creature with the tiny model's shapes. Their captions have the trigger and these tags:

- `red heart`, the *thief*: 14 images show a heart and have the tag, the others have neither, so the trigger alone has
  none: the navel case.
- `glossy`, which is *ignored*: in ten captions at random, nothing in the images goes with it.
- `tree` and `holiday`, the *bleeding pair*: eight images are yellow and have the tag `holiday`, a word that the model
  does not know; seven of them show a tree and have that tag, and no others do.
- `striped` (7) and `pink background` (5), which are learnt and do no harm.

Which images have which depends on the seed, with little correlation between any others than the pair. Training is
short: 150 steps of 4 images. Each seed has a separate process; what was measured is one JSON per seed in
`tag_report_runs/`, so that the rules can be counted again after a change. `shown` in it is what the images show by
their colours, which the report does not know: the share of those with a heart, and of yellow ones.

Seeds from 100 on were looked at while the rules were chosen, those below only to count.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

import numpy as np
from PIL import Image
from tiny_sd.mascot import draw_mascot
from tiny_sd.scenes import COLOURS, Thing, draw_backdrop, draw_shape

from benchmarks.advisor_concepts import drawings
from benchmarks.seed_runs import NOTHING_DRAWN, SeedRuns, run_command, train_logged
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.control import Control
from lib_lora_train.core.generators import result_of
from lib_lora_train.evaluation.tag_report import RatedTag, rate_tags
from lib_lora_train.runs.demo.demo import demo_config
from lib_lora_train.runs.images.tag_images import SEEDS
from lib_lora_train.runs.measures.tag_list import TagList, tag_from_record
from lib_lora_train.runs.measures.tag_report import measure_tags
from lib_lora_train.runs.records.folder import RunFolder

RUNS = SeedRuns(Path(__file__), Path(__file__).parent / "tag_report_runs")
COUNTED = tuple(range(1, 11))
IMAGES, REPEATS, BATCH, SAMPLE_STEPS = 20, 30, 4, 6
TRIGGER, THIEF, IGNORED, THING, SETTING = "zorp", "red heart", "glossy", "tree", "holiday"
STRIPED, PINK = "striped", "pink background"
PAIR = frozenset({THING, SETTING})
MAX_CORRELATION = 0.34  # between tags that have nothing to do with each other


# --- the dataset -----------------------------------------------------------------------------------


def assign_tags(rng: random.Random) -> dict[str, set[int]]:
    """The images of each tag."""
    while True:
        everything = range(IMAGES)
        thing = set(rng.sample(everything, 7))
        setting = thing | set(rng.sample([n for n in everything if n not in thing], 1))
        tags = {
            THIEF: set(rng.sample(everything, 14)),
            IGNORED: set(rng.sample(everything, 10)),
            STRIPED: set(rng.sample(everything, 7)),
            THING: thing,
            SETTING: setting,
            PINK: set(rng.sample([n for n in everything if n not in setting], 5)),
        }
        bound = {THING, SETTING, PINK}  # an image is yellow, pink or white
        pairs = [pair for pair in combinations(tags, 2) if not set(pair) <= bound]
        if all(abs(_correlation(tags[one], tags[other])) < MAX_CORRELATION for one, other in pairs):
            return tags


def _correlation(first: Set[int], second: Set[int]) -> float:
    one, other = len(first) / IMAGES, len(second) / IMAGES
    both = len(first & second) / IMAGES
    return float((both - one * other) / np.sqrt(one * (1 - one) * other * (1 - other)))


def dataset_pairs(seed: int) -> list[tuple[Image.Image, str]]:
    """The images with their captions."""
    rng = random.Random(f"tags {seed}")
    tags, pairs = assign_tags(rng), []
    for number in range(IMAGES):
        own = [tag for tag in tags if number in tags[tag]]
        image = _draw(own, rng)
        rng.shuffle(own)
        pairs.append((image, ", ".join([TRIGGER, *own])))
    return pairs


def _draw(tags: Sequence[str], rng: random.Random) -> Image.Image:
    """The creature on the left, and what the tags name."""
    background = "yellow" if SETTING in tags else "pink" if PINK in tags else "white"
    image = draw_backdrop(COLOURS[background], "striped" if STRIPED in tags else None)
    creature = draw_mascot(64)
    if rng.random() < 0.5:
        creature = creature.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image.paste(creature, (rng.choice((0, 8)), rng.choice((56, 64))), creature)
    if THIEF in tags:
        heart = draw_shape("heart", COLOURS["red"], 48)
        image.paste(heart, (72, rng.choice((0, 8))), heart)
    if THING in tags:
        tree = drawings().draw(Thing("tree"), 48)
        image.paste(tree, (72, 72), tree)
    return image


def save_dataset(folder: Path, seed: int) -> None:
    """Write numbered images and captions into the new `folder`."""
    folder.mkdir(parents=True)
    for number, (image, caption) in enumerate(dataset_pairs(seed), 1):
        image.save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(caption + "\n", encoding="utf-8")


# --- one seed --------------------------------------------------------------------------------------


def run_config(folder: Path, seed: int) -> TrainConfig:
    """The demo's settings for a short run in which nothing is drawn; tags are shuffled, the trigger stays first."""
    return demo_config().replace(
        concepts=(Concept(folder=str(folder), trigger=TRIGGER),),
        output_name=f"seed-{seed}",
        seed=seed,
        epochs=1,
        batch_size=BATCH,
        shuffle_captions=True,
        keep_tokens=1,
        sample_steps=SAMPLE_STEPS,
        **NOTHING_DRAWN,
    )


def run_seed(seed: int) -> dict[str, Any]:
    """Train one seed and return what was measured."""
    with tempfile.TemporaryDirectory() as place:
        root, began = Path(place), time.process_time()
        save_dataset(root / "data" / f"{REPEATS}_zorp", seed)
        host, folder = train_logged(root, run_config(root / "data", seed))
        trained = time.process_time()
        tags = result_of(measure_tags(folder, host, Control()))
        seconds = {"train": round(trained - began, 1), "measure": round(time.process_time() - trained, 1)}
        return {
            "seed": seed,
            "seconds": seconds,
            "shown": _shown(folder, tags),
            "tags": [_rounded(asdict(one)) for one in tags.tags],
        }


def _shown(folder: RunFolder, tags: TagList) -> dict[str, dict[str, float]]:
    """The share of the images of each prompt that have a red heart, and of those that are yellow."""
    found = {}
    for prompt in (TRIGGER, *(one.prompt for one in tags.tags)):
        paths = [folder.tag_image(tags.lora, prompt, number) for number in range(1, SEEDS + 1)]
        images = [np.asarray(Image.open(path).convert("HSV")).astype(int) for path in paths]
        red = [_share(one[:64, 64:], 345, 375) >= 0.15 for one in images]
        yellow = [_share(one, 40, 60) >= 0.3 for one in images]
        found[prompt] = {"heart": float(np.mean(red)), "yellow": float(np.mean(yellow))}
    return found


def _share(hsv: Any, low: int, high: int) -> float:
    """The share of the vivid pixels with a hue from `low` to `high` degrees."""
    hue, vivid = hsv[..., 0] * (360 / 256), (hsv[..., 1] >= 150) & (hsv[..., 2] >= 100)
    return float((vivid & ((hue - low) % 360 <= high - low)).mean())


def _rounded(value: Any) -> Any:
    """The same JSON value with four digits of each number."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


# --- counting --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What was named in a seed: whether each of the three planted faults was, and whatever else."""

    seed: int
    thief: bool
    ignored: bool
    pair: bool
    others: tuple[str, ...]


def rate_seed(record: Mapping[str, Any]) -> Outcome:
    """What the report names of a seed's tags. The pair is named if either tag is said to bring the other."""
    rated = rate_tags([tag_from_record(one) for one in record["tags"]])
    named = set(_named(rated))
    pair = {("pulls", one, other) for one, other in ((THING, SETTING), (SETTING, THING))}
    planted = {("steals", THIEF, ""), ("ignored", IGNORED, ""), *pair}
    others = tuple(" ".join(filter(None, (tag, fault, other))) for fault, tag, other in sorted(named - planted))
    return Outcome(
        record["seed"],
        thief=("steals", THIEF, "") in named,
        ignored=("ignored", IGNORED, "") in named,
        pair=bool(pair & named),
        others=others,
    )


def _named(rated: Sequence[RatedTag]) -> Iterator[tuple[str, str, str]]:
    for one in rated:
        tag = one.measure.tag
        if one.steals:
            yield "steals", tag, ""
        if one.verdict == "ignored":
            yield "ignored", tag, ""
        yield from (("pulls", tag, other) for other in one.pulls)


def report(seeds: Sequence[int]) -> str:
    """The table as Markdown, and the counts below it."""
    records = list(RUNS.read(seeds))
    outcomes = [rate_seed(record) for record in records]
    lines = [
        "| seed | thief | ignored | pair | anything else | heart: alone, with | yellow: alone, tree, holiday |",
        "| --- | :---: | :---: | :---: | --- | --- | --- |",
    ]
    for record, one in zip(records, outcomes, strict=True):
        marks = " | ".join("yes" if value else "no" for value in (one.thief, one.ignored, one.pair))
        heart = ", ".join(f"{_prompt_shown(record, tag)['heart']:.2f}" for tag in ("", THIEF))
        yellow = ", ".join(f"{_prompt_shown(record, tag)['yellow']:.2f}" for tag in ("", THING, SETTING))
        lines.append(f"| {one.seed} | {marks} | {', '.join(one.others) or '–'} | {heart} | {yellow} |")
    total = len(outcomes)
    counts = {
        "Thief named": sum(one.thief for one in outcomes),
        "Ignored tag named": sum(one.ignored for one in outcomes),
        "Bleeding pair named": sum(one.pair for one in outcomes),
        "All three named": sum(one.thief and one.ignored and one.pair for one in outcomes),
        "Nothing else named": sum(not one.others for one in outcomes),
    }
    return "\n".join([*lines, "", *(f"{name}: {number} of {total}." for name, number in counts.items())])


def _prompt_shown(record: Mapping[str, Any], tag: str) -> Mapping[str, float]:
    shown: Mapping[str, float] = record["shown"][", ".join(filter(None, (TRIGGER, tag)))]
    return shown


def show(seed: int) -> str:
    """The whole report of a seed."""
    record = next(RUNS.read([seed]))
    return "\n".join(
        f"{one.measure.images:3} {one.measure.tag:18}{one.sentence} {one.advice}"
        for one in rate_tags([tag_from_record(one) for one in record["tags"]])
    )


def draw_sheet(seed: int, path: Path) -> None:
    """Draw all images of a seed's dataset into one file."""
    sheet = Image.new("RGB", (5 * 132, 4 * 132), "white")
    for number, (image, _) in enumerate(dataset_pairs(seed)):
        sheet.paste(image, (number % 5 * 132, number // 5 * 132))
    sheet.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "one", "report", "show", "sheet"))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(COUNTED))
    parser.add_argument("--out", type=Path, default=Path("tags.png"))
    options = parser.parse_args()
    if options.command == "sheet":
        draw_sheet(options.seeds[0], options.out)
        return
    run_command(options, RUNS, run_seed=run_seed, show=show, report=report)


if __name__ == "__main__":
    main()
