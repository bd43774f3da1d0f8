"""The user's own presets beside the guides', one JSON file each; and which settings differ from what was applied."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib_lora_train.config.parameters import parameters_of, parse_value, read_values
from lib_lora_train.config.presets import PRESETS, Preset, find_preset
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core import atomic_write as whole_file
from lib_lora_train.core.errors import LoraTrainError
from lib_lora_train.web.form import Field, Form, fill_form, form_fields, form_values, with_values

_NAME = re.compile(r"[\w][\w .+-]{0,59}")
_RUNS_OWN = {"output_name", "output_dir", "checkpoint", "vae", "comment"}
"""Of one run only: a preset leaves them as they are."""


class PresetShelf:
    """The presets in a folder, and the guides'. Names of the guides' are taken."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> tuple[str, ...]:
        """The guides' presets, then the user's in alphabetical order."""
        own = sorted((file.stem for file in self._folder.glob("*.json")), key=str.casefold)
        return (*(preset.name for preset in PRESETS), *own)

    def find(self, name: str) -> Preset:
        """The preset of that name; LoraTrainError when there is none, or its file is damaged."""
        file = self._file(name)
        if not file.is_file():
            return find_preset(name)
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            parsed, _ = read_values(TrainConfig, {k: v for k, v in values.items() if k in _names()})
        except (OSError, ValueError, AttributeError) as error:
            raise LoraTrainError(f"{file} cannot be read: {error}. Delete the preset and save it anew.") from error
        return Preset(name, "Saved by you.", parsed)

    def save(self, name: str, form: Form) -> None:
        """Keep every setting of the form that belongs in a preset; one of the same name gives way."""
        name = name.strip()
        if not _NAME.fullmatch(name):
            raise LoraTrainError("Name the preset with letters, digits, blanks or . + - (60 at most).")
        if name.casefold() in {preset.name.casefold() for preset in PRESETS}:
            raise LoraTrainError(f"{name} is one of the guides' presets. Choose another name.")
        raw = {key: value for key, value in form_values(form).items() if key in _names()}
        values, problems = read_values(TrainConfig, raw)
        if problems:
            raise LoraTrainError(f"Not saved, as a setting cannot be used: {problems[0]}")
        whole_file.write_text(self._file(name), json.dumps(values, ensure_ascii=False, indent=1), makes_folder=True)

    def delete(self, name: str) -> None:
        """Remove one of the user's presets; LoraTrainError for one of the guides' or an unknown one."""
        if not self._file(name).is_file():
            raise LoraTrainError(f"{name} is not one of your presets, so it cannot be deleted.")
        self._file(name).unlink()

    def _file(self, name: str) -> Path:
        """No name leads out of the folder."""
        safe = name.strip() if _NAME.fullmatch(name.strip()) else "-"
        return self._folder / f"{safe}.json"

    # --- what differs ----------------------------------------------------------------------------
    def changed(self, form: Form, applied: Sequence[str]) -> tuple[str, ...]:
        """The parameters whose values differ from the presets applied one after the other on the defaults."""
        expected: Mapping[str, Any] = fill_form(TrainConfig())
        for name in applied:
            expected = with_values(expected, self.find(name).values)
        return tuple(
            field.key
            for field in form_fields()
            if field.key not in _RUNS_OWN and _meant(field, form.get(field.key)) != _meant(field, expected[field.key])
        )


def _meant(field: Field, shown: Any) -> Any:
    """A widget's value as its parameter's: some gradio versions give 4.0 for 4. What cannot be read stays text."""
    try:
        return parse_value(field.parameter, shown)
    except ValueError:
        return str(shown)


def _names() -> set[str]:
    return {parameter.name for parameter in parameters_of(TrainConfig)} - _RUNS_OWN


def applied_after(applied: Sequence[str], preset: Preset) -> tuple[str, ...]:
    """The chain of presets after one more: one that names every setting makes those before it void."""
    before = () if set(preset.values) >= _names() else tuple(name for name in applied if name != preset.name)
    return (*before, preset.name)
