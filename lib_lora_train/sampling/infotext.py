"""The infotext that the webui stores in images, so that PNG Info and "Send to txt2img" work on our samples."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, PngImagePlugin

from lib_lora_train.config.method_catalog import name_in_prompt
from lib_lora_train.config.sample_prompts import SamplePrompt
from lib_lora_train.core import atomic_write
from lib_lora_train.core.errors import OutputError
from lib_lora_train.core.writable import failed_write_advice
from lib_lora_train.sampling.used_sampler import UsedSampler

_SOURCE = {"Source": "LoRA Train"}  # recognised when it is pasted
_SETTING = re.compile(r"(Steps|Sampler|CFG scale|Seed|Size): ([^,]+)")
_LORA = re.compile(r" ?<lora:([^:>]*):?([^:>]*)[^>]*>")


def infotext(
    prompt: SamplePrompt,
    *,
    sampler: UsedSampler,
    clip_skip: int,
    model: str,
    lora: str = "",
    strength: float = 1.0,
) -> str:
    """Prompt, negative prompt and settings in A1111's notation; `lora` is a file name without extension."""
    positive = f"{prompt.prompt} <lora:{lora}:{strength:g}>" if lora else prompt.prompt
    return _join(positive, prompt, sampler, {"Model": model, **({"Clip skip": clip_skip} if clip_skip > 1 else {})})


def sample_settings(prompt: SamplePrompt, *, sampler: UsedSampler, clip_skip: int) -> str:
    """The last line of an infotext to paste: what a sample was drawn with, without its prompts and seed."""
    return _line({**_settings(prompt, sampler, {}), "Clip skip": clip_skip, **_SOURCE})


def pasted_names(infotext: str) -> frozenset[str] | None:
    """The names of the settings in an infotext that this extension made to be pasted; None for any other infotext."""
    line = infotext.strip().rpartition("\n")[2]
    if not line.endswith(_line(_SOURCE)):
        return None
    return frozenset(re.findall(r"(?:^|, )([^:,\"]+): ", line))


def xyz_infotext(
    prompt: SamplePrompt,
    loras: Sequence[str],
    seeds: Sequence[int],
    *,
    sampler: UsedSampler,
    clip_skip: int,
    word: str = "",
) -> str:
    """Infotext that sets the webui's X/Y/Z plot to one column per LoRA file name and one row per seed.

    The plot replaces the first name in the prompt by each of the names. With a `word`, the files are embeddings, and
    their names take its place.
    """
    positive = f"{prompt.prompt} <lora:{loras[0]}:1>"
    if word:
        positive = name_in_prompt(prompt.prompt, word, loras[0])
        positive = positive if loras[0] in positive else f"{positive}, {loras[0]}"
    settings = {
        "Script": "X/Y/Z plot",
        "X Type": "Prompt S/R",
        "X Values": _quoted(",".join(loras)),
        "Y Type": "Seed",
        "Y Values": _quoted(",".join(map(str, seeds))),
        "Clip skip": clip_skip,
        **_SOURCE,
    }
    return _join(positive, prompt, sampler, settings)


def _join(positive: str, prompt: SamplePrompt, sampler: UsedSampler, more: Mapping[str, object]) -> str:
    settings = {**_settings(prompt, sampler, {"Seed": prompt.seed}), **more}
    negative = [f"Negative prompt: {prompt.negative}"] if prompt.negative else []
    return "\n".join([positive, *negative, _line(settings)])


def _settings(prompt: SamplePrompt, sampler: UsedSampler, seed: Mapping[str, object]) -> dict[str, object]:
    """A scheduler in the sampler's name, such as Karras, goes before "Simple" in the webuis."""
    shift = {} if sampler.flow_shift is None else {"Shift": f"{sampler.flow_shift:g}"}
    return {
        "Steps": prompt.steps,
        "Sampler": sampler.name,
        "CFG scale": f"{prompt.cfg:g}",
        **seed,
        "Size": f"{prompt.width}x{prompt.height}",
        **({"Schedule type": "Simple", **shift} if sampler.is_flow else {}),
    }


def _line(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in settings.items())


def _quoted(value: str) -> str:
    """The value quoted as the webui does, if it has commas or colons."""
    return json.dumps(value, ensure_ascii=False) if "," in value or ":" in value else value


def read_infotext(path: Path) -> str | None:
    """The infotext of an image, "" if it has none; None if it cannot be read."""
    try:
        with Image.open(path) as image:
            return str(image.info.get("parameters", ""))
    except (OSError, ValueError, SyntaxError):
        return None


def read_lora(path: Path) -> tuple[str, float]:
    """The name and strength of the first LoRA that an image was drawn with; ("", 1) if it has none, or no infotext."""
    found = _LORA.search((read_infotext(path) or "").partition("\nNegative prompt: ")[0])
    try:
        return (found[1], float(found[2] or 1)) if found else ("", 1.0)
    except ValueError:
        return "", 1.0


def read_sample_settings(path: Path) -> tuple[SamplePrompt, str] | None:
    """What an image with an infotext was drawn from, without its LoRAs, and the sampler; None if it has none."""
    text = read_infotext(path)
    if text is None:
        return None
    *texts, line = text.split("\n")
    prompt, _, negative = "\n".join(texts).partition("\nNegative prompt: ")
    values = dict(_SETTING.findall(line))
    try:
        width, height = map(int, values["Size"].split("x"))
        sample = SamplePrompt(
            prompt=_LORA.sub("", prompt),
            negative=negative,
            width=width,
            height=height,
            seed=int(values["Seed"]),
            steps=int(values["Steps"]),
            cfg=float(values["CFG scale"]),
        )
        return sample, values["Sampler"]
    except (KeyError, ValueError):
        return None


def write_image(path: Path, image: Image.Image, text: str = "") -> None:
    """Save a PNG, completely or not at all, with `text` where the webui reads the infotext; OutputError on failure."""
    chunks = PngImagePlugin.PngInfo()
    if text:
        chunks.add_text("parameters", text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write.replacing(path, fsync=False) as place:
            image.save(place, "PNG", pnginfo=chunks)
    except (OSError, ValueError) as error:  # Pillow refuses images larger than a PNG can be with ValueError
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{path} cannot be written: {reason}. {failed_write_advice(error)}") from error


def read_image(path: Path) -> Image.Image | None:
    """The RGB image that was drawn before; None if it is missing or damaged."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError):
        return None
