"""The state of the tab: the runner, the draft of the form and the dataset scanned last.

There is one session per process. Every page that is opened or reloaded shows the same one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_lora_train.config.card_presets import MY_CARD
from lib_lora_train.config.presets import Preset
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.config.validation.validate import has_errors, validate
from lib_lora_train.core.errors import HostError, LoraTrainError, Problem
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.core.wording import located
from lib_lora_train.dataset.data_folders import scan_repeats_remedy
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.dataset.planner import make_plan
from lib_lora_train.dataset.scan import read_dataset
from lib_lora_train.hosts.host import other_lora
from lib_lora_train.runs.checks.checkpoint_check import CheckpointCheck, check_checkpoint, resolution_settings
from lib_lora_train.runs.checks.write_places import place_problems
from lib_lora_train.runs.estimates.requirements import Requirements, estimate_requirements
from lib_lora_train.runs.records.past_runs import files_to_plot, past_runs, xyz_text
from lib_lora_train.web.advice import AdviceSession
from lib_lora_train.web.captions import CaptionSession
from lib_lora_train.web.checkpoint_conversion import CheckpointConversion
from lib_lora_train.web.checkpoints import CheckpointPicker
from lib_lora_train.web.checkup import CheckupSession
from lib_lora_train.web.crops import CropSession
from lib_lora_train.web.curves import recent_curves
from lib_lora_train.web.extraction import ExtractSession
from lib_lora_train.web.form import (
    CONCEPTS,
    Form,
    concepts_text,
    read_form,
    with_values,
)
from lib_lora_train.web.form_check import FormCheck, ScannedDataset
from lib_lora_train.web.form_session import FormSession
from lib_lora_train.web.gallery import image_page
from lib_lora_train.web.grids import GridSession
from lib_lora_train.web.heat_maps import HeatMapSession
from lib_lora_train.web.image_losses import ImageLossSession
from lib_lora_train.web.image_tokens import ImageTokens
from lib_lora_train.web.json_values import json_ready
from lib_lora_train.web.lora_files import LoraPicker
from lib_lora_train.web.lora_tools import LoraToolsSession
from lib_lora_train.web.lora_use import LoraUse
from lib_lora_train.web.my_card import my_card_preset
from lib_lora_train.web.own_tokens import find_own_tokens
from lib_lora_train.web.page_key import page_key
from lib_lora_train.web.quick_fixes import Fix, find_fixes
from lib_lora_train.web.repeats import RULE, balanced_concepts
from lib_lora_train.web.request_values import read_values
from lib_lora_train.web.run_values import describe_plan_values, plan_usable_run
from lib_lora_train.web.runs import RunSession
from lib_lora_train.web.sweeps import SweepSession
from lib_lora_train.web.tag_completion import TagCompleter
from lib_lora_train.web.tagging import TaggingSession
from lib_lora_train.web.tags import TagReportSession
from lib_lora_train.web.token_analysis import TokenAnalysis
from lib_lora_train.web.uploads import FolderSession

if TYPE_CHECKING:
    from lib_lora_train.runs.runner import Runner

Action = Callable[[Mapping[str, Any]], Mapping[str, Any] | None]


class Session(FormSession):
    """Everything that the page can show or do. `home` holds the draft; `demo` returns the settings of the demo."""

    def __init__(self, runner: Runner, home: Path, *, demo: Callable[[], TrainConfig]) -> None:
        super().__init__(home, demo)
        self.runner = runner
        self.image_tokens = ImageTokens()
        self.scanned: ScannedDataset | None = None
        self.page_key = page_key()
        self._lock = threading.Lock()
        self.form_lock = threading.RLock()
        """Held while a callback of the form runs."""
        self._scan_failure: tuple[tuple[Any, ...], tuple[Problem, ...]] | None = None
        self._fixes: tuple[Fix, ...] = ()
        words = TokenAnalysis(self._tokenizer, lambda: find_own_tokens(runner.host, self._draft_config()))
        self.captions = CaptionSession(self.image_tokens, words, self._draft_config)
        self.checkup = CheckupSession(self.image_tokens, self._draft_config, runner.host)
        self.runs = RunSession(runner, home, self.image_tokens, self._stage_settings)
        self.grids = GridSession(runner, home, self.image_tokens, self.runs.folder_of)
        self._actions: dict[str, Action] = {
            "fix": self._stage_fix,
            **self.form_actions(),
            "command": lambda values: self.command(str(values["name"])),
            "xyz-text": lambda values: {"text": self._xyz_text_of(self.runs.require(values))},
            **self.captions.actions(),
            **TagCompleter(self.captions.folders).actions(),
            **self.checkup.actions(),
            **CropSession(self.image_tokens, lambda: self.scanned, self._draft_config).actions(),
            **self.runs.actions(),
            **self.grids.actions(),
            **AdviceSession(runner, self.runs.folder_of).actions(),
            **HeatMapSession(runner, home, self.image_tokens, self._draft_config).actions(),
            **ImageLossSession(runner, self.image_tokens, self.runs.folder_of, self.changes.stage).actions(),
            **TagReportSession(runner, self.image_tokens, self.runs.folder_of).actions(),
            **SweepSession(runner, self.image_tokens, self._draft_config, self.runs).actions(),
            **FolderSession(home, self._draft_config).actions(),
            **LoraUse(
                home,
                lambda: runner.host.run_target(TrainConfig()).checkpoint,
                lambda name: runner.host.lora_file(name),
            ).actions(),
            **LoraToolsSession(lambda: runner.host.run_target(self._draft_config()).checkpoint).actions(),
            **ExtractSession(lambda: runner.host.lora_dir).actions(),
            **CheckpointConversion().actions(),
            **TaggingSession(runner.host, self.captions).actions(),
            **LoraPicker(runner.host, self.changes.stage).actions(),
            **CheckpointPicker(runner.host, self._draft_config, self.changes.stage).actions(),
        }

    def apply_preset(self, form: Form, name: str) -> tuple[dict[str, Any], Preset]:
        """As in the form's session; “My card” stands for the preset that fits the card and the checkpoint."""
        if name == MY_CARD:
            name = my_card_preset(self.runner.host.run_target(read_form(form)[0]))
        return super().apply_preset(form, name)

    # --- actions of the page -------------------------------------------------------------------
    def run_action(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """The result of an action that the page requests; KeyError for an unknown name."""
        action = self._actions[name]
        result: dict[str, Any] = json_ready(action(read_values(values)) or {})
        return result

    def _stage_fix(self, values: Mapping[str, Any]) -> None:
        number = int(values["number"])
        if not 0 <= number < len(self._fixes):
            raise HostError("The settings have changed in the meantime. Use the button in the updated list.")
        fix = self._fixes[number]
        message = f"{fix.setting_names} changed: {fix.label[0].lower()}{fix.label[1:]}."
        self.changes.stage(lambda form: (with_values(form, fix.values), message))

    def _default_config(self) -> TrainConfig:
        """The defaults with the own resolution of the model in use."""
        plain = TrainConfig()
        return plain.replace(**resolution_settings(self._check_checkpoint(plain).resolution))

    def _tokenizer(self) -> Any:
        """The tokenizer of the checkpoint to train. Imported here because it needs PyTorch."""
        from lib_lora_train.models.embedded import EMBEDDED_CHECKPOINT
        from lib_lora_train.models.loading import load_checkpoint_tokenizer

        checkpoint = self._draft_config().checkpoint
        return load_checkpoint_tokenizer(user_path(checkpoint) if checkpoint else EMBEDDED_CHECKPOINT)

    def check(self, form: Form) -> FormCheck:
        """All problems of the form with their fixes, and the plan if the dataset was scanned.

        When only repeats or caption words changed, folders that were quick to scan are scanned again.
        """
        config, problems = read_form(form)
        if self.scanned and self.scanned.needs_quick_rescan(config):
            with contextlib.suppress(LoraTrainError):
                self._scan(config)
        plan, plan_errors = self._make_plan(config)
        model = self._check_checkpoint(config)
        places = self.runner.places()
        unwritable = place_problems(config, places) if places else ()
        all_problems = (*problems, *plan_errors, *model.problems, *unwritable)
        requirements = self._requirements(config, plan) if plan and not has_errors(all_problems) else None
        failure = self._scan_failure
        is_same = failure is not None and failure[0] == _scanned_settings(config)
        checked = FormCheck(
            config,
            all_problems,
            plan,
            requirements,
            changed=self.changed_settings(form),
            model=model,
            scan_errors=failure[1] if failure and is_same else (),
        )
        lacks_memory = bool(requirements and requirements.problems)
        problems_with = partial(self._problems_with, checks_memory=lacks_memory)
        self._fixes = find_fixes(
            config, (*all_problems, *checked.plan_problems, *checked.scan_errors), problems_with, plan
        )
        return dataclasses.replace(checked, fixes=self._fixes)

    def _requirements(self, config: TrainConfig, plan: Plan) -> Requirements:
        return estimate_requirements(config, plan, self.runner.host.run_target(config), self.home)

    def _check_checkpoint(self, config: TrainConfig) -> CheckpointCheck:
        return check_checkpoint(config, self.runner.host.run_target(config))

    def _make_plan(self, config: TrainConfig) -> tuple[Plan | None, tuple[Problem, ...]]:
        """The plan, None if the dataset was not scanned or cannot be trained on; and the reason in that case."""
        scanned = self.scanned
        if scanned is None or not scanned.is_of(config):
            return None, ()
        try:
            return make_plan(scanned.dataset, config), ()
        except LoraTrainError as error:
            return None, (Problem("error", "", str(error)),)

    def _problems_with(self, config: TrainConfig, *, checks_memory: bool) -> tuple[Problem, ...]:
        """All problems that changed settings would have, including those of the plan."""
        plan, plan_errors = self._make_plan(config)
        model = self._check_checkpoint(config).problems
        problems = (*validate(config), *plan_errors, *model, *(plan.warnings if plan else ()))
        if not (plan and checks_memory) or has_errors(problems):
            return problems
        return (*problems, *self._requirements(config, plan).problems)

    def scan(self, form: Form) -> FormCheck:
        """Scan the folders of the form; DataError when there is nothing to train on.

        The error stays in the checks of these folders until they are scanned again.
        """
        config = read_form(form)[0]
        self._scan_failure = None
        try:
            self._scan(config)
        except LoraTrainError as error:
            self._scan_failure = _scanned_settings(config), tuple(_scan_problems(config, str(error)))
            raise
        return self.check(form)

    def _scan(self, config: TrainConfig) -> None:
        began = time.monotonic()
        dataset = read_dataset(config)
        self.image_tokens.publish(item.image.path for item in dataset.items)
        with self._lock:
            number = self.scanned.number + 1 if self.scanned else 1
            seconds = time.monotonic() - began
            self.scanned = ScannedDataset(number, config.concepts, config.caption_extension, dataset, seconds)

    def balance(self, form: Form) -> tuple[dict[str, Any], str]:
        """The form with balanced repeats, and the rule that was applied; DataError when there is nothing to balance."""
        config = read_form(form)[0]
        if self.scanned is None or not self.scanned.is_of(config):
            self._scan(config)
        assert self.scanned is not None  # _scan has set it
        concepts = balanced_concepts(config.concepts, self.scanned.dataset)
        self._scan(config.replace(concepts=concepts))
        return {**form, CONCEPTS: concepts_text(concepts)}, RULE

    def start(self, form: Form) -> FormCheck:
        """Start a run unless the form has errors, which are in the result."""
        checked = self.check(form)
        if not checked.can_start:
            return checked
        try:
            self.save_draft(form)
            self.runner.start(checked.config)
        except LoraTrainError as error:
            return dataclasses.replace(checked, problems=(*checked.problems, Problem("error", "", str(error))))
        return checked

    def enqueue(self, form: Form) -> FormCheck:
        """Add a run to the queue unless the form has errors, which are in the result."""
        checked = self.check(form)
        if checked.can_start:
            self.save_draft(form)
            self.runner.enqueue(checked.config)
        return checked

    # --- the HTTP API ----------------------------------------------------------------------------
    def plan_values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The plan of a run with these settings; ConfigError or DataError if they are unusable."""
        job = plan_usable_run(values, self.runner.host, self.runner.places())
        return describe_plan_values(job, self._check_checkpoint(job.config), self._requirements(job.config, job.plan))

    def start_values(self, values: Mapping[str, Any]) -> str:
        """Start a run and return its id; ConfigError, DataError or HostError if that is impossible."""
        job = plan_usable_run(values, self.runner.host, self.runner.places())
        return self.runner.start(job.config, job)

    def resume_run(self, run: str, more_epochs: int) -> str:
        """Resume an interrupted run or extend a finished one; its id. LoraTrainError if that is impossible."""
        return self.runner.resume_run(run, more_epochs=more_epochs)

    # --- the queue -------------------------------------------------------------------------------
    def queued_runs(self) -> list[dict[str, Any]]:
        """The queued runs, next one first."""
        return self.runner.queued_runs()

    def enqueue_values(self, values: Mapping[str, Any]) -> str:
        """Queue a run with these settings and return the id of the entry; ConfigError or DataError if unusable."""
        return self.runner.enqueue(plan_usable_run(values, self.runner.host, self.runner.places()).config)

    def enqueue_resume(self, run: str, more_epochs: int) -> str:
        """Queue a run to resume or extend it, and return the id of the entry; LoraTrainError if that is impossible."""
        return self.runner.enqueue_resume(run, more_epochs=more_epochs)

    def move_queued(self, entry: str, place: int) -> None:
        """Move a queued run to position `place`, from 0; HostError if it is no longer queued."""
        self.runner.queue.move(entry, place)

    def remove_queued(self, entry: str) -> None:
        """Remove a run from the queue; HostError if it is no longer queued."""
        self.runner.queue.remove(entry)

    def start_queue(self) -> str:
        """Start the first queued run and return its id; HostError if the queue is empty or a run is active."""
        return self.runner.start_queue()

    def command(self, name: str) -> None:
        """Pause, resume, stop, save or sample; HostError when no run is active."""
        runner = self.runner
        commands = {
            "pause": runner.pause,
            "resume": runner.resume,
            "stop": runner.stop,
            "drop": runner.drop,
            "save": runner.save_now,
            "sample": runner.sample_now,
        }
        if name not in commands:
            raise HostError(f"{name!r} is not one of the commands {', '.join(commands)}.")
        commands[name]()

    # --- what the page polls -------------------------------------------------------------------
    def status(self, since: int, after: int) -> dict[str, Any]:
        """The status of the run with tokens for its images, and the curves after step `after`; notes have a `text`.

        `after` 0 means the whole curves, thinned to 1,000 points each.
        """
        answer = self.runner.status(since)
        events = [self._shown(event) for event in answer["events"]]
        complete: dict[str, Any] = json_ready(
            {
                **answer,
                "events": events,
                **recent_curves(self.runner, after),
                "memory": self.runner.memory(),
                "grid": self.grids.status(),
                "missing": [str(path) for path in self.runner.lora_paths() if not path.is_file()],
                "interrupted": "" if answer["run"] else self.runs.interrupted(),
                "offer": self.runs.describe_offer(answer.get("offer", ""), answer["run"] or ""),
            }
        )
        return complete

    def _shown(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """The event as the page needs it: with a token for its image, or the text of a note."""
        if event["kind"] in ("SampleDrawn", "GridDrawn"):
            return {**event, "token": self.image_tokens.publish([Path(event["path"])])[0]}
        if event["kind"] == "Noted":
            return {**event, "text": located(event["where"], event["message"])}
        return dict(event)

    def draw_grid(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Start drawing the grid of a run, as `GridSession.draw`."""
        return self.grids.draw(values)

    def cancel_grid(self) -> None:
        """Stop the grid after the current sampling step."""
        self.grids.cancel({})

    def results(self) -> list[dict[str, Any]]:
        """The runs in the home folder, newest first, with those of their files that still exist."""
        return list(past_runs(self.home, self.runner.active_run))

    def xyz_text(self) -> str:
        """Infotext for the X/Y/Z plot of the webui: the files of the newest run that has any, with its first prompt."""
        return xyz_text(self.home)

    def _xyz_text_of(self, run: str) -> str:
        """The same of one run; HostError if the webui reads another file under one of the names."""
        for path in files_to_plot(self.home, run):
            other = other_lora(self.runner.host.lora_file(path.stem), path)
            if other:
                raise HostError(other)
        return xyz_text(self.home, run)

    def images(self, page: int) -> dict[str, Any]:
        """One page of the scanned dataset: token, caption, size and repeats of each image."""
        return image_page(self.scanned, self.image_tokens, page)


def _scan_problems(config: TrainConfig, message: str) -> Iterator[Problem]:
    """Why a scan failed, with a remedy where settings of a concept are one."""
    for line in message.splitlines():
        found = ((n, scan_repeats_remedy(c)) for n, c in enumerate(config.concepts, start=1) if c.folder in line)
        number, values = next(((n, values) for n, values in found if values), (0, {}))
        where = f"concepts[{number}].repeats" if values else ""
        yield Problem("error", where, line, tuple((f"concepts[{number}].{name}", v) for name, v in values.items()))


def _scanned_settings(config: TrainConfig) -> tuple[Any, ...]:
    """The settings that decide what a scan finds."""
    return config.concepts, config.caption_extension
