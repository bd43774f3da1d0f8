"""A small image classifier that reads scenes back: what, which colour, how many, where."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import nn

from .emoji import NOUNS
from .scenes import (
    COLOURS,
    POSITIONS,
    SHAPES,
    SIZE_PX,
    Drawings,
    Scene,
    Thing,
    draw_backdrop,
    draw_scene,
    render_scene,
)

NOTHING = "nothing"  # blobs and mush: the classifier must be able to say no
KINDS: tuple[str, ...] = (NOTHING, *NOUNS, *SHAPES)
PAINTS: tuple[str, ...] = ("own", *COLOURS)
PLACES: tuple[str, ...] = ("centre", *POSITIONS)
HEADS: dict[str, int] = {
    "left_noun": len(KINDS),
    "left_colour": len(PAINTS),
    "right_noun": len(KINDS),
    "right_colour": len(PAINTS),
    "number": 4,
    "place": len(PLACES),
}


@dataclass(frozen=True)
class Reading:
    """What the classifier sees in one image."""

    left: Thing
    right: Thing
    number: int
    place: str


class SceneReader(nn.Module):
    """Four strided convolutions on 64 × 64 images and one linear layer for each question."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 96, 128)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers, nn.Conv2d(128, 64, 1), nn.ReLU(), nn.Flatten())
        self.heads = nn.ModuleDict({name: nn.Linear(64 * 4 * 4, count) for name, count in HEADS.items()})

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits by question for images (B, 3, H, W) in [-1, 1]."""
        small = F.interpolate(pixels, size=(64, 64), mode="area")  # (B, 3, 64, 64)
        features = self.body(small)  # (B, 1024)
        return {name: head(features) for name, head in self.heads.items()}


def answers_for(scene: Scene) -> dict[str, int]:
    """The right answer to each question, as an index."""
    left, right = scene.objects[0].thing, scene.objects[-1].thing
    return {
        "left_noun": KINDS.index(left.noun),
        "left_colour": PAINTS.index(left.colour or "own"),
        "right_noun": KINDS.index(right.noun),
        "right_colour": PAINTS.index(right.colour or "own"),
        "number": len(scene.objects),
        "place": PLACES.index(scene.position or "centre"),
    }


_NO_ANSWERS = dict.fromkeys(HEADS, 0)


def draw_blobs(rng: random.Random) -> Image.Image:
    """A background with one to three soft blobs of object colours: an image of nothing."""
    background = rng.choice(list(COLOURS.values()))
    image = draw_backdrop(background, None)
    for _ in range(rng.randint(1, 3)):
        size = rng.randint(24, 72)
        noise = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (6, 6, 3))
        texture = Image.fromarray(noise.astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
        flat = Image.new("RGB", (size, size), rng.choice(list(COLOURS.values())))
        blob = Image.blend(texture, flat, rng.uniform(0.3, 0.95))
        outline = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (5, 5))
        mask = Image.fromarray(outline.astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
        mask = mask.point(lambda level: 255 if level > 110 else 0).filter(ImageFilter.GaussianBlur(2))
        image.paste(blob, (rng.randint(0, 128 - size), rng.randint(0, 128 - size)), mask)
    return image


def wobble(image: Image.Image, rng: random.Random) -> Image.Image:
    """Outlines bent by up to some 5 px over 30 px: a circle drawn with an unsteady hand is a circle still."""
    reach_px = rng.uniform(0, 2.5)
    coarse = torch.from_numpy(np.random.default_rng(rng.getrandbits(32)).normal(0, reach_px, (1, 2, 5, 5))).float()
    shifts_px = F.interpolate(coarse, size=(SIZE_PX, SIZE_PX), mode="bicubic")[0].permute(1, 2, 0)
    middles = (torch.arange(SIZE_PX) + 0.5) * (2 / SIZE_PX) - 1
    places = torch.stack(torch.meshgrid(middles, middles, indexing="xy"), dim=-1) + shifts_px * (2 / SIZE_PX)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    bent = F.grid_sample(pixels, places[None], mode="bilinear", padding_mode="border", align_corners=False)
    return Image.fromarray(bent[0].round().byte().permute(1, 2, 0).numpy())


def jitter(image: Image.Image, rng: random.Random) -> Image.Image:
    """Blur, bent outlines, a small change of place, hue, contrast and brightness; sometimes nearly gray.

    Of place, since drawn scenes lie on the grid of the latents, and what a model draws need not.
    """
    if rng.random() < 0.6:
        image = wobble(image, rng)
    move = (1, 0, rng.uniform(-4, 4), 0, 1, rng.uniform(-4, 4))
    border = image.getpixel((0, 0))
    image = image.transform(image.size, Image.Transform.AFFINE, move, Image.Resampling.BILINEAR, fillcolor=border)
    if rng.random() < 0.6:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 2.2)))
    hue, saturation, value = image.convert("HSV").split()
    shift, gain = rng.randint(-5, 5), rng.uniform(0.8, 1.1)
    hue = hue.point(lambda level: (level + shift) % 256)
    saturation = saturation.point(lambda level: min(255, round(level * gain)))
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def training_pairs(drawings: Drawings, rng: random.Random, count: int) -> Iterator[tuple[Image.Image, dict[str, int]]]:
    """``count`` images with answers; one in eight shows nothing, one in ten has a mangled object."""
    for _ in range(count):
        if rng.random() < 0.12:
            yield jitter(draw_blobs(rng), rng), _NO_ANSWERS
            continue
        scene = draw_scene(rng)
        yield jitter(render_scene(scene, drawings), rng), answers_for(scene)


def to_pixels(images: list[Image.Image]) -> torch.Tensor:
    """Images as (B, 3, H, W) in [-1, 1]."""
    stacked = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1


def reading_loss(logits: dict[str, torch.Tensor], answers: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum of the cross entropies of all questions."""
    return torch.stack([F.cross_entropy(logits[name], answers[name]) for name in HEADS]).sum()


