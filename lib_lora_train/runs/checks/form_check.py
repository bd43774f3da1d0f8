"""Whether webuis read the files that a run would write, and what `files_for_webui` makes of them.

Does not import PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lib_lora_train.adapters.files.key_formats import OUTPUT_MAGNITUDE, split_key
from lib_lora_train.config.family_support import (
    DORA_FORMS,
    EFFECT_WORDS,
    FORMS,
    OUTPUT_DORA_FORMS,
    TUCKER_FORMS,
    bad_webuis,
    form_of,
    is_misread,
    program_name,
    readable_form,
    rotation_form,
)
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import AdapterError, Problem
from lib_lora_train.core.safetensors_header import read_header
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.core.wording import join_names, size_text
from lib_lora_train.models.architecture import ModelSpec
from lib_lora_train.runs.estimates.memory import DTYPE_BYTES, count_adapted_weights

_SETTING = "files_for_webui"
_REMEDY = ((_SETTING, True),)
_WHERE = {"tucker": "tucker", "constraint": "constraint", "rescaled": "rescaled"}
"""The setting that makes a form another one than its family's, by the form's ending."""
_CORES = tuple(
    (ending, TUCKER_FORMS[family])
    for ending, family in (("lora_mid.weight", "lora"), ("hada_t1", "loha"), ("lokr_t2", "lokr"))
)

_DISTINCTIVE = (
    *(ending for ending, _ in _CORES),
    *(
        "lora_down.weight",
        "oft_blocks",
        "rescale",
        "on_input",
        "a1.weight",
        "dora_scale",
        "hada_w1_a",
        "lokr_w1",
        "lokr_w1_a",
    ),
)
"""The endings by which forms differ."""


def form_problems(config: TrainConfig, webui: str, spec: ModelSpec | None = None) -> Iterator[Problem]:
    """What the webui in use, or others, would make of the files. `webui`: its name, "" stand-alone.

    An error if the file that the run continues cannot be read. None for embeddings, which all of them read.
    """
    if config.method != "lora":
        return
    yield from _continued_file(config)
    form = next((one for one in trained_forms(config) if is_misread(webui, one)), "")
    if config.files_for_webui:
        yield from _rewritten(config, webui, form, spec)
    elif form and program_name(webui) in dict(bad_webuis(form)):
        yield _misread_here(config, webui, form, spec)
    else:
        yield from _misread_elsewhere(config, webui, form)


def _continued_file(config: TrainConfig) -> Iterator[Problem]:
    if config.continue_from:
        try:
            read_header(user_path(config.continue_from))
        except AdapterError as reason:
            yield Problem("error", "continue_from", str(reason))


def who_reads(webui: str) -> str:
    """`Forge Neo 2.26 reads`, or `all webuis read` stand-alone."""
    return f"{webui} reads" if webui else "all webuis read"


def trained_forms(config: TrainConfig) -> tuple[str, ...]:
    """The forms of the layers of the run's files: of its settings, or of the file that it continues."""
    if not config.continue_from:
        return (form_of(config),)
    try:
        names = read_header(user_path(config.continue_from)).entries
    except AdapterError:  # `form_problems` says so
        return ()
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, entry in names.items():
        layer, ending = split_key(name, _DISTINCTIVE)
        if ending:
            layers.setdefault(layer, {})[ending] = entry.shape
    return tuple(sorted({_form(shapes) for shapes in layers.values()}))


def _form(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The form of a layer in a file with tensors of these shapes by ending, as far as they show it.

    A bound is a number in the file, so it is not seen.
    """
    if "oft_blocks" in shapes:
        family = "boft" if len(shapes["oft_blocks"]) == 4 else "oft"
        return rotation_form(family, is_bounded=False, is_rescaled="rescale" in shapes)
    if "on_input" in shapes:
        return "ia3"
    if "a1.weight" in shapes:
        return "glora_conv" if len(shapes["a1.weight"]) == 4 else "glora"
    if OUTPUT_MAGNITUDE in shapes or "dora_scale" in shapes:
        family = "loha" if "hada_w1_a" in shapes else "lokr" if {"lokr_w1", "lokr_w1_a"} & shapes.keys() else "lora"
        is_input = shapes.get("dora_scale", ())[:1] == (1,) and len(shapes["dora_scale"]) > 1
        return (DORA_FORMS if is_input else OUTPUT_DORA_FORMS)[family]
    return next((form for ending, form in _CORES if ending in shapes), "lora")


def _misread_here(config: TrainConfig, webui: str, form: str, spec: ModelSpec | None) -> Problem:
    support = dict(bad_webuis(form))[program_name(webui)]
    detail = f" ({support.detail})" if support.detail else ""
    text = (
        f"{webui} does not read files of these settings ({FORMS[form]}) as they were trained: such a file "
        f"{EFFECT_WORDS[support.effect]}{detail}. Turn on {_SETTING}, and each file is saved "
        f"{_description(config, webui, form, spec)}. Or convert single files in Results afterwards."
    )
    return Problem("warning", _where(form), text, _REMEDY)


def _misread_elsewhere(config: TrainConfig, webui: str, form: str) -> Iterator[Problem]:
    """Other webuis misread the files: a warning stand-alone, where they are meant for one; a hint in a webui."""
    form = form or next((one for one in trained_forms(config) if tuple(bad_webuis(one))), "")
    if not form:
        return
    webuis: dict[str, list[str]] = {}
    for name, support in bad_webuis(form):
        webuis.setdefault(EFFECT_WORDS[support.effect], []).append(name)
    effects = "; ".join(f"in {join_names(names)} it {what}" for what, names in webuis.items())
    text = f"A file of these settings ({FORMS[form]}) is not read correctly everywhere: {effects}."
    if webui and not is_misread(webui, form):
        yield Problem("hint", _where(form), f"{text} {webui} reads it. Convert it in Results for the others.")
        return
    advice = f"Turn on {_SETTING} to save it in a form that all webuis read, or convert it afterwards"
    yield Problem("warning", _where(form), f"{text} {advice}; the loss is reported.", _REMEDY)


def _rewritten(config: TrainConfig, webui: str, form: str, spec: ModelSpec | None) -> Iterator[Problem]:
    if not form:
        text = f"has no effect with these settings: {who_reads(webui)} their files as they are trained."
        yield Problem("hint", _SETTING, text, ((_SETTING, False),))
        return
    text = f"is on, so each file is saved {_description(config, webui, form, spec)}."
    yield Problem("hint", _SETTING, f"{text} The trained form ({FORMS[form]}) is kept in the run's folder.")


def _description(config: TrainConfig, webui: str, form: str, spec: ModelSpec | None) -> str:
    """`as BOFT, which Forge Neo reads`, with the size of a file of full matrices."""
    written = readable_form(webui, form)
    text = f"as {FORMS[written]}, which has exactly the same effect and which {who_reads(webui)}"
    if written != "full" or spec is None or not spec.unet or config.continue_from:
        return text
    size = count_adapted_weights(spec, config) * DTYPE_BYTES[config.save_precision]
    return f"{text} (about {size_text(size)} each)"


def _where(form: str) -> str:
    return _WHERE.get(form.rpartition("_")[2], "family")
