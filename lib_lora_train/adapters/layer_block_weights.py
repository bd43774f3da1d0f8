"""Weights for the blocks of a UNet, as the extension LoRA Block Weight and sd-scripts' merge scripts take them.

The first number is for the text encoders (BASE). Then come the blocks of ldm's UNet that have attention, or all:

    SD1, SD2    17  BASE, IN01 02 04 05 07 08, MID, OUT03 … 11       26  BASE, IN00 … 11, MID, OUT00 … 11
    SDXL        12  BASE, IN04 05 07 08, MID, OUT00 … 05             20  BASE, IN00 … 08, MID, OUT00 … 08

Blocks that a list does not name have weight 1, as in sd-scripts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lib_lora_train.adapters.block_weights import place_of_block
from lib_lora_train.adapters.targets import ModelParts, unet_layer_names
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.core.wording import count
from lib_lora_train.models.kinds.registry import kind_of
from lib_lora_train.models.unet_layers import ldm_layer_names

BASE = "BASE"
_Block = tuple[str, int]


def _blocks(down: Iterable[int], up: Iterable[int]) -> tuple[_Block, ...]:
    return (*(("down", number) for number in down), ("mid", 0), *(("up", number) for number in up))


_SMALL = {17: _blocks((1, 2, 4, 5, 7, 8), range(3, 12)), 26: _blocks(range(12), range(12))}
_LISTS: Mapping[str, Mapping[int, tuple[_Block, ...]]] = {
    "sd1": _SMALL,
    "sd2": _SMALL,
    "sdxl": {12: _blocks((4, 5, 7, 8), range(6)), 20: _blocks(range(9), range(9))},
}


def unet_block_weights(model: ModelParts, text: str) -> dict[str, float]:
    """The weight of each UNet layer by module name, and that of the text encoders under `BASE`.

    AdapterError for a text that is no such list for the model.
    """
    architecture = model.spec.architecture
    if not kind_of(architecture).has_unet_blocks:
        raise AdapterError("Block weights are for the blocks of a UNet, which this model lacks. Leave them out.")
    lists = _LISTS[architecture]
    try:
        numbers = [float(word) for word in text.replace("[", " ").replace("]", " ").replace(",", " ").split()]
    except ValueError:
        raise AdapterError(f"{text!r} are not block weights. Give numbers separated by commas.") from None
    if len(numbers) not in lists:
        wanted = " or ".join(map(str, lists))
        raise AdapterError(
            f"{count(len(numbers), 'block weight')} instead of {wanted}: one for the text encoders, then those of "
            "the blocks."
        )
    weights = dict(zip(lists[len(numbers)], numbers[1:], strict=True))
    found = {BASE: numbers[0]}
    for name, ldm in ldm_layer_names(unet_layer_names(model)).items():
        way, number = place_of_block(ldm)
        block = {"mid": ("mid", 0), "before": ("down", 0)}.get(way, (way, number))
        found[name] = weights.get(block, 1.0)
    return found
