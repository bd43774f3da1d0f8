"""The form of the page: its draft, presets, imports, and the changes that the server makes to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_lora_train.config.presets import Preset
from lib_lora_train.config.train_config import TrainConfig, read_config
from lib_lora_train.config.validation.validate import require_usable
from lib_lora_train.core.errors import ConfigError, LoraTrainError, Problem
from lib_lora_train.formats.kohya.importer import Imported
from lib_lora_train.formats.kohya.read_files import read_settings
from lib_lora_train.formats.kohya.report import describe_lost, describe_unneeded
from lib_lora_train.web.form import Form, fill_form, load_draft, read_form, save_draft, with_config, with_values
from lib_lora_train.web.form_changes import FormChanges
from lib_lora_train.web.form_check import ChangedSettings
from lib_lora_train.web.json_values import optional_path
from lib_lora_train.web.user_presets import PresetStore, with_defaults

if TYPE_CHECKING:
    from lib_lora_train.formats.kohya.exporter import Exported

_SHOWN = 8


class FormSession:
    """What fills in the form. `home` holds the draft and presets; `demo` returns the settings of the demo."""

    def __init__(self, home: Path, demo: Callable[[], TrainConfig]) -> None:
        self.home = home
        self.presets = PresetStore(home / "presets")
        self.changes = FormChanges()
        self._demo = demo

    def form_actions(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any] | None]]:
        """The actions that the page can request, by name."""
        return {"form-undo": lambda _: self.changes.stage_undo(), "form-export": self._export_values}

    def _stage_settings(self, config: TrainConfig, run: str) -> None:
        def change(form: Form) -> tuple[dict[str, Any], str]:
            self.changes.applied = ()
            return with_config(form, config), f"The settings of {run} replaced yours; concepts too, if it has any."

        self.changes.stage(change)

    def draft(self) -> dict[str, Any]:
        """The form as it was saved last, or the defaults."""
        draft = load_draft(self.home)
        self.changes.applied = draft.applied
        return draft.form or fill_form(self._default_config())

    def left_out_of_draft(self) -> str:
        """What the file of the saved form has beside values that the form can show, as a sentence; "" if nothing."""
        left_out = load_draft(self.home).left_out
        shown = ", ".join(left_out[:_SHOWN]) + (f" and {len(left_out) - _SHOWN} more" if len(left_out) > _SHOWN else "")
        return (
            f"Left out of the saved form, because their values are invalid: {shown}. Check these settings."
            if left_out
            else ""
        )

    def _default_config(self) -> TrainConfig:
        """The settings of a form that nobody has filled in."""
        return TrainConfig()

    def fill_demo(self, form: Form) -> dict[str, Any]:
        """The form filled in for the demo, which can be undone."""
        self.changes.remember(form)
        self.changes.applied = ()
        return self.demo_form()

    def demo_form(self) -> dict[str, Any]:
        """The form filled in for the demo."""
        return fill_form(self._demo())

    def import_settings(self, form: Form, file: str) -> tuple[dict[str, Any], Imported]:
        """The form with the settings of a file, and a report on them; ConfigError if the file has none."""
        path = optional_path({"file": file}, "file")
        if path is None:
            raise ConfigError([Problem("error", "", "Enter the path of a .json, .toml or .safetensors file.")])
        imported = read_settings(path)
        self.changes.remember(form)
        self.changes.applied = ()
        return with_config(form, imported.config), imported

    def export_settings(self, form: Form, file: str) -> Exported:
        """Write the settings of the form for the kohya_ss GUI (.json) or sd-scripts (.toml).

        ConfigError for settings that cannot be read, or another ending; OutputError if the file is there already.
        """
        config, problems = read_form(form)
        require_usable(problem for problem in problems if problem.where != "concepts")  # folders may be given there
        return _export(config, {"file": file})

    def _export_values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The same for `settings`, those of the page if there are none: the files, and what they do not hold."""
        given = values.get("settings")
        config, problems = read_config(given) if isinstance(given, Mapping) else (self._draft_config(), ())
        require_usable(problems)
        exported = _export(config, values)
        return {
            "files": [str(one) for one in exported.paths],
            "to_do": list(exported.to_do),
            "not_kept": list(describe_lost(exported.lost)),
            "no_effect": list(describe_unneeded(exported.lost)),
        }

    def save_draft(self, form: Form) -> None:
        """Save the form for the next page load; OutputError when the folder cannot be written."""
        save_draft(self.home, form, self.changes.applied)

    def _draft_config(self) -> TrainConfig:
        """The settings of the saved draft."""
        form = load_draft(self.home).form
        return read_form(form)[0] if form else TrainConfig()

    # --- presets ---------------------------------------------------------------------------------
    def apply_preset(self, form: Form, name: str) -> tuple[dict[str, Any], Preset]:
        """The form with the values of a preset in place of the one before; LoraTrainError for an unknown name."""
        preset = self.presets.find(name)
        self.changes.remember(form)
        self.changes.applied = (preset.name,)
        return with_values(with_defaults(form), preset.values), preset

    def reset_settings(self, form: Form) -> dict[str, Any]:
        """The form with every default, except for what belongs to a single run."""
        self.changes.remember(form)
        self.changes.applied = ()
        return with_defaults(form)

    def save_preset(self, form: Form, name: str) -> None:
        """Save the settings of the form as a preset; LoraTrainError for an invalid name or invalid settings."""
        self.presets.save(name, form)
        self.changes.applied = (name.strip(),)

    def delete_preset(self, name: str) -> None:
        """Delete a preset of the user; LoraTrainError for any other."""
        self.presets.delete(name)
        self.changes.applied = tuple(other for other in self.changes.applied if other != name)

    def changed_settings(self, form: Form) -> ChangedSettings:
        """The settings that differ from the applied presets, or from the defaults if none was applied."""
        applied = self.changes.applied
        try:
            return ChangedSettings(applied, self.presets.changed_values(form, applied))
        except LoraTrainError:  # the file of an applied preset was deleted by hand
            return ChangedSettings((), self.presets.changed_values(form, ()))


def _export(config: TrainConfig, values: Mapping[str, Any]) -> Exported:
    """The settings, written to the `file` in the values."""
    from lib_lora_train.formats.kohya.exporter import target_of, write_exported

    path = optional_path(values, "file")
    if path is None:
        raise ConfigError([Problem("error", "", "Enter the path of the new .json or .toml file.")])
    return write_exported(path, config, target_of(path))
