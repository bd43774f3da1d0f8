"""The commands `sweep` and `compare`: train variations of settings or of a past run, and put runs side by side."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_lora_train.cli.flags import add_setting_flags, preset_help
from lib_lora_train.cli.past_run import find_run
from lib_lora_train.cli.settings import read_cli_config, refuse_unknown
from lib_lora_train.cli.training import EXIT_INTERRUPTED, open_host, output_folder, train_run
from lib_lora_train.config.parameters import parameters_of
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.errors import LoraTrainError
from lib_lora_train.core.wording import count

if TYPE_CHECKING:
    from lib_lora_train.hosts.standalone import StandaloneHost
    from lib_lora_train.runs.sweeps.sweep_record import Member, Sweep

_VARY = (
    "a setting and the values to try, such as --vary rank=8,16 or --vary 'leave_out_tags=|smile' (texts and lists are "
    "separated by |, an empty one means none); up to three times: every combination is trained"
)


def add_sweep(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add both commands."""
    sweep = command(commands, "sweep", run_sweep, "Train every combination of some values, and compare the runs.")
    sweep.usage = (
        "lora-train sweep [CONFIG.toml | RUN] --vary SETTING=VALUES … [--out DIR] [--dry-run] [--SETTING VALUE …]\n"
        "       lora-train sweep --resume [SWEEP] [--out DIR]"
    )
    files = "settings, or a past run (its folder or name) to repeat with changes, which is compared too"
    sweep.add_argument("configs", nargs="*", metavar="CONFIG.toml", help=files)
    sweep.add_argument("--vary", action="append", default=[], metavar="SETTING=VALUES", help=_VARY)
    sweep.add_argument("--resume", nargs="?", const="", metavar="SWEEP", help="continue a sweep (the newest)")
    sweep.add_argument("--out", type=Path, metavar="DIR", help="folder for the LoRA files and the run folders")
    sweep.add_argument("--preset", action="append", default=[], metavar="NAME", help=preset_help())
    sweep.add_argument("--dry-run", action="store_true", help="list the runs and stop")
    add_setting_flags(sweep)

    comparer = command(commands, "compare", run_compare, "Show in which settings runs differ, and what was measured.")
    runs = "runs or their folders; the first is the reference"
    comparer.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=runs)
    comparer.add_argument("--json", action="store_true", help="print all values as JSON")


@dataclass(frozen=True)
class _Place:
    """The folder of the runs, and the past run in it that is varied ("": none) with its folder of LoRA files."""

    home: Path
    base: str = ""
    lora_dir: Path | None = None


def run_sweep(options: argparse.Namespace) -> int:
    """Record and train a sweep, or continue one; prints the comparison at the end."""
    from lib_lora_train.runs.checks.write_places import saving_places
    from lib_lora_train.runs.sweeps.sweep_record import list_sweeps, read_sweep
    from lib_lora_train.runs.sweeps.sweep_runs import count_steps, plan_sweep, record_sweep

    home = output_folder(options) / "outputs"
    if options.resume is not None:
        refuse_unknown(options)
        _refuse_changes(options)
        sweep = read_sweep(home, options.resume) if options.resume else next(list_sweeps(home), None)
        if sweep is None:
            raise LoraTrainError(f"{home} has no sweep to continue. Start one with --vary.")
        return _train_members(options, home, sweep, open_host(options, _lora_dir(home / sweep.base)))
    place, config = _read_base(options, home)
    plan = plan_sweep([_split(text) for text in options.vary], config, place.base)
    print("\n".join(f"{variant.config.output_name}: {variant.label}" for variant in plan.variants))
    print(*(f"{problem.level}: {problem}" for problem in plan.problems), sep="\n", end="\n" if plan.problems else "")
    if plan.same:
        print(f"{plan.same.label}: this is {plan.base} itself, which is not trained again.")
    if options.dry_run:
        return 0
    host = open_host(options, place.lora_dir)
    steps = count_steps(plan, host, saving_places(place.home, host))
    print(f"{count(len(plan.variants), 'run')}, {count(steps, 'step')} in all.")
    return _train_members(options, place.home, record_sweep(place.home, plan, config.output_name), host)


