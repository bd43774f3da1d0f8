"""The networks of kohya's tools and LyCORIS: their names, their family here, and the settings that each of them reads.

A file of the GUI has the settings of all networks. Those that its network does not read have no effect there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lib_lora_train.config.family_catalog import families_with

ALGOS: Mapping[str, str] = {
    "lora": "lora",
    "locon": "lora",
    "loha": "loha",
    "lokr": "lokr",
    "dylora": "dylora",
    "glora": "glora",
    "ia3": "ia3",
    "diag-oft": "oft",
    "oft": "oft",
    "boft": "boft",
    "full": "full",
    "native fine-tuning": "full",
}
"""LyCORIS' algorithms → our families."""

NAMES: Mapping[str, tuple[str, str]] = {
    "lora": ("LyCORIS/LoCon", "locon"),
    "loha": ("LyCORIS/LoHa", "loha"),
    "lokr": ("LyCORIS/LoKr", "lokr"),
    "dylora": ("LyCORIS/DyLoRA", "dylora"),
    "glora": ("LyCORIS/GLoRA", "glora"),
    "ia3": ("LyCORIS/iA3", "ia3"),
    "oft": ("LyCORIS/Diag-OFT", "diag-oft"),
    "boft": ("LyCORIS/BOFT", "boft"),
    "full": ("LyCORIS/Native Fine-Tuning", "full"),
}
"""Family → its LoRA_type in the kohya_ss GUI and its algo in LyCORIS, or those of the nearest one that they know."""

USED_BY: Mapping[str, tuple[str, ...]] = {
    "conv_dim": families_with("conv_rank"),
    "conv_alpha": families_with("conv_alpha"),
    "dora_wd": families_with("dora"),
    "use_tucker": families_with("tucker"),
    "rs_lora": families_with("dora"),
    "use_scalar": families_with("scalar"),
    "factor": families_with("lokr_factor"),
    "decompose_both": families_with("decompose_both"),
    "full_matrix": families_with("full_matrix"),
    "unit": families_with("dylora_unit"),
    "constraint": families_with("constraint"),
    "rescaled": families_with("rescaled"),
    "train_norm": tuple(NAMES),
}
"""kohya name of a parameter → the families for which LyCORIS reads it."""

BLOCK_SETTINGS = ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas")
_BLOCKS = (*BLOCK_SETTINGS, "down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold")
_DROPOUTS = ("rank_dropout", "module_dropout")
_PATTERNS = ("exclude_patterns", "include_patterns", "network_reg_dims", "network_reg_lrs")
_CONVS = ("conv_dim", "conv_alpha")
OPTIONAL = (*_BLOCKS, *_DROPOUTS, *_PATTERNS)
"""Settings that some networks ignore although they would have an effect here."""

OWN_OFT = "kohya's OFT"
_OWN: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "networks.lora": ("lora", (*_CONVS, *_BLOCKS, *_DROPOUTS)),
    "networks.lora_fa": ("lora", (*_CONVS, *_BLOCKS, *_DROPOUTS)),
    "networks.dylora": ("dylora", (*_CONVS, "unit")),
    "networks.oft": ("oft", ("constraint",)),
    "networks.loha": ("loha", (*_CONVS, *_DROPOUTS, *_PATTERNS, "use_tucker")),
    "networks.lokr": ("lokr", (*_CONVS, *_DROPOUTS, *_PATTERNS, "use_tucker", "factor")),
}
"""sd-scripts' own networks: family and the settings that they read."""

_GUI_MODULES: Mapping[str, str] = {
    "standard": "networks.lora",
    "kohya locon": "networks.lora",
    "lora-fa": "networks.lora_fa",
    "kohya dylora": "networks.dylora",
    "kohya loha": "networks.loha",
    "kohya lokr": "networks.lokr",
}
_WITHOUT_CONVOLUTIONS = ("standard", "lora-fa")
"""The GUI's types for which it leaves conv_dim out, whatever the file says."""

_GUI_LEAVES_OUT: Mapping[str, tuple[str, ...]] = {
    "ia3": _DROPOUTS,
    "boft": ("constraint", "rescaled"),
}
"""Settings that LyCORIS would read but the GUI does not pass on."""


@dataclass(frozen=True)
class NetworkKind:
    """What a file trains.

    `title` is the file's name for it. `preset`: LyCORIS' name for the layers, "" if kohya's own network chooses them.
    `approximates`: the network that the family only comes close to, "" if it is the same.
    """

    title: str
    family: str
    preset: str
    reads: frozenset[str]
    approximates: str = ""

    @property
    def is_lycoris(self) -> bool:
        return bool(self.preset)


def gui_kind(lora_type: str, preset: str) -> NetworkKind | None:
    """The network of a LoRA_type of the GUI (in lower case); None if it is not known."""
    if lora_type == "locon" or lora_type.startswith("lycoris/"):
        kind = lycoris_kind(lora_type.removeprefix("lycoris/"), preset, lora_type)
        return _without(kind, _GUI_LEAVES_OUT.get(kind.family, ()))
    module = _GUI_MODULES.get(lora_type)
    kind_of_module = own_kind(module, lora_type) if module else None
    if kind_of_module and lora_type in _WITHOUT_CONVOLUTIONS:
        return _without(kind_of_module, _CONVS)
    return kind_of_module


def own_kind(module: str, title: str) -> NetworkKind | None:
    """The network of one of sd-scripts' own modules; None for other modules."""
    if module not in _OWN:
        return None
    family, reads = _OWN[module]
    approximates = {"networks.lora_fa": "LoRA-FA", "networks.oft": OWN_OFT}.get(module, "")
    return NetworkKind(title, family, "", frozenset(reads), approximates)


def lycoris_kind(algo: str, preset: str, title: str) -> NetworkKind:
    """The network of a LyCORIS algorithm; an algorithm that is not here becomes a LoRA on the same layers."""
    family = ALGOS.get(algo, "lora")
    reads = {name for name, families in USED_BY.items() if family in families}
    return NetworkKind(title, family, preset, frozenset({*reads, *_DROPOUTS}), "" if algo in ALGOS else algo)


def _without(kind: NetworkKind, names: tuple[str, ...]) -> NetworkKind:
    return NetworkKind(kind.title, kind.family, kind.preset, kind.reads - set(names), kind.approximates)
