"""Kind and size of the network that kohya's tools would train, in our terms, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lib_lora_train.config.parameters import parameters_of
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.formats.kohya.intake import (
    AT_DEFAULT,
    NOT_NEEDED,
    NOT_YET,
    Intake,
    cleaned,
    flag_of,
    is_same,
    kohya_parameters,
    literal_of,
    number_of,
)
from lib_lora_train.formats.kohya.keys import IA3_PRESETS, LYCORIS_PRESETS, OTHER_NETWORK_DEFAULTS

_OURS = {parameter.name: parameter for parameter in parameters_of(TrainConfig)}

_ALGOS: Mapping[str, str] = {
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
_GUI_NAMES: Mapping[str, str] = {
    "lora": "LyCORIS/LoCon",
    "loha": "LyCORIS/LoHa",
    "lokr": "LyCORIS/LoKr",
    "dylora": "LyCORIS/DyLoRA",
    "glora": "LyCORIS/GLoRA",
    "ia3": "LyCORIS/iA3",
    "oft": "LyCORIS/Diag-OFT",
    "boft": "LyCORIS/BOFT",
    "full": "LyCORIS/Native Fine-Tuning",
}
_ALGO_NAMES: Mapping[str, str] = {"lora": "locon", "oft": "diag-oft"}  # the others are called as here
_CONVOLUTIONAL = ("lora", "loha", "lokr", "dylora")
_USED_BY: Mapping[str, tuple[str, ...]] = {
    "conv_dim": _CONVOLUTIONAL,
    "conv_alpha": _CONVOLUTIONAL,
    "dora_wd": ("lora", "loha", "lokr"),
    "use_tucker": ("lora", "loha", "lokr"),
    "rs_lora": ("lora", "loha", "lokr"),
    "use_scalar": ("lora", "loha", "lokr", "glora"),
    "factor": ("lokr",),
    "decompose_both": ("lokr",),
    "full_matrix": ("lokr",),
    "unit": ("dylora",),
    "constraint": ("oft", "boft"),
    "rescaled": ("oft", "boft"),
    "train_norm": tuple(_GUI_NAMES),
}
"""Our parameters' kohya names → the families in which LyCORIS reads them."""
_IN_ARGUMENTS = (
    *("rank_dropout", "module_dropout", "block_dims", "block_alphas"),
    *("down_lr_weight", "mid_lr_weight", "up_lr_weight"),
)
_KOHYAS_OWN = ("conv_dim", "conv_alpha", "unit")  # what networks.lora and networks.dylora read


@dataclass(frozen=True)
class _Kind:
    """What is to be trained. `preset`: LyCORIS' name for the layers, "" where kohya's own network decides."""

    family: str
    is_lycoris: bool
    preset: str
    has_convolutions: bool

    def reads(self, name: str) -> bool:
        """Whether this network reads the setting of this kohya name."""
        return self.family in _USED_BY[name] and (self.is_lycoris or name in _KOHYAS_OWN)


def take_network(intake: Intake) -> None:
    """LoRA_type of the GUI, or network_module and network_args of sd-scripts, as `family`, `targets` and the rest."""
    for name, value in _network_args(intake).items():
        intake.unfold("network_args", name, value)
    _join_tucker(intake)
    kind = _kind(intake)
    intake.values["family"] = kind.family
    _take_targets(intake, kind)
    _take_sizes(intake, kind)
    _set_aside_other_networks(intake)
    _alpha(intake)
    _general_loraplus(intake)


def _network_args(intake: Intake) -> dict[str, Any]:
    """`["conv_dim=4", "algo=locon"]`, the same as one text, or a table, as names and values."""
    raw = literal_of(intake.pop("network_args"))
    if isinstance(raw, Mapping):
        return {str(name): cleaned(value) for name, value in raw.items() if cleaned(value) is not None}
    words = [str(word) for word in raw] if isinstance(raw, (list, tuple)) else str(raw or "").split()
    pairs = [word.strip("\"' ").partition("=") for word in words]
    for name, sign, _ in pairs:
        if not sign:
            intake.ignore_part("network_args", name, "", "is not of the form name=value")
    return {name: cleaned(value) for name, sign, value in pairs if sign and cleaned(value) is not None}


def _join_tucker(intake: Intake) -> None:
    """use_cp is LyCORIS' older name of use_tucker; the GUI writes both."""
    old = intake.pop("use_cp")
    if old is None:
        return
    if flag_of(old) and not flag_of(intake.value("use_tucker")):
        intake.pop("use_tucker")
        intake.unfold("use_cp", "use_tucker", True)
    else:
        intake.ignore("use_cp", old, f"{NOT_NEEDED}: use_tucker counts")


