"""The adapter a run starts with: a new one, or the weights of an existing file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from lib_lora_train.adapters.files.decode import ParsedLora, parse_sound_file
from lib_lora_train.adapters.files.lora_file import read_adapter
from lib_lora_train.adapters.files.spelling import with_own_alphas
from lib_lora_train.adapters.inject import Adapter, inject, inject_parsed
from lib_lora_train.adapters.registry import spec_from_config
from lib_lora_train.adapters.targets import ModelParts
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.core.wording import count, join_names


def create_adapter(model: ModelParts, config: TrainConfig) -> Adapter:
    """The adapter, injected into the model.

    With `continue_from`, family, ranks, alphas and layers come from the file; a part that is not trained keeps the
    file's weights and is saved with them. AdapterError if the file cannot be used, or nothing would be trained.
    """
    if not config.continue_from:
        return inject(model, spec_from_config(config), seed=config.seed)
    parsed = parse_continued_file(user_path(config.continue_from))
    adapter, unmatched = inject_parsed(model, parsed)
    adapter.left_out = (*parsed.unknown, *unmatched)
    try:
        require_trained_part(config, adapter.groups)
    except AdapterError:
        adapter.remove()
        raise
    for name in list(adapter.groups):
        if not _is_trained(name, config):
            for parameter in adapter.groups.pop(name):
                parameter.requires_grad_(False)
            del adapter.lr_weights[name]
    return adapter


def parse_continued_file(path: Path) -> ParsedLora:
    """The layers of a file to continue from; AdapterError if it cannot be used, or has a form that is only read."""
    parsed = parse_sound_file(with_own_alphas(read_adapter(path)))
    only_read = Counter(layer.kind for layer in parsed.layers.values() if not layer.family.IS_TRAINED_HERE)
    if only_read:
        kinds = join_names([f"{count(number, 'layer')} of {kind}" for kind, number in only_read.items()])
        raise AdapterError(
            f"{path.name} has {kinds}, which cannot be trained here. Convert it to a LoRA, and continue from that."
        )
    return parsed


def require_trained_part(config: TrainConfig, groups: Iterable[str]) -> None:
    """AdapterError unless a run with these settings trains one of the file's parts, named as in `Adapter.groups`."""
    if not any(_is_trained(name, config) for name in groups):
        name = Path(config.continue_from).name
        raise AdapterError(
            f"{name} has no layers of the parts being trained. Turn on train_unet or train_text_encoder."
        )


def _is_trained(group: str, config: TrainConfig) -> bool:
    return config.train_unet if group == "unet" else config.train_text_encoder
