"""The tab: its panels and callbacks. The same in every webui and stand-alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, TypeVar

import gradio as gr

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import DataError, HostError, LoraTrainError, OutputError, Problem
from lib_lora_train.ui.captions import build_captions_panel
from lib_lora_train.ui.dataset import DatasetPanel, build_dataset_panel, render_dataset
from lib_lora_train.ui.monitor import build_monitor_panel
from lib_lora_train.ui.results import build_results_panel
from lib_lora_train.ui.sources import (
    render_error,
    render_exported,
    render_imported,
    render_preset,
    render_replaced,
    render_success,
)
from lib_lora_train.ui.tools import build_tools_panel
from lib_lora_train.ui.training import TrainPanel, build_train_panel, render_check, render_tooltips
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
from lib_lora_train.web.form import Form, fill_form
from lib_lora_train.web.markup import problem_list, text
from lib_lora_train.web.page_key import page_key
from lib_lora_train.web.user_presets import BUILT_IN_NAMES

if TYPE_CHECKING:
    from lib_lora_train.web.form_check import FormCheck
    from lib_lora_train.web.session import Session

_Answer = TypeVar("_Answer")

TITLE = "LoRA Train"


@dataclass(frozen=True)
class _Strip:
    """The strip above all panels: the progress of the run and its buttons."""

    demo: Any
    save: Any
    sample: Any
    pause: Any
    resume: Any
    stop: Any
    drop: Any
    message: Any


@dataclass(frozen=True)
class _Hidden:
    """Components that only JavaScript uses."""

    save_draft: Any
    apply_change: Any
    restored: Any
    """Marks that the form is filled in. Until then, anything typed would be overwritten."""


def build_tab(session: Session, bind_paste: Callable[[Any, Any], None] | None = None) -> Any:
    """The tab as gradio Blocks; `bind_paste(button, text)` makes a button send a text to txt2img of the webui.

    Building it does not use the session, which may be a lazy one. The page fills in the form when it loads.
    """
    form = fill_form(TrainConfig())
    with gr.Blocks(title=TITLE, analytics_enabled=False) as blocks, gr.Column(elem_id=elem_id("root")):
        strip = _build_strip()
        with unsaved(gr.Tabs(elem_id=elem_id("panels"))) as panels:
            with gr.Tab("Dataset", id="dataset", elem_id=elem_id("dataset_panel")):
                dataset = build_dataset_panel(form)
            with gr.Tab("Captions", id="captions", elem_id=elem_id("captions_panel")):
                build_captions_panel()
            with gr.Tab("Train", id="train", elem_id=elem_id("train_panel")):
                train = build_train_panel(form, BUILT_IN_NAMES)
            with gr.Tab("Monitor", id="monitor", elem_id=elem_id("monitor_panel")):
                build_monitor_panel()
            with gr.Tab("Results", id="results", elem_id=elem_id("results_panel")) as results:
                plot = build_results_panel(bind_paste)
            with gr.Tab("Tools", id="tools", elem_id=elem_id("tools_panel")):
                build_tools_panel()
        # JavaScript presses these: shortly after the form changes, and when the server has staged a change.
        hidden = _Hidden(
            build_button("Save draft", "save_draft"),
            build_button("Apply change", "apply_change"),
            build_html("", "restored"),
        )
        wiring = _Wiring(session, strip, dataset, train)
        wiring.connect(blocks, panels, hidden)
        if plot is not None:
            on_select(results, wiring.xyz_text, outputs=[plot.text])
            on_load(blocks, wiring.xyz_text, outputs=[plot.text])
        build_html(f"<div data-lt='page-key' data-key='{page_key()}'></div>", "page_key", classes=["lt-hidden"])
        build_html(render_tooltips(tooltips_of(blocks)), "tooltips", classes=["lt-hidden"])
    return blocks


def _build_strip() -> _Strip:
    with gr.Row(elem_id=elem_id("strip")):
        build_html("<div data-lt='strip'></div>", "state")
        with gr.Row(elem_id=elem_id("actions")):
            demo = build_button(
                "Fill in the demo", "demo", tooltip="Use the included demo dataset and matching settings."
            )
            save = build_button("Save now", "save", tooltip="Write a LoRA file of the current step.")
            sample = build_button("Sample now", "sample", tooltip="Generate the sample prompts at the current step.")
            pause = build_button("Pause", "pause", tooltip="Pause after the current step and free the GPU.")
            resume = build_button("Resume", "resume", variant="primary", tooltip="Continue training.")
            stop = build_button(
                "Stop and save",
                "stop",
                tooltip="Stop after the current step and save the LoRA file.",
                variant="stop",
            )
            drop = build_button(
                "Stop and drop",
                "drop",
                tooltip="Stop after the current step without saving it. Files that were saved before stay.",
            )
        message = build_html("", "message")
    return _Strip(demo, save, sample, pause, resume, stop, drop, message)


def _serialised(call: Callable[..., _Answer]) -> Callable[..., _Answer]:
    """A callback that waits for those before it.

    The page may call again while a callback is running. Without this, a callback that began before a scan and ended
    after it would replace the new plan by the old one.
    """

    @wraps(call)
    def wait_and_call(wiring: _Wiring, *values: Any) -> _Answer:
        with wiring.session.form_lock:
            return call(wiring, *values)

    return wait_and_call


@dataclass(frozen=True)
class _Wiring:
    """The callbacks. Each takes the values of the form in order and returns the values of its outputs."""

    session: Session
    strip: _Strip
    dataset: DatasetPanel
    train: TrainPanel

    @property
    def fields(self) -> dict[str, Any]:
        return {**self.dataset.fields, **self.train.fields}

    def connect(self, blocks: Any, panels: Any, hidden: _Hidden) -> None:
        inputs, sources = list(self.fields.values()), self.train.sources
        shown = [self.dataset.summary, self.train.checked]
        on_load(blocks, self.restore, outputs=[*inputs, *shown, hidden.restored, self.strip.message, sources.preset])
        on_click(self.strip.demo, self.fill_demo, inputs=inputs, outputs=[*inputs, *shown, self.strip.message])
        on_click(self.dataset.scan, self.scan, inputs=inputs, outputs=shown)
        on_click(hidden.save_draft, self.save_draft, inputs=inputs, outputs=shown)
        on_click(
            hidden.apply_change, self.apply_staged_change, inputs=inputs, outputs=[*inputs, *shown, self.strip.message]
        )
        on_click(self.dataset.balance, self.balance, inputs=inputs, outputs=[*inputs, *shown, self.dataset.message])
        on_click(self.train.start, self.start, inputs=inputs, outputs=[self.train.checked, panels])
        on_click(self.train.enqueue, self.enqueue, inputs=inputs, outputs=[self.train.checked])
        outputs = [*inputs, *shown, sources.message]
        on_click(sources.apply, self.apply_preset, inputs=[sources.preset, *inputs], outputs=outputs)
        on_click(sources.reset, self.reset_settings, inputs=inputs, outputs=outputs)
        on_click(sources.save, self.save_preset, inputs=[sources.name, *inputs], outputs=[*outputs, sources.preset])
        on_click(
            sources.delete, self.delete_preset, inputs=[sources.preset, *inputs], outputs=[*outputs, sources.preset]
        )
        on_click(sources.import_, self.import_settings, inputs=[sources.file, *inputs], outputs=outputs)
        on_click(sources.export, self.export_settings, inputs=[sources.export_file, *inputs], outputs=[sources.message])
        for button, command in self._commands():
            on_click(button, _with_error_line(command), inputs=[], outputs=[self.strip.message])

    def _commands(self) -> Sequence[tuple[Any, Callable[[], None]]]:
        strip = self.strip
        buttons = ("pause", "resume", "stop", "drop", "save", "sample")
        return [(getattr(strip, name), partial(self._command, name)) for name in buttons]

    def _command(self, name: str) -> None:
        self.session.command(name)

    def restore(self) -> list[Any]:
        """Fill in the page that loads. The first page opens the session; if that fails, it says why."""
        try:
            return self._restored()
        except HostError as error:
            outputs = len(self.fields) + 3  # also the dataset, the check and the mark
            unchanged = [gr.update()] * outputs
            return [*unchanged, problem_list([Problem("error", "", str(error))]), gr.update()]

    @_serialised
    def _restored(self) -> list[Any]:
        form, left_out = self.session.draft(), self.session.left_out_of_draft()
        message = problem_list([Problem("warning", "", left_out)]) if left_out else ""
        return [*self._values(form), *self._render(form), "<i data-lt='restored'></i>", message, self._choice("")]

    def xyz_text(self) -> str:
        """What the button in Results sends to txt2img; "" if the session could not be opened, as the page says."""
        try:
            return self.session.xyz_text()
        except HostError:
            return ""

    @_serialised
    def fill_demo(self, *values: Any) -> list[Any]:
        form = self.session.fill_demo(self._form(values))
        message = render_replaced("The demo's images and settings replaced yours.")
        return [*self._values(form), *self.scan(*self._values(form)), message]

    @_serialised
    def apply_preset(self, name: str, *values: Any) -> list[Any]:
        form = self._form(values)
        try:
            form, preset = self.session.apply_preset(form, name)
        except LoraTrainError as error:
            return self._filled(form, render_error(error))
        return self._filled(form, render_preset(preset))

    @_serialised
    def reset_settings(self, *values: Any) -> list[Any]:
        form = self.session.reset_settings(self._form(values))
        return self._filled(form, render_replaced("All settings reset to their defaults."))

    @_serialised
    def save_preset(self, name: str, *values: Any) -> list[Any]:
        form = self._form(values)
        try:
            self.session.save_preset(form, name)
        except LoraTrainError as error:
            return [*self._filled(form, render_error(error)), gr.update()]
        return [*self._filled(form, render_success(f"Preset {name.strip()} saved.")), self._choice(name.strip())]

    @_serialised
    def delete_preset(self, name: str, *values: Any) -> list[Any]:
        form = self._form(values)
        try:
            self.session.delete_preset(name)
        except LoraTrainError as error:
            return [*self._filled(form, render_error(error)), gr.update()]
        return [*self._filled(form, render_success(f"Preset {name} deleted.")), self._choice("")]

    def _choice(self, chosen: str) -> Any:
        names = list(self.session.presets.names())
        return gr.update(choices=names, value=chosen or names[0])

    @_serialised
    def import_settings(self, file: str, *values: Any) -> list[Any]:
        form = self._form(values)
        try:
            form, imported = self.session.import_settings(form, file)
        except LoraTrainError as error:
            return self._filled(form, render_error(error))
        return self._filled(form, render_imported(file.replace("\\", "/").rpartition("/")[2], imported))

    def export_settings(self, file: str, *values: Any) -> list[Any]:
        try:
            return [render_exported(self.session.export_settings(self._form(values), file))]
        except LoraTrainError as error:
            return [render_error(error)]

    @_serialised
    def apply_staged_change(self, *values: Any) -> list[Any]:
        form, message = self.session.changes.pop(self._form(values))
        return self._filled(form, render_replaced(message) if message else "")

    @_serialised
    def balance(self, *values: Any) -> list[Any]:
        form = self._form(values)
        try:
            form, message = self.session.balance(form)
        except LoraTrainError as error:
            return self._filled(form, render_error(error))
        return self._filled(form, f"<p class='lt-faint'>{text(message)}</p>")

    def _filled(self, form: Form, message: str) -> list[Any]:
        with contextlib.suppress(OutputError):
            self.session.save_draft(form)
        return [*self._values(form), *self._render(form), message]

    @_serialised
    def scan(self, *values: Any) -> list[str]:
        form = self._form(values)
        try:
            self.session.save_draft(form)
            checked = self.session.scan(form)
        except DataError:
            return self._render(form)
        except LoraTrainError as error:
            found = f"<div class='lt-card'>{problem_list([Problem('error', '', str(error))])}</div>"
            return [found, render_check(self.session.check(form))]
        return [render_dataset(self.session.scanned, checked), render_check(checked)]

    @_serialised
    def save_draft(self, *values: Any) -> list[str]:
        form = self._form(values)
        with contextlib.suppress(OutputError):  # Scan and Start report a full disk; not every key press should
            self.session.save_draft(form)
        return self._render(form)

    @_serialised
    def start(self, *values: Any) -> list[Any]:
        checked = self.session.start(self._form(values))
        return [
            render_check(checked, done="Started. Follow it in the Monitor tab." if checked.can_start else ""),
            _selected("monitor" if checked.can_start else "train"),
        ]

    @_serialised
    def enqueue(self, *values: Any) -> str:
        try:
            checked = self.session.enqueue(self._form(values))
        except LoraTrainError as error:
            return problem_list([Problem("error", "", str(error))])
        return render_check(checked, done="Added to the queue." if checked.can_start else "")

    def _render(self, form: Form) -> list[str]:
        checked: FormCheck = self.session.check(form)
        return [render_dataset(self.session.scanned, checked), render_check(checked)]

    def _form(self, values: Sequence[Any]) -> Form:
        return dict(zip(self.fields, values, strict=True))

    def _values(self, form: Form) -> list[Any]:
        return [form[key] for key in self.fields]


def _selected(panel: str) -> Any:
    return gr.update(selected=panel)


def _with_error_line(command: Callable[[], object]) -> Callable[[], str]:
    """`command` as a callback that returns its error, if any, as HTML."""

    def run() -> str:
        try:
            command()
        except LoraTrainError as error:
            return problem_list([Problem("warning", "", str(error))])
        return ""

    return run
