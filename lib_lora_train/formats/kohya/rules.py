"""Keys of kohya's tools whose meaning differs from our parameter's: units, inversions, combined keys.

Each rule pops its keys and sets our values. Keys without a rule are matched by the `kohya=` names of the parameters.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Callable
from typing import Any

from lib_lora_train.config.sample_prompts import is_comment, is_heading, is_option, split_options
from lib_lora_train.core.image_sizes import LATENT_CELL_PX
from lib_lora_train.core.wording import count
from lib_lora_train.formats.kohya import keys as kohya_keys
from lib_lora_train.formats.kohya.anima import ignore_network_arguments, import_anima
from lib_lora_train.formats.kohya.flow import import_flow
from lib_lora_train.formats.kohya.import_state import (
    AT_DEFAULT,
    NOT_NEEDED,
    PARAMETERS,
    ZERO,
    ImportState,
    kohya_parameters,
    overridden_by,
    parse_number,
    parse_sides,
)
from lib_lora_train.formats.kohya.network import import_network
from lib_lora_train.formats.kohya.schedule import fill_in_cycles, ignore_stop_of_text_encoder, import_lr_schedule
from lib_lora_train.formats.kohya.training import import_learning_rates, import_optimizer
from lib_lora_train.formats.metadata import path_name

_CHECKPOINT_ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_NAMES_ONLY = "is a file name without its folder. Select the file yourself"


def apply_rules(state: ImportState) -> None:
    """Read every key that needs more than its declaration."""
    for rule in _RULES:
        rule(state)


def import_additional_parameters(state: ImportState) -> None:
    """The GUI's additional_parameters: command-line arguments, which take precedence over its other keys."""
    raw = state.pop("additional_parameters")
    try:
        words = shlex.split(str(raw or ""))
    except ValueError as reason:
        state.ignore("additional_parameters", raw, f"is invalid: {reason}")
        return
    starts = [index for index, word in enumerate(words) if word.startswith("--")]
    for lost in words[: starts[0] if starts else len(words)]:
        state.ignore_nested("additional_parameters", lost, "", "is not an argument; arguments begin with --")
    for start, end in itertools.pairwise([*starts, len(words)]):
        name, sign, value = words[start][2:].partition("=")
        values = [*([value] if sign else []), *words[start + 1 : end]]
        given: Any = True if not values else values[0] if len(values) == 1 else values
        state.override("additional_parameters", kohya_keys.ALIASES.get(name, name), given)


# --- model and images --------------------------------------------------------------------------


def _model(state: ImportState) -> None:
    """A checkpoint is a file here; kohya's tools also accept Hugging Face names and diffusers folders."""
    for name in ("sd_model_name", "vae_name"):
        value = state.pop(name)
        if value is not None:
            state.ignore(name, value, _NAMES_ONLY)
    for name in ("pretrained_model_name_or_path", "vae"):
        value = state.pop(name)
        if value is None:
            continue
        if str(value).lower().endswith(_CHECKPOINT_ENDINGS):
            state.set_parameter(kohya_parameters()[name], name, value)
        else:
            state.ignore(name, value, "is not a checkpoint file (.safetensors, .ckpt). Select the file yourself")


def _kind_of_model(state: ImportState) -> None:
    """Off is merely the default of kohya's tools, so it leaves the decision to the checkpoint."""
    for name, (parameter, value) in kohya_keys.MODEL_SWITCHES.items():
        if name in state:
            raw = state.value(name)
            if state.pop_flag(name):
                state.values[parameter] = value
            else:
                state.ignore(name, raw, AT_DEFAULT)


def _resolution(state: ImportState) -> None:
    raw = state.pop("resolution")
    if raw is None:
        return
    sides = parse_sides(raw)
    if not sides:
        state.ignore("resolution", raw, "is invalid: write one number or two, such as 512,512")
        return
    state.set_parameter(PARAMETERS["resolution"], "resolution", int(sides[0]))
    if sides[0] != sides[-1]:
        state.set_parameter(PARAMETERS["resolution_height"], "resolution", int(sides[-1]))


