"""Learning rates, optimiser and schedule of kohya's tools in our terms."""

from __future__ import annotations

import math
import re
from typing import Any

from lib_lora_train.config.optimizer_args import parse_optimizer_args
from lib_lora_train.config.optimizer_catalog import CUSTOM, OPTIMIZER_CATALOG
from lib_lora_train.core.errors import ConfigError
from lib_lora_train.formats.kohya.import_state import (
    NOT_NEEDED,
    PARAMETERS,
    ImportState,
    find_choice,
    overridden_by,
    parse_flag,
    parse_literal,
    parse_number,
)

_FALLING = ("linear", "polynomial", "cosine_with_restarts", "cosine_with_min_lr", "warmup_stable_decay")


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
            state.values["text_encoder_2_lr"] = rates[1]
        raw = rates[0] if rates else None
    rate = parse_number(raw)
    if raw is not None and rate is None:
        state.ignore(name, raw, f"is invalid: {raw!r} is not a number")
    return rate


def import_optimizer(state: ImportState) -> None:
    if parse_flag(state.pop("use_8bit_adam")) and "optimizer_type" not in state:
        state.set_default("optimizer_type", "AdamW8bit")
    raw = str(state.pop("optimizer_type") or "")
    written, _, inside = raw.partition("(")  # in metadata: torch.optim.adamw.AdamW(weight_decay=0.1,eps=1e-08)
    given = written.rpartition(".")[2].strip()
    if given:
        state.values["optimizer"] = chosen = _optimizer_here(written.strip(), given)
        if chosen == CUSTOM:
            state.values["custom_optimizer"] = _CLASSES.get(given.lower(), written.strip())
        elif find_choice(PARAMETERS["optimizer"], given) != chosen and given != "DAdaptation":
            is_same = chosen.lower() in (_plain_optimizer(given), given.lower().removeprefix("paged"))
            how = "the same with its states elsewhere or in another precision" if is_same else "the closest"
            text = f"{given} is not available; {chosen} is used, {how}. Learning rates may need adjusting."
            state.warn("optimizer", text)
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
    text = re.sub(r",\s*(?=[A-Za-z_]\w*\s*=)", " ", text)
    try:
        arguments = parse_optimizer_args(text)
    except ConfigError as error:
        state.ignore("optimizer_args", text, "; ".join(p.message.rstrip(".") for p in error.problems))
        return
    optimizer = state.values.get("optimizer", PARAMETERS["optimizer"].default)
    known = OPTIMIZER_CATALOG[optimizer].arguments or tuple(arguments)
    for name in arguments.keys() - set(known):
        state.ignore_nested("optimizer_args", name, arguments[name], f"is not an argument of {optimizer}")
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


def import_lr_schedule(state: ImportState) -> None:
    parameter = PARAMETERS["lr_schedule"]
    given = str(state.pop("lr_scheduler") or "").lower()
    warmup = _warmup(state)
    chosen = find_choice(parameter, given) or ("constant" if given == "constant_with_warmup" else "")
    if given and not chosen:
        chosen = "cosine" if given in _FALLING else "constant"
        has_one_cycle = (parse_number(state.value("lr_scheduler_num_cycles")) or 1) <= 1
        if not (given == "cosine_with_restarts" and has_one_cycle):  # with one cycle it is the cosine
            state.warn("lr_schedule", f"{given} is not available; {chosen} is used, the closest.")
    if chosen == "adafactor" and state.values.get("optimizer") != "Adafactor":
        state.warn("lr_schedule", "adafactor works only with the Adafactor optimiser; constant is used.")
        chosen = "constant"
    if given == "constant" and warmup:
        state.hint("warmup", "is 0: “constant” has no warm-up in kohya's tools; “constant_with_warmup” has one.")
        warmup = 0.0
    state.values.update({"lr_schedule": chosen} if chosen else {})
    if warmup is not None:
        state.values["warmup"] = warmup
    if chosen == "warmup_stable_decay":
        state.set_default("lr_decay_steps", 0)  # kohya's default: the rate never decays
    _stop_of_text_encoder(state)


def _stop_of_text_encoder(state: ImportState) -> None:
    """In percent in the GUI, in steps in the script; 0 or less means never."""
    raw = parse_number(state.value("stop_text_encoder_training"))
    if raw and raw > 0:
        state.pop("stop_text_encoder_training")
        share = raw / 100 if state.source == "gui" else raw
        state.set_parameter(PARAMETERS["stop_text_encoder"], "stop_text_encoder_training", share if share != 1 else 0.0)


def _warmup(state: ImportState) -> float | None:
    """Steps (or a fraction, or "10%") take precedence over the GUI's percentage; None if the file has neither."""
    raw, percent = state.pop("lr_warmup_steps"), state.pop_number("lr_warmup")
    share = re.fullmatch(r"([\d.]+)\s*%", raw) if isinstance(raw, str) else None
    steps = float(share[1]) / 100 if share and parse_number(share[1]) is not None else parse_number(raw)
    if raw is not None and steps is None:
        state.ignore("lr_warmup_steps", raw, f"is invalid: {raw!r} is not a number of steps")
    if steps and percent:
        state.ignore("lr_warmup", percent, overridden_by("lr_warmup_steps"))
    name, value = ("lr_warmup_steps", steps) if steps or percent is None else ("lr_warmup", percent / 100)
    if value is None:
        return None
    high = 1 if name == "lr_warmup" or share else PARAMETERS["warmup"].high or math.inf
    if 0 <= value < high:
        return value
    state.ignore(name, percent if name == "lr_warmup" else raw, "is invalid: the warm-up would never end")
    return None
