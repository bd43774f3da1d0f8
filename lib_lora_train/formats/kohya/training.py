"""Learning rates, optimiser and schedule of kohya's tools in our terms."""

from __future__ import annotations

import math
import re
from typing import Any

from lib_lora_train.config.optimizer_args import parse_optimizer_args
from lib_lora_train.config.optimizer_catalog import CUSTOM, OPTIMIZER_CATALOG
from lib_lora_train.config.parameters import parameters_of
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import ConfigError
from lib_lora_train.formats.kohya.intake import (
    NOT_NEEDED,
    Intake,
    choice_of,
    flag_of,
    literal_of,
    number_of,
)

_OURS = {parameter.name: parameter for parameter in parameters_of(TrainConfig)}
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
"""Optimisers that sd-scripts knows by a short name and that are chosen by their class here."""


def take_rates(intake: Intake) -> None:
    """In the GUI a rate of 0 or none switches that part off, unless both are so."""
    unet, text = _rate(intake, "unet_lr"), _rate(intake, "text_encoder_lr")
    unet_only, text_only = (
        intake.pop_flag("network_train_unet_only"),
        intake.pop_flag("network_train_text_encoder_only"),
    )
    if intake.source == "gui":
        unet_only, text_only = unet_only or bool(unet and not text), text_only or bool(text and not unet)
        unet, text = unet or None, text or None
    if unet_only != text_only:
        intake.values["train_text_encoder" if unet_only else "train_unet"] = False
    for name, part, rate in (("unet_lr", "train_unet", unet), ("text_encoder_lr", "train_text_encoder", text)):
        if rate is not None and intake.values.get(part, True):
            intake.put(_OURS[name], name, rate)
        elif rate:
            intake.ignore(name, rate, f"{NOT_NEEDED}: that part is not trained")


def _rate(intake: Intake, name: str) -> float | None:
    """A number; of several, one for each text encoder, the first, and the second is kept as such."""
    raw = literal_of(intake.pop(name))
    if isinstance(raw, str) and len(raw.split()) > 1:
        raw = raw.split()
    if isinstance(raw, (list, tuple)):
        rates = [rate for rate in map(number_of, raw) if rate is not None]
        if len(set(rates)) > 1 and name == "text_encoder_lr":
            intake.values["text_encoder_2_lr"] = rates[1]
        raw = rates[0] if rates else None
    rate = number_of(raw)
    if raw is not None and rate is None:
        intake.ignore(name, raw, f"cannot be used: {raw!r} is not a number")
    return rate


def take_optimizer(intake: Intake) -> None:
    if flag_of(intake.pop("use_8bit_adam")) and "optimizer_type" not in intake:
        intake.fill("optimizer_type", "AdamW8bit")
    raw = str(intake.pop("optimizer_type") or "")
    written, _, inside = raw.partition("(")  # in metadata: torch.optim.adamw.AdamW(weight_decay=0.1,eps=1e-08)
    given = written.rpartition(".")[2].strip()
    if given:
        intake.values["optimizer"] = chosen = _optimizer_here(written.strip(), given)
        if chosen == CUSTOM:
            intake.values["custom_optimizer"] = _CLASSES.get(given.lower(), written.strip())
        elif choice_of(_OURS["optimizer"], given) != chosen and given != "DAdaptation":
            is_same = chosen.lower() in (_plain_optimizer(given), given.lower().removeprefix("paged"))
            like = "the same, with its states in another place or precision." if is_same else "the nearest."
            intake.warn("optimizer", f"{given} is not here; {chosen} is {like} Learning rates may differ.")
    _optimizer_args(intake, intake.pop("optimizer_args") or inside.removesuffix(")"))


def _plain_optimizer(name: str) -> str:
    return re.sub(r"^paged|_?(8|32)bit$", "", name.lower())


def _optimizer_here(written: str, name: str) -> str:
    """The optimiser of that name, or the nearest that there is; a class of another package as it is."""
    parameter = _OURS["optimizer"]
    if name.lower() in _CLASSES:
        return CUSTOM
    for candidate in (name, name.lower().removeprefix("paged"), _plain_optimizer(name)):
        known = choice_of(parameter, candidate)
        if known:
            return known
    if "." in written:
        return CUSTOM
    if name.lower().startswith("dadapt"):
        return "DAdaptAdam"
    return "Prodigy" if name.lower().startswith("prodigy") else str(parameter.default)


