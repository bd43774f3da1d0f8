"""The kinds of models by architecture."""

from __future__ import annotations

from collections.abc import Mapping

from lib_lora_train.models.architecture import Architecture
from lib_lora_train.models.kinds.anima import Anima
from lib_lora_train.models.kinds.base import ModelKind
from lib_lora_train.models.kinds.stable_diffusion import StableDiffusion

KINDS: Mapping[Architecture, ModelKind] = {
    "sd1": StableDiffusion("sd1"),
    "sd2": StableDiffusion("sd2"),
    "sdxl": StableDiffusion("sdxl"),
    "anima": Anima(),
}


def kind_of(architecture: str) -> ModelKind:
    """The kind of models of this architecture; KeyError for one that cannot be trained."""
    return {str(name): kind for name, kind in KINDS.items()}[architecture]
