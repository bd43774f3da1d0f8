"""The tab: its panels, and which button does what. The same in every webui and stand-alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, TypeVar

import gradio as gr

from lib_lora_train.core.errors import LoraTrainError, OutputError, Problem
from lib_lora_train.ui.captions import build_captions_panel
from lib_lora_train.ui.dataset import DatasetPanel, build_dataset_panel, show_found
from lib_lora_train.ui.monitor import build_monitor_panel
from lib_lora_train.ui.results import build_epoch_grid, build_results_panel
from lib_lora_train.ui.sources import show_good, show_imported, show_preset, show_refusal
from lib_lora_train.ui.tools import build_tools_panel
from lib_lora_train.ui.training import TrainPanel, build_train_panel, show_checked, show_helps
from lib_lora_train.ui.widgets import (
    build_button,
    build_html,
    elem_id,
    on_click,
    on_load,
    on_select,
    tooltips_of,
    unsaved,
)
from lib_lora_train.web.form import Form
from lib_lora_train.web.form_check import Checked
from lib_lora_train.web.markup import problem_list, text
from lib_lora_train.web.session import Session

_Answer = TypeVar("_Answer")

TITLE = "LoRA Train"
_WELCOME = "<div data-lt='strip'></div>"


@dataclass(frozen=True)
class _Strip:
    """The line above all panels: what runs, how far it is, and its buttons."""

    demo: Any
    save: Any
    sample: Any
    pause: Any
    resume: Any
    stop: Any
    message: Any


@dataclass(frozen=True)
class _Hidden:
    """What only the page's JavaScript presses or looks at."""

    keep: Any
    take: Any
    restored: Any
    """Says that the form is filled in: until then what is typed would be overwritten."""


def build_tab(session: Session, bind_paste: Callable[[Any, Any], None] | None = None) -> Any:
    """The whole tab as gradio Blocks; `bind_paste(button, text)` connects a button with the webui's txt2img."""
    form = session.draft()
    with gr.Blocks(title=TITLE, analytics_enabled=False) as blocks, gr.Column(elem_id=elem_id("root")):
        strip = _build_strip()
        with unsaved(gr.Tabs(elem_id=elem_id("panels"))) as panels:
            with gr.Tab("Dataset", id="dataset", elem_id=elem_id("dataset_panel")):
                dataset = build_dataset_panel(form)
            with gr.Tab("Captions", id="captions", elem_id=elem_id("captions_panel")):
                build_captions_panel()
            with gr.Tab("Train", id="train", elem_id=elem_id("train_panel")):
                train = build_train_panel(form, session.presets.names())
            with gr.Tab("Monitor", id="monitor", elem_id=elem_id("monitor_panel")):
                build_monitor_panel()
            with gr.Tab("Results", id="results", elem_id=elem_id("results_panel")) as results:
                plot = build_results_panel(bind_paste)
                grid = build_epoch_grid(session.sampler_names())
            with gr.Tab("Tools", id="tools", elem_id=elem_id("tools_panel")):
                build_tools_panel()
        # Pressed by the page's JavaScript: a moment after a change, and when a change of the form was staged.
        hidden = _Hidden(
            build_button("Keep the form", "keep"), build_button("Take the change", "take"), build_html("", "restored")
        )
        _Wiring(session, strip, dataset, train).connect(blocks, panels, hidden)
        if grid is not None:
            on_click(grid.draw, partial(_drawn, session), inputs=[grid.sampler], outputs=[grid.told])
        if plot is not None:
            on_select(results, session.xyz_text, outputs=[plot.text])
            on_load(blocks, session.xyz_text, outputs=[plot.text])
        build_html(f"<div data-lt='door' data-key='{session.page_key}'></div>", "door", classes=["lt-hidden"])
        build_html(show_helps(tooltips_of(blocks)), "helps", classes=["lt-hidden"])
    return blocks


