"""The text the webui stores in its pictures, so that PNG Info and "Send to txt2img" work on our samples."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, PngImagePlugin

from lib_lora_train.train.prompt import SamplePrompt


def infotext(prompt: SamplePrompt, *, sampler: str, clip_skip: int, model: str, lora: str = "") -> str:
    """Prompt, negative prompt and settings in A1111's notation; `lora` is a file name without ending."""
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


def write_picture(path: Path, picture: Image.Image, text: str = "") -> None:
    """Save a PNG, with `text` where the webui looks for it."""
    chunks = PngImagePlugin.PngInfo()
    if text:
        chunks.add_text("parameters", text)
    picture.save(path, pnginfo=chunks)
