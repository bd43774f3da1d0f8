"""What the tab knows beyond one page: the runner, the form's draft and the dataset last looked at.

One session per process; every page that is opened or reloaded sees the same. No gradio here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_lora_train.config.presets import Preset
from lib_lora_train.config.train_config import TrainConfig, read_config
from lib_lora_train.config.validation.validate import require_usable, validate
from lib_lora_train.core.errors import ConfigError, HostError, LoraTrainError, Problem
from lib_lora_train.core.user_paths import typed_path
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.dataset.planner import make_plan
from lib_lora_train.dataset.scan import read_dataset
from lib_lora_train.formats.kohya.importer import Imported, read_settings
from lib_lora_train.runs.estimates.requirements import Forecast, forecast
from lib_lora_train.runs.past_runs import past_runs, xyz_text
from lib_lora_train.runs.planning import plan_job
from lib_lora_train.runs.webui_grid import GridDesk
from lib_lora_train.web.captions import CaptionSession
from lib_lora_train.web.checkup import CheckupSession
from lib_lora_train.web.crops import CropSession
from lib_lora_train.web.form import (
    CONCEPTS,
    Form,
    concepts_text,
    fill_form,
    load_draft,
    read_form,
    save_draft,
    with_config,
    with_values,
)
from lib_lora_train.web.form_check import Changed, Checked, ScannedDataset
from lib_lora_train.web.gallery import image_page
from lib_lora_train.web.image_tokens import ImageTokens
from lib_lora_train.web.json_values import json_ready
from lib_lora_train.web.lora_tools import LoraToolsSession
from lib_lora_train.web.quick_fixes import Fix, fixes_of
from lib_lora_train.web.repeats import RULE, balanced_concepts
from lib_lora_train.web.runs import RunSession
from lib_lora_train.web.tag_completion import Completer
from lib_lora_train.web.tagging import TaggingSession
from lib_lora_train.web.token_words import Words
from lib_lora_train.web.user_presets import PresetShelf, applied_after

if TYPE_CHECKING:
    from lib_lora_train.runs.runner import JobRunner

_CURVE_POINTS = 1000
_ALL_POINTS = 2**31
_QUICK_SECONDS = 2.0

Change = Callable[[Form], tuple[dict[str, Any], str]]
Ask = Callable[[Mapping[str, Any]], Mapping[str, Any] | None]


class Session:
    """Answers for the page. `home` holds the draft; `demo` gives the demo's settings."""

    def __init__(self, runner: JobRunner, home: Path, *, demo: Callable[[], TrainConfig]) -> None:
        self.runner = runner
        self._grids = GridDesk(runner.host, home)
        self.home = home
        self.shelf = ImageTokens()
        self.looked: ScannedDataset | None = None
        self.page_key = secrets.token_urlsafe(16)
        self._demo = demo
        self._lock = threading.Lock()
        self.turn = threading.RLock()
        """Held while one of the form's questions is answered."""
        self.presets = PresetShelf(home / "presets")
        self._applied: tuple[str, ...] = ()
        self._staged: Change | None = None
        self._fixes: tuple[Fix, ...] = ()
        self.captions = CaptionSession(self.shelf, Words(self._tokenizer), self._kept_config)
        self.doctor = CheckupSession(self.shelf, self._kept_config, runner.host)
        self.runs = RunSession(runner, home, self.shelf, self._stage_settings)
        self._asks: dict[str, Ask] = {
            "fix": self._stage_fix,
            "command": lambda values: self.command(str(values["name"])),
            **self.captions.asks(),
            **Completer(self.captions.opened).asks(),
            **self.doctor.asks(),
            **CropSession(self.shelf, lambda: self.looked, self._kept_config).asks(),
            **self.runs.asks(),
            **LoraToolsSession(lambda: runner.host.footing(self._kept_config()).checkpoint).asks(),
            **TaggingSession(runner.host, self.captions).asks(),
        }

    # --- what the page's own buttons ask -------------------------------------------------------
    def ask(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one of the page's own buttons; KeyError for a name that is not known."""
        answer: dict[str, Any] = json_ready(self._asks[name](values) or {})
        return answer

    def stage(self, change: Change) -> None:
        """Keep a change of the form until the page comes for it with the form's values."""
        self._staged = change

    def take_staged(self, form: Form) -> tuple[dict[str, Any], str]:
        """The form changed as staged, once, and what to tell about it."""
        change, self._staged = self._staged, None
        return change(form) if change else (dict(form), "")

    def _stage_fix(self, values: Mapping[str, Any]) -> None:
        number = int(values["number"])
        if not 0 <= number < len(self._fixes):
            raise HostError("The settings have changed since. Press the button of the newer list.")
        fix = self._fixes[number]
        told = f"{fix.places} changed: {fix.label[0].lower()}{fix.label[1:]}."
        self.stage(lambda form: (with_values(form, fix.values), told))

    def _stage_settings(self, config: TrainConfig, run: str) -> None:
        def change(form: Form) -> tuple[dict[str, Any], str]:
            self._applied = ()
            return with_config(form, config), f"The settings of {run} are filled in."

        self.stage(change)

    # --- the form ------------------------------------------------------------------------------
    def draft(self) -> dict[str, Any]:
        """The form as it was left; at first the defaults."""
        draft, self._applied = load_draft(self.home)
        return draft or fill_form(TrainConfig())

    def demo_form(self) -> dict[str, Any]:
        """The form of the shipped demo."""
        return fill_form(self._demo())

    def read_settings(self, form: Form, file: str) -> tuple[dict[str, Any], Imported]:
        """The form with other people's settings, and the account of them; ConfigError for a file without any."""
        name = file.strip().strip("\"'")
        if not name:
            raise ConfigError([Problem("error", "", "Name a file to import: a .json, .toml or .safetensors.")])
        imported = read_settings(typed_path(name))
        return with_config(form, imported.config), imported

    def keep(self, form: Form) -> None:
        """Remember the form for the next page load."""
        save_draft(self.home, form, self._applied)

    def _kept_config(self) -> TrainConfig:
        """The settings of the form as it was last kept."""
        form, _ = load_draft(self.home)
        return read_form(form)[0] if form else TrainConfig()

    def _tokenizer(self) -> Any:
        """The tokenizer of the checkpoint to be trained; it needs PyTorch, so it is loaded when it is asked for."""
        from lib_lora_train.models.embedded import EMBEDDED_CHECKPOINT
        from lib_lora_train.models.loading import tokenizer_of

        checkpoint = self._kept_config().checkpoint
        return tokenizer_of(typed_path(checkpoint) if checkpoint else EMBEDDED_CHECKPOINT)

    def apply_preset(self, form: Form, name: str) -> tuple[dict[str, Any], Preset]:
        """The form with a preset's values; LoraTrainError when there is none of that name."""
        preset = self.presets.find(name)
        self._applied = applied_after(self._applied, preset)
        return with_values(form, preset.values), preset

    def save_preset(self, form: Form, name: str) -> None:
        """Keep the form's settings as the user's preset; LoraTrainError for a name or settings that cannot be."""
        self.presets.save(name, form)
        self._applied = (name.strip(),)

    def delete_preset(self, name: str) -> None:
        """Remove one of the user's presets."""
        self.presets.delete(name)
        self._applied = tuple(other for other in self._applied if other != name)

    def changed(self, form: Form) -> Changed:
        """Which settings differ from the applied presets, or from the defaults where none was."""
        try:
            return Changed(self._applied, self.presets.changed(form, self._applied))
        except LoraTrainError:  # a preset that was deleted by hand is no reason for the page to fail
            return Changed((), self.presets.changed(form, ()))

    def check(self, form: Form) -> Checked:
        """Every problem of the form with its fix, and the plan if its dataset was looked at.

        Folders that were quick to read are read again when only repeats or words have changed.
        """
        config, problems = read_form(form)
        looked = self.looked
        if looked and not looked.is_of(config) and looked.has_folders_of(config) and looked.seconds < _QUICK_SECONDS:
            with contextlib.suppress(LoraTrainError):
                self._look(config)
        plan, found = self._planned(config)
        everything = (*problems, *found)
        needs = self._needs(config, plan) if plan else None
        checked = Checked(config, everything, plan, needs, changed=self.changed(form))
        room = bool(needs and needs.problems)
        self._fixes = fixes_of(config, (*everything, *checked.findings), partial(self._judged, room=room), plan)
        return dataclasses.replace(checked, fixes=self._fixes)

    def _needs(self, config: TrainConfig, plan: Plan) -> Forecast:
        return forecast(config, plan, self.runner.host.footing(config), self.home)

    def _planned(self, config: TrainConfig) -> tuple[Plan | None, tuple[Problem, ...]]:
        """The plan if the dataset was looked at, else None; and why there can be none."""
        looked = self.looked
        if looked is None or not looked.is_of(config):
            return None, ()
        try:
            return make_plan(looked.dataset, config), ()
        except LoraTrainError as error:
            return None, (Problem("error", "", str(error)),)

    def _judged(self, config: TrainConfig, *, room: bool) -> tuple[Problem, ...]:
        """Everything there is to say about settings, those of the plan included; of the card's `room` if asked."""
        plan, found = self._planned(config)
        full = self._needs(config, plan).problems if plan and room else ()
        return (*validate(config), *found, *(plan.warnings if plan else ()), *full)

    def look(self, form: Form) -> Checked:
        """Read the folders of the form; DataError when there is nothing to train on."""
        self._look(read_form(form)[0])
        return self.check(form)

    def _look(self, config: TrainConfig) -> None:
        began = time.monotonic()
        dataset = read_dataset(config)
        self.shelf.publish(item.image.path for item in dataset.items)
        with self._lock:
            number = self.looked.number + 1 if self.looked else 1
            seconds = time.monotonic() - began
            self.looked = ScannedDataset(number, config.concepts, config.caption_extension, dataset, seconds)

    def balance(self, form: Form) -> tuple[dict[str, Any], str]:
        """The form with balanced repeats, and the rule; DataError when there is nothing to balance."""
        config = read_form(form)[0]
        if self.looked is None or not self.looked.is_of(config):
            self._look(config)
        assert self.looked is not None  # _look has set it
        concepts = balanced_concepts(config.concepts, self.looked.dataset)
        self._look(config.replace(concepts=concepts))
        return {**form, CONCEPTS: concepts_text(concepts)}, RULE

    def start(self, form: Form) -> Checked:
        """Begin a run if nothing stands against it; the reasons otherwise are in the result."""
        checked = self.check(form)
        if not checked.is_usable:
            return checked
        try:
            self.keep(form)
            self.runner.start(checked.config)
        except LoraTrainError as error:
            refusal = Problem("error", "", str(error))
            return dataclasses.replace(checked, problems=(*checked.problems, refusal))
        return checked

    def enqueue(self, form: Form) -> Checked:
        """Let a run with these settings wait if nothing stands against it; the reasons otherwise are in the result."""
        checked = self.check(form)
        if checked.is_usable:
            self.keep(form)
            self.runner.enqueue(checked.config)
        return checked

    # --- the same without the form ---------------------------------------------------------------
    def plan_values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What these settings would train; ConfigError or DataError when they cannot."""
        job = plan_job(_config_of(values))
        plan = job.plan
        needs = self._needs(job.config, plan)
        return {
            "images": len(plan.dataset.items),
            "steps_per_epoch": plan.steps_per_epoch,
            "epochs": plan.epochs,
            "total_steps": plan.total_steps,
            **needs.values,
            "warnings": [str(problem) for problem in (*job.problems, *needs.problems)],
        }

    def start_values(self, values: Mapping[str, Any]) -> str:
        """Begin a run and return its id; ConfigError, DataError, HostError when it cannot."""
        job = plan_job(_config_of(values))
        return self.runner.start(job.config, job)

    def go_on(self, run: str, more_epochs: int) -> str:
        """Resume an interrupted run, or extend a finished one, and return its id; LoraTrainError when it cannot."""
        return self.runner.go_on(run, more_epochs=more_epochs)

    # --- the queue -------------------------------------------------------------------------------
    def waiting(self) -> list[dict[str, Any]]:
        """The runs that wait, the next one first."""
        return self.runner.waiting()

    def enqueue_values(self, values: Mapping[str, Any]) -> str:
        """Let a run with these settings wait, and return the entry's id; ConfigError or DataError when it cannot."""
        return self.runner.enqueue(plan_job(_config_of(values)).config)

    def enqueue_going_on(self, run: str, more_epochs: int) -> str:
        """Let an interrupted or finished run wait for its turn to go on; LoraTrainError when it cannot."""
        return self.runner.enqueue_going_on(run, more_epochs=more_epochs)

    def move_waiting(self, entry: str, place: int) -> None:
        """Put a waiting run at a place, from 0; HostError if it does not wait any more."""
        self.runner.queue.move(entry, place)

    def remove_waiting(self, entry: str) -> None:
        """Let a run not wait any more; HostError if it does not wait."""
        self.runner.queue.remove(entry)

    def start_queue(self) -> str:
        """Begin the first waiting run and return its id; HostError if none waits or one is at work."""
        return self.runner.start_queue()

    def command(self, name: str) -> None:
        """Pause, resume, stop, save or sample; HostError when nothing runs."""
        runner = self.runner
        commands = {
            "pause": runner.pause,
            "resume": runner.resume,
            "stop": runner.stop,
            "save": runner.save_now,
            "sample": runner.sample_now,
        }
        commands[name]()

    # --- the routes ----------------------------------------------------------------------------
    def status(self, since: int, after: int) -> dict[str, Any]:
        """The runner's status, with tokens for its images, and the curves after step `after`.

        With `after` 0 they are whole, thinned to 1,000 points each.
        """
        answer = self.runner.status(since)
        points = _CURVE_POINTS if after <= 0 else _ALL_POINTS
        curves = {
            "loss": self.runner.loss_curve(points),
            "norm": self.runner.norm_curve(points),
            **self.runner.rate_curves(points),
        }
        fresh = {name: [p for p in curve if p[0] > after][-_CURVE_POINTS:] for name, curve in curves.items()}
        events = [self._with_address(event) for event in answer["events"]]
        whole: dict[str, Any] = json_ready(
            {
                **answer,
                "events": events,
                "loss": fresh.pop("loss"),
                "norm": fresh.pop("norm"),
                "learning_rates": fresh,
                "memory": self.runner.memory(),
                "grid": self._grid(),
            }
        )
        return whole

    def _with_address(self, event: Mapping[str, Any]) -> dict[str, Any]:
        if event["kind"] not in ("SampleDrawn", "GridDrawn"):
            return dict(event)
        return {**event, "token": self.shelf.publish([Path(event["path"])])[0]}

    def _grid(self) -> dict[str, Any]:
        """How far the webui's own grid is, with a token for it once it is drawn."""
        status = self._grids.status()
        token = self.shelf.publish([Path(status["path"])])[0] if status["path"] else ""
        return {**status, "token": token}

    def sampler_names(self) -> tuple[str, ...]:
        """The samplers of the webui; () without one."""
        return self._grids.sampler_names()

    def draw_grid(self, sampler: str) -> str:
        """Let the webui draw the newest run's epochs and return the run's id; HostError when it cannot."""
        return self._grids.start(sampler)

    def results(self) -> list[dict[str, Any]]:
        """The runs in the home folder, the newest first, with the files they wrote that are still there."""
        return list(past_runs(self.home, self.runner.live))

    def xyz_text(self) -> str:
        """Infotext for the webui's X/Y/Z plot: the files of the newest run that has any, on its first prompt."""
        return xyz_text(self.home)

    def images(self, page: int) -> dict[str, Any]:
        """One page of the dataset last looked at: a token, caption and facts per image."""
        return image_page(self.looked, self.shelf, page)


def _config_of(values: Mapping[str, Any]) -> TrainConfig:
    config, problems = read_config(values)
    require_usable(problems)
    return config
