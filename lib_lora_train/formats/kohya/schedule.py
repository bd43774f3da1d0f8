"""The learning-rate schedule of kohya's tools in our terms."""

from __future__ import annotations

import math
import re
from typing import Any

from lib_lora_train.core.wording import count
from lib_lora_train.formats.kohya.import_state import (
    AT_DEFAULT,
    NOT_NEEDED,
    PARAMETERS,
    REPLACED,
    ImportState,
    find_choice,
    not_available,
    overridden_by,
    parse_number,
)

_FALLING = ("linear", "polynomial", "cosine_with_restarts", "cosine_with_min_lr", "warmup_stable_decay")
_WITH_CYCLES = ("cosine_with_restarts", "cosine_with_min_lr", "warmup_stable_decay")
_CLOSEST = {
    "restart": "cosine_with_restarts",
    "cosine": "cosine",
    "polynomial": "polynomial",
    "linear": "linear",
}
"""Part of the name of a class of PyTorch → the closest schedule here."""


def fill_in_cycles(state: ImportState) -> None:
    """An empty field for the cycles in the GUI means as many as epochs, even if the run is limited by steps."""
    if state.source != "gui" or not state.is_empty("lr_scheduler_num_cycles"):
        return
    epochs = int(parse_number(state.value("epoch")) or 1)
    schedule = str(state.value("lr_scheduler") or "").lower()
    if schedule in _WITH_CYCLES and epochs > 1:
        state.set_default("lr_scheduler_num_cycles", epochs)
        text = f"is {epochs}: kohya's GUI takes the number of epochs if the number of cycles is empty."
        state.hint("lr_cycles", text)


def import_lr_schedule(state: ImportState) -> None:
    parameter = PARAMETERS["lr_schedule"]
    given = str(state.pop("lr_scheduler") or "").lower()
    warmup = _warmup(state)
    chosen = find_choice(parameter, given)
    if given and not chosen:
        chosen = "cosine" if given in _FALLING else "constant"
        state.warn("lr_schedule", not_available(given, chosen, parameter.choices))
    chosen = _scheduler_class(state) or chosen
    _scheduler_arguments(state)
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
    _smallest_rate(state, chosen)
    _half_waves(state, chosen)


def _scheduler_class(state: ImportState) -> str:
    """The schedule that is closest to the class in lr_scheduler_type, which replaces lr_scheduler; "" for none."""
    name = state.pop("lr_scheduler_type")
    if name is None:
        return ""
    arguments = state.pop("lr_scheduler_args")
    plain = str(name).lower()
    chosen = next((schedule for part, schedule in _CLOSEST.items() if part in plain), "constant")
    words = _words(arguments)
    what = f"{name} ({words})" if words else str(name)
    text = f"the file's schedule is the class {what}, which is not available; {chosen} is used, the closest. Compare "
    text += "its learning rates with those in the Monitor."
    state.replace("lr_scheduler_type", name, where="lr_schedule", message=text)
    if arguments is not None:
        state.ignore("lr_scheduler_args", words, REPLACED)
    return chosen


def _scheduler_arguments(state: ImportState) -> None:
    given = state.pop("lr_scheduler_args")
    if given is None:
        return
    text = f"is trained without lr_scheduler_args {_words(given)}, which cannot be set here."
    state.replace("lr_scheduler_args", _words(given), where="lr_schedule", message=text)


def _words(arguments: Any) -> str:
    """A list of arguments, or their text, as text."""
    return " ".join(map(str, arguments)) if isinstance(arguments, (list, tuple)) else str(arguments or "")


def _smallest_rate(state: ImportState, chosen: str) -> None:
    """sd-scripts does not read it for polynomial, which falls to 0 there."""
    if chosen == "polynomial" and "lr_scheduler_min_lr_ratio" in state:
        value = state.pop("lr_scheduler_min_lr_ratio")
        reason = AT_DEFAULT if not parse_number(value) else f"{NOT_NEEDED}: kohya's tools ignore it with polynomial"
        state.ignore("lr_scheduler_min_lr_ratio", value, reason)


def _half_waves(state: ImportState, chosen: str) -> None:
    """With more than one cycle, two schedules of kohya's tools rise again at the end."""
    cycles = parse_number(state.value("lr_scheduler_num_cycles")) or 1
    if chosen in ("cosine_with_min_lr", "warmup_stable_decay"):
        value = state.pop("lr_scheduler_num_cycles")
        if cycles != 1:
            state.ignore("lr_scheduler_num_cycles", value, f"cannot be set with {chosen} here")
            waves = count(int(cycles), "half-wave")
            state.warn("lr_schedule", f"falls once. In kohya's tools this {chosen} has {waves}, falling and rising.")
        elif value is not None:
            state.ignore("lr_scheduler_num_cycles", value, AT_DEFAULT)


def ignore_stop_of_text_encoder(state: ImportState) -> None:
    """Kohya's tools announce that they ignore it when they train a LoRA."""
    value = state.pop("stop_text_encoder_training")
    number = parse_number(value)
    if value is None:
        return
    is_off = number is not None and number <= 0
    state.ignore(
        "stop_text_encoder_training",
        value,
        AT_DEFAULT if is_off else f"{NOT_NEEDED}: kohya's tools ignore it for a LoRA",
    )
    if number and number > 0:
        share = f"{number:g}%" if state.source == "gui" else f"{number:g}"
        text = f"is never, as kohya's tools ignore {share} for a LoRA. To stop then, set stop_text_encoder = {share}."
        state.hint("stop_text_encoder", text)


def _warmup(state: ImportState) -> float | None:
    """Steps (or a fraction, or "10%") take precedence over the GUI's percentage; None if the file has neither."""
    raw, percent = state.pop("lr_warmup_steps"), state.pop_number("lr_warmup")
    share = re.fullmatch(r"([\d.]+)\s*%", raw) if isinstance(raw, str) else None
    steps = float(share[1]) / 100 if share and parse_number(share[1]) is not None else parse_number(raw)
    if raw is not None and steps is None:
        state.ignore("lr_warmup_steps", raw, "is not a number of steps")
    if steps and percent:
        state.ignore("lr_warmup", percent, overridden_by("lr_warmup_steps"))
    name, value = ("lr_warmup_steps", steps) if steps or percent is None else ("lr_warmup", round(percent / 100, 10))
    if value is None:
        return None
    high = 1 if name == "lr_warmup" or share else PARAMETERS["warmup"].high or math.inf
    if 0 <= value < high:
        return value
    state.ignore(name, percent if name == "lr_warmup" else raw, "is invalid: the warm-up would never end")
    return None
