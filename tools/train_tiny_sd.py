"""Train the tiny Stable Diffusion of ``assets/tiny-sd`` from scratch, stage by stage.

    python tools/train_tiny_sd.py prepare --work DIR --icons icons.json --bpe bpe.txt.gz
    python tools/train_tiny_sd.py vae     --work DIR --seconds 1200
    python tools/train_tiny_sd.py latents --work DIR
    python tools/train_tiny_sd.py unet    --work DIR --seconds 3900
    python tools/train_tiny_sd.py decoder --work DIR --seconds 600
    python tools/train_tiny_sd.py export  --work DIR --out assets/tiny-sd

Each stage leaves its result in DIR, so stages can be repeated one by one; ``unet`` continues
where it was interrupted. Needs two cores, diffusers, transformers and ``rsvg-convert``.
Training takes about an hour and three quarters on a CPU.
"""

from __future__ import annotations

import argparse
import random
import shutil
from pathlib import Path

import numpy as np
import torch
from tiny_sd.emoji import load_emoji, rasterise_emoji, save_emoji
from tiny_sd.export import save_single_file, to_single_file, write_text_config
from tiny_sd.models import build_vae, tensor_from_images
from tiny_sd.parallel import save_atomically
from tiny_sd.scenes import Drawings, draw_training_scene, render_scene
from tiny_sd.tokenizer import write_tokenizer
from tiny_sd.unet import UnetRun, encode_latents, train_unet
from tiny_sd.vae import VaeRun, train_vae, whiten_latents

WHITENING_IMAGES = 160
STAGES = ("prepare", "vae", "latents", "unet", "decoder", "export")


def prepare(work: Path, icons: Path, bpe: Path) -> None:
    """Rasterise the emoji and derive the tokenizer."""
    work.mkdir(parents=True, exist_ok=True)
    save_emoji(work / "emoji.npz", rasterise_emoji(icons))
    write_tokenizer(bpe, work / "tokenizer")
    write_text_config(work / "tokenizer")


def whiten(work: Path) -> None:
    """Write ``vae-white.pt``: the VAE whose scaled latents have unit covariance."""
    vae = build_vae()
    vae.load_state_dict(torch.load(work / "vae.pt")["vae"])
    drawings, rng = Drawings(load_emoji(work / "emoji.npz")), random.Random(11)
    scenes = [draw_training_scene(rng) for _ in range(WHITENING_IMAGES)]
    images = [torch.from_numpy(np.array(render_scene(scene, drawings))) for scene in scenes]
    pixels = tensor_from_images(images)
    whiten_latents(vae, pixels)
    save_atomically(work / "vae-white.pt", {"vae": vae.state_dict()})


def finish_decoder(work: Path, seconds: float) -> None:
    """Train only the decoder further, on whole images, into ``vae-final.pt``."""
    train_vae(
        VaeRun(
            emoji=work / "emoji.npz",
            out=work / "vae-final.pt",
            seconds=seconds,
            decoder_only=True,
            start_from=work / "vae-white.pt",
            peak_rate=5e-4,
            full_size_after=0.0,
            latent_noise=0.08,
            seed=3,
        )
    )


def export(work: Path, out: Path, earlier: Path | None = None) -> None:
    """Write the finished checkpoint and the tokenizer folder to ``out``.

    With the state of an ``earlier`` stage of the same training, the mean of both ends is written: weights between two
    annealed ends of one run are better than either (Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima").
    """
    final = work / "vae-final.pt"
    vae = torch.load(final if final.exists() else work / "vae-white.pt")["vae"]
    state = torch.load(work / "unet-state.pt")
    ends = [state] if earlier is None else [torch.load(earlier), state]
    unet, text = (mean_weights([end[part] for end in ends]) for part in ("ema_unet", "ema_text"))
    tensors = to_single_file(unet, vae, text)
    save_single_file(out / "tiny-sd.safetensors", tensors, note=f"{state['step']} steps; see README.md")
    shutil.copytree(work / "tokenizer", out / "tokenizer", dirs_exist_ok=True)


def mean_weights(ends: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Name → mean of the tensors of that name; whole numbers as the last one has them."""
    return {
        name: torch.stack([end[name] for end in ends]).mean(0) if last.is_floating_point() else last
        for name, last in ends[-1].items()
    }


def run_stage(arguments: argparse.Namespace) -> None:
    """Run the stage that the command line names."""
    work: Path = arguments.work
    run = UnetRun(
        work,
        work / "tokenizer",
        arguments.snapshot or work / "snapshot",
        arguments.seconds,
        scenes_per_process=arguments.scenes,
        start_from=arguments.start_from,
        processes=arguments.processes,
        batch_per_process=24 // arguments.processes,
        peak_rate=arguments.rate,
        hold_text=arguments.hold_text,
    )
    if arguments.stage == "prepare":
        prepare(work, arguments.icons, arguments.bpe)
    elif arguments.stage == "vae":
        train_vae(VaeRun(work / "emoji.npz", work / "vae.pt", arguments.seconds))
    elif arguments.stage == "latents":
        if not (work / "vae-white.pt").exists():
            whiten(work)
        encode_latents(run)
    elif arguments.stage == "unet":
        train_unet(run)
    elif arguments.stage == "decoder":
        finish_decoder(work, arguments.seconds)
    else:
        export(work, arguments.out, arguments.average_with)


def main() -> None:
    """Read the arguments and run one stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything between")
    parser.add_argument("--seconds", type=float, default=1200.0, help="wall clock of the stage")
    parser.add_argument("--scenes", type=int, default=1300, help="latents per process at first")
    parser.add_argument("--snapshot", type=Path, help="where the unet stage writes checkpoints")
    parser.add_argument("--start-from", type=Path, help="state of an earlier run to continue from, clock at zero")
    parser.add_argument("--hold-text", action="store_true", help="train only the UNet")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate of the unet stage")
    parser.add_argument("--processes", type=int, default=2, help="one-thread processes that share a step of 24")
    parser.add_argument("--icons", type=Path, help="icons.json of fluent-emoji-flat")
    parser.add_argument("--bpe", type=Path, help="bpe_simple_vocab_16e6.txt.gz")
    parser.add_argument("--average-with", type=Path, help="state of an earlier stage, for export")
    parser.add_argument("--out", type=Path, default=Path("assets/tiny-sd"))
    run_stage(parser.parse_args())


if __name__ == "__main__":
    main()
