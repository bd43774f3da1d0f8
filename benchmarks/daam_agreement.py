"""Compares our heat maps with those of the package `daam` by the authors of DAAM: the same prompt, seed and words.

    python -m venv /tmp/daam && /tmp/daam/bin/pip install -r benchmarks/daam_requirements.txt
    python benchmarks/daam_agreement.py /tmp/daam/bin/python

daam needs versions of diffusers and transformers of 2023, so it runs in an environment of theirs
(`benchmarks/daam_reference.py`), with our model's weights written to a temporary folder. Both draw the image with DDIM
from the same noise. For each word the table has the correlation (Pearson) of daam's map with ours of all layers, both
at daam's size, and the largest difference of the images' pixels. Models: the tiny Stable Diffusion that ships with this
project, at 128 px and at 512 px, and random weights of the shapes of SD2 and SDXL.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from lib_lora_train.config.sample_prompts import SamplePrompt
from lib_lora_train.evaluation.heat_maps import PromptAttention, draw_with_attention
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.loading import ModelChoice, load_model
from lib_lora_train.models.text_encoding import load_tokenizer
from lib_lora_train.sampling.sampler_options import SamplerOptions
from tests.stand_ins.tiny_models import TOKENIZER, tiny_model

SEED, CFG = 7, 7.5


@dataclass(frozen=True)
class Case:
    """A model and an image; `has_daams_size`: the package accepts the size as it is."""

    title: str
    load: Callable[[], DiffusionModel]
    prompt: str
    words: tuple[str, ...]
    px: int
    steps: int
    has_daams_size: bool = True


def _tiny_sd() -> DiffusionModel:
    return load_model(ModelChoice(), torch.device("cpu"))


def _tiny(architecture: Any) -> Callable[[], DiffusionModel]:
    return lambda: tiny_model(architecture, prediction_type="epsilon", zero_terminal_snr=False)


PROMPT, WORDS = "a red circle and a strawberry on a blue background", ("red", "circle", "strawberry", "blue")
CASES = (
    Case("tiny SD", _tiny_sd, PROMPT, WORDS, 128, 20, has_daams_size=False),
    Case("tiny SD", _tiny_sd, "a zorp and a fox, green background", ("zorp", "fox", "green"), 128, 20, False),
    Case("tiny SD", _tiny_sd, PROMPT, WORDS, 512, 10),
    Case("SD2, random weights", _tiny("sd2"), PROMPT, WORDS, 512, 4),
    Case("SDXL, random weights", _tiny("sdxl"), PROMPT, WORDS, 1024, 3),
)


def main() -> None:
    """Print the table."""
    print("| model | px | word | correlation | largest pixel difference |\n|---|---|---|---|---|")
    for case in CASES:
        for word, correlation, difference in compare(case, sys.argv[1]):
            print(f"| {case.title} | {case.px} | {word} | {correlation:.5f} | {difference} |", flush=True)


def compare(case: Case, python: str) -> list[tuple[str, float, int]]:
    """For each word: itself, the correlation and the largest pixel difference of the images."""
    model = case.load()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_reference(folder, case, model)
        reference = Path(__file__).with_name("daam_reference.py")
        subprocess.run([python, str(reference), str(folder)], check=True, stdout=sys.stderr)
        theirs = np.load(folder / "maps.npz")
        image, attention = _ours(case, model)
        pixels = np.asarray(image, dtype=np.int16) - np.asarray(Image.open(folder / "image.png"), dtype=np.int16)
        difference = int(np.abs(pixels).max())
        return [(word, _correlation(attention, word, theirs[word]), difference) for word in case.words]


def _correlation(attention: PromptAttention, word: str, theirs: Any) -> float:
    at_daams_size = dataclasses.replace(attention, size=theirs.shape[::-1])
    return float(np.corrcoef(at_daams_size.heat_map(word).values.numpy().ravel(), theirs.ravel())[0, 1])


def _ours(case: Case, model: DiffusionModel) -> tuple[Image.Image, PromptAttention]:
    prompt = SamplePrompt(case.prompt, "", case.px, case.px, SEED, case.steps, CFG)
    steps = draw_with_attention(model, prompt, sampler="DDIM", clip_skip=1, sampler_options=SamplerOptions())
    while True:
        try:
            next(steps)
        except StopIteration as end:
            drawn: tuple[Image.Image, PromptAttention] = end.value
            return drawn


def _write_reference(folder: Path, case: Case, model: DiffusionModel) -> None:
    """What the other process needs: weights, configurations, the first noise, and what to draw."""
    side = case.px // 8
    encoders = [(spec.config, spec.has_projection) for spec in model.spec.text_encoders]
    torch.save({"unet": model.unet.state_dict(), "vae": model.vae.state_dict()}, folder / "image.pt")
    torch.save([_old_names(encoder.state_dict()) for encoder in model.text_encoders], folder / "text.pt")
    torch.save(torch.randn((1, 4, side, side), generator=torch.Generator().manual_seed(SEED)), folder / "noise.pt")
    load_tokenizer(TOKENIZER).save_pretrained(str(folder / "tokenizer"))
    for file in ("vocab.json", "merges.txt"):
        (folder / "tokenizer" / file).write_bytes((TOKENIZER / file).read_bytes())
    values = {
        "unet": {**model.spec.unet, "sample_size": side},
        "vae": {**model.spec.vae, "scaling_factor": model.spec.scale_factor},
        "text": encoders,
        "padding": [spec.pad_token for spec in model.spec.text_encoders],
        "is_sdxl": model.spec.architecture == "sdxl",
        "prompt": case.prompt,
        "words": case.words,
        "px": case.px,
        "steps": case.steps,
        "cfg": CFG,
        "has_daams_size": case.has_daams_size,
    }
    (folder / "task.json").write_text(json.dumps(values, default=dict), encoding="utf-8")


def _old_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters' names before transformers 5.6."""
    outside: Sequence[str] = ("text_model.", "text_projection.")
    return {name if name.startswith(tuple(outside)) else f"text_model.{name}": value for name, value in state.items()}


if __name__ == "__main__":
    main()
