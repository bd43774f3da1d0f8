"""The settings of a past run, as its model, images and files are looked at again."""

from __future__ import annotations

from lib_lora_train.config.method_catalog import named_word
from lib_lora_train.config.train_config import TrainConfig, read_config
from lib_lora_train.core.errors import HostError, LoraTrainError, TrainingError
from lib_lora_train.formats.toml import read_toml_config
from lib_lora_train.models.model_identity import ModelIdentity, identity_from_values
from lib_lora_train.runs.records.folder import RunFolder, read_identity
from lib_lora_train.runs.records.moved_run import read_move

_KEPT = ("prediction_type", "zero_terminal_snr")


def read_past_config(folder: RunFolder) -> TrainConfig:
    """The settings of the run, with the paths of a moved run found again, and on the model as it was trained on.

    ConfigError if they cannot be read.
    """
    config = read_move(folder).config(read_config(read_toml_config(folder.config, is_ours=True))[0])
    return config_as_trained(config, read_model(folder))


def read_model(folder: RunFolder) -> ModelIdentity:
    """The model that the run was trained on; an unknown one if it was interrupted before that was loaded."""
    try:
        return identity_from_values(read_identity(folder).model)
    except TrainingError:
        return ModelIdentity()


def config_as_trained(config: TrainConfig, trained: ModelIdentity) -> TrainConfig:
    """The settings with what the model was taken for where they leave that to the checkpoint.

    Its path, or a file beside it, may have said so, and may not do so any more.
    """
    known = {name: getattr(trained, name) for name in _KEPT}
    return config.replace(**{name: value for name, value in known.items() if value and getattr(config, name) == "auto"})


def past_named_word(folder: RunFolder) -> str:
    """The word in whose place a prompt has the name of a file of this run; "" for LoRAs and unreadable settings."""
    try:
        return named_word(read_past_config(folder))
    except LoraTrainError:
        return ""


def is_lora_run(folder: RunFolder) -> bool:
    """Whether the run's files are LoRAs, as they are taken to be if its settings cannot be read."""
    try:
        return read_past_config(folder).method == "lora"
    except LoraTrainError:
        return True


def require_lora_run(folder: RunFolder) -> None:
    """HostError for a run of another method, whose images and tags cannot be measured."""
    if not is_lora_run(folder):
        name = folder.root.name
        raise HostError(f"{name} has trained an embedding. Images and tags can be measured only for runs of LoRAs.")
