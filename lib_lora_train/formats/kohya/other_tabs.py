"""Refuses files of the GUI's tabs that train no LoRA, before they become one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_OF_A_LORA = ("LoRA_type", "network_dim", "network_module", "lora_network_weights")
_WHOLE = "trains a whole checkpoint, not a LoRA. Save the settings in its LoRA tab, or choose the family full here"
_TABS = (
    (
        "Textual Inversion",
        ("token_string", "init_word", "num_vectors_per_token"),
        "trains an embedding, not a LoRA. Save the settings in its LoRA tab",
    ),
    ("Finetuning", ("full_path", "create_caption", "caption_metadata_filename", "latent_metadata_filename"), _WHOLE),
    ("Dreambooth", ("no_token_padding", "learning_rate_te", "learning_rate_te1"), _WHOLE),
)
"""Each tab's name, keys that only it has beside no key of a LoRA, and what it does."""


def why_not_a_lora(values: Mapping[str, Any]) -> str:
    """Why settings of the GUI are not those of a LoRA, to follow the file's name; "" if they may be."""
    if any(key in values for key in _OF_A_LORA):
        return ""
    for tab, keys, what in _TABS:
        if any(key in values for key in keys):
            return f"is from the {tab} tab of kohya's GUI, which {what}."
    return ""
