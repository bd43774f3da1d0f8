"""The command line: `app`, `demo`, `train`, `resume`, `import` and `export`.

Every setting is a flag of `train`, made from its one declaration; flags win over the TOML file. Heavy rooms
are imported inside the commands, so that help, typing errors and the plan come without waiting for PyTorch.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from lib_lora_train.cli.lora_tools import add_tools
from lib_lora_train.cli.settings import config_of, refuse
from lib_lora_train.config.parameters import Parameter, parameters_of
from lib_lora_train.config.presets import PRESETS
from lib_lora_train.config.train_config import Concept, TrainConfig, read_config
from lib_lora_train.core.errors import LoraTrainError
from lib_lora_train.core.project import PROJECT_ROOT

if TYPE_CHECKING:
    from lib_lora_train.core.events import Event
    from lib_lora_train.runs.folder import RunFolder
    from lib_lora_train.training.control import Control

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
GROUPS = {
    "model": "model",
    "data": "images",
    "captions": "captions",
    "training": "training",
    "noise": "noise and loss",
    "network": "network",
    "output": "output",
    "samples": "samples",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. A user's mistake is told in its sentence, without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a console that lacks × or – must not end a run
    words = [_hyphenated(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    options, unknown = make_parser().parse_known_args(words)
    if getattr(options, "configs", None):  # the value of an unknown flag may have been taken for a file
        options.configs = [file for file in options.configs if words[words.index(file) - 1] not in unknown]
    if options.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # read when torch is imported
    try:
        return int(options.run(options, unknown))
    except LoraTrainError as error:
        if options.debug:
            traceback.print_exc()
        print(f"Error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED


def _hyphenated(word: str) -> str:
    """`--learning_rate=1e-4`, as kohya's users write it, → `--learning-rate=1e-4`."""
    name, sign, value = word.partition("=")
    return name.replace("_", "-") + sign + value if name.startswith("--") and " " not in name else word


