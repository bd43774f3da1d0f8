"""How a LoRA's layers are spelled in files for models other than Stable Diffusion.

Files for SD1, SD2 and SDXL have kohya's names, which every program reads. For Anima none is read by all: diffusers
ignores kohya's names without a word and refuses a file with an alpha, and the webuis refuse diffusers' names. One
spelling is left that Forge Neo, ComfyUI and diffusers 0.42 read alike: ComfyUI's prefix before the original names,
PEFT's `lora_A` and `lora_B`, and no alpha. Families other than LoRA keep kohya's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lib_lora_train.adapters.adapted_layer import AdaptedLayer
from lib_lora_train.adapters.files.lora_file import AdapterFile
from lib_lora_train.config.train_config import CONFIG_KEY
from lib_lora_train.models.diffusion_model import DiffusionModel

_LORA = frozenset({"lora_down.weight", "lora_up.weight", "alpha"})


def lora_paths(model: DiffusionModel) -> Mapping[str, str]:
    """kohya's name of each adapted layer → its name in files; {} for models whose files have kohya's names."""
    names = (name for name, module in model.unet.named_modules() if isinstance(module, AdaptedLayer))
    return model.kind.lora_paths(names)


def spelled(state: Mapping[str, Tensor], paths: Mapping[str, str]) -> dict[str, Tensor]:
    """An adapter's `state` with the layers of `paths` renamed, if all are plain LoRA, and their scale multiplied in.

    The scale alpha / rank goes into `lora_A`, whose values are far from the smallest that fp16 holds.
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
        found[f"{paths[name]}.lora_A.weight"] = (down.to(torch.float64) * scale.to(down.device)).to(down.dtype)
        found[f"{paths[name]}.lora_B.weight"] = up
    return found


def with_own_alphas(file: AdapterFile) -> AdapterFile:
    """A file of ours in that spelling with kohya's names for both matrices and the alpha of its run; others unchanged.

    Training continues at the speed of the run only with its alpha: without one it would count as the rank.
    """
    is_ours = CONFIG_KEY in file.metadata and all(
        key.endswith((".lora_A.weight", ".lora_B.weight")) for key in file.state
    )
    alpha = _positive(file.metadata.get("ss_network_alpha", "")) if is_ours else 0.0
    if not alpha:
        return file
    state: dict[str, Tensor] = {}
    for key, tensor in file.state.items():
        layer, _, side = key.removesuffix(".weight").rpartition(".lora_")
        if side == "A":
            scale = alpha / len(tensor)
            state[f"{layer}.lora_down.weight"] = (tensor.double() / scale).to(torch.float32)
            state[f"{layer}.alpha"] = torch.tensor(alpha)
        else:
            state[f"{layer}.lora_up.weight"] = tensor
    return replace(file, state=state)


def _positive(text: str) -> float:
    """The number above 0 that the text is, else 0."""
    try:
        number = float(text)
    except ValueError:
        return 0.0
    return number if 0 < number < float("inf") else 0.0
