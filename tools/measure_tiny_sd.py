"""Measure how well a tiny Stable Diffusion checkpoint follows prompts it was not trained on.

    python tools/measure_tiny_sd.py --checkpoint assets/tiny-sd/tiny-sd.safetensors \
        --emoji DIR/emoji.npz --work DIR/measure --out adherence.json

A classifier is trained on drawn scenes (with blur and hue jitter, soft blobs as 'nothing',
and a quarter of images that passed the VAE). *Ceiling* is its score on real images that
passed the VAE; *model* its score on images sampled from captions of held-out combinations.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from tiny_sd.classifier import (
    SceneReader,
    adheres,
    answers_for,
    background_of,
    read_images,
    to_pixels,
    train_reader,
)
from tiny_sd.diffusion import decode_latents, sample_latents
from tiny_sd.emoji import load_emoji
from tiny_sd.export import from_single_file
from tiny_sd.models import SCALE_FACTOR, build_text_encoder, build_unet, build_vae, in_parts
from tiny_sd.scenes import Drawings, Scene, caption_scene, draw_held_out_scene, draw_scene, render_scene
from tiny_sd.unet import tokenize
from transformers import CLIPTextModel, CLIPTokenizer


@dataclass(frozen=True)
class TinyModel:
    """The loaded checkpoint."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer


def load_model(checkpoint: Path) -> TinyModel:
    """The checkpoint in float32, with the tokenizer folder beside it."""
    unet, vae, text_encoder = build_unet(), build_vae(), build_text_encoder()
    weights = from_single_file(checkpoint, unet.state_dict(), vae.state_dict(), text_encoder.state_dict())
    for module, values in zip((unet, vae, text_encoder), weights, strict=True):
        module.load_state_dict(values)
        module.eval().requires_grad_(False)
    tokenizer = CLIPTokenizer.from_pretrained(checkpoint.parent / "tokenizer")
    return TinyModel(unet, vae, text_encoder, tokenizer)


@torch.no_grad()
def sample_images(
    model: TinyModel, captions: list[str], *, steps: int, guidance: float, seed: int
) -> list[Image.Image]:
    """One 128 × 128 image for each caption."""
    context = model.text_encoder(tokenize(model.tokenizer, captions)).last_hidden_state
    empty = model.text_encoder(tokenize(model.tokenizer, [""])).last_hidden_state
    images: list[Image.Image] = []
    for index, part in enumerate(in_parts(context, 16)):
        latents = sample_latents(model.unet, part, empty, steps=steps, guidance=guidance, seed=seed + index)
        images += [Image.fromarray(p.numpy()) for p in decode_latents(model.vae, latents)]
    return images


@torch.no_grad()
def pass_through_vae(vae: AutoencoderKL, images: list[Image.Image]) -> list[Image.Image]:
    """The images encoded and decoded again."""
    passed: list[Image.Image] = []
    for part in in_parts(to_pixels(images), 16):
        latents = vae.encode(part).latent_dist.mode() * SCALE_FACTOR
        passed += [Image.fromarray(p.numpy()) for p in decode_latents(vae, latents)]
    return passed


def _any_scene(scene: Scene) -> bool:
    return bool(scene.objects)


def _is_plain(scene: Scene) -> bool:
    return scene.position is None and scene.texture is None


# Row -> kind of scene, and which scenes of that kind belong to the row.
ROWS: dict[str, tuple[str, Callable[[Scene], bool]]] = {
    "single shape": ("single", lambda s: _is_plain(s) and s.objects[0].thing.colour is not None),
    "single emoji": ("single", lambda s: _is_plain(s) and s.objects[0].thing.colour is None),
    "two different objects": ("pair", _any_scene),
    "two or three of a kind": ("count", _any_scene),
    "position": ("single", lambda s: s.position is not None and s.texture is None),
    "texture": ("single", lambda s: s.position is None and s.texture is not None),
}


def held_out_scenes(row: str, count: int, seed: int) -> list[Scene]:
    """``count`` scenes of a row, all of combinations kept from training."""
    kind, belongs = ROWS[row]
    rng = random.Random(f"{row} {seed}")
    scenes: list[Scene] = []
    while len(scenes) < count:
        if belongs(scene := draw_held_out_scene(rng, kind=kind)):
            scenes.append(scene)
    return scenes


def score(reader: SceneReader, scenes: list[Scene], images: list[Image.Image]) -> dict[str, float]:
    """Shares of images with everything right, and with the number and the background right."""
    readings = read_images(reader, images)
    pairs = list(zip(scenes, readings, strict=True))
    grounds = [background_of(p) == scene.background for scene, p in zip(scenes, images, strict=True)]
    return {
        "things": round(sum(adheres(scene, reading) for scene, reading in pairs) / len(pairs), 3),
        "number": round(sum(reading.number == len(scene.objects) for scene, reading in pairs) / len(pairs), 3),
        "background": round(sum(grounds) / len(grounds), 3),
    }