def _optimizer_args(intake: Intake, raw: Any) -> None:
    """Arguments that the optimiser does not have are set aside one by one."""
    text = " ".join(map(str, raw)) if isinstance(raw, (list, tuple)) else str(raw or "").strip()
    text = re.sub(r",\s*(?=[A-Za-z_]\w*\s*=)", " ", text)
    try:
        arguments = parse_optimizer_args(text)
    except ConfigError as error:
        intake.ignore("optimizer_args", text, "; ".join(p.message.rstrip(".") for p in error.problems))
        return
    optimizer = intake.values.get("optimizer", _OURS["optimizer"].default)
    known = OPTIMIZER_CATALOG[optimizer].arguments or tuple(arguments)
    for name in arguments.keys() - set(known):
        intake.ignore_part("optimizer_args", name, arguments[name], f"is no argument of {optimizer}")
    kept = {name: value for name, value in arguments.items() if name in known}
    if optimizer == "Adafactor" and kept.get("relative_step", True):  # sd-scripts' own default; it sets the schedule
        kept.pop("relative_step", None)
        intake.pop("lr_scheduler")
        intake.fill("lr_scheduler", "adafactor")
    if kept:
        intake.values["optimizer_args"] = text if kept == arguments else " ".join(map(_argument, kept.items()))


def _argument(pair: tuple[str, Any]) -> str:
    name, value = pair
    return f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"


def take_schedule(intake: Intake) -> None:
    parameter = _OURS["lr_schedule"]
    given = str(intake.pop("lr_scheduler") or "").lower()
    warmup = _warmup(intake)
    chosen = choice_of(parameter, given) or ("constant" if given == "constant_with_warmup" else "")
    if given and not chosen:
        chosen = "cosine" if given in _FALLING else "constant"
        has_one_cycle = (number_of(intake.value("lr_scheduler_num_cycles")) or 1) <= 1
        if not (given == "cosine_with_restarts" and has_one_cycle):  # with one cycle it is the cosine
            intake.warn("lr_schedule", f"{given} is not here yet; {chosen} is the nearest.")
    if chosen == "adafactor" and intake.values.get("optimizer") != "Adafactor":
        intake.warn("lr_schedule", "adafactor goes with the optimiser of that name only; constant is used.")
        chosen = "constant"
    if given == "constant" and warmup:
        intake.hint("warmup", "is 0: kohya's “constant” has no warm-up, that is “constant_with_warmup”.")
        warmup = 0.0
    intake.values.update({"lr_schedule": chosen} if chosen else {})
    if warmup is not None:
        intake.values["warmup"] = warmup
    if chosen == "warmup_stable_decay":
        intake.fill("lr_decay_steps", 0)  # what kohya's tools do where the file says nothing: it never falls
    _stop_of_text_encoder(intake)


def _stop_of_text_encoder(intake: Intake) -> None:
    """The GUI counts percent, the script steps; what is not above 0 means never."""
    raw = number_of(intake.value("stop_text_encoder_training"))
    if raw and raw > 0:
        intake.pop("stop_text_encoder_training")
        share = raw / 100 if intake.source == "gui" else raw
        intake.put(_OURS["stop_text_encoder"], "stop_text_encoder_training", share if share != 1 else 0.0)


def _warmup(intake: Intake) -> float | None:
    """Steps (or a share, or "10%") count more than the GUI's percentage; None where the file gives neither."""
    raw, percent = intake.pop("lr_warmup_steps"), intake.pop_number("lr_warmup")
    share = re.fullmatch(r"([\d.]+)\s*%", raw) if isinstance(raw, str) else None
    steps = float(share[1]) / 100 if share and number_of(share[1]) is not None else number_of(raw)
    if raw is not None and steps is None:
        intake.ignore("lr_warmup_steps", raw, f"cannot be used: {raw!r} is no number of steps")
    if steps and percent:
        intake.ignore("lr_warmup", percent, f"{NOT_NEEDED}: lr_warmup_steps counts more, in kohya's tools too")
    name, value = ("lr_warmup_steps", steps) if steps or percent is None else ("lr_warmup", percent / 100)
    if value is None:
        return None
    high = 1 if name == "lr_warmup" or share else _OURS["warmup"].high or math.inf
    if 0 <= value < high:
        return value
    intake.ignore(name, percent if name == "lr_warmup" else raw, "cannot be used: the warm-up would never end")
    return None
