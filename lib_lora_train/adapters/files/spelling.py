"""How a LoRA's layers are spelled in files for models other than Stable Diffusion.

Files for SD1, SD2 and SDXL have kohya's names, which every program reads. For Anima none is read by all: diffusers
ignores kohya's names without a word and refuses a file with an alpha, and the webuis refuse diffusers' names. One
spelling is left that Forge Neo, ComfyUI and diffusers 0.42 read alike: ComfyUI's prefix before the original names,
PEFT's `lora_A` and `lora_B`, and no alpha. Families other than LoRA keep kohya's names.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lib_lora_train.adapters.adapted_layer import AdaptedLayer
from lib_lora_train.models.diffusion_model import DiffusionModel

_LORA = frozenset({"lora_down.weight", "lora_up.weight", "alpha"})


def lora_paths(model: DiffusionModel) -> Mapping[str, str]:
    """kohya's name of each adapted layer → its name in files; {} for models whose files have kohya's names."""
    names = (name for name, module in model.unet.named_modules() if isinstance(module, AdaptedLayer))
    return model.kind.lora_paths(names)


def spelled(state: Mapping[str, Tensor], paths: Mapping[str, str]) -> dict[str, Tensor]:
    """An adapter's `state` with the layers of `paths` renamed, if all are plain LoRA, and their scale multiplied in.

    The scale alpha / rank goes into `lora_B`, computed in the adapter's precision.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        layer, _, ending = key.partition(".")
        layers.setdefault(layer, {})[ending] = tensor
    if not paths or any(name not in paths or weights.keys() != _LORA for name, weights in layers.items()):
        return dict(state)
    found: dict[str, Tensor] = {}
    for name, weights in layers.items():
        down, up = weights["lora_down.weight"], weights["lora_up.weight"]
        scale = weights["alpha"].to(torch.float64).cpu() / len(down)
        found[f"{paths[name]}.lora_A.weight"] = down
        found[f"{paths[name]}.lora_B.weight"] = (up.to(torch.float64) * scale.to(up.device)).to(up.dtype)
    return found
