"""Kind and size of the network that kohya's tools would train, in our terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lib_lora_train.config import TrainConfig
from lib_lora_train.formats.kohya_intake import (
    AT_DEFAULT,
    NOT_NEEDED,
    NOT_YET,
    Intake,
    cleaned,
    is_same,
    kohya_parameters,
    literal_of,
    number_of,
)
from lib_lora_train.formats.kohya_keys import LYCORIS_TARGETS, OTHER_NETWORK_DEFAULTS
from lib_lora_train.parameters import parameters_of

_OURS = {parameter.name: parameter for parameter in parameters_of(TrainConfig)}
_PLAIN = ("", "standard", "networks.lora")
_LOCON = ("locon", "kohya locon", "lycoris/locon")


def take_network(intake: Intake) -> None:
    """LoRA_type of the GUI, or network_module and network_args of sd-scripts, as `targets`."""
    for name, value in _network_args(intake).items():
        intake.unfold("network_args", name, value)
    lora_type = str(intake.pop("LoRA_type") or "").lower()
    module = str(intake.pop("network_module") or "").lower()
    algo = str(intake.pop("algo") or "").lower()
    kind = lora_type or (f"lycoris/{algo or 'lora'}" if module.startswith("lycoris") else module)
    preset = str(intake.pop("LyCORIS_preset") or intake.pop("preset") or "").lower()
    has_convolutions = kind in _PLAIN and not lora_type and bool(number_of(intake.value("conv_dim")))
    if kind in (*_LOCON, "lycoris/lora") or has_convolutions:
        _locon(intake, preset if kind.startswith("lycoris") else "")
    elif kind in _PLAIN:
        _set_aside_other_networks(intake, f"{NOT_NEEDED}: it belongs to another kind of network")
    else:
        where = next((name for name in ("LoRA_type", "network_module") if intake.was_given(name)), "network_module")
        intake.ignore(where, lora_type or module, NOT_YET)
        intake.warn("targets", f"{kind} is not here yet; a LoRA on all layers (LoCon) is the nearest.")
        intake.values["targets"] = "all"
        _set_aside_other_networks(intake, f"{NOT_YET}: it belongs to {kind}")
    _alpha(intake)


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


def _locon(intake: Intake, preset: str) -> None:
    targets = LYCORIS_TARGETS.get(preset, "all")
    intake.values["targets"] = targets
    if preset and preset not in LYCORIS_TARGETS:
        intake.ignore("LyCORIS_preset", preset, NOT_YET)
        intake.warn("targets", f"the LyCORIS preset {preset} is not here; all layers are trained.")
    rank, alpha = number_of(intake.value("network_dim")), number_of(intake.value("network_alpha"))
    for name, main in (("conv_dim", rank), ("conv_alpha", alpha)):
        value = number_of(intake.pop(name))
        if value is not None and value != main and targets == "all":
            intake.ignore(name, value, f"is not used: convolutions get the same as the other layers, {main or 0:g}")
    _set_aside_other_networks(intake, NOT_YET)


def _set_aside_other_networks(intake: Intake, reason: str) -> None:
    for name, default in OTHER_NETWORK_DEFAULTS.items():
        if name in intake and name not in kohya_parameters():
            value = intake.pop(name)
            intake.ignore(name, value, AT_DEFAULT if is_same(value, default) else reason)


def _alpha(intake: Intake) -> None:
    """0 is kohya's "as large as the rank", which is written as empty here."""
    alpha = intake.pop("network_alpha")
    if number_of(alpha) == 0:
        intake.values["alpha"] = None
    elif alpha is not None:
        intake.put(_OURS["alpha"], "network_alpha", alpha)
