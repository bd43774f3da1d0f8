"""The methods by name. Each has a file in this room; a LoRA's is the room `adapters`.

A method is a function that puts a `TrainedPart` on the model. `config/method_catalog.py` has a row for it, with the
settings that it does not use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from lib_lora_train.adapters.create import create_adapter
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.methods.textual_inversion import attach_textual_inversion, require_word
from lib_lora_train.methods.trained_part import TrainedPart
from lib_lora_train.models.diffusion_model import DiffusionModel

METHODS: Mapping[str, Callable[[DiffusionModel, TrainConfig], TrainedPart]] = {
    "lora": create_adapter,
    "textual_inversion": attach_textual_inversion,
}


def attach(model: DiffusionModel, config: TrainConfig) -> TrainedPart:
    """What the settings train, on the model; AdapterError or DataError if that is not possible."""
    return METHODS[config.method](model, config)


def check_captions(model: DiffusionModel, config: TrainConfig, captions: Iterable[str]) -> None:
    """DataError if nothing could be learnt from any of the captions; the model is as it was loaded."""
    if config.method == "textual_inversion":
        require_word(model, config, captions)