def _build_strip() -> _Strip:
    with gr.Row(elem_id=elem_id("strip")):
        build_html(_WELCOME, "state")
        with gr.Row(elem_id=elem_id("actions")):
            demo = build_button("Fill in the demo", "demo", tooltip="The shipped dataset and settings that suit it.")
            save = build_button("Save now", "save", tooltip="Write a LoRA file of this very step.")
            sample = build_button("Sample now", "sample", tooltip="Draw the sample prompts with what is learnt so far.")
            pause = build_button(
                "Pause", "pause", tooltip="Hold after the current step; the graphics card is free meanwhile."
            )
            resume = build_button("Resume", "resume", variant="primary", tooltip="Go on after a pause.")
            stop = build_button(
                "Stop and keep",
                "stop",
                tooltip="End after the current step and keep what was learnt as a file.",
                variant="stop",
            )
        message = build_html("", "message")
    return _Strip(demo, save, sample, pause, resume, stop, message)


def _in_turn(call: Callable[..., _Answer]) -> Callable[..., _Answer]:
    """A callback that waits for those before it.

    The page asks again while an answer is under way. Without turns, an answer that began before a look and ended after
    it would put the older plan over the newer one.
    """

    @wraps(call)
    def wait_and_call(wiring: _Wiring, *values: Any) -> _Answer:
        with wiring.session.turn:
            return call(wiring, *values)

    return wait_and_call


