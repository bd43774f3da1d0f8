"""Sources of settings: presets, and files of kohya's tools or LoRA files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from lib_lora_train.config.presets import Preset
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import LoraTrainError, Problem
from lib_lora_train.core.wording import count, value_text
from lib_lora_train.formats.kohya.report import describe_lost, describe_unneeded
from lib_lora_train.ui.widgets import build_button, build_choice, build_html, build_input
from lib_lora_train.web.markup import location_label, problem_list, text

if TYPE_CHECKING:
    from lib_lora_train.formats.kohya.exporter import Exported
    from lib_lora_train.formats.kohya.importer import Imported

_UNDO = (
    "<button type='button' class='lt-small' data-lt-undo title='Bring back the settings from before'>"
    "Undo this change of the settings</button>"
)


@dataclass(frozen=True)
class Sources:
    """The components for presets and imports, and a message below them."""

    preset: Any
    apply: Any
    reset: Any
    name: Any
    save: Any
    delete: Any
    file: Any
    import_: Any
    export_file: Any
    export: Any
    message: Any


def build_sources(presets: Sequence[str]) -> Sources:
    """Build the rows for presets and imports, and the message below them."""
    with gr.Row(elem_classes=["lt-fields", "lt-sources"]):
        preset = build_choice("Preset", "preset", presets, info="Recommended settings, and your own")
        apply = build_button(
            "Apply",
            "apply_preset",
            tooltip="Apply this preset in place of the previous one. Output name, checkpoint and sample prompts stay.",
        )
        name = build_input(
            "Save as", "preset_name", info="All settings except those of a single run", placeholder="my preset"
        )
        with gr.Row(elem_classes=["lt-pair"]):
            save = build_button("Save", "save_preset", tooltip="Save the current settings as your own preset.")
            delete = build_button("Delete", "delete_preset", tooltip="Delete the preset selected on the left.")
        file = build_input(
            "Import settings from",
            "import_file",
            info="From kohya_ss, sd-scripts or OneTrainer, or any LoRA",
            placeholder="/path/to/settings.json",
        )
        import_ = build_button(
            "Import", "import", tooltip="Fill in the form from a file. You will see what became of every key."
        )
        export_file = build_input(
            "Export settings to",
            "export_file",
            info="A new .json for the kohya_ss GUI, or .toml for sd-scripts",
            placeholder="/path/to/fox.json",
        )
        export = build_button(
            "Export", "export", tooltip="Write the settings for kohya's tools. You will see what they cannot hold."
        )
        reset = build_button(
            "Reset to defaults",
            "reset_settings",
            tooltip="Set everything to its default. Concepts, output name, checkpoint and sample prompts stay.",
        )
    message = build_html("", "source_message")
    return Sources(preset, apply, reset, name, save, delete, file, import_, export_file, export, message)


def render_preset(preset: Preset) -> str:
    """When to use the preset, what it changed, what it set to the defaults, and what was left out."""
    plain = TrainConfig()
    own = {name: value for name, value in preset.values.items() if value != getattr(plain, name)}
    changed = ", ".join(f"{location_label(name)} {value_text(value)}" for name, value in own.items())
    rest = ", ".join(location_label(name) for name in preset.values if name not in own)
    message = f"{preset.when} Changed: {changed}." + (f" Set to default: {rest}." if rest else "")
    left_out = _folded(f"{count(len(preset.left_out), 'entry', 'entries')} left out", preset.left_out, is_open=True)
    done = render_success(f"Preset {preset.name} applied.")
    return f"{done}<p class='lt-faint'>{text(message)}</p>{left_out}{_UNDO}"


def render_success(sentence: str) -> str:
    """A line that confirms success."""
    return f"<p class='lt-verdict lt-good'>{text(sentence)}</p>"


def render_replaced(sentence: str) -> str:
    """What replaced the settings, with a button that brings them back."""
    return f"{render_success(sentence)}{_UNDO}"


def render_imported(name: str, imported: Imported) -> str:
    """The number of imported settings, those that work differently here, and all keys that were not imported."""
    verdict = render_replaced(f"{count(len(imported.used_keys), 'setting')} imported from {name}.")
    lost, quiet = describe_lost(imported.ignored), describe_unneeded(imported.ignored)
    problems = problem_list(imported.problems)
    left_out = _folded(f"{count(len(lost), 'key')} not imported", lost, is_open=True)
    return f"{verdict}{problems}{left_out}{_folded('Keys that have no effect here', quiet, is_open=False)}"


def render_exported(exported: Exported) -> str:
    """The files, what is to do before training with them, and what they do not hold."""
    verdict = render_success(f"Saved to {', '.join(map(str, exported.paths))}.")
    to_do = _folded("To do before training there", exported.to_do, is_open=True)
    lost, quiet = describe_lost(exported.lost), describe_unneeded(exported.lost)
    left_out = _folded(f"{count(len(lost), 'setting')} not kept", lost, is_open=True)
    return f"{verdict}{to_do}{left_out}{_folded('Not kept, without a difference to training', quiet, is_open=False)}"


def render_error(error: LoraTrainError) -> str:
    """The error as a list of one problem."""
    return problem_list([Problem("error", "", str(error))])


def _folded(title: str, lines: tuple[str, ...], *, is_open: bool) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{text(line)}</li>" for line in lines)
    attribute = " open" if is_open else ""
    attribute += " title='Expand the list'"
    return f"<details class='lt-skipped'{attribute}><summary>{text(title)}</summary><ul>{items}</ul></details>"
