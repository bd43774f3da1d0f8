"""Widgets made from parameter declarations, and everything in which the gradio versions differ.

The webuis ship gradio 3.41 and 4.40, the stand-alone app 6: only components and arguments that all
three know are used, so that one code path serves them.
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
    "checkpoint": "empty: the loaded one",
    "alpha": "empty: same as rank",
    "unet_lr": "empty: learning rate",
    "text_encoder_lr": "empty: learning rate",
    "sample_prompts": "zkw on a red background --w 512 --h 512 --d 1\na tree on a blue background --d 2",
}


def elem_id(name: str) -> str:
    """A page-wide unique id."""
    return f"{PREFIX}_{name}"


def label_of(parameter: Parameter) -> str:
    """The label with the field's own spelling, and the unit: `Unet lr` → `UNet LR`."""
    words = " ".join(_WORDS.get(word, word) for word in parameter.label.split())
    return f"{words} ({parameter.unit})" if parameter.unit else words


def first_sentence(help_text: str) -> str:
    """What fits under a label; the whole text is the tooltip."""
    return re.split(r"(?<=[.!?])(?<!et al\.)\s", help_text, maxsplit=1)[0].rstrip(".")


def build_widget(field: Field, value: Any) -> Any:
    """The gradio component for one field, showing `value`."""
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
    """An example, or what an empty box means."""
    return _PLACEHOLDERS.get(field.key, "")


def place_in_row(field: Field) -> int:
    """Small inputs come first, then checkboxes, then what takes a row of its own: no holes in the grid."""
    return 2 if _is_wide(field) else 1 if field.parameter.kind is bool else 0


def _classes(field: Field) -> list[str]:
    """Names for the style sheet."""
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
    """A button; `variant` is primary, secondary or stop. Its tooltip is among `tooltips_of`."""
    button = gr.Button(label, variant=variant, elem_id=elem_id(name), elem_classes=["lt-button"])
    return unsaved(with_tooltip(button, tooltip))


def tooltips_of(blocks: Any) -> dict[str, str]:
    """Element id → tooltip of what is no parameter; gradio itself has no tooltips."""
    built = ((block.elem_id, getattr(block, "lt_tooltip", "")) for block in blocks.blocks.values())
    return {name: tooltip for name, tooltip in built if tooltip}


def build_hidden_text(name: str, value: str) -> Any:
    """A text box that only the page's JavaScript writes into; it must be in the page, so that gradio hears of it."""
    return unsaved(
        gr.Textbox(value=value, label=name, lines=1, max_lines=1, elem_id=elem_id(name), elem_classes=["lt-hidden"])
    )


def build_choice(label: str, name: str, choices: Sequence[str], *, info: str) -> Any:
    """A dropdown that is no parameter; the first choice is shown."""
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
    """A line of text that is no parameter."""
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
    """Some lines of text that callbacks fill."""
    box = gr.Textbox(label=label, lines=3, max_lines=6, interactive=False, elem_id=elem_id(name))
    return unsaved(with_tooltip(box, tooltip))


def with_tooltip(component: Any, tooltip: str) -> Any:
    """The component, with a tooltip that is among `tooltips_of`: gradio itself has none."""
    component.lt_tooltip = tooltip
    return component


def unsaved(component: Any) -> Any:
    """The component, kept out of the webui's ui-config.json, which would bring stale values back."""
    component.do_not_save_to_config = True
    return component


def build_html(value: str, name: str, *, classes: Sequence[str] = ()) -> Any:
    """A piece of HTML that callbacks may replace."""
    return gr.HTML(value, elem_id=elem_id(name), elem_classes=["lt-html", *classes])


def on_click(button: Any, call: Callable[..., Any], *, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    """Run `call` at once, not behind images that are being generated, and without spinners."""
    button.click(call, inputs=list(inputs), outputs=list(outputs), queue=False, show_progress="hidden")


def on_select(panel: Any, call: Callable[[], Any], *, outputs: Sequence[Any]) -> None:
    """Run `call` whenever a panel is opened."""
    panel.select(call, inputs=None, outputs=list(outputs), queue=False, show_progress="hidden")


def on_load(blocks: Any, call: Callable[[], Any], *, outputs: Sequence[Any]) -> None:
    """Run `call` whenever a page is opened or reloaded."""
    blocks.load(call, inputs=None, outputs=list(outputs), queue=False, show_progress="hidden")
