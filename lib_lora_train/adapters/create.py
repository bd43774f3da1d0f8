"""The adapter that a run begins with: a fresh one, or the numbers of a file that is trained on."""

from __future__ import annotations

from pathlib import Path

from lib_lora_train.adapters.files.decode import open_file
from lib_lora_train.adapters.files.lora_file import read_adapter
from lib_lora_train.adapters.inject import Adapter, ModelParts, inject, inject_opened
from lib_lora_train.adapters.registry import spec_from_config
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.core.user_paths import typed_path


def start_adapter(model: ModelParts, config: TrainConfig) -> Adapter:
    """The adapter in place on the model.

    With `continue_from`, family, ranks, alphas and layers are the file's; a part that is not to be trained keeps the
    file's numbers and is saved with them. AdapterError if the file cannot be used, or nothing would be trained.
    """
    if not config.continue_from:
        return inject(model, spec_from_config(config), seed=config.seed)
    opened = open_file(read_adapter(typed_path(config.continue_from)))
    adapter, left = inject_opened(model, opened)
    adapter.left_out = (*opened.unknown, *left)
    for name in list(adapter.groups):
        if not (config.train_unet if name == "unet" else config.train_text_encoder):
            for parameter in adapter.groups.pop(name):
                parameter.requires_grad_(False)
            del adapter.rate_weights[name]
    if not adapter.groups:
        adapter.remove()
        name = Path(config.continue_from).name
        raise AdapterError(f"{name} has nothing of the part to be trained. Switch on train_unet or train_text_encoder.")
    return adapter
