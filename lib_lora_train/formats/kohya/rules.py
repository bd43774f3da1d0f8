"""Keys of kohya's tools whose meaning differs from our parameter's: units, inversions, combined keys.

Each rule takes its keys from the intake and sets our values. What no rule takes is read by the `kohya=` names of the
parameters' declarations.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Callable
from pathlib import PurePath, PureWindowsPath
from typing import Any

from lib_lora_train.config.parameters import parameters_of
from lib_lora_train.config.sample_prompts import is_option, prompt_lines, split_options
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.formats.kohya import keys as kohya_keys
from lib_lora_train.formats.kohya.intake import (
    AT_DEFAULT,
    NOT_NEEDED,
    ZERO,
    Intake,
    kohya_parameters,
    number_of,
    sides_of,
    square_side,
)
from lib_lora_train.formats.kohya.network import take_network
from lib_lora_train.formats.kohya.training import take_optimizer, take_rates, take_schedule

_CHECKPOINT_ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_OURS = {parameter.name: parameter for parameter in parameters_of(TrainConfig)}
_NAMES_ONLY = "names a file without its folder; choose it yourself"


def apply_rules(intake: Intake) -> None:
    """Take every key that needs more than its declaration."""
    for rule in _RULES:
        rule(intake)


def take_additional(intake: Intake) -> None:
    """The GUI's additional_parameters, arguments as on the command line, which count more than its other keys."""
    raw = intake.pop("additional_parameters")
    try:
        words = shlex.split(str(raw or ""))
    except ValueError as reason:
        intake.ignore("additional_parameters", raw, f"cannot be used: {reason}")
        return
    starts = [place for place, word in enumerate(words) if word.startswith("--")]
    for lost in words[: starts[0] if starts else len(words)]:
        intake.ignore_part("additional_parameters", lost, "", "is no argument: those begin with --")
    for start, end in itertools.pairwise([*starts, len(words)]):
        name, sign, value = words[start][2:].partition("=")
        values = [*([value] if sign else []), *words[start + 1 : end]]
        given: Any = True if not values else values[0] if len(values) == 1 else values
        intake.overrule("additional_parameters", kohya_keys.ALIASES.get(name, name), given)


# --- model and images --------------------------------------------------------------------------


def _model(intake: Intake) -> None:
    """A checkpoint is a file here; kohya's tools also take names of the hub and diffusers folders."""
    for name in ("sd_model_name", "vae_name"):
        value = intake.pop(name)
        if value is not None:
            intake.ignore(name, value, _NAMES_ONLY)
    for name in ("pretrained_model_name_or_path", "vae"):
        value = intake.pop(name)
        if value is None:
            continue
        if str(value).lower().endswith(_CHECKPOINT_ENDINGS):
            intake.put(kohya_parameters()[name], name, value)
        else:
            intake.ignore(name, value, "is no checkpoint file (.safetensors, .ckpt); choose the file yourself")


def _kind_of_model(intake: Intake) -> None:
    """Off is also what kohya's tools have where nobody thought of it: the checkpoint tells then."""
    for name, (parameter, value) in kohya_keys.MODEL_SWITCHES.items():
        if name in intake:
            raw = intake.value(name)
            if intake.pop_flag(name):
                intake.values[parameter] = value
            else:
                intake.ignore(name, raw, AT_DEFAULT)


def _resolution(intake: Intake) -> None:
    raw = intake.pop("resolution")
    if raw is None:
        return
    sides = sides_of(raw)
    if not sides:
        intake.ignore("resolution", raw, "cannot be used: write one number or two, such as 512,512")
        return
    side = square_side(sides)
    if sides[0] != sides[-1]:
        intake.hint("resolution", f"{sides[0]:g}×{sides[-1]:g} is brought to the square of the same area, {side} px.")
    intake.put(_OURS["resolution"], "resolution", side)


def _caption_extension(intake: Intake) -> None:
    raw = intake.pop("caption_extension")
    if raw is not None:
        intake.put(_OURS["caption_extension"], "caption_extension", f".{str(raw).lstrip('.')}")


def _captions(intake: Intake) -> None:
    """Where wildcards are on, sd-scripts also draws one of a caption file's lines."""
    if "enable_wildcard" in intake:
        is_on = intake.pop_flag("enable_wildcard")
        intake.values["caption_wildcards"] = is_on
        if is_on:
            intake.values["caption_lines"] = "random"


# --- how long ------------------------------------------------------------------------------------


def _duration(intake: Intake) -> None:
    """`max_train_epochs` counts more than `max_train_steps`, and that more than the GUI's `epoch`."""
    epochs, steps = intake.pop_number("max_train_epochs"), intake.pop_number("max_train_steps")
    gui_epochs = intake.pop_number("epoch") if intake.source == "gui" else None
    if epochs:
        _put_epochs(intake, "max_train_epochs", epochs)
        _drop(intake, "max_train_steps", steps, "max_train_epochs")
        _drop(intake, "epoch", gui_epochs, "max_train_epochs")
    elif steps:
        _put_steps(intake, steps)
        _drop(intake, "epoch", gui_epochs, "max_train_steps")
        if gui_epochs and gui_epochs > 1:
            text = f"{steps:g}, as in kohya's GUI, which then ignores epoch {gui_epochs:g}."
            intake.warn("max_steps", f"{text} For {gui_epochs:g} epochs set max_steps to 0 and epochs to it.")
    elif gui_epochs:
        _put_epochs(intake, "epoch", gui_epochs)
    for name, number in (("max_train_epochs", epochs), ("max_train_steps", steps), ("epoch", gui_epochs)):
        if number == 0:
            intake.ignore(name, 0, ZERO)
    _saving(intake)


