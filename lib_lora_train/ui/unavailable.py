"""The tab that says why there is no trainer: packages that could not be installed, a webui that is not supported.

It needs gradio only, so it can be shown whatever else is missing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import gradio as gr

from lib_lora_train.web.markup import empty_state

NEEDED = ("transformers", "safetensors", "diffusers", "peft", "prodigyopt", "tomlkit")


def missing_packages(needed: Sequence[str] = NEEDED) -> list[str]:
    """Those of the packages that this Python does not have; nothing is imported."""
    return [name for name in needed if importlib.util.find_spec(name) is None]


def missing_sentence(missing: Sequence[str]) -> str:
    """What the user can do about missing packages."""
    return (
        f"Missing: {', '.join(missing)}. They are installed at the webui's start, which needs the network: restart the "
        "webui when it is there. The console says why the last attempt failed."
    )


def build_refusal(sentence: str) -> Any:
    """A tab with nothing but the sentence."""
    with gr.Blocks(title="LoRA Train", analytics_enabled=False) as blocks, gr.Column(elem_id="lora_train_root"):
        gr.HTML(empty_state("The trainer cannot run here", sentence), elem_id="lora_train_refusal")
    return blocks
