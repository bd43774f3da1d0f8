"""The drawings: Fluent emoji (MIT, Microsoft) rasterised once from the npm package."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

# Caption noun -> icon name in @iconify-json/fluent-emoji-flat. Chosen for distinct
# silhouettes and colours, so that an f = 8 VAE can keep them apart at 50 px. A dozen drawn well serve
# a demonstration better than forty drawn vaguely.
NOUNS: dict[str, str] = {
    "cat": "cat-face",
    "dog": "dog-face",
    "fox": "fox",
    "frog": "frog",
    "fish": "tropical-fish",
    "apple": "red-apple",
    "mushroom": "mushroom",
    "tree": "evergreen-tree",
    "pizza": "pizza",
    "car": "automobile",
    "rocket": "rocket",
    "house": "house",
}

# Never captioned and never shown to the UNet; the VAE sees them so that its latent
# space also holds drawings a LoRA may bring (the mascot itself is in neither).
VAE_ONLY: tuple[str, ...] = (
    "panda", "rabbit-face", "lion", "pig-face", "koala", "penguin", "owl", "turtle", "butterfly", "lady-beetle",
    "strawberry", "banana", "watermelon", "carrot", "grapes", "cactus", "sunflower", "hamburger", "doughnut",
    "sailboat", "umbrella", "crown", "snowman-without-snow", "wrapped-gift", "guitar", "soccer-ball", "octopus",
    "robot", "ghost", "cupcake", "whale", "elephant", "giraffe", "tiger-face", "monkey-face", "bear", "wolf",
    "dragon-face", "unicorn", "crab", "snail", "duck", "parrot", "rooster", "dolphin", "hedgehog", "tulip", "rose",
    "four-leaf-clover", "pineapple", "lemon", "pear", "peach", "cherries", "tomato", "eggplant", "ear-of-corn",
    "broccoli", "ice-cream", "birthday-cake", "cookie", "candy", "bicycle", "bus", "tractor", "helicopter",
    "airplane", "castle", "tent", "lighthouse", "clown-face", "alien", "alien-monster", "teddy-bear", "trophy",
    "bell", "key", "hammer", "light-bulb", "books", "backpack", "top-hat", "drum", "trumpet", "violin", "game-die",
    "puzzle-piece", "artist-palette", "camera", "television", "telescope", "alarm-clock", "hourglass-done",
    "gem-stone", "magnet", "anchor", "rainbow", "sun", "cloud", "fire", "snowflake", "jack-o-lantern",
    "christmas-tree", "balloon", "kite", "yo-yo", "teapot", "bubble-tea", "pretzel", "croissant", "sushi", "taco",
    "french-fries",
)  # fmt: skip


def rasterise_emoji(icons_json: Path, *, size_px: int = 128) -> dict[str, npt.NDArray[np.uint8]]:
    """RGBA images (size, size, 4) uint8 by icon name; needs ``rsvg-convert`` on the path.

    Icons of ``VAE_ONLY`` absent from this version of the package are left out;
    a missing training noun raises KeyError.
    """
    package = json.loads(icons_json.read_text(encoding="utf-8"))
    icons: dict[str, dict[str, str]] = package["icons"]
    wanted = [*NOUNS.values(), *(name for name in VAE_ONLY if name in icons)]
    with tempfile.TemporaryDirectory() as folder:
        return {name: _rasterise(icons[name]["body"], package["width"], size_px, Path(folder)) for name in wanted}


def _rasterise(body: str, view_px: int, size_px: int, folder: Path) -> npt.NDArray[np.uint8]:
    svg, png = folder / "icon.svg", folder / "icon.png"
    svg.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {view_px} {view_px}">{body}</svg>',
        encoding="utf-8",
    )
    command = ["rsvg-convert", "-w", str(size_px), "-h", str(size_px), "-o", str(png), str(svg)]
    subprocess.run(command, check=True)
    with Image.open(png) as image:
        return np.asarray(_trim(image.convert("RGBA"), size_px))


def _trim(image: Image.Image, size_px: int) -> Image.Image:
    """The drawing cropped to its ink and scaled to fill ``size_px`` on its longer side."""
    ink = image.getchannel("A").getbbox()
    cropped = image.crop(ink)
    scale = size_px / max(cropped.size)
    width, height = (max(1, round(side * scale)) for side in cropped.size)
    resized = cropped.resize((width, height), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (size_px, size_px))
    square.paste(resized, ((size_px - width) // 2, (size_px - height) // 2))
    return square


def save_emoji(path: Path, drawings: dict[str, npt.NDArray[np.uint8]]) -> None:
    """Write the rasterised drawings to one ``.npz``."""
    arrays: dict[str, Any] = dict(drawings)
    np.savez_compressed(path, **arrays)


def load_emoji(path: Path) -> dict[str, Image.Image]:
    """RGBA drawings by icon name, as written by :func:`save_emoji`."""
    with np.load(path) as archive:
        return {name: Image.fromarray(archive[name]) for name in archive.files}