def make_parser() -> argparse.ArgumentParser:
    """All commands and flags."""
    parser = argparse.ArgumentParser(prog="lora-train", description="Train LoRAs for Stable Diffusion.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    app = _command(commands, "app", run_app, "Open the app in the browser.")
    app.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    app.add_argument("--port", type=int, default=7861, help="port to listen on (default: 7861)")

    demo = _command(commands, "demo", run_demo, "Train a new concept on the embedded tiny model and draw the grid.")
    demo.add_argument("--out", type=Path, metavar="DIR", help="folder for everything that the demo makes")

    train = _command(commands, "train", run_train, "Train what the TOML file, the flags or both say.")
    train.usage = (
        "lora-train train [CONFIG.toml …] [--preset NAME] [--out DIR] [--resume RUN] [--dry-run] [--cpu] "
        "[--SETTING VALUE …]"
    )
    files = "settings; flags win over them. Several files are trained one after the other"
    train.add_argument("configs", nargs="*", metavar="CONFIG.toml", help=files)
    train.add_argument("--resume", type=Path, metavar="RUN", help="go on with the run in this folder")
    train.add_argument("--preset", action="append", default=[], metavar="NAME", help=_preset_help())
    train.add_argument("--out", type=Path, metavar="DIR", help="folder for the LoRA files and the run's folder")
    train.add_argument("--dry-run", action="store_true", help="show the plan and stop")
    groups = {key: train.add_argument_group(title) for key, title in GROUPS.items()}
    for parameter in parameters_of(TrainConfig):
        _add_flag(groups[parameter.group], parameter)
    concept = train.add_argument_group("one concept, without a [[concepts]] table")
    for parameter in parameters_of(Concept):
        _add_flag(concept, parameter, prefix="concept.")
    resume = _command(commands, "resume", run_resume, "Go on with an interrupted run, or make a finished one longer.")
    resume.add_argument("folder", type=Path, metavar="RUN", help="the run's folder: outputs/DATE-NAME")
    resume.add_argument("--more-epochs", type=int, default=0, metavar="N", help="go on beyond the planned end")
    resume.add_argument("--from-step", type=int, metavar="N", help="from an earlier state, if several are kept")
    _add_exchange(commands)
    add_tools(commands, _command)
    return parser


def _add_exchange(commands: Any) -> None:
    """The commands for other programs' settings."""
    take = _command(commands, "import", run_import, "Make a TOML file of kohya's settings or of a LoRA's metadata.")
    take.add_argument("file", type=Path, metavar="FILE", help="a kohya_ss .json, an sd-scripts .toml or a .safetensors")
    take.add_argument("--dataset", type=Path, metavar="DATASET.toml", help="sd-scripts' dataset file, if there is one")
    take.add_argument("--out", type=Path, metavar="CONFIG.toml", help="where to write (default: FILE's name, here)")

    give = _command(commands, "export", run_export, "Make a kohya_ss .json of a TOML file.")
    give.add_argument("file", type=Path, metavar="CONFIG.toml", help="the settings")
    give.add_argument("--out", type=Path, metavar="FILE.json", help="where to write (default: CONFIG's name, here)")


def _preset_help() -> str:
    told = " ".join(f"{preset.name.lower().replace(' ', '-')}: {preset.when}" for preset in PRESETS)
    return f"advice for a purpose, over the file's settings; may be given several times. {told}".replace("%", "%%")


def _command(commands: Any, name: str, run: Any, summary: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    command.set_defaults(run=run)
    command.add_argument("--cpu", action="store_true", help="do not use a graphics card")
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return command


def _add_flag(group: argparse._ArgumentGroup, parameter: Parameter, *, prefix: str = "") -> None:
    """A flag whose raw text is judged later, together with everything else; absent flags leave no trace."""
    flags = [f"--{parameter.name.replace('_', '-')}"]
    if parameter.name == "checkpoint":
        flags.append("--ckpt")
    common: dict[str, Any] = {
        "dest": prefix + parameter.name,
        "default": argparse.SUPPRESS,
        "help": f"{parameter.help} Default: {default_text(parameter)}.".replace("%", "%%"),
    }
    if parameter.kind is bool:
        group.add_argument(*flags, action=argparse.BooleanOptionalAction, **common)
    elif parameter.kind is tuple:
        group.add_argument(*flags, action="append", metavar="TEXT", **common)
    else:
        metavar = "{" + ",".join(parameter.choices) + "}" if parameter.choices else parameter.kind.__name__.upper()
        group.add_argument(*flags, metavar=metavar, **common)


def default_text(parameter: Parameter) -> str:
    """The default as a person reads it."""
    if parameter.default is None or parameter.default in ("", ()):
        return "empty"
    if isinstance(parameter.default, bool):
        return "on" if parameter.default else "off"
    unit = f" {parameter.unit}" if parameter.unit else ""
    return f"{parameter.default:g}{unit}" if isinstance(parameter.default, float) else f"{parameter.default}{unit}"


# --- commands --------------------------------------------------------------------------------------


def run_app(options: argparse.Namespace, unknown: Sequence[str]) -> int:
    """Serve the app until it is stopped."""
    refuse(unknown)
    print("Starting the app …", flush=True)  # what is imported next takes a minute on a slow disk, and says nothing
    from lib_lora_train.ui.app import serve

    serve(host=options.host, port=options.port)
    return 0


def run_demo(options: argparse.Namespace, unknown: Sequence[str]) -> int:
    """Train, measure and show the demo; LoraTrainError when it has not learnt what it must."""
    refuse(unknown)
    from lib_lora_train.demo import demo
    from lib_lora_train.training.control import Control

    control = Control()
    show_run(demo.run_demo((options.out or PROJECT_ROOT).absolute(), control), control)
    return 0


def run_train(options: argparse.Namespace, unknown: Sequence[str]) -> int:
    """Judge the settings, then plan (`--dry-run`) or train; several files one after the other."""
    if options.resume and len(options.configs) > 1:
        raise LoraTrainError("--resume goes on with one run; give one settings file, or none to use the run's own.")
    if options.resume and not options.configs:
        options.configs = [str(options.resume / "config.toml")]
    configs = [config_of(options, unknown, file) for file in options.configs or [""]]
    if options.dry_run:
        outputs = (options.out or PROJECT_ROOT).absolute() / "outputs"
        print("\n\n".join(plan_text(config, outputs, on_processor=options.cpu) for config in configs))
    elif options.resume:
        from lib_lora_train.runs.folder import RunFolder
        from lib_lora_train.runs.past_runs import continuation

        way = continuation(RunFolder(options.resume.absolute()), config=configs[0])
        _train(options, way.config, folder=way.folder, state=way.state)
    elif len(configs) == 1:
        _train(options, configs[0])
    else:
        return _train_all(options, configs)
    return 0


def _train_all(options: argparse.Namespace, configs: Sequence[TrainConfig]) -> int:
    """Each in its turn; one that fails is told and does not stop the next, Ctrl-C ends all."""
    failed = []
    for number, config in enumerate(configs, start=1):
        print(f"Run {number} of {len(configs)}: {config.output_name}")
        try:
            if not _train(options, config):
                return EXIT_INTERRUPTED
        except LoraTrainError as error:
            failed.append(config.output_name)
            print(f"Error: {error}", file=sys.stderr)
    if failed:
        raise LoraTrainError(f"{len(failed)} of {len(configs)} runs failed: {', '.join(failed)}.")
    return 0


def run_resume(options: argparse.Namespace, unknown: Sequence[str]) -> int:
    """Go on with the run in a folder, in the same series of files."""
    refuse(unknown)
    from lib_lora_train.runs.folder import RunFolder
    from lib_lora_train.runs.past_runs import continuation

    folder = RunFolder(options.folder.absolute())
    way = continuation(folder, more_epochs=options.more_epochs, step=options.from_step)
    _train(options, way.config, folder=folder, state=way.state)
    return 0


def _train(
    options: argparse.Namespace, config: TrainConfig, *, folder: RunFolder | None = None, state: Path | None = None
) -> bool:
    """One run, a new one or, in its `folder` from its `state`, one that goes on; False if it was stopped."""
    from lib_lora_train.hosts.standalone import StandaloneHost
    from lib_lora_train.runs.folder import new_run_folder
    from lib_lora_train.runs.trainer import run_job
    from lib_lora_train.training.control import Control

    place = (getattr(options, "out", None) or PROJECT_ROOT).absolute()
    host = StandaloneHost(
        _path(config.checkpoint), _path(config.vae), place / "models" / "Lora", "cpu" if options.cpu else None
    )
    folder = folder or new_run_folder(place / "outputs", config.output_name)
    control = Control()
    events = run_job(config, host, folder=folder, control=control, state=state)
    show_run(recorded(events, folder.log), control)
    return not control.stopped


def run_import(options: argparse.Namespace, unknown: Sequence[str]) -> int:
    """Write other people's settings as ours, and tell what was not taken over and why."""
    refuse(unknown)
    from lib_lora_train.config.validation.validate import validate
    from lib_lora_train.formats.kohya.importer import read_settings
    from lib_lora_train.formats.kohya.report import lost_lines, quiet_lines
    from lib_lora_train.formats.toml import write_toml_config

    imported = read_settings(options.file, options.dataset)
    place = options.out or _new_file(options.file, ".toml")
    write_toml_config(place, imported.config)
    print(f"{len(imported.taken)} settings of {options.file.name} are taken over. Written: {place}")
    _print_list("Trained in another way here", [f"{p.level}: {p}" for p in imported.problems])
    _print_list("Not taken over", lost_lines(imported.ignored))
    _print_list("Without effect here", quiet_lines(imported.ignored))
    _print_list("To mend before training", [str(p) for p in validate(imported.config) if p.level == "error"])
    return 0


def run_export(options: argparse.Namespace, unknown: Sequence[str]) -> int:
    """Write our settings for the kohya_ss GUI, and tell what it cannot hold."""
    refuse(unknown)
    from lib_lora_train.config.validation.validate import require_usable
    from lib_lora_train.formats.kohya.exporter import write_gui_settings
    from lib_lora_train.formats.kohya.report import lost_lines
    from lib_lora_train.formats.toml import read_toml_config

    config, problems = read_config(read_toml_config(options.file))
    require_usable(problems)
    place = options.out or _new_file(options.file, ".json")
    exported = write_gui_settings(place, config)
    print(f"Written: {place}")
    _print_list("The GUI cannot hold", lost_lines(exported.lost))
    return 0


def _new_file(file: Path, ending: str) -> Path:
    """The file's name with another ending, in the folder one is in; what is there already is never overwritten."""
    place = Path(file.stem).with_name(f"{file.stem}{ending}")
    if place.exists():
        raise LoraTrainError(f"{place} is there already. Choose another place with --out.")
    return place


def _print_list(title: str, lines: Sequence[str]) -> None:
    if lines:
        print("\n".join([f"\n{title}:", *(f"  - {line}" for line in lines)]))


def plan_text(config: TrainConfig, home: Path, *, on_processor: bool) -> str:
    """The plan in several lines, warnings last; nothing heavy is loaded for it."""
    from lib_lora_train.config.validation.validate import validate
    from lib_lora_train.dataset.plan_text import describe_plan
    from lib_lora_train.hosts.host import file_footing
    from lib_lora_train.runs.estimates.requirements import forecast, forecast_lines
    from lib_lora_train.runs.planning import plan_job

    plan = plan_job(config).plan
    needs = forecast(config, plan, file_footing(config, on_processor=on_processor), home)
    noted = [f"{p.level}: {p}" for p in validate(config)]
    return "\n".join([describe_plan(plan), *forecast_lines(needs), *noted])


def show_run(events: Iterable[Event], control: Control) -> None:
    """Follow a run to its end on the terminal; the first Ctrl-C stops it after the step and keeps the result."""
    from lib_lora_train.cli.terminal import Terminal

    terminal = Terminal(sys.stdout)
    with stopping_on_interrupt(control, terminal.write):
        try:
            for event in events:
                terminal.show(event)
        finally:
            terminal.close()


def recorded(events: Iterable[Event], log: Path) -> Iterator[Event]:
    """The same events, each also written to `log` as a line of JSON with its time; a failure's reason last."""
    from lib_lora_train.core.events import StateChanged
    from lib_lora_train.runs.event_log import log_line, log_record

    with log.open("a", encoding="utf-8") as lines:

        def write(event: Event) -> None:
            lines.write(log_line(log_record(event)))
            lines.flush()

        try:
            for event in events:
                write(event)
                yield event
        except LoraTrainError as error:
            write(StateChanged("failed", str(error)))
            raise


@contextlib.contextmanager
def stopping_on_interrupt(control: Control, tell: Any) -> Iterator[None]:
    """Within it, the first Ctrl-C asks the run to stop and keep what it has; a second one ends at once.

    A KeyboardInterrupt would be raised somewhere in the middle of a step, and lose it.
    """

    def stop(_number: int, _frame: FrameType | None) -> None:
        if control.stopped:
            raise KeyboardInterrupt
        control.stop()
        tell("Stopping after this step; what was learnt is kept. Ctrl-C again ends at once.")

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _path(text: str) -> Path | None:
    return Path(text) if text else None
