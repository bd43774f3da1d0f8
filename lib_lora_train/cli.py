"""The command line: `app`, `demo`, `train`, `import` and `export`.

Every setting is a flag of `train`, made from its one declaration; flags win over the TOML file. Heavy rooms
are imported inside the commands, so that help, typing errors and the plan come without waiting for PyTorch.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from lib_lora_train.config import Concept, TrainConfig, read_config
from lib_lora_train.errors import LoraTrainError, Problem
from lib_lora_train.parameters import Parameter, parameters_of
from lib_lora_train.presets import PRESETS, find_preset

if TYPE_CHECKING:
    from lib_lora_train.events import Event
    from lib_lora_train.train.control import Control

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
HOME = Path(__file__).resolve().parents[1]
GROUPS = {
    "model": "model",
    "data": "pictures",
    "captions": "captions",
    "training": "training",
    "noise": "noise and loss",
    "network": "network",
    "output": "output",
    "samples": "samples",
}
_PATHS = ("checkpoint", "vae", "output_dir")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. A user's mistake is told in its sentence, without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a console that lacks × or – must not end a run
    words = [_hyphenated(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    options, unknown = make_parser().parse_known_args(words)
    if getattr(options, "config", None) and words[words.index(options.config) - 1] in unknown:
        options.config = None  # the value of an unknown flag was taken for the file
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
    train.usage = "lora-train train [CONFIG.toml] [--preset NAME] [--out DIR] [--dry-run] [--cpu] [--SETTING VALUE …]"
    train.add_argument("config", nargs="?", metavar="CONFIG.toml", help="settings; flags win over them")
    train.add_argument("--preset", action="append", default=[], metavar="NAME", help=_preset_help())
    train.add_argument("--out", type=Path, metavar="DIR", help="folder for the LoRA files and the run's folder")
    train.add_argument("--dry-run", action="store_true", help="show the plan and stop")
    groups = {key: train.add_argument_group(title) for key, title in GROUPS.items()}
    for parameter in parameters_of(TrainConfig):
        _add_flag(groups[parameter.group], parameter)
    concept = train.add_argument_group("one concept, without a [[concepts]] table")
    for parameter in parameters_of(Concept):
        _add_flag(concept, parameter, prefix="concept.")
    _add_exchange(commands)
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
    _refuse(unknown)
    from lib_lora_train.ui.app import serve

    serve(host=options.host, port=options.port)
    return 0


def run_demo(options: argparse.Namespace, unknown: Sequence[str]) -> int:
    """Train, measure and show the demo; LoraTrainError when it has not learnt what it must."""
    _refuse(unknown)
    from lib_lora_train import demo
    from lib_lora_train.train.control import Control

    control = Control()
    show_run(demo.run_demo((options.out or HOME).absolute(), control), control)
    return 0


def run_train(options: argparse.Namespace, unknown: Sequence[str]) -> int:
    """Judge the settings, then plan (`--dry-run`) or train."""
    config = config_of(options, unknown)
    if options.dry_run:
        print(plan_text(config))
        return 0
    from lib_lora_train.hosts.standalone import StandaloneHost
    from lib_lora_train.jobs import run_job
    from lib_lora_train.run_folder import new_run_folder
    from lib_lora_train.train.control import Control

    place = (options.out or HOME).absolute()
    host = StandaloneHost(
        _path(config.checkpoint), _path(config.vae), place / "models" / "Lora", "cpu" if options.cpu else None
    )
    folder = new_run_folder(place / "outputs", config.output_name)
    control = Control()
    show_run(recorded(run_job(config, host, folder=folder, control=control), folder.log), control)
    return 0


def run_import(options: argparse.Namespace, unknown: Sequence[str]) -> int:
    """Write other people's settings as ours, and tell what was not taken over and why."""
    _refuse(unknown)
    from lib_lora_train.formats.kohya import read_settings
    from lib_lora_train.formats.kohya_account import lost_lines, quiet_lines
    from lib_lora_train.formats.toml import write_toml_config
    from lib_lora_train.judge import judge

    imported = read_settings(options.file, options.dataset)
    place = options.out or _new_file(options.file, ".toml")
    write_toml_config(place, imported.config)
    print(f"{len(imported.taken)} settings of {options.file.name} are taken over. Written: {place}")
    _print_list("Trained in another way here", [f"{p.level}: {p}" for p in imported.problems])
    _print_list("Not taken over", lost_lines(imported.ignored))
    _print_list("Without effect here", quiet_lines(imported.ignored))
    _print_list("To mend before training", [str(p) for p in judge(imported.config) if p.level == "error"])
    return 0