def run_compare(options: argparse.Namespace) -> int:
    """Print the comparison; OutputError for a folder that is not a run."""
    from lib_lora_train.runs.records.run_results import read_result
    from lib_lora_train.runs.sweeps.comparison import compare
    from lib_lora_train.runs.sweeps.comparison_report import comparison_text, comparison_values

    folders = [find_run(path) for path in options.runs]
    for folder in folders:
        if not folder.log.is_file():
            raise LoraTrainError(f"{folder.root} has no log, so nothing is known about that run. Leave it out.")
    comparison = compare([read_result(folder) for folder in folders])
    print(json.dumps(comparison_values(comparison), indent=1) if options.json else comparison_text(comparison))
    return 0


def _refuse_changes(options: argparse.Namespace) -> None:
    """LoraTrainError for what a sweep that is continued would ignore: its runs are recorded with their settings."""
    given = vars(options)
    own = [(one.name, one.name) for one in parameters_of(TrainConfig)]
    of_concept = [(one.name, f"concept.{one.name}") for one in parameters_of(Concept)]
    changes = [f"--{name.replace('_', '-')}" for name, key in (*own, *of_concept) if key in given]
    changes += [f"--{name}" for name in ("vary", "preset") if given[name]] + ["--dry-run"] * options.dry_run
    if changes or options.configs:
        word = [*options.configs, *changes][0]
        raise LoraTrainError(f"{word} has no effect on a sweep that is resumed with its settings. Leave it out.")


def _split(text: str) -> tuple[str, str]:
    place, sign, values = text.partition("=")
    if not sign:
        raise LoraTrainError(f"--vary {text} has no values. Write it as --vary rank=8,16.")
    return place.strip().replace("-", "_"), values


def _read_base(options: argparse.Namespace, home: Path) -> tuple[_Place, TrainConfig]:
    """Where the runs go, and the settings that they vary: of a file and flags, or of a past run."""
    given = [Path(text) for text in options.configs]
    if len(given) > 1:
        raise LoraTrainError("A sweep varies one settings file or one run. Give only one.")
    if not given or given[0].is_file() or given[0].suffix.lower() == ".toml":
        return _Place(home), read_cli_config(options)
    run = find_run(given[0]).root
    if options.out and run.parent != home:
        raise LoraTrainError(f"The runs are compared with {run.name}, so they are saved beside it. Leave out --out.")
    options.configs = [str(run / "config.toml")]
    return _Place(run.parent, run.name, _lora_dir(run)), read_cli_config(options)


def _lora_dir(run: Path) -> Path | None:
    """Where a past run wrote its LoRA files; None if that is unknown."""
    from lib_lora_train.runs.records.folder import RunFolder, read_identity

    try:
        return Path(read_identity(RunFolder(run)).lora_dir)
    except LoraTrainError:
        return None


def _train_members(options: argparse.Namespace, home: Path, sweep: Sweep, host: StandaloneHost) -> int:
    """Train what is not finished, one after the other with one model; a failure does not stop the next run."""
    from lib_lora_train.runs.sweeps.comparison_report import comparison_text
    from lib_lora_train.runs.sweeps.sweep_record import find_members
    from lib_lora_train.runs.sweeps.sweep_runs import read_comparison

    for member in find_members(home, sweep):
        if member.state == "finished":
            continue
        print(f"Run {member.number + 1} of {len(sweep.runs)}: {sweep.runs[member.number].values['output_name']}")
        try:
            if not _train_member(options, home, sweep, member, host):
                print(f"Continue with: lora-train sweep --resume {sweep.id}")
                return EXIT_INTERRUPTED
        except LoraTrainError as error:
            print(f"Error: {error}", file=sys.stderr)
    members = find_members(home, sweep)
    base = [sweep.base] if sweep.base and (home / sweep.base).is_dir() else []
    print(comparison_text(read_comparison(home, [*base, *(member.run for member in members if member.run)])))
    failed = [member for member in members if member.state != "finished"]
    if failed:
        done = f"{len(failed)} of {count(len(members), 'run')} failed"
        raise LoraTrainError(f"{done}. Try them again: sweep --resume {sweep.id}.")
    return 0


def _train_member(options: argparse.Namespace, home: Path, sweep: Sweep, member: Member, host: StandaloneHost) -> bool:
    """Resume the run if it can be resumed, else begin a new one; False if it was stopped."""
    from lib_lora_train.runs.records.folder import RunFolder, new_run_folder, write_json
    from lib_lora_train.runs.records.past_runs import find_resume_point

    if member.can_resume:
        point = find_resume_point(RunFolder(home / member.run))
        return train_run(options, point.config, point, host=host)
    config = sweep.runs[member.number].config()
    folder = new_run_folder(home, config.output_name)
    write_json(folder.origin, sweep.origin(member.number))
    return train_run(options, config, host=host, folder=folder)
