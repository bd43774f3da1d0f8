"""Learning rates and optimiser of kohya's tools in our terms."""

from __future__ import annotations

import re
from typing import Any

from lib_lora_train.config.optimizer_args import parse_optimizer_args
from lib_lora_train.config.optimizer_catalog import CUSTOM, OPTIMIZER_CATALOG
from lib_lora_train.core.errors import ConfigError
from lib_lora_train.core.wording import did_you_mean
from lib_lora_train.formats.kohya.import_state import (
    AT_DEFAULT,
    NOT_NEEDED,
    PARAMETERS,
    ImportState,
    find_choice,
    not_available,
    parse_flag,
    parse_literal,
    parse_number,
)

_CLASSES = {
    "ademamix8bit": "bitsandbytes.optim.AdEMAMix8bit",
    "pagedademamix8bit": "bitsandbytes.optim.PagedAdEMAMix8bit",
    "dadaptadagrad": "dadaptation.DAdaptAdaGrad",
    "dadaptadampreprint": "dadaptation.experimental.DAdaptAdamPreprint",
    "dadaptadanip": "dadaptation.experimental.DAdaptAdanIP",
    "prodigyplusschedulefree": "prodigyplus.ProdigyPlusScheduleFree",
    "radamschedulefree": "schedulefree.RAdamScheduleFree",
    "sgdschedulefree": "schedulefree.SGDScheduleFree",
}
"""Optimisers that sd-scripts has a short name for and that are chosen by their class here."""


_OLD_SWITCHES = {"use_8bit_adam": "AdamW8bit", "use_lion_optimizer": "Lion"}
"""Switches that choose the optimiser if optimizer_type is missing; the first that is on counts."""


def import_learning_rates(state: ImportState) -> None:
    """In the GUI an empty rate or 0 turns that part off, unless both are so."""
    unet, text = _rate(state, "unet_lr"), _rate(state, "text_encoder_lr")
    unet_only, text_only = (
        state.pop_flag("network_train_unet_only"),
        state.pop_flag("network_train_text_encoder_only"),
    )
    if state.source == "gui":
        unet_only, text_only = unet_only or bool(unet and not text), text_only or bool(text and not unet)
        unet, text = unet or None, text or None
    if unet_only != text_only:
        state.values["train_text_encoder" if unet_only else "train_unet"] = False
    for name, part, rate in (("unet_lr", "train_unet", unet), ("text_encoder_lr", "train_text_encoder", text)):
        if rate is not None and state.values.get(part, True):
            state.set_parameter(PARAMETERS[name], name, rate)
        elif rate:
            state.ignore(name, rate, f"{NOT_NEEDED}: this part is not trained")


def _rate(state: ImportState, name: str) -> float | None:
    """The rate; of two, one per text encoder, the first, while the second is set as `text_encoder_2_lr`."""
    raw = parse_literal(state.pop(name))
    if isinstance(raw, str) and len(raw.split()) > 1:
        raw = raw.split()
    if isinstance(raw, (list, tuple)):
        rates = [rate for rate in map(parse_number, raw) if rate is not None]
        if len(set(rates)) > 1 and name == "text_encoder_lr":
            state.set_parameter(PARAMETERS["text_encoder_2_lr"], name, rates[1])
        raw = rates[0] if rates else None
    rate = parse_number(raw)
    if raw is not None and rate is None:
        state.ignore(name, raw, "is not a number")
    return rate


def import_optimizer(state: ImportState) -> None:
    for switch, name in _OLD_SWITCHES.items():
        raw = state.pop(switch)
        if parse_flag(raw):
            state.set_default("optimizer_type", name)
        elif raw is not None:
            state.ignore(switch, raw, AT_DEFAULT)
    raw = str(state.pop("optimizer_type") or "")
    written, _, inside = raw.partition("(")  # in metadata: torch.optim.adamw.AdamW(weight_decay=0.1,eps=1e-08)
    given = written.rpartition(".")[2].strip()
    if given:
        state.values["optimizer"] = chosen = _optimizer_here(written.strip(), given)
        if chosen == CUSTOM:
            state.values["custom_optimizer"] = _CLASSES.get(given.lower(), written.strip())
        elif find_choice(PARAMETERS["optimizer"], given) != chosen and given != "DAdaptation":
            text = not_available(given, chosen, OPTIMIZER_CATALOG)
            if chosen.lower() in (_plain_optimizer(given), given.lower().removeprefix("paged")):
                how = "the same with its states elsewhere or in another precision"
                text = f"{given} is not available; {chosen} is used, {how}."
            state.warn("optimizer", f"{text} Learning rates may need adjusting.")
    _optimizer_args(state, state.pop("optimizer_args") or inside.removesuffix(")"))


def _plain_optimizer(name: str) -> str:
    return re.sub(r"^paged|_?(8|32)bit$", "", name.lower())


def _optimizer_here(written: str, name: str) -> str:
    """The optimiser of that name, or the closest one; a class of another package unchanged."""
    parameter = PARAMETERS["optimizer"]
    if name.lower() in _CLASSES:
        return CUSTOM
    for candidate in (name, name.lower().removeprefix("paged"), _plain_optimizer(name)):
        known = find_choice(parameter, candidate)
        if known:
            return known
    if "." in written:
        return CUSTOM
    if name.lower().startswith("dadapt"):
        return "DAdaptAdam"
    return "Prodigy" if name.lower().startswith("prodigy") else str(parameter.default)


def _optimizer_args(state: ImportState, raw: Any) -> None:
    """Arguments that the optimiser does not have are ignored one by one."""
    text = " ".join(map(str, raw)) if isinstance(raw, (list, tuple)) else str(raw or "").strip()
    text = text.replace('"', "")
    text = re.sub(r",\s*(?=[A-Za-z_]\w*\s*=)", " ", text)
    try:
        arguments = parse_optimizer_args(text)
    except ConfigError as error:
        state.ignore("optimizer_args", text, "; ".join(p.message.rstrip(".") for p in error.problems))
        return
    optimizer = state.values.get("optimizer", PARAMETERS["optimizer"].default)
    known = OPTIMIZER_CATALOG[optimizer].arguments or tuple(arguments)
    for name in arguments.keys() - set(known):
        state.ignore_nested(
            "optimizer_args", name, arguments[name], f"is not an argument of {optimizer}.{did_you_mean(name, known)}"
        )
    kept = {name: value for name, value in arguments.items() if name in known}
    if optimizer == "Adafactor" and kept.get("relative_step", True):  # sd-scripts' own default; it sets the schedule
        kept.pop("relative_step", None)
        state.pop("lr_scheduler")
        state.set_default("lr_scheduler", "adafactor")
    if kept:
        state.values["optimizer_args"] = text if kept == arguments else " ".join(map(_argument, kept.items()))


def _argument(pair: tuple[str, Any]) -> str:
    name, value = pair
    return f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