def _bucket_limits(state: ImportState) -> None:
    """sd-scripts rounds limits between two steps: the smallest side down, the largest up."""
    step = int(parse_number(state.value("bucket_reso_steps")) or PARAMETERS["bucket_step"].default)
    if step % LATENT_CELL_PX:
        default = PARAMETERS["bucket_step"].default
        reason = f"is not a multiple of {LATENT_CELL_PX} px, the size of a latent cell; {default} is used"
        state.ignore("bucket_reso_steps", state.pop("bucket_reso_steps"), reason)
        step = default
    for name, direction in (("min_bucket_reso", 1), ("max_bucket_reso", -1)):
        side = parse_number(state.value(name))
        if side is None or side < step or step < 1 or side % step == 0:
            continue
        rounded = direction * (direction * int(side) // step) * step
        state.set_parameter(kohya_parameters()[name], name, rounded)
        state.pop(name)
        text = f"is {rounded}, as kohya's tools round {side:g} to a multiple of bucket_step {step}."
        state.hint(kohya_parameters()[name].name, text)


def _caption_extension(state: ImportState) -> None:
    if state.source == "gui" and state.is_empty("caption_extension"):  # the script's default then
        state.set_default("caption_extension", ".caption")
    raw = state.pop("caption_extension")
    if raw is not None:
        state.set_parameter(PARAMETERS["caption_extension"], "caption_extension", f".{str(raw).lstrip('.')}")


def _captions(state: ImportState) -> None:
    """sd-scripts reads the first line of a caption file, and with wildcards a random one.

    Its prefix and suffix are part of the caption, and images without one get the folder's name after N_.
    """
    is_on = state.pop_flag("enable_wildcard")
    state.values["caption_wildcards"] = is_on
    state.values["caption_lines"] = "random" if is_on else "first"
    state.values["missing_captions"] = "folder name"
    if any(name in state for name in ("caption_prefix", "caption_suffix")):
        state.values["affixes_as_tags"] = True


# --- how long ------------------------------------------------------------------------------------


def _duration(state: ImportState) -> None:
    """`max_train_epochs` takes precedence over `max_train_steps`, and that over the GUI's `epoch`."""
    epochs, steps = state.pop_number("max_train_epochs"), state.pop_number("max_train_steps")
    gui_epochs = state.pop_number("epoch") if state.source == "gui" else None
    if epochs:
        _put_epochs(state, "max_train_epochs", epochs)
        _drop(state, "max_train_steps", steps, "max_train_epochs")
        _drop(state, "epoch", gui_epochs, "max_train_epochs")
    elif steps:
        _put_steps(state, steps)
        _drop(state, "epoch", gui_epochs, "max_train_steps")
        if gui_epochs and gui_epochs > 1:
            text = f"is {steps:g}: as in kohya's GUI, epoch {gui_epochs:g} is then ignored."
            state.warn(
                "max_steps",
                f"{text} To train {count(gui_epochs, 'epoch')}, set max_steps to 0 and epochs to {gui_epochs:g}.",
            )
    elif gui_epochs:
        _put_epochs(state, "epoch", gui_epochs)
    for name, number in (("max_train_epochs", epochs), ("max_train_steps", steps), ("epoch", gui_epochs)):
        if number == 0:
            state.ignore(name, 0, ZERO)
    _saving(state)


def _drop(state: ImportState, name: str, value: float | None, stronger: str) -> None:
    if value:
        state.ignore(name, value, overridden_by(stronger))


def _put_epochs(state: ImportState, name: str, epochs: float) -> None:
    state.set_parameter(PARAMETERS["epochs"], name, epochs)
    state.values.setdefault("max_steps", 0)


def _put_steps(state: ImportState, steps: float) -> None:
    """Epochs are set high enough for the steps."""
    state.set_parameter(PARAMETERS["max_steps"], "max_train_steps", steps)
    if "max_steps" in state.values:
        state.values["epochs"] = int(PARAMETERS["epochs"].high or 1)


def _saving(state: ImportState) -> None:
    """0 means "only at the end" in kohya's tools."""
    every = state.pop("save_every_n_epochs")
    if parse_number(every) == 0:
        state.values["save_every_n_epochs"] = state.values.get("epochs", PARAMETERS["epochs"].default)
    elif every is not None:
        state.set_parameter(PARAMETERS["save_every_n_epochs"], "save_every_n_epochs", every)
    last, steps = state.pop_number("save_last_n_steps"), parse_number(state.value("save_every_n_steps"))
    if last and steps:  # in kohya's tools a number of steps: their files are kept
        state.set_parameter(PARAMETERS["keep_last_step_files"], "save_last_n_steps", int(last // steps) + 1)
    save_state = state.pop("save_state")
    if save_state is not None:
        state.ignore(
            "save_state", save_state, f"{NOT_NEEDED}: a run's latest state is always kept here, see save_state"
        )


# --- noise, seed, precision ----------------------------------------------------------------------


def _noise(state: ImportState) -> None:
    """The GUI writes the values of both kinds of noise; `noise_offset_type` says which are used."""
    kind = state.pop("noise_offset_type")
    if kind is None:
        return
    multires = ("multires_noise_iterations", "multires_noise_discount")
    offset = ("noise_offset", "adaptive_noise_scale", "noise_offset_random_strength")
    for name in offset if str(kind).lower() == "multires" else multires:
        value = state.pop(name)
        if value is not None:
            state.ignore(name, value, f"{NOT_NEEDED}: noise_offset_type is {kind}")


def _seed(state: ImportState) -> None:
    raw = state.pop("seed")
    number = parse_number(raw)
    is_random = number is not None and (number < 0 or (number == 0 and state.source == "gui"))
    if is_random:
        default = PARAMETERS["seed"].default
        state.ignore(
            "seed", raw, f"means a random seed in kohya's tools; {default} is used, so that the run can be repeated"
        )
    elif raw is not None:
        state.set_parameter(PARAMETERS["seed"], "seed", raw)


def _precision(state: ImportState) -> None:
    for name in ("mixed_precision", "save_precision"):
        raw = state.pop(name)
        if raw is not None:
            state.set_parameter(kohya_parameters()[name], name, kohya_keys.PRECISIONS.get(str(raw).lower(), raw))
    for name, kind in kohya_keys.FULL_PRECISIONS.items():
        if state.pop_flag(name):
            state.values["lora_precision"] = kind


def _gradient_norm(state: ImportState) -> None:
    raw = state.pop("max_grad_norm")
    if raw is None:
        return
    state.set_parameter(PARAMETERS["max_grad_norm"], "max_grad_norm", raw)
    if state.source == "gui" and parse_number(raw) == 0:
        state.hint("max_grad_norm", "is 0, as in the file; kohya's GUI drops that 0 and trains with 1.")


# --- samples and names ---------------------------------------------------------------------------


def _samples(state: ImportState) -> None:
    sampler = state.pop("sample_sampler")
    if sampler is not None:
        state.set_parameter(
            PARAMETERS["sample_sampler"], "sample_sampler", kohya_keys.SAMPLERS.get(str(sampler).lower(), sampler)
        )
    raw = state.pop("sample_prompts")
    if raw is None:
        return
    lines = raw if isinstance(raw, (list, tuple)) else str(raw).splitlines()
    if len(lines) == 1 and re.search(r"\.(txt|toml|json)$", str(lines[0]).strip().lower()):
        state.ignore("sample_prompts", raw, "is a file that cannot be read. Copy its prompts yourself")
        return
    prompts = (
        str(line) if is_heading(line) else _prompt(state, line) for line in map(str, lines) if not _is_note(line)
    )
    state.values["sample_prompts"] = tuple(prompt for prompt in prompts if prompt)


def _is_note(line: str) -> bool:
    """Whether the line is a comment that means nothing."""
    return is_comment(line) and not is_heading(line)


def _prompt(state: ImportState, line: str) -> str:
    """The line without the options that samples do not have here."""
    prompt, options = split_options(line)
    kept = [prompt]
    for name, value in options:
        if is_option(name):
            kept.append(f"--{name} {value}".strip())
        else:
            state.ignore_nested("sample_prompts", f"--{name}", value, "is not a prompt option here")
    return " ".join(filter(None, kept))


def _names(state: ImportState) -> None:
    """The GUI's name may have an extension or a folder."""
    raw = state.pop("output_name")
    if raw is not None:
        text = str(raw)
        name = path_name(text)
        state.set_parameter(PARAMETERS["output_name"], "output_name", name.removesuffix(".safetensors") or text)


_RULES: tuple[Callable[[ImportState], None], ...] = (
    import_anima,
    _model,
    import_flow,
    _kind_of_model,
    _resolution,
    _bucket_limits,
    _caption_extension,
    _captions,
    fill_in_cycles,
    _duration,
    import_learning_rates,
    import_optimizer,
    import_lr_schedule,
    ignore_stop_of_text_encoder,
    _noise,
    _seed,
    _precision,
    _gradient_norm,
    _samples,
    _names,
    import_network,
    ignore_network_arguments,
)