def run_export(options: argparse.Namespace, unknown: Sequence[str]) -> int:
    """Write our settings for the kohya_ss GUI, and tell what it cannot hold."""
    _refuse(unknown)
    from lib_lora_train.formats.kohya_account import lost_lines
    from lib_lora_train.formats.kohya_export import write_gui_settings
    from lib_lora_train.formats.toml import read_toml_config
    from lib_lora_train.judge import require_usable

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


def plan_text(config: TrainConfig) -> str:
    """The plan in several lines, warnings last; nothing heavy is loaded for it."""
    from lib_lora_train.data.plan import describe_plan, make_plan
    from lib_lora_train.data.scan import read_dataset
    from lib_lora_train.judge import judge

    plan = make_plan(read_dataset(config), config)
    noted = [f"{p.level}: {p}" for p in judge(config)]
    return "\n".join([describe_plan(plan), *noted])


def show_run(events: Iterable[Event], control: Control) -> None:
    """Follow a run to its end on the terminal; the first Ctrl-C stops it after the step and keeps the result."""
    from lib_lora_train.terminal import Terminal

    terminal = Terminal(sys.stdout)
    with stopping_on_interrupt(control, terminal.write):
        try:
            for event in events:
                terminal.show(event)
        finally:
            terminal.close()


def recorded(events: Iterable[Event], log: Path) -> Iterator[Event]:
    """The same events, each also written to `log` as a line of JSON with its time."""
    from lib_lora_train.events import to_record

    with log.open("a", encoding="utf-8") as lines:
        for event in events:
            lines.write(json.dumps({**to_record(event), "time": time.time()}, ensure_ascii=False) + "\n")
            lines.flush()
            yield event


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


# --- settings --------------------------------------------------------------------------------------


def config_of(options: argparse.Namespace, unknown: Sequence[str]) -> TrainConfig:
    """The config from file and flags; ConfigError with everything that is wrong in either."""
    from lib_lora_train.formats.toml import read_toml_config
    from lib_lora_train.judge import judge, require_usable

    if not any(word.startswith("--") for word in unknown):
        _refuse(unknown)
    values = dict(read_toml_config(Path(options.config))) if options.config else {}
    for name in options.preset:
        values.update(find_preset(name).values)
    problems = override(values, vars(options), unknown)
    config, found = read_config(values)
    problems += found
    told = {problem.where for problem in problems}  # a value that could not be read stands at its default
    require_usable([*problems, *(p for p in judge(config) if p.where not in told)])
    return config


def override(values: dict[str, Any], flags: dict[str, Any], unknown: Sequence[str]) -> list[Problem]:
    """Write the flags over the file's values, unknown ones too, so that all are judged at once."""
    known = {parameter.name for parameter in parameters_of(TrainConfig)}
    given = {name: value for name, value in flags.items() if name in known}
    concept = {name.removeprefix("concept."): v for name, v in flags.items() if name.startswith("concept.")}
    values.update({name: _from_here(text) if name in _PATHS else text for name, text in given.items()})
    values.update(dict.fromkeys(unknown_names(unknown), ""))
    if not concept:
        return []
    tables = values.setdefault("concepts", [{}])
    if not isinstance(tables, list) or len(tables) != 1 or not isinstance(tables[0], dict):
        reason = "flags can only change a single concept. Give several in the TOML file, as [[concepts]]."
        return [Problem("error", ", ".join(concept), reason)]
    tables[0].update({name: _from_here(text) if name == "folder" else text for name, text in concept.items()})
    return []


def _from_here(text: str) -> str:
    """A path on the command line is meant from the folder one is in, one in a TOML file from the file's."""
    return os.path.normpath(Path.cwd() / Path(text.strip()).expanduser()) if text.strip() else text


def unknown_names(words: Sequence[str]) -> list[str]:
    """The parameter names that unknown flags stand for: `--network-dim 8` → `network_dim`."""
    return [word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--")]


def _refuse(unknown: Sequence[str]) -> None:
    """LoraTrainError for words that no command knows."""
    if unknown:
        raise LoraTrainError(f"{unknown[0]} is not known here. --help lists what is.")


def _path(text: str) -> Path | None:
    return Path(text) if text else None
