"""Write ``assets/demo``: a mascot dataset in kohya's folder layout, drawn from seeds.

python tools/make_demo_set.py --icons node_modules/@iconify-json/fluent-emoji-flat/icons.json
"""

from __future__ import annotations

import argparse
import random
import shutil
from collections.abc import Iterable
from pathlib import Path

from PIL import Image
from tiny_sd.emoji import NOUNS, rasterise_emoji
from tiny_sd.mascot import (
    TRIGGER,
    caption_mascot_scene,
    draw_mascot_scene,
    render_mascot_scene,
)
from tiny_sd.scenes import (
    COLOURS,
    Drawings,
    caption_scene,
    draw_training_scene,
    render_scene,
)

TRAIN_COUNT, REGULARISATION_COUNT, HOLDOUT_COUNT = 16, 24, 8
TRAIN_BACKGROUNDS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
README = f"""# Demo dataset: the {TRIGGER}

A small LoRA dataset for trying the trainer on `assets/tiny-sd`. Every file is written by
`tools/make_demo_set.py` from fixed seeds.

| folder | images | what for |
|---|---|---|
| `train/10_{TRIGGER} mascot/` | {TRAIN_COUNT} | the concept, 10 repeats; trigger word `{TRIGGER}` |
| `reg/1_image/` | {REGULARISATION_COUNT} | regularisation: scenes the base model knows |
| `holdout/concept/` | {HOLDOUT_COUNT} | the mascot in other images, two backgrounds unseen in `train` |
| `holdout/base/` | {HOLDOUT_COUNT} | other scenes the base model knows |

All images are 128 x 128 PNG with a `.txt` caption. Held-out loss with fixed noise should
fall on `holdout/concept` and hardly rise on `holdout/base`.

The mascot is drawn by `tools/tiny_sd/mascot.py` and is part of this project. The other drawings
are [Fluent Emoji](https://github.com/microsoft/fluentui-emoji), copyright (c) Microsoft
Corporation, MIT licence.
"""


def save_pairs(folder: Path, pairs: Iterable[tuple[Image.Image, str]]) -> None:
    """Write numbered ``NN.png`` and ``NN.txt`` into ``folder``, replacing it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, (image, caption) in enumerate(pairs, 1):
        image.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).convert("RGB").save(
            folder / f"{number:02}.png", optimize=True
        )
        (folder / f"{number:02}.txt").write_text(caption + "\n", encoding="utf-8")


def mascot_pairs(
    backgrounds: list[str], drawings: Drawings, *, seed: int, companion_every: int
) -> list[tuple[Image.Image, str]]:
    """One mascot image with caption per background."""
    rng = random.Random(seed)
    pairs = []
    for number, background in enumerate(backgrounds, 1):
        accompanied = number % companion_every == 0
        scene = draw_mascot_scene(rng, background, with_companion=accompanied)
        pairs.append((render_mascot_scene(scene, drawings), caption_mascot_scene(scene)))
    return pairs


def base_pairs(count: int, drawings: Drawings, *, seed: int) -> list[tuple[Image.Image, str]]:
    """Scenes of the base model's own training distribution."""
    rng = random.Random(seed)
    kinds = ("single", "pair", "single", "count")
    scenes = [draw_training_scene(rng, kind=kinds[i % len(kinds)]) for i in range(count)]
    return [(render_scene(scene, drawings), caption_scene(scene, rng)) for scene in scenes]


def write_demo_set(folder: Path, drawings: Drawings) -> None:
    """Write the whole demo set below ``folder``."""
    train = [*TRAIN_BACKGROUNDS, *TRAIN_BACKGROUNDS][:TRAIN_COUNT]
    save_pairs(
        folder / "train" / f"10_{TRIGGER} mascot",
        mascot_pairs(train, drawings, seed=1, companion_every=5),
    )
    unseen = [name for name in COLOURS if name not in TRAIN_BACKGROUNDS]
    holdout = [*unseen, *unseen, "blue", "red", "yellow", "green"][:HOLDOUT_COUNT]
    save_pairs(
        folder / "holdout" / "concept",
        mascot_pairs(holdout, drawings, seed=2, companion_every=4),
    )
    save_pairs(folder / "reg" / "1_image", base_pairs(REGULARISATION_COUNT, drawings, seed=100_003))
    save_pairs(folder / "holdout" / "base", base_pairs(HOLDOUT_COUNT, drawings, seed=100_004))
    (folder / "README.md").write_text(README, encoding="utf-8")


def main() -> None:
    """Read the arguments and write the demo set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--icons", type=Path, required=True, help="icons.json of the npm package")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "assets" / "demo")
    arguments = parser.parse_args()
    arrays = rasterise_emoji(arguments.icons)
    images = {name: Image.fromarray(arrays[name]) for name in NOUNS.values()}
    write_demo_set(arguments.out, Drawings(images))


if __name__ == "__main__":
    main()
