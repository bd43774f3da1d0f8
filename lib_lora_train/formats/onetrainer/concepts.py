"""OneTrainer's concepts as our folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lib_lora_train.config.parameters import parameters_of
from lib_lora_train.config.train_config import Concept
from lib_lora_train.formats.kohya.import_state import IgnoredKey
from lib_lora_train.formats.onetrainer.reading import Reading

_PARAMETERS = {parameter.name: parameter for parameter in parameters_of(Concept)}
_COLOURS = ("brightness", "contrast", "saturation", "hue")


def is_concepts(values: Any) -> bool:
    """Whether a JSON value is a list of concepts as OneTrainer saves it."""
    return (
        isinstance(values, list) and bool(values) and all(isinstance(one, Mapping) and "path" in one for one in values)
    )


def read_concepts(tables: Sequence[Any]) -> tuple[tuple[Concept, ...], tuple[IgnoredKey, ...], str]:
    """The folders, what is not kept of them, and the separator of tags ("" if it is a comma)."""
    found: list[Concept] = []
    ignored: list[IgnoredKey] = []
    separator = ""
    for number, table in enumerate(tables, start=1):
        where = f"concepts[{number}]"
        if not isinstance(table, Mapping):
            ignored.append(IgnoredKey(where, table, "is not a concept"))
            continue
        if not table.get("enabled", True):
            ignored.append(IgnoredKey(where, table.get("path"), "is switched off in the file"))
            continue
        reading = Reading(table, _PARAMETERS)
        separator = separator or _delimiter(reading)
        found.append(_concept(reading))
        reading.ignore_rest()
        ignored += [IgnoredKey(f"{where}.{one.key}", one.value, one.reason) for one in reading.ignored]
    return tuple(found), tuple(ignored), separator


def _delimiter(reading: Reading) -> str:
    given = str(reading.pop("text.tag_delimiter", ",")).strip()
    return "" if given == "," else given


def _concept(reading: Reading) -> Concept:
    reading.set("folder", "path", reading.pop("path", ""))
    kind = str(reading.pop("type", "STANDARD")).rpartition(".")[2]
    if kind != "STANDARD":
        what = "validation_share holds images back" if kind == "VALIDATION" else "see prior_preservation"
        reading.ignore("type", kind, f"is not available for a folder, which is trained on: {what}")
    if reading.pop("include_subdirectories", False):
        reading.ignore("include_subdirectories", True, "is not available: give every sub-folder as a concept")
    _repeats(reading)
    _captions(reading)
    _augmentation(reading)
    return Concept(**reading.values)


def _repeats(reading: Reading) -> None:
    """Balancing by repeats; the default of 1 repeats nothing."""
    strategy = str(reading.pop("balancing_strategy", "REPEATS"))
    balancing = reading.pop_number("balancing", 1.0)
    if strategy == "REPEATS" and balancing >= 1:
        reading.set("repeats", "balancing", round(balancing))
    if strategy != "REPEATS" or balancing != round(balancing) or balancing < 1:
        reading.ignore(
            "balancing", balancing, f"by {strategy.lower()} becomes whole repeats here; set repeats yourself"
        )


def _captions(reading: Reading) -> None:
    """A caption file beside each image has one caption per line, of which one is drawn: see `caption_lines`."""
    source = reading.pop("text.prompt_source", "sample")
    if source != "sample":
        what = "put the trigger and class word in their place" if source == "concept" else "write captions"
        reading.ignore("text.prompt_source", source, f"is not available: {what}")
    if reading.pop("text.enable_tag_shuffling", False):
        reading.set("own_shuffle", "text.enable_tag_shuffling", "on")
        reading.set("own_keep_tokens", "text.keep_tags_count", reading.pop("text.keep_tags_count", 1))
    else:
        reading.pop("text.keep_tags_count")
    if not reading.pop("text.tag_dropout_enable", False):
        return
    mode, share = reading.pop("text.tag_dropout_mode", "FULL"), reading.pop_number("text.tag_dropout_probability", 0)
    ours = "own_caption_dropout" if mode == "FULL" else "own_tag_dropout"
    reading.set(ours, "text.tag_dropout_probability", share)
    if mode not in ("FULL", "RANDOM"):
        reading.ignore("text.tag_dropout_mode", mode, "is not available: every tag is dropped as often")


def _augmentation(reading: Reading) -> None:
    flips = [reading.pop(f"image.enable_{how}_flip", False) for how in ("random", "fixed")]
    reading.values["flip"] = any(flips)
    changed = [what for what in _COLOURS if _is_on(reading, what)]
    strengths = [reading.pop_number(f"image.random_{what}_max_strength", 0) for what in changed]
    if any(strengths):
        reading.set("colour_jitter", "image", min(max(strengths), 0.5))
    variants = int(reading.pop_number("image_variations", 1))
    if variants > 1 and reading.pop("image.enable_crop_jitter", True):
        reading.values["random_crop"] = True
        reading.set("augment_variants", "image_variations", min(variants, 64))
    if reading.pop("image.enable_resolution_override", False):
        reading.set("resolutions", "image.resolution_override", reading.pop("image.resolution_override", ""))


def _is_on(reading: Reading, what: str) -> bool:
    """Whether images are changed in brightness or the like; both switches are read."""
    switches = [reading.pop(f"image.enable_{how}_{what}", False) for how in ("random", "fixed")]
    return any(switches)
