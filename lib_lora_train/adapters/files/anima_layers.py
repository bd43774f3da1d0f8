"""Layers of Anima's LoRA files outside its transformer, which other trainers can train and this one does not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from lib_lora_train.core.wording import count, join_names

TEXT_ADAPTER, TEXT_ENCODER = "text adapter (llm_adapter)", "text encoder (Qwen3)"
_PARTS = {
    TEXT_ADAPTER: re.compile(r"lora_unet_llm_adapter_"),
    TEXT_ENCODER: re.compile(r"lora_te\d?_(model_)?layers_\d+_"),
}


def anima_part(layer: str) -> str:
    """The part of Anima that a layer belongs to, if that is not its transformer; else ""."""
    return next((part for part, sign in _PARTS.items() if sign.match(layer)), "")


def describe_parts(layers: Iterable[str]) -> str:
    """`60 layers of Anima's text adapter (llm_adapter)`; "" if none of these layers is of such a part."""
    counts = Counter(part for layer in layers if (part := anima_part(layer)))
    named = [f"{count(number, 'layer')} of Anima's {part}" for part, number in counts.items()]
    return join_names(named) if named else ""
