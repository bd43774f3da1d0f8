"""The command line: `app`, `demo`, `train`, `resume`, `sweep`, `compare`, and the commands for settings and LoRA files.

Every setting is a flag of `train`, generated from its declaration; flags override the TOML file. Heavy packages are
imported inside the commands, so that help, errors and the plan appear without waiting for PyTorch.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from lib_lora_train.cli.advise import add_advise
from lib_lora_train.cli.convert_checkpoint import add_convert_checkpoint
from lib_lora_train.cli.flags import add_setting_flags, preset_help
from lib_lora_train.cli.grid import add_grid
from lib_lora_train.cli.heat_maps import add_heat_maps
from lib_lora_train.cli.images import add_images
from lib_lora_train.cli.import_export import add_import_export
from lib_lora_train.cli.lora_tools import add_lora_tools
from lib_lora_train.cli.past_run import add_run_folder, find_run
from lib_lora_train.cli.regularise import add_regularise
from lib_lora_train.cli.report import add_report
from lib_lora_train.cli.settings import read_cli_config, refuse_unknown, with_places
from lib_lora_train.cli.sweep import add_sweep
from lib_lora_train.cli.tags import add_tags
from lib_lora_train.cli.training import EXIT_INTERRUPTED, train_all, train_run
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.cpu_environment import set_cpu_environment
from lib_lora_train.core.errors import LoraTrainError
from lib_lora_train.core.project import PROJECT_ROOT
from lib_lora_train.core.wording import did_you_mean

EXIT_USER_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status. User errors are printed as one message, without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a console without × or – must not crash a run
    set_cpu_environment(os.environ)
    options = parse(sys.argv[1:] if arguments is None else arguments)
    if options.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # read when torch is imported
    try:
        if not options.takes_settings:
            refuse_unknown(options)
        return int(options.run(options))
    except LoraTrainError as error:
        if options.debug:
            traceback.print_exc()
        print(f"Error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command, with the function to `run`; `unknown` are the arguments that it does not have."""
    words = [_hyphenated(word) for word in arguments]
    options, unknown = make_parser().parse_known_args(words)
    if getattr(options, "configs", None):  # the value of an unknown flag may have been parsed as a file
        options.configs = [file for file in options.configs if words[words.index(file) - 1] not in unknown]
    options.unknown = unknown
    return options


def _hyphenated(word: str) -> str:
    """`--learning_rate=1e-4`, as kohya's users write it, → `--learning-rate=1e-4`."""
    name, sign, value = word.partition("=")
    return name.replace("_", "-") + sign + value if name.startswith("--") and " " not in name else word


