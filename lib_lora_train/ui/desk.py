"""What the tab knows beyond one page: the runner, the form's draft and the data set last looked at.

One desk per process; every page that is opened or reloaded sees the same. No gradio here.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_lora_train.config import Concept, TrainConfig, read_config
from lib_lora_train.data.plan import Plan, make_plan
from lib_lora_train.data.scan import Dataset, read_dataset
from lib_lora_train.errors import ConfigError, LoraTrainError, Problem
from lib_lora_train.formats.kohya import Imported, read_settings
from lib_lora_train.hosts.pictures import PictureShelf
from lib_lora_train.judge import require_usable
from lib_lora_train.past_runs import past_runs, xyz_text
from lib_lora_train.planning import plan_job
from lib_lora_train.ui.form import Form, fill_form, load_draft, read_form, save_draft, with_config

if TYPE_CHECKING:
    from lib_lora_train.runner import JobRunner

PICTURES_PER_PAGE = 48
_CURVE_POINTS = 1000
_ALL_POINTS = 2**31


@dataclass(frozen=True)
class Looked:
    """A data set that was looked at; `number` counts the looks, so that the page knows a new one."""

    number: int
    concepts: tuple[Concept, ...]
    caption_extension: str
    dataset: Dataset


@dataclass(frozen=True)
class Checked:
    """What is known of the form as it stands: `plan` is None until its data set was looked at."""

    config: TrainConfig
    problems: tuple[Problem, ...]
    plan: Plan | None

    @property
    def is_usable(self) -> bool:
        """True when nothing stands against starting."""
        return not any(problem.level == "error" for problem in self.problems)


class Desk:
    """Answers for the page. `home` holds the draft; `demo` gives the demo's settings."""

    def __init__(self, runner: JobRunner, home: Path, *, demo: Callable[[], TrainConfig]) -> None:
        self.runner = runner
        self.home = home
        self.shelf = PictureShelf()
        self.looked: Looked | None = None
        self._demo = demo
        self._lock = threading.Lock()

    # --- the form ------------------------------------------------------------------------------
    def draft(self) -> dict[str, Any]:
        """The form as it was left; at first the defaults."""
        return load_draft(self.home) or fill_form(TrainConfig())

    def demo_form(self) -> dict[str, Any]:
        """The form of the shipped demo."""
        return fill_form(self._demo())

    def read_settings(self, form: Form, file: str) -> tuple[dict[str, Any], Imported]:
        """The form with other people's settings, and the account of them; ConfigError for a file without any."""
        name = file.strip().strip("\"'")
        if not name:
            raise ConfigError([Problem("error", "", "Name a file to import: a .json, .toml or .safetensors.")])
        imported = read_settings(Path(name).expanduser())
        own = sum(not concept.is_regularisation for concept in imported.config.concepts)
        hidden = max(0, own - 1) + max(0, len(imported.config.concepts) - own - 1)
        if hidden:
            text = f"The form holds one folder of each kind; {hidden} more are left out. launch.py import keeps all."
            imported = dataclasses.replace(imported, problems=(*imported.problems, Problem("warning", "", text)))
        return with_config(form, imported.config), imported

    def keep(self, form: Form) -> None:
        """Remember the form for the next page load."""
        save_draft(self.home, form)

    def check(self, form: Form) -> Checked:
        """Every problem of the form, and the plan if its data set was looked at."""
        config, problems = read_form(form)
        looked = self.looked
        if looked is None or (looked.concepts, looked.caption_extension) != (config.concepts, config.caption_extension):
            return Checked(config, problems, None)
        try:
            return Checked(config, problems, make_plan(looked.dataset, config))
        except LoraTrainError as error:
            return Checked(config, (*problems, Problem("error", "", str(error))), None)

    def look(self, form: Form) -> Checked:
        """Read the folders of the form; DataError when there is nothing to train on."""
        config, _ = read_form(form)
        dataset = read_dataset(config)
        self.shelf.publish(item.image.path for item in dataset.items)
        with self._lock:
            number = self.looked.number + 1 if self.looked else 1
            self.looked = Looked(number, config.concepts, config.caption_extension, dataset)
        return self.check(form)

    def start(self, form: Form) -> Checked:
        """Begin a run if nothing stands against it; the reasons otherwise are in the result."""
        checked = self.check(form)
        if not checked.is_usable:
            return checked
        try:
            self.keep(form)
            self.runner.start(checked.config)
        except LoraTrainError as error:
            return Checked(checked.config, (*checked.problems, Problem("error", "", str(error))), checked.plan)
        return checked

    # --- the same without the form ---------------------------------------------------------------
    def plan_values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What these settings would train; ConfigError or DataError when they cannot."""
        plan = plan_job(_config_of(values))
        return {
            "images": len(plan.dataset.items),
            "steps_per_epoch": plan.steps_per_epoch,
            "epochs": plan.epochs,
            "total_steps": plan.total_steps,
            "warnings": [str(problem) for problem in (*plan.dataset.skipped, *plan.warnings)],
        }

    def start_values(self, values: Mapping[str, Any]) -> str:
        """Begin a run and return its id; ConfigError, DataError, HostError when it cannot."""
        config = _config_of(values)
        plan_job(config)
        return self.runner.start(config)

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
        """The runner's status, with tokens for its pictures, and the curves after step `after`.

        With `after` 0 they are whole, thinned to 1,000 points each.
        """
        answer = self.runner.status(since)
        points = _CURVE_POINTS if after <= 0 else _ALL_POINTS
        curves = {"loss": self.runner.loss_curve(points), **self.runner.rate_curves(points)}
        fresh = {name: [p for p in curve if p[0] > after][-_CURVE_POINTS:] for name, curve in curves.items()}
        events = [self._with_address(event) for event in answer["events"]]
        whole: dict[str, Any] = _json_ready(
            {**answer, "events": events, "loss": fresh.pop("loss"), "learning_rates": fresh}
        )
        return whole

    def _with_address(self, event: Mapping[str, Any]) -> dict[str, Any]:
        if event["kind"] not in ("SampleDrawn", "GridDrawn"):
            return dict(event)
        return {**event, "token": self.shelf.publish([Path(event["path"])])[0]}

    def results(self) -> list[dict[str, Any]]:
        """The runs in the home folder, the newest first, with the files they wrote that are still there."""
        return list(past_runs(self.home))

    def xyz_text(self) -> str:
        """Infotext for the webui's X/Y/Z plot: the files of the newest run that has any, on its first prompt."""
        return xyz_text(self.home)

    def pictures(self, page: int) -> dict[str, Any]:
        """One page of the data set last looked at: a token, caption and facts per picture."""
        looked = self.looked
        if looked is None:
            return {"number": 0, "page": 0, "pages": 0, "total": 0, "pictures": []}
        items = looked.dataset.items
        pages = max(1, math.ceil(len(items) / PICTURES_PER_PAGE))
        page = min(max(0, page), pages - 1)
        shown = items[page * PICTURES_PER_PAGE : (page + 1) * PICTURES_PER_PAGE]
        tokens = self.shelf.publish(item.image.path for item in shown)
        return {
            "number": looked.number,
            "page": page,
            "pages": pages,
            "total": len(items),
            "pictures": [
                {
                    "token": token,
                    "name": item.image.path.name,
                    "caption": item.caption,
                    "width": item.image.width,
                    "height": item.image.height,
                    "repeats": looked.dataset.concepts[item.concept].repeats,
                    "is_regularisation": looked.dataset.concepts[item.concept].is_regularisation,
                }
                for token, item in zip(tokens, shown, strict=True)
            ],
        }


def _config_of(values: Mapping[str, Any]) -> TrainConfig:
    config, problems = read_config(values)
    require_usable(problems)
    return config


def _json_ready(value: Any) -> Any:
    """`value` with None for NaN and infinity, which JSON does not know."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: _json_ready(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_ready(inner) for inner in value]
    return value
