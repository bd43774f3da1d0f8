"""The adapter a run starts with: a new one, or the weights of an existing file."""

from __future__ import annotations

from pathlib import Path

from lib_lora_train.adapters.files.decode import parse_sound_file
from lib_lora_train.adapters.files.lora_file import read_adapter
from lib_lora_train.adapters.files.spelling import with_own_alphas
from lib_lora_train.adapters.inject import Adapter, ModelParts, inject, inject_parsed
from lib_lora_train.adapters.registry import spec_from_config
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.core.user_paths import user_path


def create_adapter(model: ModelParts, config: TrainConfig) -> Adapter:
    """The adapter, injected into the model.

    With `continue_from`, family, ranks, alphas and layers come from the file; a part that is not trained keeps the
    file's weights and is saved with them. AdapterError if the file cannot be used, or nothing would be trained.
    """
    if not config.continue_from:
        return inject(model, spec_from_config(config), seed=config.seed)
    parsed = parse_sound_file(with_own_alphas(read_adapter(user_path(config.continue_from))))
    adapter, unmatched = inject_parsed(model, parsed)
    adapter.left_out = (*parsed.unknown, *unmatched)
    for name in list(adapter.groups):
        if not (config.train_unet if name == "unet" else config.train_text_encoder):
            for parameter in adapter.groups.pop(name):
                parameter.requires_grad_(False)
            del adapter.lr_weights[name]
    if not adapter.groups:
        adapter.remove()
        name = Path(config.continue_from).name
        raise AdapterError(
            f"{name} has no layers of the parts being trained. Turn on train_unet or train_text_encoder."
        )
    return adapter
