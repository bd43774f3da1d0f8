"""Widgets built from parameter declarations, and the only code that depends on the gradio version.

The webuis ship gradio 3.41 and 4.40, the stand-alone app uses 6. Only components and arguments that all three support
are used, so that one code path works everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from lib_lora_train.config.parameters import Parameter
from lib_lora_train.web.form import Field

PREFIX = "lora_train"
_WORDS = {"Unet": "UNet", "unet": "UNet", "Vae": "VAE", "lr": "LR", "Lr": "LR", "snr": "SNR", "cfg": "CFG", "n": "N"}
_SHORT_TEXTS = ("caption_extension",)
_PLACEHOLDERS = {
    "folder": "/path/to/images",
    "repeats": "auto",
    "trigger": "a rare word, e.g. zkw",
    "class_word": "e.g. cat",
    "checkpoint": "empty: loaded checkpoint",
    "alpha": "empty: same as rank",
    "unet_lr": "empty: learning rate",
    "text_encoder_lr": "empty: learning rate",
    "sample_prompts": "zkw on a red background --w 512 --h 512 --d 1\na tree on a blue background --d 2",
}


def elem_id(name: str) -> str:
    """A page-wide unique id."""
    return f"{PREFIX}_{name}"


def label_of(parameter: Parameter) -> str:
    """The label in its usual spelling, with the unit: `Unet lr` → `UNet LR`."""
    words = " ".join(_WORDS.get(word, word) for word in parameter.label.split())
    return f"{words} ({parameter.unit})" if parameter.unit else words


def first_sentence(help_text: str) -> str:
    """The text below a label; the whole help text is the tooltip."""
    return re.split(r"(?<=[.!?])(?<!et al\.)\s", help_text, maxsplit=1)[0].rstrip(".")


def build_widget(field: Field, value: Any) -> Any:
    """The gradio component for a field, showing `value`."""
    parameter = field.parameter
    shared = {
        "value": value,
        "label": label_of(parameter),
        "info": first_sentence(parameter.help),
        "elem_id": elem_id(field.key),
        "elem_classes": _classes(field),
    }
    return unsaved(_component(field, shared))


def placeholder_of(field: Field) -> str:
    """An example, or the meaning of an empty box."""
    return _PLACEHOLDERS.get(field.key, "")


def place_in_row(field: Field) -> int:
    """Sort key that leaves no holes in the grid: small inputs first, then checkboxes, then full-width inputs."""
    return 2 if _is_wide(field) else 1 if field.parameter.kind is bool else 0


def _classes(field: Field) -> list[str]:
    """CSS classes for the style sheet."""
    return ["lt-check" if field.parameter.kind is bool else "lt-input", *(["lt-wide"] if _is_wide(field) else [])]


def _is_wide(field: Field) -> bool:
    parameter = field.parameter
    is_long = parameter.kind is tuple or (parameter.kind is str and not parameter.choices)
    return is_long and parameter.name not in _SHORT_TEXTS


def _component(field: Field, shared: dict[str, Any]) -> Any:
    parameter = field.parameter
    if parameter.kind is bool:
        return gr.Checkbox(**shared)
    if parameter.choices:
        return gr.Dropdown(choices=list(parameter.choices), **shared)
    if field.is_text:
        lines = 4 if parameter.kind is tuple else 1
        return gr.Textbox(
            lines=lines, max_lines=lines if lines == 1 else 12, placeholder=placeholder_of(field), **shared
        )
    return gr.Number(**shared)


def build_button(label: str, name: str, *, variant: str = "secondary", tooltip: str = "") -> Any:
    """A button; `variant` is primary, secondary or stop. See `with_tooltip`."""
    button = gr.Button(label, variant=variant, elem_id=elem_id(name), elem_classes=["lt-button"])
    return unsaved(with_tooltip(button, tooltip))


def tooltips_of(blocks: Any) -> dict[str, str]:
    """Tooltips by element id, of all components made by `with_tooltip`."""
    built = ((block.elem_id, getattr(block, "lt_tooltip", "")) for block in blocks.blocks.values())
    return {name: tooltip for name, tooltip in built if tooltip}


def build_hidden_text(name: str, value: str) -> Any:
    """A hidden text box that JavaScript writes into. It must be in the page for gradio to notice changes.

    It has several lines, since browsers remove line breaks from the text of a box with one.
    """
    return unsaved(
        gr.Textbox(value=value, label=name, lines=2, max_lines=2, elem_id=elem_id(name), elem_classes=["lt-hidden"])
    )


def build_choice(label: str, name: str, choices: Sequence[str], *, info: str) -> Any:
    """A dropdown that is not a parameter, showing the first choice."""
    dropdown = gr.Dropdown(
        choices=list(choices),
        value=choices[0],
        label=label,
        info=info,
        elem_id=elem_id(name),
        elem_classes=["lt-input"],
    )
    return unsaved(with_tooltip(dropdown, info))


def build_input(label: str, name: str, *, info: str, placeholder: str) -> Any:
    """A single-line text box that is not a parameter."""
    box = gr.Textbox(
        value="",
        label=label,
        info=info,
        lines=1,
        max_lines=1,
        placeholder=placeholder,
        elem_id=elem_id(name),
        elem_classes=["lt-input"],
    )
    return unsaved(with_tooltip(box, info))


def build_text(label: str, name: str, *, tooltip: str) -> Any:
    """A read-only text box that callbacks fill."""
    box = gr.Textbox(label=label, lines=3, max_lines=6, interactive=False, elem_id=elem_id(name))
    return unsaved(with_tooltip(box, tooltip))


def with_tooltip(component: Any, tooltip: str) -> Any:
    """The component with a tooltip. Gradio has none; JavaScript adds those of `tooltips_of`."""
    component.lt_tooltip = tooltip
    return component


def unsaved(component: Any) -> Any:
    """The component, excluded from the webui's ui-config.json, which would restore stale values."""
    component.do_not_save_to_config = True
    return component


def build_html(value: str, name: str, *, classes: Sequence[str] = ()) -> Any:
    """HTML that callbacks may replace."""
    return gr.HTML(value, elem_id=elem_id(name), elem_classes=["lt-html", *classes])


def on_click(button: Any, call: Callable[..., Any], *, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    """Run `call` at once, without queueing behind image generation and without a spinner."""
    button.click(call, inputs=list(inputs), outputs=list(outputs), queue=False, show_progress="hidden")


def on_select(panel: Any, call: Callable[[], Any], *, outputs: Sequence[Any]) -> None:
    """Run `call` when the panel is opened."""
    panel.select(call, inputs=None, outputs=list(outputs), queue=False, show_progress="hidden")


def on_load(blocks: Any, call: Callable[[], Any], *, outputs: Sequence[Any]) -> None:
    """Run `call` when a page is opened or reloaded."""
    blocks.load(call, inputs=None, outputs=list(outputs), queue=False, show_progress="hidden")
