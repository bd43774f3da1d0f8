"""The kind and size of kohya's network in our terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lib_lora_train.core.wording import did_you_mean
from lib_lora_train.formats.kohya.import_state import (
    AT_DEFAULT,
    NOT_NEEDED,
    NOT_YET,
    PARAMETERS,
    ImportState,
    is_same,
    kohya_parameters,
    not_available,
    parse_flag,
    parse_literal,
    parse_number,
    strip_value,
)
from lib_lora_train.formats.kohya.keys import DEFAULTS, IA3_PRESETS, LYCORIS_PRESETS, OTHER_NETWORK_DEFAULTS
from lib_lora_train.formats.kohya.layer_patterns import import_layer_patterns
from lib_lora_train.formats.kohya.lycoris_habits import report_lycoris_habits
from lib_lora_train.formats.kohya.network_kinds import (
    ALGOS,
    OPTIONAL,
    OWN_OFT,
    USED_BY,
    NetworkKind,
    gui_kind,
    lycoris_kind,
    own_kind,
)

_WIDEST = 10_240  # of all layers of SD1, SD2 and SDXL


def import_network(state: ImportState) -> None:
    """LoRA_type of the GUI, or network_module and network_args of sd-scripts, as `family`, `targets` and the rest."""
    for name, value in _network_args(state).items():
        state.add_nested("network_args", name, value)
    kind = _kind(state)
    state.values["family"] = kind.family
    _join_tucker(state, kind)
    _import_targets(state, kind)
    _ignore_unread(state, kind)
    _own_oft(state, kind)
    if kind.family == "lokr":
        _full_matrix(state)
    report_lycoris_habits(state, kind)
    _import_sizes(state, kind)
    _ignore_other_networks(state)
    _import_ranks(state, kind)
    import_layer_patterns(state)
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


def _join_tucker(state: ImportState, kind: NetworkKind) -> None:
    """use_cp is LyCORIS' older name for use_tucker; the GUI writes both, and passes it on for LoKr alone.

    LyCORIS takes the first of the names that is given, so that use_tucker has no effect beside use_cp.
    """
    old = state.pop("use_cp")
    if old is None:
        return
    is_passed_on = kind.is_lycoris and (kind.family == "lokr" or state.source != "gui")
    newer = state.pop("use_tucker") if is_passed_on else None
    if newer is not None:
        state.ignore("use_tucker", newer, f"{NOT_NEEDED}: LyCORIS uses use_cp if both are given")
    if is_passed_on:
        state.add_nested("use_cp", "use_tucker", old)
    else:
        reason = AT_DEFAULT if not parse_flag(old) else f"{NOT_NEEDED}: this network uses use_tucker"
        state.ignore("use_cp", old, reason)


def _kind(state: ImportState) -> NetworkKind:
    """The network that the file trains; an unsupported one becomes the closest, with a warning."""
    gui_type = str(state.pop("LoRA_type") or "").lower()
    module = str(state.pop("network_module") or "").lower()
    if state.source == "gui" and not module:
        gui_type = gui_type or "standard"
        for name in ("conv_dim", "conv_alpha"):
            state.set_default(name, 1)
    algo = str(state.pop("algo") or "lora").lower()
    of_gui, own = state.pop("LyCORIS_preset"), state.pop("preset")
    preset = str(of_gui or own or "full").lower()
    if gui_type:
        kind = gui_kind(gui_type, preset)
    elif module.startswith("lycoris"):
        kind = lycoris_kind(algo, preset, f"{module} {algo}")
    else:
        kind = own_kind(module or "networks.lora", module or "kohya's LoRA")
    where, given = ("LoRA_type", gui_type) if gui_type else ("network_module", module)
    if kind is None:
        text = f"{given} is not available; a LoRA on the layers of kohya's LoCon is used, the closest."
        state.replace(where, given, where="family", message=text)
        return lycoris_kind("lora", "full", given)
    if kind.approximates:
        text = not_available(kind.approximates, f"{kind.family} on the same layers", ALGOS)
        state.replace(where, kind.title, where="family", message=text)
    return kind


def _import_targets(state: ImportState, kind: NetworkKind) -> None:
    if not kind.is_lycoris:
        has_convolutions = "conv_dim" in kind.reads and bool(parse_number(state.value("conv_dim")))
        state.values["targets"] = "all" if has_convolutions else "standard"
        return
    presets = {**LYCORIS_PRESETS, **IA3_PRESETS} if kind.family == "ia3" else LYCORIS_PRESETS
    targets, has_text_encoder = presets.get(kind.preset, ("full", True))
    state.values["targets"] = targets
    if not has_text_encoder:
        state.values["train_text_encoder"] = False
    if kind.preset not in presets:
        hint = did_you_mean(kind.preset, presets)
        text = f"the LyCORIS preset {kind.preset} is not available.{hint} All layers are trained."
        state.replace("LyCORIS_preset", kind.preset, where="targets", message=text)


def _ignore_unread(state: ImportState, kind: NetworkKind) -> None:
    """Settings that kohya's tools ignore for this network are ignored here too, and can be set by hand."""
    taken = []
    for name in OPTIONAL:
        if name not in state or name in kind.reads:
            continue
        value = state.pop(name)
        is_default = is_same(value, DEFAULTS.get(name, ""))
        parameter = kohya_parameters().get(name)
        state.ignore(
            name, value, AT_DEFAULT if is_default else f"{NOT_NEEDED}: kohya's tools ignore it with {kind.title}"
        )
        if not is_default and parameter:
            taken.append(f"{parameter.name} = {value}")
    if taken:
        what = ", ".join(taken)
        state.hint("family", f"is not given what kohya's tools ignore with {kind.title}. To use it here, set {what}.")


