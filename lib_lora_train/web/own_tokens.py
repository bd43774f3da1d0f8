"""How the model to train counts the tokens of a prompt, if it does not have CLIP."""

from __future__ import annotations

from lib_lora_train.config.architecture_titles import TITLES
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import ModelError
from lib_lora_train.hosts.host import Host
from lib_lora_train.models.kinds.registry import kind_of
from lib_lora_train.models.model_files import read_checkpoint_info
from lib_lora_train.web.token_analysis import OwnTokens


def find_own_tokens(host: Host, config: TrainConfig) -> OwnTokens | None:
    """The tokens of the settings' model; None if it has CLIP. Its own tokenizer is in a webui that has it loaded."""
    target = host.run_target(config)
    if target.checkpoint is None:
        return None
    try:
        architecture = read_checkpoint_info(target.checkpoint).spec.architecture
    except ModelError:  # the webui may have loaded what cannot be read here
        return None
    limit = kind_of(architecture).prompt_tokens
    if limit is None:
        return None
    return OwnTokens(TITLES[architecture], limit, host.prompt_tokens if target.is_loaded else lambda _: None)
