"""Settings: what is trained, and those of the methods other than a LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lib_lora_train.config.parameters import Group, param

METHODS = ("lora", "textual_inversion")
EMBEDDING_FORMATS = ("webui", "diffusers")


@dataclass(frozen=True)
class MethodSettings:
    """What is trained, and the settings of textual inversion."""

    GROUP: ClassVar[Group] = "network"

    method: str = param(
        "lora",
        "What is trained. lora: changes to the model, for nearly everything. textual_inversion: only the embedding of "
        "the trigger word, a file of a few kilobytes that finds in the model what is already there, and that leaves "
        "the model as it is; the settings of LoRAs then have no effect.",
        tier="beginner",
        choices=METHODS,
    )
    embedding_vectors: int = param(
        4,
        "Textual inversion: how many tokens of the prompt the word takes, with a trained vector for each. 1 or 2 for "
        "a plain object or a style, 4 to 8 for a character; many learn details of the images instead of the concept "
        "and crowd out the rest of the prompt.",
        tier="beginner",
        low=1,
        high=64,
    )
    embedding_init_text: str = param(
        "",
        "Textual inversion: the words whose embeddings the vectors start from, one to each vector in their order. "
        "Empty: the class word. The nearer to the concept, the sooner it is learnt.",
    )
    preserve_embedding_norm: bool = param(
        False,
        "Textual inversion: after each step, give every vector the median length of the model's own token embeddings. "
        "Long vectors draw all attention to the word; use it if the word drowns the rest of the prompt.",
    )
    embedding_format: str = param(
        "webui",
        "Textual inversion: how SD1 and SD2 files are written. webui: as emb_params, which webuis and ComfyUI read. "
        "diffusers: under the trigger word, so that diffusers needs no name for it; webuis read that, too. SDXL files "
        "have the same form for all.",
        choices=EMBEDDING_FORMATS,
    )
