"""Starts sweeps and continues them: planning, recording, queueing, and the results side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.config.validation.validate import validate
from lib_lora_train.core.errors import ConfigError, HostError, LoraTrainError, Problem
from lib_lora_train.core.wording import count
from lib_lora_train.dataset.scan import Dataset, read_dataset, reading_settings
from lib_lora_train.runs.checks.checkpoint_check import check_checkpoint
from lib_lora_train.runs.planning import plan_run
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.records.run_results import read_result
from lib_lora_train.runs.sweeps.comparison import Comparison, compare
from lib_lora_train.runs.sweeps.sweep import Variant, make_variants, parse_axes
from lib_lora_train.runs.sweeps.sweep_record import Member, Sweep, find_members, write_sweep

if TYPE_CHECKING:
    from lib_lora_train.hosts.host import Host
    from lib_lora_train.runs.checks.write_places import WritePlaces
    from lib_lora_train.runs.runner import Runner


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep would train. `base` is the run that it varies, "" for none, and `same` the variant that this run
    has trained already, None if there is none. `problems` are warnings that the settings without the sweep do not have.
    """

    variants: tuple[Variant, ...]
    base: str
    same: Variant | None
    problems: tuple[Problem, ...]


def plan_sweep(texts: Iterable[tuple[str, str]], config: TrainConfig, base: str = "") -> SweepPlan:
    """The runs of a sweep around these settings; ConfigError with all problems.

    A variant of `base` with that run's own settings is not trained again.
    """
    variants = make_variants(config, parse_axes(texts, config, fewest_runs=1 if base else 2))
    name = config.output_name
    same = next((v for v in variants if base and v.config.replace(output_name=name) == config), None)
    to_train = tuple(variant for variant in variants if variant is not same)
    if not to_train:
        problem = Problem("error", "", f"{base} was trained with exactly these values. Change one.")
        raise ConfigError([problem])
    return SweepPlan(to_train, base, same, tuple(_own_warnings(to_train, config)))


def _own_warnings(variants: Sequence[Variant], config: TrainConfig) -> Iterable[Problem]:
    """The warnings that some variants have and the settings around which they vary do not."""
    known = {(problem.where, problem.message) for problem in validate(config)}
    for variant in variants:
        for problem in validate(variant.config):
            if problem.level == "warning" and (problem.where, problem.message) not in known:
                yield Problem("warning", problem.where, f"{problem.message} (With {variant.label}.)")


def count_steps(plan: SweepPlan, host: Host, places: WritePlaces | None) -> int:
    """The steps of all runs together; LoraTrainError if one of them cannot be trained. Each folder is read once."""
    datasets: dict[tuple[object, ...], Dataset] = {}
    steps = 0
    for variant in plan.variants:
        config = variant.config
        read_with = reading_settings(config)
        if read_with not in datasets:
            datasets[read_with] = read_dataset(config)
        steps += plan_run(config, places, datasets[read_with]).plan.total_steps
        errors = [p for p in check_checkpoint(config, host.run_target(config)).problems if p.level == "error"]
        if errors:
            raise ConfigError(errors)
    return steps


def record_sweep(home: Path, plan: SweepPlan, name: str) -> Sweep:
    """The new sweep, recorded in `home`; OutputError if that fails."""
    return write_sweep(home, plan.base, plan.variants, name)


def queue_members(runner: Runner, sweep: Sweep) -> int:
    """Queue every run of a sweep that is not finished, running or queued; returns how many.

    Interrupted and stopped runs are resumed, failed ones and those that never started begin in a new folder. What
    cannot be resumed begins again too.
    """
    members = find_members(runner.home, sweep, runner.queue.entries(), runner.active_run)
    waiting = [member for member in members if is_open(member)]
    new = [member for member in waiting if not (member.can_resume and _queue_resume(runner, member))]
    runner.enqueue_all([(sweep.runs[m.number].config(), sweep.origin(m.number)) for m in new])
    return len(waiting)


def is_open(member: Member) -> bool:
    """Whether a run of a sweep still has to be queued."""
    return member.state in ("missing", "failed", "interrupted") or member.can_resume


def _queue_resume(runner: Runner, member: Member) -> bool:
    try:
        runner.enqueue_resume(member.run)
    except LoraTrainError:  # its state is damaged or its dataset has changed
        return False
    return True


def start_waiting(runner: Runner) -> None:
    """Start the queue unless a run is active, which the queue follows."""
    if not runner.active_run:
        runner.start_queue()


def read_comparison(home: Path, runs: Sequence[str]) -> Comparison:
    """The runs in `home` side by side, the first one as the reference; HostError if there are none."""
    if not runs:
        raise HostError("None of these runs has started yet. Start the queue, then open the comparison again.")
    return compare([read_result(RunFolder(home / run)) for run in runs])


def describe_sweep(sweep: Sweep, members: Sequence[Member]) -> str:
    """`rank × optimizer: 3 of 4 runs finished`."""
    finished = sum(member.state == "finished" for member in members)
    return f"{' × '.join(sweep.places)}: {finished} of {count(len(members), 'run')} finished"
