"""The infotext that the webui stores in images, so that PNG Info and "Send to txt2img" work on our samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, PngImagePlugin

from lib_lora_train.config.sample_prompts import SamplePrompt


def infotext(prompt: SamplePrompt, *, sampler: str, clip_skip: int, model: str, lora: str = "") -> str:
    """Prompt, negative prompt and settings in A1111's notation; `lora` is a file name without extension."""
    positive = f"{prompt.prompt} <lora:{lora}:1>" if lora else prompt.prompt
    settings = {
        "Steps": prompt.steps,
        "Sampler": sampler,
        "CFG scale": f"{prompt.cfg:g}",
        "Seed": prompt.seed,
        "Size": f"{prompt.width}x{prompt.height}",
        "Model": model,
    }
    if clip_skip > 1:
        settings["Clip skip"] = clip_skip
    lines = [positive, ", ".join(f"{name}: {value}" for name, value in settings.items())]
    if prompt.negative:
        lines.insert(1, f"Negative prompt: {prompt.negative}")
    return "\n".join(lines)


def xyz_infotext(prompt: SamplePrompt, loras: Sequence[str], seeds: Sequence[int], *, sampler: str) -> str:
    """Infotext that sets the webui's X/Y/Z plot to one column per LoRA file name and one row per seed.

    The plot replaces the first name in the prompt by each of the names.
    """
    first = f"{prompt.prompt} <lora:{loras[0]}:1>"
    settings = {
        "Steps": prompt.steps,
        "Sampler": sampler,
        "CFG scale": f"{prompt.cfg:g}",
        "Seed": prompt.seed,
        "Size": f"{prompt.width}x{prompt.height}",
        "Script": "X/Y/Z plot",
        "X Type": "Prompt S/R",
        "X Values": _quoted(",".join(loras)),
        "Y Type": "Seed",
        "Y Values": _quoted(",".join(map(str, seeds))),
    }
    lines = [first, ", ".join(f"{name}: {value}" for name, value in settings.items())]
    if prompt.negative:
        lines.insert(1, f"Negative prompt: {prompt.negative}")
    return "\n".join(lines)


def _quoted(value: str) -> str:
    """The value quoted as the webui does, if it has commas or colons."""
    return json.dumps(value, ensure_ascii=False) if "," in value or ":" in value else value


def write_image(path: Path, image: Image.Image, text: str = "") -> None:
    """Save a PNG, with `text` where the webui reads the infotext."""
    chunks = PngImagePlugin.PngInfo()
    if text:
        chunks.add_text("parameters", text)
    image.save(path, pnginfo=chunks)