def make_reader(model: TinyModel, drawings: Drawings, *, passed: int, steps: int, seed: int) -> SceneReader:
    """A classifier trained for this checkpoint's VAE."""
    rng = random.Random(seed)
    scenes = [draw_scene(rng) for _ in range(passed)]
    images = pass_through_vae(model.vae, [render_scene(scene, drawings) for scene in scenes])
    through_vae = [(p, answers_for(scene)) for p, scene in zip(images, scenes, strict=True)]
    return train_reader(drawings, through_vae, steps=steps, seed=seed)


def load_or_make_reader(model: TinyModel, drawings: Drawings, options: argparse.Namespace) -> SceneReader:
    """The classifier kept in the work folder, trained first if it is not there."""
    path: Path = options.work / "reader.pt"
    if not path.exists():
        made = make_reader(model, drawings, passed=options.passed, steps=options.reader_steps, seed=options.seed)
        torch.save(made.state_dict(), path)
    reader = SceneReader().eval()
    reader.load_state_dict(torch.load(path))
    return reader


def load_or_sample_row(
    row: str, scenes: list[Scene], model: TinyModel, drawings: Drawings, options: argparse.Namespace
) -> tuple[list[Image.Image], list[Image.Image]]:
    """Sampled images of a row, and drawn ones passed through the VAE; kept in the work folder."""
    path: Path = options.work / f"{row.replace(' ', '-')}.npz"
    if not path.exists():
        rng = random.Random(options.seed)
        captions = [caption_scene(scene, rng) for scene in scenes]
        sampled = sample_images(model, captions, steps=options.steps, guidance=options.guidance, seed=options.seed)
        real = pass_through_vae(model.vae, [render_scene(scene, drawings) for scene in scenes])
        arrays = {
            name: np.stack([np.asarray(p) for p in group]) for name, group in (("sampled", sampled), ("real", real))
        }
        np.savez_compressed(path, sampled=arrays["sampled"], real=arrays["real"])
        save_sheet(path.with_suffix(".png"), sampled[:32])
    with np.load(path) as kept:
        return [Image.fromarray(p) for p in kept["sampled"]], [Image.fromarray(p) for p in kept["real"]]


def measure(model: TinyModel, drawings: Drawings, options: argparse.Namespace) -> dict[str, object]:
    """Ceiling and model score of each row."""
    reader = load_or_make_reader(model, drawings, options)
    results: dict[str, object] = {}
    for row in ROWS:
        scenes = held_out_scenes(row, options.prompts, options.seed)
        sampled, real = load_or_sample_row(row, scenes, model, drawings, options)
        results[row] = {"ceiling": score(reader, scenes, real), "model": score(reader, scenes, sampled)}
        print(row, json.dumps(results[row]), flush=True)
    return results


def sample_rows(model: TinyModel, drawings: Drawings, options: argparse.Namespace) -> None:
    """Sample every row into the work folder, without judging."""
    for row in ROWS:
        load_or_sample_row(row, held_out_scenes(row, options.prompts, options.seed), model, drawings, options)
        print(row, "sampled", flush=True)


def save_sheet(path: Path, images: list[Image.Image], columns: int = 8) -> None:
    """Images side by side in one PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * 132, rows * 132), "white")
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * 132, index // columns * 132))
    sheet.save(path, optimize=True)


def main() -> None:
    """Read the arguments, measure, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--emoji", type=Path, required=True, help="emoji.npz of train_tiny_sd.py")
    parser.add_argument("--work", type=Path, required=True, help="keeps the classifier and images")
    parser.add_argument("--out", type=Path, required=True, help="JSON report")
    parser.add_argument(
        "--part", choices=("all", "sample", "reader"), default="all", help="run one part (in parallel), then all"
    )
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--guidance", type=float, default=2.5)
    parser.add_argument("--reader-steps", type=int, default=3500)
    parser.add_argument("--passed", type=int, default=1600, help="images through the VAE")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(options.checkpoint)
    drawings = Drawings(load_emoji(options.emoji))
    options.work.mkdir(parents=True, exist_ok=True)
    if options.part == "sample":
        sample_rows(model, drawings, options)
    elif options.part == "reader":
        load_or_make_reader(model, drawings, options)
    else:
        settings = {k: getattr(options, k) for k in ("prompts", "steps", "guidance", "seed")}
        report = {"settings": settings, "rows": measure(model, drawings, options)}
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
