"""What the keys are that are not read: forms of other programs that this one has no formula for."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lib_lora_train.core.wording import count, join_names, shorten_list

_SHOWN = 3
_KINDS = tuple(
    (re.compile(pattern), title)
    for pattern, title in (
        (
            r"\.oft_R(\.[^.]+)?\.(weight|scaled_oft)$",
            "OFT of PEFT, which needs its adapter_config.json beside it",
        ),
        (r"\.(q_layer\.weight|p_layer\.weight|lambda_layer)$", "T-LoRA of LyCORIS"),
        (r"\.boft_[Rs](\.[^.]+)?$", "BOFT of PEFT"),
        (r"\.glora_[A-E]\.", "GLoRA of PEFT"),
        (r"\.ia3_l(\.[^.]+)?$", "(IA)³ of PEFT"),
        (r"\.lora_(B|up)(\.[^.]+)?\.bias$", "biases of PEFT's LoRA (`lora_bias`)"),
        (r"\.oft_diag$", "OFT of kohya's early networks"),
        (r"^bundle_emb\.", "embeddings that OneTrainer bundles"),
        (r"(\.weight|\.bias)$", "weights of a model"),
    )
)


def describe_unread(keys: Iterable[str]) -> str:
    """`12 keys of T-LoRA of LyCORIS (a.q_layer.weight, …) and 1 key that is not recognised (…)`; "" for none."""
    found: dict[str, list[str]] = {}
    for key in keys:
        title = next((title for pattern, title in _KINDS if pattern.search(key)), "")
        found.setdefault(title, []).append(key)
    parts = [
        f"{count(len(names), 'key')} of {title}"
        if title
        else count(len(names), "key that is not recognised", "keys that are not recognised")
        for title, names in found.items()
    ]
    shown = (shorten_list(names, _SHOWN) for names in found.values())
    return join_names([f"{part} ({names})" for part, names in zip(parts, shown, strict=True)]) if parts else ""
