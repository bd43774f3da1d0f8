"""How a webui reads a pasted infotext: the rules of A1111's `modules.infotext_utils`, as far as they matter here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

_SETTING = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"^(\d+)x(\d+)$")
IF_MISSING: Mapping[str, Any] = {
    "Clip skip": "1",
    "RNG": "GPU",
    "Schedule type": "Automatic",
    "Schedule rho": 0,
    "VAE Encoder": "Full",
    "VAE Decoder": "Full",
    "FP8 weight": "Disable",
    "Refiner switch by sampling steps": False,
}
"""What a setting that is not in the text is read as."""

OPTIONS: Mapping[str, tuple[str, Any]] = {
    "CLIP_stop_at_last_layers": ("Clip skip", 1),
    "randn_source": ("RNG", "GPU"),
    "rho": ("Schedule rho", 0.0),
    "sd_vae_encode_method": ("VAE Encoder", "Full"),
    "sd_vae_decode_method": ("VAE Decoder", "Full"),
    "fp8_storage": ("FP8 weight", "Disable"),
    "refiner_switch_by_sample_steps": ("Refiner switch by sampling steps", False),
}
"""The options that an infotext can override: their names in it, and their defaults."""


def add_options(opts: Any) -> None:
    """Give the webui's settings these options, none of them ever set."""
    for name, (label, default) in OPTIONS.items():
        opts.data_labels[name] = SimpleNamespace(default=default, infotext=label)


def parse(text: str) -> dict[str, Any]:
    """Prompt, negative prompt and settings by name, and a default for each one that is missing."""
    *lines, last = text.strip().split("\n")
    if len(_SETTING.findall(last)) < 3:
        lines, last = [*lines, last], ""
    negative = next((n for n, line in enumerate(lines) if line.startswith("Negative prompt:")), len(lines))
    values: dict[str, Any] = {}
    for name, value in _SETTING.findall(last):
        size = _SIZE.match(value)
        values |= {f"{name}-1": size[1], f"{name}-2": size[2]} if size else {name: value}
    values["Prompt"] = "\n".join(lines[:negative])
    values["Negative prompt"] = "\n".join(lines[negative:]).removeprefix("Negative prompt:").strip()
    return {**IF_MISSING, **values}


def overrides(values: Mapping[str, Any], opts: Any) -> dict[str, Any]:
    """By name, what would override an option of another value."""
    read = ((label, getattr(opts, name)) for name, (label, _) in OPTIONS.items() if label in values)
    return {label: values[label] for label, now in read if type(now)(values[label]) != now}


def paste(
    text: str, opts: Any, callback: Callable[[str, dict[str, Any]], None]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the fields of txt2img get, and what overrides options, after the extensions' `on_infotext_pasted`."""
    values = parse(text)
    callback(text, values)
    return values, overrides(values, opts)


@contextmanager
def overridden(opts: Any, values: Mapping[str, Any]) -> Iterator[None]:
    """Inside, an image is made with these options. The trap: only those that were ever set are restored."""
    by_option = {name: type(default)(values[label]) for name, (label, default) in OPTIONS.items() if label in values}
    stored = {name: opts.data[name] for name in by_option if name in opts.data}
    opts.data.update(by_option)
    try:
        yield
    finally:
        opts.data.update(stored)