def _kind(intake: Intake) -> _Kind:
    """The family; one that is not here is replaced by LoCon, and told."""
    gui_type = str(intake.pop("LoRA_type") or "").lower()
    module = str(intake.pop("network_module") or "").lower()
    algo = str(intake.pop("algo") or "").lower()
    preset = str(intake.pop("LyCORIS_preset") or intake.pop("preset") or "full").lower()
    has_conv = bool(number_of(intake.value("conv_dim")))
    if gui_type.startswith("lycoris/") or (not gui_type and module.startswith("lycoris")):
        name = gui_type.removeprefix("lycoris/") or algo or "lora"
        if name in _ALGOS:
            return _Kind(_ALGOS[name], True, preset, True)
    elif gui_type in _GUI_TYPES:
        return _Kind(_GUI_TYPES[gui_type], False, "", gui_type != "standard")
    elif not gui_type and (module in _MODULES or not module):
        return _Kind(_MODULES.get(module, "lora"), False, "", has_conv)
    where = "LoRA_type" if gui_type else "network_module"
    intake.ignore(where, gui_type or module, NOT_YET)
    told = gui_type or f"{module} {algo}".strip()
    intake.warn("family", f"{told} is not here; a LoRA on all layers (LoCon) is the nearest.")
    return _Kind("lora", False, "", True)


def _take_targets(intake: Intake, kind: _Kind) -> None:
    if not kind.is_lycoris:
        intake.values["targets"] = "all" if kind.has_convolutions else "standard"
        return
    presets = {**LYCORIS_PRESETS, **IA3_PRESETS} if kind.family == "ia3" else LYCORIS_PRESETS
    targets, has_text_encoder = presets.get(kind.preset, ("full", True))
    intake.values["targets"] = targets
    if not has_text_encoder:
        intake.values["train_text_encoder"] = False
    if kind.preset not in presets:
        intake.ignore("LyCORIS_preset", kind.preset, NOT_YET)
        intake.warn("targets", f"the LyCORIS preset {kind.preset} is not here; all layers are trained.")


def _take_sizes(intake: Intake, kind: _Kind) -> None:
    """Every setting that the kind of network reads; the others are set aside."""
    for name in _USED_BY:
        if name not in intake:
            continue
        is_unused_conv = name.startswith("conv_") and intake.values["targets"] not in ("all", "full")
        if kind.reads(name) and not is_unused_conv:
            _take_size(intake, name)
            continue
        value = intake.pop(name)
        is_default = is_same(value, OTHER_NETWORK_DEFAULTS[name])
        intake.ignore(name, value, AT_DEFAULT if is_default else f"{NOT_NEEDED}: it belongs to another kind of network")


def _take_size(intake: Intake, name: str) -> None:
    """0 is "as large as the rank" for conv_alpha, and "none" for conv_dim."""
    value = intake.pop(name)
    if name == "conv_dim" and number_of(value) == 0:
        intake.values["targets"] = "standard"
    elif name != "conv_alpha" or number_of(value) != 0:
        intake.put(kohya_parameters()[name], name, value)


def _set_aside_other_networks(intake: Intake) -> None:
    for name, default in OTHER_NETWORK_DEFAULTS.items():
        if name in intake and name not in kohya_parameters():
            value = intake.pop(name)
            intake.ignore(name, value, AT_DEFAULT if is_same(value, default) else NOT_YET)


def _alpha(intake: Intake) -> None:
    """0 is kohya's "as large as the rank", which is written as empty here."""
    alpha = intake.pop("network_alpha")
    if number_of(alpha) == 0:
        intake.values["alpha"] = None
    elif alpha is not None:
        intake.put(_OURS["alpha"], "network_alpha", alpha)


def _general_loraplus(intake: Intake) -> None:
    """loraplus_lr_ratio is for the parts that have no ratio of their own; 0 there is none, as in kohya's tools."""
    general = intake.pop_number("loraplus_lr_ratio")
    if general == 0:
        intake.ignore("loraplus_lr_ratio", general, AT_DEFAULT)
    for name in ("loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio"):
        own = intake.pop(name)
        if own is not None or general:
            is_own = not general or number_of(own)
            key, given = (name, own) if is_own else ("loraplus_lr_ratio", general)
            intake.put(kohya_parameters()[name], key, given)


# --- and back -----------------------------------------------------------------------------------


def gui_network(config: TrainConfig) -> dict[str, Any]:
    """The GUI's keys of the network, but for those that are called as our parameters' kohya names."""
    sizes = {
        "network_alpha": config.effective_alpha,
        "conv_dim": config.rank if config.conv_rank is None else config.conv_rank,
        "conv_alpha": conv_alpha_of(config),
        "constrain": config.constraint,
        "use_cp": False,
    }
    if _is_plain(config) and config.targets in ("standard", "all"):
        return {**sizes, "LoRA_type": _plain_type(config), "LyCORIS_preset": "full"}
    return {**sizes, "LoRA_type": _GUI_NAMES[config.family], "LyCORIS_preset": _preset(config)}


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
    algo = _ALGO_NAMES.get(config.family, config.family)
    return "lycoris.kohya", _texts({"algo": algo, "preset": _preset(config), **arguments, **changed})


def conv_alpha_of(config: TrainConfig) -> float:
    """The alpha that 3×3 convolutions have."""
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
