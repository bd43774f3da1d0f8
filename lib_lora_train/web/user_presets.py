"""Presets saved by the user, one JSON file each; and which settings differ from the applied presets."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib_lora_train.config.card_presets import MY_CARD
from lib_lora_train.config.parameters import parameters_of, parse_value, read_values
from lib_lora_train.config.presets import PRESETS, Preset, find_preset
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core import atomic_write
from lib_lora_train.core.errors import LoraTrainError
from lib_lora_train.core.wording import value_text
from lib_lora_train.web.form import Field, Form, fill_form, form_fields, form_values, with_values

_NAME = re.compile(r"[\w][\w .+-]{0,59}")
_PER_RUN = {"output_name", "output_dir", "checkpoint", "vae", "comment"}
"""Settings of a single run, which presets do not contain."""
_WRITTEN_BY_USER = {"sample_prompts"}
"""Texts that a preset replaces only if it has its own."""

BUILT_IN_NAMES = (*(preset.name for preset in PRESETS), MY_CARD)
"""The presets that every page offers, the one for the card at hand last."""


class PresetStore:
    """The built-in presets, and those saved in a folder. Names of built-in presets cannot be reused."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> tuple[str, ...]:
        """The built-in presets, then those of the user in alphabetical order."""
        own = sorted((file.stem for file in self._folder.glob("*.json") if file.is_file()), key=str.casefold)
        return (*BUILT_IN_NAMES, *own)

    def find(self, name: str) -> Preset:
        """The preset of that name, without what its file has beside usable settings.

        LoraTrainError if it does not exist or its file is damaged.
        """
        file = self._file(name)
        if not file.is_file():
            return find_preset(name)
        try:
            values = json.loads(file.read_text(encoding="utf-8-sig"))
            if not isinstance(values, dict):
                raise ValueError("it has no settings")
            parsed, problems = read_values(TrainConfig, values)
        except (OSError, ValueError, RecursionError) as error:
            raise LoraTrainError(f"{file} cannot be read: {error}. Delete the preset and save it again.") from error
        per_run = [f"{key}: belongs to a single run" for key in sorted(parsed.keys() & _PER_RUN)]
        usable = {key: value for key, value in parsed.items() if key not in _PER_RUN}
        return Preset(name, "Saved by you.", usable, (*map(str, problems), *per_run))

    def save(self, name: str, form: Form) -> None:
        """Save the form as a preset, replacing any preset of the user with that name."""
        name = name.strip()
        if not _NAME.fullmatch(name):
            raise LoraTrainError("Invalid preset name. Use up to 60 letters, digits, spaces, or . + -")
        if name.casefold() in map(str.casefold, BUILT_IN_NAMES):
            raise LoraTrainError(f"{name} is a built-in preset. Choose another name.")
        raw = {key: value for key, value in form_values(form).items() if key in _preset_keys()}
        values, problems = read_values(TrainConfig, raw)
        if problems:
            raise LoraTrainError(f"Not saved because a setting is invalid: {problems[0]}")
        atomic_write.write_text(self._file(name), json.dumps(values, ensure_ascii=False, indent=1), make_parents=True)

    def delete(self, name: str) -> None:
        """Delete a preset of the user; LoraTrainError if it is built-in or unknown."""
        if not self._file(name).is_file():
            raise LoraTrainError(f"{name} is not a preset you saved, so it cannot be deleted.")
        self._file(name).unlink()

    def _file(self, name: str) -> Path:
        """The file of a preset; names cannot lead out of the folder."""
        safe = name.strip() if _NAME.fullmatch(name.strip()) else "-"
        return self._folder / f"{safe}.json"

    # --- differences -----------------------------------------------------------------------------
    def changed_values(self, form: Form, applied: Sequence[str]) -> dict[str, tuple[str, str]]:
        """The settings that differ from the defaults with these presets applied in order: what they were, and are."""
        expected: Mapping[str, Any] = fill_form(TrainConfig())
        for name in applied:
            expected = with_values(expected, self.find(name).values)
        pairs = {
            field.key: (_parsed(field, expected[field.key]), _parsed(field, form.get(field.key)))
            for field in form_fields()
            if field.key not in _PER_RUN
        }
        return {key: (value_text(before), value_text(now)) for key, (before, now) in pairs.items() if before != now}


def _parsed(field: Field, shown: Any) -> Any:
    """The value of a widget as its parameter's type (some gradio versions return 4.0 for 4), text if unreadable."""
    try:
        return parse_value(field.parameter, shown)
    except ValueError:
        return str(shown)


def _preset_keys() -> set[str]:
    return {parameter.name for parameter in parameters_of(TrainConfig)} - _PER_RUN


def with_defaults(form: Form) -> dict[str, Any]:
    """The form with the default of every setting that a preset may contain, except the sample prompts."""
    plain = fill_form(TrainConfig())
    return {**form, **{key: plain[key] for key in _preset_keys() - _WRITTEN_BY_USER}}
