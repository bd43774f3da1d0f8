"""A LoRA file on a model that others use in between, such as a training run with its own adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from lib_lora_train.adapters.adapted_layer import AdaptedLayer
from lib_lora_train.adapters.files.decode import parse_sound_file
from lib_lora_train.adapters.files.lora_file import AdapterFile
from lib_lora_train.adapters.inject import inject_parsed
from lib_lora_train.adapters.targets import ModelParts
from lib_lora_train.models.placeholder_words import without_word

_Place = tuple[nn.Module, str, AdaptedLayer]
"""A layer's parent, its name there, and the layer."""


class FileOnModel:
    """The layers of a LoRA file of any family; the model has them inside `in_place` only.

    Outside it, and after an error, the model has what it had before: nothing, or the adapter of a run. AdapterError if
    the file is damaged or does not fit the model.
    """

    def __init__(self, model: ModelParts, file: AdapterFile) -> None:
        parsed = parse_sound_file(file)
        self._model = model
        with without_adapter(model):
            self._adapter, unmatched = inject_parsed(model, parsed)
            self._places = _adapted_places(model)
            self._adapter.remove()
        self.left_out = (*parsed.unknown, *unmatched)
        """Keys and layers of the file that do not exist in the model."""

    @contextmanager
    def in_place(self, strength: float = 1.0) -> Iterator[None]:
        """Inside, the model has this LoRA at a strength, as in `<lora:name:strength>`, and no other adapter."""
        with without_adapter(self._model), self._adapter.strength(strength):
            _put(self._places)
            try:
                yield
            finally:
                _restore_base_layers(self._places)


@contextmanager
def without_adapter(model: ModelParts) -> Iterator[None]:
    """Inside, the model has no adapter and no trained word. What it has of a training run is back afterwards."""
    places = _adapted_places(model)
    _restore_base_layers(places)
    try:
        with without_word(model):
            yield
    finally:
        _put(places)


def _adapted_places(model: ModelParts) -> list[_Place]:
    places = []
    for root in (model.unet, *model.text_encoders):
        for name, module in root.named_modules():
            if isinstance(module, AdaptedLayer):
                parent, _, child = name.rpartition(".")
                places.append((root.get_submodule(parent), child, module))
    return places


def _put(places: Sequence[_Place]) -> None:
    for parent, name, layer in places:
        setattr(parent, name, layer)


def _restore_base_layers(places: Sequence[_Place]) -> None:
    for parent, name, layer in places:
        setattr(parent, name, layer.base_layer)
