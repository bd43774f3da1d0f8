"""What can be trained besides a LoRA, as far as settings are concerned. Standard library only.

What each method does is in `methods/`, one file each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from lib_lora_train.config.settings.method import METHODS, MethodSettings
from lib_lora_train.config.settings.network import NetworkSettings
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.words import replace_trigger

_OF_LORA = (
    *(field.name for field in fields(NetworkSettings)),
    *("unet_lr", "text_encoder_lr", "text_encoder_2_lr", "loraplus_unet_ratio", "loraplus_text_encoder_ratio"),
    *("stop_text_encoder", "scale_weight_norms", "network_dropout", "rank_dropout", "module_dropout"),
    *("lora_precision", "files_for_webui"),
)
_OF_TEXTUAL_INVERSION = tuple(field.name for field in fields(MethodSettings) if field.name != "method")


@dataclass(frozen=True)
class MethodInfo:
    """A method's title, the settings that it does not use, and whether prompts name its files in the trigger's place.

    The other kind of file is added to a prompt, as `<lora:name:1>`.
    """

    title: str
    unused: tuple[str, ...]
    is_named_in_prompts: bool = False


METHOD_CATALOG: Mapping[str, MethodInfo] = {
    "lora": MethodInfo("LoRA", _OF_TEXTUAL_INVERSION),
    "textual_inversion": MethodInfo("textual inversion", tuple(dict.fromkeys(_OF_LORA)), is_named_in_prompts=True),
}
assert tuple(METHOD_CATALOG) == METHODS


def nearest_lora(config: TrainConfig) -> TrainConfig:
    """The settings of the LoRA run that trains the same parts of the model, at the same rate; a LoRA's are returned.

    What costs memory and time, and which learning rate counts, depends on these parts. For textual inversion it is the
    smallest LoRA of the text encoders.
    """
    if config.method == "lora":
        return config
    default = TrainConfig()
    plain = {name: getattr(default, name) for name in METHOD_CATALOG[config.method].unused}
    return config.replace(**{**plain, "method": "lora", "train_unet": False, "rank": 1})


def named_word(config: TrainConfig) -> str:
    """The word in whose place a prompt has the name of a file of this run; "" if files are not used in that way."""
    is_named = METHOD_CATALOG[config.method].is_named_in_prompts
    return config.triggers[0].strip() if is_named and config.triggers else ""


def name_in_prompt(prompt: str, word: str, name: str, strength: float = 1.0) -> str:
    """The prompt with a file's name in the place of the word, at a strength: `(name:0.8)`."""
    return replace_trigger(prompt, word, name if strength == 1 else f"({name}:{strength:g})")


def trains_text(config: TrainConfig) -> bool:
    """Whether the text encoders' answers change during the run, so that captions cannot be encoded ahead."""
    return nearest_lora(config).train_text_encoder