def _own_oft(state: ImportState, kind: NetworkKind) -> None:
    """sd-scripts' own OFT: its rank is the number of blocks, its alpha the constraint; only the UNet has it."""
    if kind.approximates != OWN_OFT:
        return
    blocks, bound = state.pop("network_dim"), state.pop("network_alpha")
    state.ignore("network_dim", blocks, "is the number of blocks in kohya's OFT, and here the size of a block")
    state.add_nested("network_alpha", "constraint", bound or 0)
    all_linear, convolutions = state.pop_flag("enable_all_linear"), state.pop_flag("enable_conv")
    state.values["targets"] = "all" if convolutions else "standard" if all_linear else "attention"
    state.values["train_text_encoder"] = False


def _full_matrix(state: ImportState) -> None:
    """A rank at which no matrix of LoKr is decomposed, such as LyCORIS' 100000, is `full_matrix`.

    Matrices are decomposed below half of their longer side. That is at most half of the widest layer (10240) divided by
    the factor, or by the next smaller one that divides all widths.
    """
    rank, conv = parse_number(state.value("network_dim")), parse_number(state.value("conv_dim"))
    factor = int(parse_number(state.value("factor")) or 0)
    divisor = 64 if factor < 0 or "factor" not in state else max(n for n in (1, 2, 4, 5) if n <= max(factor, 1))
    ranks = [rank, *([conv] if conv is not None and state.values["targets"] in ("all", "full") else [])]
    limit = max(PARAMETERS["rank"].high or 0, _WIDEST / 2 / divisor)
    if any(size is None or size <= limit for size in ranks):
        return
    state.values["full_matrix"] = True
    reason = f"{NOT_NEEDED}: no matrix of LoKr is decomposed at this rank, which is full_matrix here"
    for name in ("network_dim", "network_alpha", "conv_dim", "conv_alpha", "decompose_both", "full_matrix"):
        if name in state:
            state.ignore(name, state.pop(name), reason)


def _import_sizes(state: ImportState, kind: NetworkKind) -> None:
    """Every setting that the kind of network reads; the others are ignored."""
    _default_sizes(state, kind)
    for name in USED_BY:
        if name not in state:
            continue
        is_unused_conv = name.startswith("conv_") and state.values["targets"] not in ("all", "full")
        if name in kind.reads and not is_unused_conv:
            _import_size(state, name)
            continue
        value = state.pop(name)
        is_default = is_same(value, OTHER_NETWORK_DEFAULTS[name])
        state.ignore(name, value, AT_DEFAULT if is_default else f"{NOT_NEEDED}: it is for another kind of network")


def _default_sizes(state: ImportState, kind: NetworkKind) -> None:
    """Missing sizes: in kohya's own networks convolutions have an alpha of 1, in LyCORIS that of other layers."""
    if kind.is_lycoris and kind.family == "dylora" and "unit" not in state:
        given = state.pop("block_size")
        state.add_nested("block_size", "unit", 4 if given is None and state.source != "gui" else given or 1)
    if state.values["targets"] not in ("all", "full") or state.values.get("full_matrix"):
        return
    if not kind.is_lycoris:
        state.set_default("conv_alpha", 1)
    elif "conv_dim" in state:
        state.set_default("conv_alpha", state.value("network_alpha") or 1)


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


def _import_ranks(state: ImportState, kind: NetworkKind) -> None:
    """Rank and alpha. An alpha of 0 means "same as the rank" in kohya's tools, which is empty here."""
    given, alpha = state.pop("network_dim"), state.pop("network_alpha")
    if given is not None:
        state.set_parameter(PARAMETERS["rank"], "network_dim", given)
    rank = state.values.get("rank", PARAMETERS["rank"].default)
    if parse_number(alpha) == 0:
        state.values["alpha"] = None
    elif alpha is not None:
        shrunk = min(1.0, rank / (parse_number(given) or rank))  # a rank above the limit keeps its scale
        number = parse_number(alpha)
        state.set_parameter(PARAMETERS["alpha"], "network_alpha", number * shrunk if number and shrunk < 1 else alpha)
    scale = (state.values.get("alpha") or rank) / rank
    if kind.family == "glora" and scale != 1:
        text = f"has no alpha here, so updates are scaled by 1, not by {scale:.3g} as in the file. Use a lower rate."
        state.warn("family", f"glora {text}")
    _block_alphas(state)


def _block_alphas(state: ImportState) -> None:
    """Blocks with a rank but no alpha have network_alpha in kohya's tools; here they keep the scale."""
    ranks = str(state.value("block_dims") or "").replace(",", " ").split()
    alpha = state.values.get("alpha")
    if ranks and alpha is not None:
        state.set_default("block_alphas", ",".join([f"{alpha:g}"] * len(ranks)))


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