class _Parser(argparse.ArgumentParser):
    """Names the nearest choice, as of a misspelt command."""

    def error(self, message: str) -> NoReturn:
        found = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)$", message)
        hint = did_you_mean(found[1], re.findall(r"[\w-]+", found[2])) if found else ""
        super().error(f"{message}.{hint}" if hint else message)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands and flags."""
    parser = _Parser(prog="lora-train", description="Train LoRAs for Stable Diffusion.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_app(commands)
    demo = _command(commands, "demo", run_demo, "Train a new concept on the embedded tiny model and generate the grid.")
    demo.add_argument("--out", type=Path, metavar="DIR", help="folder for all files of the demo")
    for command in (_add_train(commands), _add_resume(commands)):
        command.add_argument(
            "--other-model", action="store_true", help="resume on another model than the run was started on"
        )
    add_sweep(commands, _command)
    add_import_export(commands, _command)
    add_lora_tools(commands, _command)
    add_convert_checkpoint(commands, _command)
    add_heat_maps(commands, _command)
    add_images(commands, _command)
    add_tags(commands, _command)
    add_report(commands, _command)
    add_grid(commands, _command)
    add_advise(commands, _command)
    add_regularise(commands, _command)
    return parser


def _command(commands: Any, name: str, run: Any, summary: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    command.set_defaults(run=run, parser=command, takes_settings=False)
    command.add_argument("--cpu", action="store_true", help="do not use a GPU")
    command.add_argument("--debug", action="store_true", help="show the traceback of errors")
    return command


def _add_app(commands: Any) -> None:
    command = _command(commands, "app", run_app, "Open the app in the browser.")
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    command.add_argument("--port", type=int, default=7861, help="port to listen on (default: 7861)")
    command.add_argument(
        "--login",
        default=os.environ.get("LORA_TRAIN_LOGIN") or None,
        metavar="USER:PASSWORD",
        help="ask for this login (default: LORA_TRAIN_LOGIN in the environment, else one is made up and printed if "
        "other machines can reach the app)",
    )
    command.add_argument("--no-login", action="store_const", const="", dest="login", help="never ask for a login")
    command.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="also answer requests for this host name, such as a proxy's; may be given several times",
    )


def _add_train(commands: Any) -> argparse.ArgumentParser:
    command = _command(commands, "train", run_train, "Train with the settings of a TOML file, flags or both.")
    command.usage = (
        "lora-train train [CONFIG.toml …] [--preset NAME] [--out DIR] [--resume RUN] [--dry-run] [--cpu] "
        "[--SETTING VALUE …]"
    )
    files = "settings, which flags override. Several files are trained one after the other"
    command.add_argument("configs", nargs="*", metavar="CONFIG.toml", help=files)
    command.add_argument("--resume", type=Path, metavar="RUN", help="resume the run in this folder")
    command.add_argument("--preset", action="append", default=[], metavar="NAME", help=preset_help())
    command.add_argument("--out", type=Path, metavar="DIR", help="folder for the LoRA files and the run folder")
    command.add_argument("--dry-run", action="store_true", help="show the plan and stop")
    add_setting_flags(command)
    return command


def _add_resume(commands: Any) -> argparse.ArgumentParser:
    command = _command(commands, "resume", run_resume, "Resume an interrupted run or extend a finished one.")
    add_run_folder(command)
    command.add_argument("--more-epochs", type=int, default=0, metavar="N", help="add N epochs to the planned end")
    command.add_argument(
        "--from-step", type=int, metavar="N", help="resume from an earlier training state, if several are kept"
    )
    command.add_argument("--out", type=Path, metavar="DIR", help="folder for new LoRA files, if the run was moved")
    command.add_argument(
        "--folder", dest="data", action="append", metavar="DIR", help="where the images are now; once for each concept"
    )
    command.add_argument("--checkpoint", "--ckpt", metavar="FILE", help="where the checkpoint is now")
    return command


# --- commands --------------------------------------------------------------------------------------


def run_app(options: argparse.Namespace) -> int:
    """Serve the app until it is stopped."""
    print("Starting the app …", flush=True)  # the imports below can take a minute on a slow disk
    from lib_lora_train.ui.app import serve

    serve(host=options.host, port=options.port, login=options.login, allowed_hosts=options.allow_host)
    return 0


def run_demo(options: argparse.Namespace) -> int:
    """Run the demo; LoraTrainError if its LoRA does not pass the gate."""
    from lib_lora_train.cli.show_run import show_run
    from lib_lora_train.core.control import Control
    from lib_lora_train.runs.demo import demo

    control = Control()
    show_run(demo.run_demo((options.out or PROJECT_ROOT).absolute(), control), control)
    return 0


def run_train(options: argparse.Namespace) -> int:
    """Validate the settings, then plan (`--dry-run`) or train; several files one after the other."""
    if options.resume and len(options.configs) > 1:
        raise LoraTrainError("--resume takes at most one settings file; without one, it uses the run's own.")
    resumed = find_run(options.resume) if options.resume else None
    if resumed and not options.configs:
        options.configs = [str(resumed.config)]
    configs = [read_cli_config(options, file) for file in options.configs or [""]]
    if options.dry_run:
        outputs = (options.out or PROJECT_ROOT).absolute() / "outputs"
        print("\n\n".join(plan_text(config, outputs, on_cpu=options.cpu) for config in configs))
    elif resumed:
        from lib_lora_train.runs.records.past_runs import find_resume_point

        train_run(options, configs[0], find_resume_point(resumed, config=configs[0]))
    elif len(configs) == 1:
        train_run(options, configs[0])
    else:
        return train_all(options, configs)
    return 0


def run_resume(options: argparse.Namespace) -> int:
    """Resume or extend the run in a folder, continuing its series of files."""
    from lib_lora_train.runs.records.past_runs import find_resume_point

    folder = find_run(options.folder)
    resume_point = find_resume_point(folder, more_epochs=options.more_epochs, step=options.from_step)
    config = with_places(resume_point.config, options.data or [], options.checkpoint)
    train_run(options, config, replace(resume_point, config=config))
    return 0


def plan_text(config: TrainConfig, home: Path, *, on_cpu: bool) -> str:
    """The plan in several lines, warnings last; loads nothing heavy."""
    from lib_lora_train.config.validation.validate import require_usable, validate
    from lib_lora_train.dataset.durations import describe_durations
    from lib_lora_train.dataset.plan_text import describe_plan
    from lib_lora_train.hosts.host import checkpoint_target
    from lib_lora_train.runs.checks.checkpoint_check import check_checkpoint
    from lib_lora_train.runs.checks.write_places import WritePlaces, place_problems
    from lib_lora_train.runs.estimates.requirements import estimate_requirements, requirement_lines
    from lib_lora_train.runs.planning import plan_run

    models = home.parent / "models"
    places = WritePlaces(home, models / "Lora", embedding_dir=models / "embeddings")
    plan, target = plan_run(config, places).plan, checkpoint_target(config, on_cpu=on_cpu)
    checkpoint = check_checkpoint(config, target)
    require_usable(checkpoint.problems)
    needs = estimate_requirements(config, plan, target, home)
    notes = [
        f"{p.level}: {p}"
        for p in (*needs.problems, *validate(config), *place_problems(config, places), *checkpoint.problems)
    ]
    durations = [f"{name}: {text}" for name, text in describe_durations(config, plan).items()]
    model = f"{'Model':<10}{checkpoint.description}"
    return "\n".join([describe_plan(plan, durations), model, *requirement_lines(needs), *notes])