@dataclass(frozen=True)
class _Wiring:
    """The callbacks: each takes the form's values in order and returns what its outputs show."""

    session: Session
    strip: _Strip
    dataset: DatasetPanel
    train: TrainPanel

    @property
    def fields(self) -> dict[str, Any]:
        return {**self.dataset.fields, **self.train.fields}

    def connect(self, blocks: Any, panels: Any, hidden: _Hidden) -> None:
        inputs = list(self.fields.values())
        shown = [self.dataset.found, self.train.checked]
        on_load(blocks, self.restore, outputs=[*inputs, *shown, hidden.restored])
        on_click(self.strip.demo, self.fill_demo, inputs=[], outputs=[*inputs, *shown])
        on_click(self.dataset.look, self.look, inputs=inputs, outputs=shown)
        on_click(hidden.keep, self.keep, inputs=inputs, outputs=shown)
        on_click(hidden.take, self.take, inputs=inputs, outputs=[*inputs, *shown, self.train.sources.told])
        on_click(self.dataset.balance, self.balance, inputs=inputs, outputs=[*inputs, *shown, self.dataset.told])
        on_click(self.train.start, self.start, inputs=inputs, outputs=[self.train.checked, panels])
        on_click(self.train.enqueue, self.enqueue, inputs=inputs, outputs=[self.train.checked])
        sources = self.train.sources
        told = [*inputs, *shown, sources.told]
        on_click(sources.apply, self.apply_preset, inputs=[sources.preset, *inputs], outputs=told)
        on_click(sources.save, self.save_preset, inputs=[sources.name, *inputs], outputs=[*told, sources.preset])
        on_click(sources.delete, self.delete_preset, inputs=[sources.preset, *inputs], outputs=[*told, sources.preset])
        on_click(sources.take, self.take_settings, inputs=[sources.file, *inputs], outputs=told)
        for button, command in self._commands():
            on_click(button, _reported(command), inputs=[], outputs=[self.strip.message])

    def _commands(self) -> Sequence[tuple[Any, Callable[[], None]]]:
        runner = self.session.runner
        return (
            (self.strip.save, runner.save_now),
            (self.strip.sample, runner.sample_now),
            (self.strip.pause, runner.pause),
            (self.strip.resume, runner.resume),
            (self.strip.stop, runner.stop),
        )

    @_in_turn
    def restore(self) -> list[Any]:
        form = self.session.draft()
        return [*self._values(form), *self._shown(form), "<i data-lt='restored'></i>"]

    @_in_turn
    def fill_demo(self) -> list[Any]:
        form = self.session.demo_form()
        return [*self._values(form), *self.look(*self._values(form))]

    @_in_turn
    def apply_preset(self, name: str, *values: Any) -> list[Any]:
        form = self._form(values)
        try:
            form, preset = self.session.apply_preset(form, name)
        except LoraTrainError as error:
            return self._filled(form, show_refusal(error))
        return self._filled(form, show_preset(preset))

    @_in_turn
    def save_preset(self, name: str, *values: Any) -> list[Any]:
        form = self._form(values)
        try:
            self.session.save_preset(form, name)
        except LoraTrainError as error:
            return [*self._filled(form, show_refusal(error)), gr.update()]
        return [*self._filled(form, show_good(f"{name.strip()} is saved.")), self._choice(name.strip())]

    @_in_turn
    def delete_preset(self, name: str, *values: Any) -> list[Any]:
        form = self._form(values)
        try:
            self.session.delete_preset(name)
        except LoraTrainError as error:
            return [*self._filled(form, show_refusal(error)), gr.update()]
        return [*self._filled(form, show_good(f"{name} is deleted.")), self._choice("")]

    def _choice(self, chosen: str) -> Any:
        names = list(self.session.presets.names())
        return gr.update(choices=names, value=chosen or names[0])

    @_in_turn
    def take_settings(self, file: str, *values: Any) -> list[Any]:
        form = self._form(values)
        try:
            form, imported = self.session.read_settings(form, file)
        except LoraTrainError as error:
            return self._filled(form, show_refusal(error))
        return self._filled(form, show_imported(file.replace("\\", "/").rpartition("/")[2], imported))

    @_in_turn
    def take(self, *values: Any) -> list[Any]:
        form, told = self.session.take_staged(self._form(values))
        return self._filled(form, show_good(told) if told else "")

    @_in_turn
    def balance(self, *values: Any) -> list[Any]:
        form = self._form(values)
        try:
            form, told = self.session.balance(form)
        except LoraTrainError as error:
            return self._filled(form, show_refusal(error))
        return self._filled(form, f"<p class='lt-faint'>{text(told)}</p>")

    def _filled(self, form: Form, told: str) -> list[Any]:
        with contextlib.suppress(OutputError):
            self.session.keep(form)
        return [*self._values(form), *self._shown(form), told]

    @_in_turn
    def look(self, *values: Any) -> list[str]:
        form = self._form(values)
        try:
            self.session.keep(form)
            checked = self.session.look(form)
        except LoraTrainError as error:
            found = f"<div class='lt-card'>{problem_list([Problem('error', '', str(error))])}</div>"
            return [found, show_checked(self.session.check(form))]
        return [show_found(self.session.looked, checked), show_checked(checked)]

    @_in_turn
    def keep(self, *values: Any) -> list[str]:
        form = self._form(values)
        with contextlib.suppress(OutputError):  # a full disk is told by Look and Start, not at every key
            self.session.keep(form)
        return self._shown(form)

    @_in_turn
    def start(self, *values: Any) -> list[Any]:
        checked = self.session.start(self._form(values))
        return [
            show_checked(checked, done="Started. The Monitor shows how it goes." if checked.is_usable else ""),
            _selected("monitor" if checked.is_usable else "train"),
        ]

    @_in_turn
    def enqueue(self, *values: Any) -> str:
        try:
            checked = self.session.enqueue(self._form(values))
        except LoraTrainError as error:
            return problem_list([Problem("error", "", str(error))])
        return show_checked(checked, done="It waits in the queue." if checked.is_usable else "")

    def _shown(self, form: Form) -> list[str]:
        checked: Checked = self.session.check(form)
        return [show_found(self.session.looked, checked), show_checked(checked)]

    def _form(self, values: Sequence[Any]) -> Form:
        return dict(zip(self.fields, values, strict=True))

    def _values(self, form: Form) -> list[Any]:
        return [form[key] for key in self.fields]


def _drawn(session: Session, sampler: str) -> str:
    return _reported(lambda: session.draw_grid(sampler))()


def _selected(panel: str) -> Any:
    return gr.update(selected=panel)


def _reported(command: Callable[[], object]) -> Callable[[], str]:
    """`command` with its refusal, if any, as a line for the page."""

    def run() -> str:
        try:
            command()
        except LoraTrainError as error:
            return problem_list([Problem("warning", "", str(error))])
        return ""

    return run
