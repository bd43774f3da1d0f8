"""The kinds of models by architecture."""

from __future__ import annotations

from collections.abc import Collection, Mapping

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
_ASKED: tuple[ModelKind, ...] = (KINDS["anima"], KINDS["sd1"])
"""In this order. Stable Diffusion recognises every checkpoint, and says what it is instead."""


def kind_in(names: Collection[str]) -> ModelKind:
    """The kind of a checkpoint whose tensors have these names; of Stable Diffusion any, as shapes tell those apart."""
    return next(kind for kind in _ASKED if kind.recognises(names))


def kind_of(architecture: str) -> ModelKind:
    """The kind of models of this architecture; KeyError for one that cannot be trained."""
    return {str(name): kind for name, kind in KINDS.items()}[architecture]
