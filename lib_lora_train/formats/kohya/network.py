"""The kind and size of kohya's network in our terms, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lib_lora_train.config.family_catalog import families_with
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.formats.kohya.import_state import (
    AT_DEFAULT,
    NOT_NEEDED,
    NOT_YET,
    PARAMETERS,
    ImportState,
    is_same,
    kohya_parameters,
    parse_flag,
    parse_literal,
    parse_number,
    strip_value,
)
from lib_lora_train.formats.kohya.keys import IA3_PRESETS, LYCORIS_PRESETS, OTHER_NETWORK_DEFAULTS

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
_MODULES: Mapping[str, str] = {"networks.lora": "lora", "networks.dylora": "dylora", "networks.oft": "oft"}
_GUI_TYPES: Mapping[str, str] = {
    "standard": "lora",
    "locon": "lora",
    "kohya locon": "lora",
    "kohya dylora": "dylora",
    "kohya loha": "loha",
}
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
_USED_BY: Mapping[str, tuple[str, ...]] = {
    "conv_dim": families_with("conv_rank"),
    "conv_alpha": families_with("conv_rank"),
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
_IN_ARGUMENTS = (
    *("rank_dropout", "module_dropout", "block_dims", "block_alphas"),
    *("down_lr_weight", "mid_lr_weight", "up_lr_weight"),
)
_READ_BY_KOHYA = ("conv_dim", "conv_alpha", "unit")  # what networks.lora and networks.dylora read


@dataclass(frozen=True)
class _Kind:
    """What to train. `preset`: LyCORIS' name for the layers, "" if kohya's own network chooses them."""

    family: str
    is_lycoris: bool
    preset: str
    has_convolutions: bool

    def reads(self, name: str) -> bool:
        """Whether this network reads the setting with this kohya name."""
        return self.family in _USED_BY[name] and (self.is_lycoris or name in _READ_BY_KOHYA)


def import_network(state: ImportState) -> None:
    """LoRA_type of the GUI, or network_module and network_args of sd-scripts, as `family`, `targets` and the rest."""
    for name, value in _network_args(state).items():
        state.add_nested("network_args", name, value)
    _join_tucker(state)
    kind = _kind(state)
    state.values["family"] = kind.family
    _import_targets(state, kind)
    _import_sizes(state, kind)
    _ignore_other_networks(state)
    _alpha(state)
    _general_loraplus(state)


def _network_args(state: ImportState) -> dict[str, Any]:
    """`["conv_dim=4", "algo=locon"]`, the same as one text, or a table, as names and values."""
    raw = parse_literal(state.pop("network_args"))
    if isinstance(raw, Mapping):
        return {str(name): strip_value(value) for name, value in raw.items() if strip_value(value) is not None}
    words = [str(word) for word in raw] if isinstance(raw, (list, tuple)) else str(raw or "").split()
    pairs = [word.strip("\"' ").partition("=") for word in words]
    for name, sign, _ in pairs:
        if not sign:
            state.ignore_nested("network_args", name, "", "does not have the form name=value")
    return {name: strip_value(value) for name, sign, value in pairs if sign and strip_value(value) is not None}


def _join_tucker(state: ImportState) -> None:
    """use_cp is LyCORIS' older name for use_tucker; the GUI writes both."""
    old = state.pop("use_cp")
    if old is None:
        return
    if parse_flag(old) and not parse_flag(state.value("use_tucker")):
        state.pop("use_tucker")
        state.add_nested("use_cp", "use_tucker", True)
    else:
        state.ignore("use_cp", old, f"{NOT_NEEDED}: use_tucker is used")


def _kind(state: ImportState) -> _Kind:
    """The family; an unsupported one becomes LoCon, with a warning."""
    gui_type = str(state.pop("LoRA_type") or "").lower()
    module = str(state.pop("network_module") or "").lower()
    algo = str(state.pop("algo") or "").lower()
    preset = str(state.pop("LyCORIS_preset") or state.pop("preset") or "full").lower()
    has_conv = bool(parse_number(state.value("conv_dim")))
    if gui_type.startswith("lycoris/") or (not gui_type and module.startswith("lycoris")):
        name = gui_type.removeprefix("lycoris/") or algo or "lora"
        if name in ALGOS:
            return _Kind(ALGOS[name], True, preset, True)
    elif gui_type in _GUI_TYPES:
        return _Kind(_GUI_TYPES[gui_type], False, "", gui_type != "standard")
    elif not gui_type and (module in _MODULES or not module):
        return _Kind(_MODULES.get(module, "lora"), False, "", has_conv)
    where = "LoRA_type" if gui_type else "network_module"
    state.ignore(where, gui_type or module, NOT_YET)
    given = gui_type or f"{module} {algo}".strip()
    state.warn("family", f"{given} is not available; a LoRA on all layers (LoCon) is used, the closest.")
    return _Kind("lora", False, "", True)


def _import_targets(state: ImportState, kind: _Kind) -> None:
    if not kind.is_lycoris:
        state.values["targets"] = "all" if kind.has_convolutions else "standard"
        return
    presets = {**LYCORIS_PRESETS, **IA3_PRESETS} if kind.family == "ia3" else LYCORIS_PRESETS
    targets, has_text_encoder = presets.get(kind.preset, ("full", True))
    state.values["targets"] = targets
    if not has_text_encoder:
        state.values["train_text_encoder"] = False
    if kind.preset not in presets:
        state.ignore("LyCORIS_preset", kind.preset, NOT_YET)
        state.warn("targets", f"the LyCORIS preset {kind.preset} is not available; all layers are trained.")