def _drop(intake: Intake, name: str, value: float | None, stronger: str) -> None:
    if value:
        intake.ignore(name, value, f"{NOT_NEEDED}: {stronger} counts more, in kohya's tools too")


def _put_epochs(intake: Intake, name: str, epochs: float) -> None:
    intake.put(_OURS["epochs"], name, epochs)
    intake.values.setdefault("max_steps", 0)


def _put_steps(intake: Intake, steps: float) -> None:
    """Epochs go on until the steps are done."""
    intake.put(_OURS["max_steps"], "max_train_steps", steps)
    if "max_steps" in intake.values:
        intake.values["epochs"] = int(_OURS["epochs"].high or 1)


def _saving(intake: Intake) -> None:
    """0 is kohya's "only at the end"."""
    every = intake.pop("save_every_n_epochs")
    if number_of(every) == 0:
        intake.values["save_every_n_epochs"] = intake.values.get("epochs", _OURS["epochs"].default)
    elif every is not None:
        intake.put(_OURS["save_every_n_epochs"], "save_every_n_epochs", every)
    last, steps = intake.pop_number("save_last_n_steps"), number_of(intake.value("save_every_n_steps"))
    if last and steps:  # kohya counts steps there: the files of the last so many steps stay
        intake.put(_OURS["keep_last_step_files"], "save_last_n_steps", int(last // steps) + 1)
    state = intake.pop("save_state")
    if state is not None:
        intake.ignore("save_state", state, f"{NOT_NEEDED}: a run's newest state is kept here anyway, see save_state")


# --- noise, seed, precision ----------------------------------------------------------------------


def _noise(intake: Intake) -> None:
    """The GUI writes the values of both kinds of noise; `noise_offset_type` says which of them count."""
    kind = intake.pop("noise_offset_type")
    if kind is None:
        return
    multires = ("multires_noise_iterations", "multires_noise_discount")
    offset = ("noise_offset", "adaptive_noise_scale", "noise_offset_random_strength")
    for name in offset if str(kind).lower() == "multires" else multires:
        value = intake.pop(name)
        if value is not None:
            intake.ignore(name, value, f"{NOT_NEEDED}: noise_offset_type is {kind}")


def _seed(intake: Intake) -> None:
    raw = intake.pop("seed")
    number = number_of(raw)
    is_random = number is not None and (number < 0 or (number == 0 and intake.source == "gui"))
    if is_random:
        default = _OURS["seed"].default
        intake.ignore("seed", raw, f"is kohya's way to draw one at random; here it stays {default}, so runs repeat")
    elif raw is not None:
        intake.put(_OURS["seed"], "seed", raw)


def _precision(intake: Intake) -> None:
    for name in ("mixed_precision", "save_precision"):
        raw = intake.pop(name)
        if raw is not None:
            intake.put(kohya_parameters()[name], name, kohya_keys.PRECISIONS.get(str(raw).lower(), raw))
    for name, kind in kohya_keys.FULL_PRECISIONS.items():
        if intake.pop_flag(name):
            intake.values["lora_precision"] = kind


def _gradient_norm(intake: Intake) -> None:
    raw = intake.pop("max_grad_norm")
    if raw is None:
        return
    intake.put(_OURS["max_grad_norm"], "max_grad_norm", raw)
    if intake.source == "gui" and number_of(raw) == 0:
        intake.hint("max_grad_norm", "is 0 as the file says; kohya's GUI loses that 0 and trains with 1.")


# --- samples and names ---------------------------------------------------------------------------


def _samples(intake: Intake) -> None:
    sampler = intake.pop("sample_sampler")
    if sampler is not None:
        intake.put(_OURS["sample_sampler"], "sample_sampler", kohya_keys.SAMPLERS.get(str(sampler).lower(), sampler))
    raw = intake.pop("sample_prompts")
    if raw is None:
        return
    lines = raw if isinstance(raw, (list, tuple)) else str(raw).splitlines()
    if len(lines) == 1 and re.search(r"\.(txt|toml|json)$", str(lines[0]).strip().lower()):
        intake.ignore("sample_prompts", raw, "names a file that cannot be read; copy its prompts")
        return
    prompts = tuple(_prompt(intake, line) for line in prompt_lines(map(str, lines)))
    intake.values["sample_prompts"] = tuple(prompt for prompt in prompts if prompt)


def _prompt(intake: Intake, line: str) -> str:
    """The line without the options that samples do not have here."""
    prompt, options = split_options(line)
    kept = [prompt]
    for name, value in options:
        if is_option(name):
            kept.append(f"--{name} {value}".strip())
        else:
            intake.ignore_part("sample_prompts", f"--{name}", value, "is not a prompt option here")
    return " ".join(filter(None, kept))


def _names(intake: Intake) -> None:
    """The GUI's title may hold an ending or a folder."""
    raw = intake.pop("output_name")
    if raw is not None:
        text = str(raw)
        name = PureWindowsPath(text).name if "\\" in text else PurePath(text).name
        intake.put(_OURS["output_name"], "output_name", name.removesuffix(".safetensors") or text)


_RULES: tuple[Callable[[Intake], None], ...] = (
    _model,
    _kind_of_model,
    _resolution,
    _caption_extension,
    _captions,
    _duration,
    take_rates,
    take_optimizer,
    take_schedule,
    _noise,
    _seed,
    _precision,
    _gradient_norm,
    _samples,
    _names,
    take_network,
)
