"""Sweeps and comparisons of the page: variations of the form or of a past run, and runs side by side."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lib_lora_train.config.parameters import Parameter, parameters_of
from lib_lora_train.config.train_config import Concept, TrainConfig, read_config
from lib_lora_train.config.validation.validate import require_usable
from lib_lora_train.core.errors import HostError
from lib_lora_train.core.wording import count, value_text
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.sweeps.comparison_report import comparison_values
from lib_lora_train.runs.sweeps.sweep import FIXED
from lib_lora_train.runs.sweeps.sweep_record import Member, Sweep, find_members, list_sweeps, read_sweep
from lib_lora_train.runs.sweeps.sweep_runs import (
    SweepPlan,
    count_steps,
    describe_sweep,
    is_open,
    plan_sweep,
    queue_members,
    read_comparison,
    record_sweep,
    start_waiting,
)
from lib_lora_train.web.image_tokens import ImageTokens
from lib_lora_train.web.json_values import json_ready

if TYPE_CHECKING:
    from lib_lora_train.runs.runner import Runner
    from lib_lora_train.runs.sweeps.comparison import Comparison, Row
    from lib_lora_train.web.runs import RunSession

_SWEEPS_SHOWN = 20
_NAMES_SHOWN = 8

Axes = Sequence[tuple[str, str]]


class SweepSession:
    """Actions for sweeps. `draft` returns the settings of the form; `runs` knows the past runs."""

    def __init__(
        self, runner: Runner, image_tokens: ImageTokens, draft: Callable[[], TrainConfig], runs: RunSession
    ) -> None:
        self._runner = runner
        self._image_tokens = image_tokens
        self._draft = draft
        self._runs = runs

    def actions(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        """The actions that the page can request, by name."""
        return {
            "sweep-settings": self.list_settings,
            "sweep-preview": self.preview,
            "sweep-start": lambda values: self.start(*self._base(values), _axes(values)),
            "sweep-request": self.start_requested,
            "sweep-list": self.list_sweeps,
            "sweep-continue": self.resume_sweep,
            "compare": lambda values: self.compare(str(values.get("sweep", "")), values.get("runs") or ()),
        }

    # --- planning ------------------------------------------------------------------------------
    def list_settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that can be varied: place, value now, and how values are written."""
        config = self._base(values)[0]
        return {"settings": list(_settings(config))}

    def preview(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What the sweep would train, from the settings alone; no file is read."""
        return _describe_plan(plan_sweep(_axes(values), *self._base(values)))

    def start(self, config: TrainConfig, base: str, axes: Axes) -> dict[str, Any]:
        """Record and queue the sweep, and start the queue if no run is active; its id and a sentence.

        ConfigError or DataError if one of its runs cannot be trained: then nothing is queued.
        """
        plan = plan_sweep(axes, config, base)
        steps = count_steps(plan, self._runner.host, self._runner.places())
        sweep = record_sweep(self._runner.home, plan, config.output_name)
        queue_members(self._runner, sweep)
        message = f"{count(len(sweep.runs), 'run')} queued, {count(steps, 'step')} in all."
        try:
            start_waiting(self._runner)
        except HostError as reason:  # they are queued all the same
            message = f"{message} {reason}"
        return {"sweep": sweep.id, "message": message}

    def start_requested(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """`start` for the API: `vary` maps settings to their values, around `settings` or a past `run`."""
        axes = [(place, _written(given)) for place, given in values["vary"].items()]
        if values.get("run"):
            return self.start(*self._base(values), axes)
        config, problems = read_config(values["settings"])
        require_usable(problems)
        return self.start(config, "", axes)

    def _base(self, values: Mapping[str, Any]) -> tuple[TrainConfig, str]:
        """The settings to vary, and the past run that they are from, "" for the form."""
        run = str(values.get("run", ""))
        return (self._runs.config_of(run), run) if run else (self._draft(), "")

    # --- what became of it ---------------------------------------------------------------------
    def list_sweeps(self, _values: Mapping[str, Any]) -> dict[str, Any]:
        """The newest sweeps with what is done, and whether a part of them can be queued again."""
        newest = itertools.islice(list_sweeps(self._runner.home), _SWEEPS_SHOWN)
        return {"sweeps": [self._summary(sweep, self._members(sweep)) for sweep in newest]}

    def resume_sweep(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Queue what is missing of a sweep, start the queue if no run is active, and say how many runs that are."""
        queued = queue_members(self._runner, read_sweep(self._runner.home, str(values["sweep"])))
        if queued or self._runner.queue.entries():
            start_waiting(self._runner)
        return {"queued": queued}

    def compare(self, sweep_id: str, runs: Sequence[str]) -> dict[str, Any]:
        """The runs of a sweep, or these, side by side: settings that differ, measures, and the samples to show."""
        home = self._runner.home
        if not sweep_id:
            return self._shown(read_comparison(home, [self._runs.require({"run": run}) for run in runs]))
        sweep = read_sweep(home, sweep_id)
        members = self._members(sweep)
        base = [sweep.base] if sweep.base and RunFolder(home / sweep.base).log.is_file() else []
        begun = [*base, *(member.run for member in members if member.run)]
        shown = self._shown(read_comparison(home, begun)) if begun else {}
        return {**shown, **self._summary(sweep, members), "waiting": [_waiting(sweep, m) for m in members if not m.run]}

    def _members(self, sweep: Sweep) -> tuple[Member, ...]:
        return find_members(self._runner.home, sweep, self._runner.queue.entries(), self._runner.active_run)

    def _summary(self, sweep: Sweep, members: Sequence[Member]) -> dict[str, Any]:
        return {
            "sweep": sweep.id,
            "base": sweep.base,
            "places": list(sweep.places),
            "text": describe_sweep(sweep, members),
            "states": [member.state for member in members],
            "open": sum(map(is_open, members)),
        }

    def _shown(self, comparison: Comparison) -> dict[str, Any]:
        """The comparison for the page, with the samples of each run's best epoch and the first run's without LoRA."""
        shown = comparison_values(comparison)
        for row, line in zip(comparison.rows, shown["rows"], strict=True):
            line["samples"] = self._samples(row, row.choice.epoch) if row.choice.epoch else []
        shown["without"] = self._samples(comparison.rows[0], 0)
        plain: dict[str, Any] = json_ready(shown)
        return plain

    def _samples(self, row: Row, epoch: int) -> list[dict[str, Any]]:
        samples = [sample for sample in row.result.samples if sample.epoch == epoch]
        tokens = self._image_tokens.publish(sample.path for sample in samples)
        return [
            {"prompt": sample.prompt, "seed": sample.seed, "token": token}
            for sample, token in zip(samples, tokens, strict=True)
        ]


def _axes(values: Mapping[str, Any]) -> Axes:
    return [(str(place), str(text)) for place, text in values.get("axes", ())]


def _written(given: Any) -> str:
    """Values as a user would write them: a text unchanged, a list joined."""
    if isinstance(given, str):
        return given
    values = given if isinstance(given, list) else [given]
    return " | ".join(", ".join(map(str, v)) if isinstance(v, list) else "" if v is None else str(v) for v in values)


def _describe_plan(plan: SweepPlan) -> dict[str, Any]:
    names = [variant.config.output_name for variant in plan.variants]
    return {
        "count": len(names),
        "names": names[:_NAMES_SHOWN],
        "same": plan.same.label if plan.same else "",
        "problems": [{"level": p.level, "where": p.where, "message": p.message} for p in plan.problems],
    }


def _waiting(sweep: Sweep, member: Member) -> dict[str, Any]:
    planned = sweep.runs[member.number]
    label = ", ".join(f"{place} {value_text(value)}" for place, value in planned.changes.items())
    return {"label": label, "state": member.state, "problem": member.problem}


def _settings(config: TrainConfig) -> Iterator[dict[str, Any]]:
    yield from _described("", parameters_of(TrainConfig), config)
    for number, concept in enumerate(config.concepts, start=1):
        yield from _described(f"concepts[{number}].", parameters_of(Concept), concept)


def _described(prefix: str, parameters: Iterable[Parameter], values: object) -> Iterator[dict[str, Any]]:
    for parameter in parameters:
        if parameter.name in FIXED:
            continue
        now = value_text(getattr(values, parameter.name))
        yield {"place": prefix + parameter.name, "label": parameter.label, "now": now, "example": _example(parameter)}


def _example(parameter: Parameter) -> str:
    """How values are written."""
    if parameter.kind is bool:
        return "on, off"
    if parameter.choices:
        return ", ".join(parameter.choices[:4])
    if parameter.kind is tuple:
        return "one, two | one (an empty value: none)"
    return "one | another" if parameter.kind is str else "several numbers, such as 8, 16"