def train_reader(
    drawings: Drawings,
    through_vae: list[tuple[Image.Image, dict[str, int]]],
    *,
    steps: int,
    seed: int,
) -> SceneReader:
    """A reader trained on drawn scenes, a quarter of each batch having passed the VAE."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    reader = SceneReader()
    optimiser = torch.optim.AdamW(reader.parameters(), 2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    for step in range(steps):
        pairs = list(training_pairs(drawings, rng, 48))
        if through_vae:
            pairs += [(jitter(p, rng), a) for p, a in rng.sample(through_vae, 16)]
        answers = {name: torch.tensor([answer[name] for _, answer in pairs]) for name in HEADS}
        loss = reading_loss(reader(to_pixels([image for image, _ in pairs])), answers)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            print(f"reader {step} loss {loss.item():.3f}", flush=True)
    return reader.eval()


@torch.no_grad()
def read_images(reader: SceneReader, images: list[Image.Image]) -> list[Reading]:
    """What the reader sees in each image."""
    chosen = {name: logits.argmax(1).tolist() for name, logits in reader(to_pixels(images)).items()}

    def thing(side: str, row: int) -> Thing:
        paint = PAINTS[chosen[f"{side}_colour"][row]]
        return Thing(KINDS[chosen[f"{side}_noun"][row]], None if paint == "own" else paint)

    return [
        Reading(
            thing("left", row),
            thing("right", row),
            chosen["number"][row],
            PLACES[chosen["place"][row]],
        )
        for row in range(len(images))
    ]


def background_of(image: Image.Image) -> str:
    """The palette colour nearest to the median of the image's border."""
    pixels = np.asarray(image).astype(int)
    border = np.concatenate([pixels[:4].reshape(-1, 3), pixels[-4:].reshape(-1, 3)])
    middle = np.median(border, axis=0)
    return min(COLOURS, key=lambda name: float(np.abs(middle - np.array(COLOURS[name])).sum()))


def adheres(scene: Scene, reading: Reading) -> bool:
    """True when a reading matches what the scene's caption asked for.

    Singles: the thing, once (and the place, if one was asked for). Counts: the thing and the
    number. Pairs: both things, in either order.
    """
    wanted = [scene.objects[0].thing, scene.objects[-1].thing]
    seen = [reading.left, reading.right]
    if reading.number != len(scene.objects):
        return False
    if scene.kind == "pair":
        return seen in (wanted, wanted[::-1])
    if scene.position and reading.place != scene.position:
        return False
    return reading.left == wanted[0] == reading.right