def _import_sizes(state: ImportState, kind: _Kind) -> None:
    """Every setting that the kind of network reads; the others are ignored."""
    for name in _USED_BY:
        if name not in state:
            continue
        is_unused_conv = name.startswith("conv_") and state.values["targets"] not in ("all", "full")
        if kind.reads(name) and not is_unused_conv:
            _import_size(state, name)
            continue
        value = state.pop(name)
        is_default = is_same(value, OTHER_NETWORK_DEFAULTS[name])
        state.ignore(name, value, AT_DEFAULT if is_default else f"{NOT_NEEDED}: it is for another kind of network")


def _import_size(state: ImportState, name: str) -> None:
    """0 means "same as the rank" for conv_alpha and "no convolutions" for conv_dim."""
    value = state.pop(name)
    if name == "conv_dim" and parse_number(value) == 0:
        state.values["targets"] = "standard"
    elif name != "conv_alpha" or parse_number(value) != 0:
        state.set_parameter(kohya_parameters()[name], name, value)


def _ignore_other_networks(state: ImportState) -> None:
    for name, default in OTHER_NETWORK_DEFAULTS.items():
        if name in state and name not in kohya_parameters():
            value = state.pop(name)
            state.ignore(name, value, AT_DEFAULT if is_same(value, default) else NOT_YET)


def _alpha(state: ImportState) -> None:
    """0 means "same as the rank" in kohya's tools, which is empty here."""
    alpha = state.pop("network_alpha")
    if parse_number(alpha) == 0:
        state.values["alpha"] = None
    elif alpha is not None:
        state.set_parameter(PARAMETERS["alpha"], "network_alpha", alpha)


def _general_loraplus(state: ImportState) -> None:
    """loraplus_lr_ratio is for parts without their own ratio; 0 counts as none, as in kohya's tools."""
    general = state.pop_number("loraplus_lr_ratio")
    if general == 0:
        state.ignore("loraplus_lr_ratio", general, AT_DEFAULT)
    for name in ("loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio"):
        own = state.pop(name)
        if own is not None or general:
            is_own = not general or parse_number(own)
            key, given = (name, own) if is_own else ("loraplus_lr_ratio", general)
            state.set_parameter(kohya_parameters()[name], key, given)


# --- and back -----------------------------------------------------------------------------------


def gui_network(config: TrainConfig) -> dict[str, Any]:
    """The GUI's keys of the network, except those that have a parameter's kohya name."""
    sizes = {
        "network_alpha": config.effective_alpha,
        "conv_dim": config.rank if config.conv_rank is None else config.conv_rank,
        "conv_alpha": conv_alpha_of(config),
        "constrain": config.constraint,
        "use_cp": False,
    }
    if _is_plain(config) and config.targets in ("standard", "all"):
        return {**sizes, "LoRA_type": _plain_type(config), "LyCORIS_preset": "full"}
    return {**sizes, "LoRA_type": NAMES[config.family][0], "LyCORIS_preset": _preset(config)}


def metadata_network(config: TrainConfig) -> tuple[str, dict[str, str]]:
    """(ss_network_module, ss_network_args) as kohya's tools write them for this network: all values are text."""
    conv = {"conv_dim": config.conv_rank or config.rank, "conv_alpha": conv_alpha_of(config)}
    arguments: dict[str, Any] = dict(conv) if config.targets in ("all", "full") else {}
    arguments |= {name: value for name in _IN_ARGUMENTS if (value := getattr(config, kohya_parameters()[name].name))}
    if _is_plain(config) and config.targets in ("standard", "all"):
        if config.family == "dylora":
            return "networks.dylora", _texts({**arguments, "unit": config.dylora_unit})
        return "networks.lora", _texts(arguments)
    declared = kohya_parameters()
    own = {name: getattr(config, declared[name].name) for name in _USED_BY if name not in conv}
    changed = {name: value for name, value in own.items() if value != declared[name].default}
    algo = NAMES[config.family][1]
    return "lycoris.kohya", _texts({"algo": algo, "preset": _preset(config), **arguments, **changed})


def conv_alpha_of(config: TrainConfig) -> float:
    """The alpha of 3×3 convolutions."""
    return config.effective_alpha if config.effective_conv_alpha is None else config.effective_conv_alpha


def _is_plain(config: TrainConfig) -> bool:
    """Whether kohya's own networks, without LyCORIS, can train it."""
    extras = (config.dora, config.tucker, config.train_norm, config.rank_stabilized, config.scalar)
    return config.family in ("lora", "dylora") and not any(extras)


def _plain_type(config: TrainConfig) -> str:
    if config.family == "dylora":
        return "Kohya DyLoRA"
    return "Kohya LoCon" if config.targets == "all" else "Standard"


def _preset(config: TrainConfig) -> str:
    if config.family == "ia3" and config.targets == "standard":
        return "ia3"
    return {"attention": "attn-only", "standard": "attn-mlp"}.get(config.targets, "full")


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}
