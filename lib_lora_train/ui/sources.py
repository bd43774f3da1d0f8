"""Where settings can come from instead of being typed: the guides' presets, and other people's files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lib_lora_train.config.presets import Preset
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import LoraTrainError, Problem
from lib_lora_train.formats.kohya.importer import Imported
from lib_lora_train.formats.kohya.report import lost_lines, quiet_lines
from lib_lora_train.ui.widgets import build_button, build_choice, build_html, build_input
from lib_lora_train.web.form import number_text
from lib_lora_train.web.markup import count, place, problem_list, text


@dataclass(frozen=True)
class Sources:
    """The components: presets to apply, save and delete, a file to import, and what came of it."""

    preset: Any
    apply: Any
    name: Any
    save: Any
    delete: Any
    file: Any
    take: Any
    told: Any


def build_sources(presets: Sequence[str]) -> Sources:
    """Two rows, and below them the account of what was filled in."""
    with gr.Row(elem_classes=["lt-fields", "lt-sources"]):
        preset = build_choice("Preset", "preset", presets, info="The guides' advice, and your own")
        apply = build_button("Apply", "apply_preset", tooltip="Change the settings that the preset names, no others.")
        name = build_input("Save as", "preset_name", info="All settings but the file's name", placeholder="my preset")
        with gr.Row(elem_classes=["lt-pair"]):
            save = build_button("Save", "save_preset", tooltip="Keep these settings as a preset of your own.")
            delete = build_button("Delete", "delete_preset", tooltip="Delete the preset chosen on the left.")
        file = build_input(
            "Import settings from",
            "import_file",
            info="kohya's .json or .toml, or any LoRA",
            placeholder="/path/to/settings.json",
        )
        take = build_button("Import", "import", tooltip="Fill the form in from a file; every key is accounted for.")
    told = build_html("", "brought")
    return Sources(preset, apply, name, save, delete, file, take, told)


def show_preset(preset: Preset) -> str:
    """When to use it, what it has changed, and what it leaves or puts back at the defaults."""
    plain = TrainConfig()
    own = {name: value for name, value in preset.values.items() if value != getattr(plain, name)}
    changed = ", ".join(f"{place(name)} {_value(value)}" for name, value in own.items())
    rest = ", ".join(place(name) for name in preset.values if name not in own)
    told = f"{preset.when} Changed: {changed}." + (f" As by default: {rest}." if rest else "")
    return f"{show_good(f'{preset.name} is filled in.')}<p class='lt-faint'>{text(told)}</p>"


def show_good(sentence: str) -> str:
    """That something went well."""
    return f"<p class='lt-verdict lt-good'>{text(sentence)}</p>"


def show_imported(name: str, imported: Imported) -> str:
    """What was filled in, what is trained in another way, and every key that has no part in it."""
    taken = count(len(imported.taken), "setting")
    verdict = show_good(f"{taken} of {name} filled in.")
    lost, quiet = lost_lines(imported.ignored), quiet_lines(imported.ignored)
    problems = problem_list(imported.problems)
    left_out = _folded(f"{count(len(lost), 'key')} not taken over", lost, is_open=True)
    return f"{verdict}{problems}{left_out}{_folded('Keys without effect here', quiet, is_open=False)}"


def show_refusal(error: LoraTrainError) -> str:
    """Why nothing was filled in."""
    return problem_list([Problem("error", "", str(error))])


def _folded(title: str, lines: tuple[str, ...], *, is_open: bool) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{text(line)}</li>" for line in lines)
    attribute = " open" if is_open else ""
    attribute += " title='Unfold the list'"
    return f"<details class='lt-skipped'{attribute}><summary>{text(title)}</summary><ul>{items}</ul></details>"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "empty" if value is None or value == "" else number_text(value) if isinstance(value, float) else str(value)
