"""Which text-encoder layers a target preset includes, their names in LoRA files, and which layers (IA)³ adapts.

Everything here works on module names as strings, so it does not depend on class names of library versions. The layers
of UNets and transformers are named by their kind of model (`models.kinds`).
"""

from __future__ import annotations

import re

from lib_lora_train.models.infer_text_encoders import SD2_TEXT_LAYERS

_TEXT_ATTENTION = re.compile(r"(^|\.)layers\.(\d+)\.self_attn\.(q|k|v|out)_proj$")
_TEXT_MLP = re.compile(r"(^|\.)layers\.(\d+)\.mlp\.fc[12]$")

_IA3 = re.compile(r"(to_k|to_v|ff\.net\.2|[kv]_proj|mlp\.fc2)$")
_IA3_INPUT = re.compile(r"(ff\.net\.2|mlp\.fc2)$")


def is_text_target(name: str, targets: str, *, architecture: str) -> bool:
    """Whether the preset includes the text-encoder layer called `name` (transformers' module name)."""
    found = _TEXT_ATTENTION.search(name) or (targets != "attention" and _TEXT_MLP.search(name))
    if not found:
        return False
    return architecture != "sd2" or int(found.group(2)) < SD2_TEXT_LAYERS


def is_ia3_target(name: str, targets: str, *, is_packed: bool = False) -> bool:
    """Whether (IA)³ adapts the layer called `name`, one of those that the preset includes.

    Keys, values and the last layer of feed-forward blocks (Liu et al. 2022, section 3.3; LyCORIS' preset `ia3`); with
    `all` and `full` every linear layer. A1111 packs OpenCLIP's attention into one tensor (`is_packed`) and silently
    ignores a file that does not hold all of q, k, v and out.
    """
    return targets in ("all", "full") or bool(_IA3.search(name)) or (is_packed and ".self_attn." in name)


def is_on_ia3_input(name: str) -> bool:
    """Whether (IA)³ scales the layer's input: the inner activation of a feed-forward block."""
    return bool(_IA3_INPUT.search(name))


def text_encoder_groups(count: int) -> tuple[tuple[str, str], ...]:
    """(group name, key prefix) of each of `count` text encoders."""
    if count == 1:
        return (("text_encoder", "lora_te"),)
    return tuple((f"text_encoder_{number}", f"lora_te{number}") for number in range(1, count + 1))


def text_key(name: str, prefix: str) -> str:
    """A text-encoder layer's name in files, with the `text_model` that transformers 5 dropped."""
    return f"{prefix}_text_model_{name.removeprefix('text_model.')}".replace(".", "_")
