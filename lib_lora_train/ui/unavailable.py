"""A tab that explains why the trainer is not available: missing packages, or a webui that is not supported.

It needs nothing but gradio, so that it can be shown whatever else is missing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import gradio as gr

from lib_lora_train.web.markup import empty_state

NEEDED = ("transformers", "safetensors", "diffusers", "peft", "prodigyopt", "tomlkit", "regex", "charset_normalizer")


def missing_packages(needed: Sequence[str] = NEEDED) -> list[str]:
    """The packages that are not installed; nothing is imported."""
    return [name for name in needed if importlib.util.find_spec(name) is None]


def missing_sentence(missing: Sequence[str]) -> str:
    """Which packages are missing, and what to do about it."""
    return (
        f"Missing packages: {', '.join(missing)}. They are installed when the webui starts, which requires a network "
        "connection. Restart the webui once you are online. The console shows why the last attempt failed."
    )


def build_error_tab(sentence: str) -> Any:
    """A tab that shows nothing but the sentence."""
    with gr.Blocks(title="LoRA Train", analytics_enabled=False) as blocks, gr.Column(elem_id="lora_train_root"):
        gr.HTML(empty_state("The trainer is not available", sentence), elem_id="lora_train_unavailable")
    return blocks
