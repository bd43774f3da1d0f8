"""Start the LoRA trainer without a webui.

Creates `.venv` beside this file, installs what is needed (once) and continues inside it. Needs only Python 3.10 or
newer and uses only the standard library.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

USAGE = """usage: python launch.py [COMMAND] [options] [--cpu] [--no-venv]

commands
  (nothing)            open the app in the browser
  demo [--out DIR]     train a new concept on the embedded tiny model and generate the grid: a few minutes
  train CONFIG.toml    train with these settings [--preset NAME] [--ckpt FILE] [--vae FILE] [--out DIR] [--dry-run]
  resume RUN           resume an interrupted run or extend a finished one [--more-epochs N]
  sweep CONFIG.toml    train every combination of some values and compare the runs --vary rank=8,16 [--vary ...]
  regularise CONFIG.toml --to DIR  draw regularisation images with the run's model [--per-image N] [--prompts captions]
  compare RUN RUN ...  show in which settings runs differ and what was measured [--json]
  import FILE          convert settings of kohya, OneTrainer or a LoRA to TOML [--dataset FILE] [--out FILE]
  export CONFIG.toml   convert it for the kohya_ss GUI or sd-scripts [--to kohya_ss|sd-scripts] [--out FILE]
  check FILE           show what a LoRA file of any family contains and what is wrong with it
  convert FILE         save it as a LoRA or an exact difference [--to lora|diff] [--rank N] [--ckpt FILE] [--out FILE]
  resize FILE          write it with a lower rank [--rank N] [--conv-rank N] [--sv-ratio|--sv-cumulative|--sv-fro X]
  metadata FILE        show it, or write a copy with other entries [--trigger TEXT] [--license TEXT] [--strip] [...]
  convert-checkpoint FILE  write it as safetensors [--precision fp16] [--vae FILE] [--ema use]
  extract BASE TUNED   write the difference of two checkpoints as a LoRA [the options of resize] [--targets all]
  merge FILE FILE ...  merge LoRA files of any family, as one or [--into] a checkpoint [--weights 1 0.5] [--rank N]
                       [--to lora|diff] [--method sum|ties|dare|…] [--ckpt FILE] [--out FILE]
  grid RUN             draw all epochs of a past run in one image [--strengths "0.6, 1"] [--triggers] [--sampler NAME]
  advise RUN           find the best epoch of a past run and its strength
  heatmap IMAGE        show where each word of its prompt acts [--words WORD ...] [--lora FILE] [--prompt TEXT]
  images RUN           list its training images, those whose loss stands out first [--measure] [--json]
  tags RUN             report what each tag of its captions became in the LoRA [--tag TAG ...] [--measure] [--json]
  report RUN           print a report of a failed run, without names and paths
  test [pytest args]   run linters, the type checker and all tests; with arguments only pytest
  setup                only install

options
  --cpu                install PyTorch for the CPU and do not use a GPU
  --no-venv            install nothing and use this Python with its packages

`python launch.py train --help` lists all settings.
"""

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / "requirements-stamp.json"
COMMANDS = ("app", *re.findall(r"^  ([a-z][a-z-]*) ", USAGE, re.MULTILINE))
TORCH = "2.13.0"
OLDEST_TORCH = (2, 6)  # the oldest that the pinned diffusers and transformers support
TORCH_INDEX = "https://download.pytorch.org/whl"
# Once everything is installed, no library may use the network.
QUIET_LIBRARIES = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
PIN = re.compile(r'^([\w.-]+)==([^;\s]+)(?:; python_version (<|>=) "3\.(\d+)")?$')

say = functools.partial(print, flush=True)  # flushed, so that it appears before the output of pip and pytest


class SetupError(Exception):
    """A problem that the user must fix first; the message says how."""


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line: our own options, and the rest for the command."""

    command: str
    rest: tuple[str, ...]
    cpu: bool = False
    no_venv: bool = False
    help: bool = False


@dataclasses.dataclass(frozen=True)
class Machine:
    """What decides where to get PyTorch. `build` is PyTorch's name for a build: cpu, cu126, cu130."""

    system: str
    build: str
    offers_cpu_build: bool = False
    reaches_torch_index: bool = False


def main(arguments: Sequence[str]) -> int:
    """Run the command and return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # Windows' encoding for pipes and files lacks characters such as ─
    try:
        if sys.version_info < (3, 10):  # noqa: UP036 a clear message instead of a later crash
            raise SetupError(f"This is Python {platform.python_version()}. Use Python 3.10 or newer.")
        options = read_options(arguments)
        if options.help:
            print(USAGE, end="")
            return 0
        python = prepare(options)
    except SetupError as error:
        print(f"launch.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted. The next start continues from here.", file=sys.stderr)
        return 130
    if options.command == "setup":
        say(f"Everything is installed. Python: {python}")
        return 0
    return run_tests(python, options) if options.command == "test" else run_command(python, options)


def read_options(arguments: Sequence[str]) -> Options:
    """The options. Ours may be anywhere; the command, if any, is the first of the remaining words."""
    rest = [word for word in arguments if word not in ("--cpu", "--no-venv")]
    has_command = bool(rest) and not rest[0].startswith("-")
    command = rest.pop(0) if has_command else "app"
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, 1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Commands: {', '.join(COMMANDS)}."
        raise SetupError(f"{command!r} is not a command. {hint}")
    wants_help = not has_command and bool(rest) and rest[0] in ("-h", "--help")
    return Options(command, tuple(rest), "--cpu" in arguments, "--no-venv" in arguments, wants_help)


# --- the environment -------------------------------------------------------------------------------


def prepare(options: Options) -> Path:
    """The Python to continue with, after installing what is missing."""
    files = ("requirements.txt", "requirements-test.txt") if options.command == "test" else ("requirements.txt",)
    if options.no_venv:
        wanted = ["torch", *(name for file in files for name in read_pins(ROOT / file))]
        missing = ", ".join(name for name in wanted if installed_version(name) is None)
        if missing:
            raise SetupError(f"--no-venv: this Python lacks {missing}. Install that or start without --no-venv.")
        return Path(sys.executable)
    return Path(sys.executable) if is_complete_venv(files) else prepare_venv(files, cpu=options.cpu)


def is_complete_venv(files: Sequence[str]) -> bool:
    """Whether we already run in another virtual environment that has every pin and a usable PyTorch."""
    if sys.prefix == sys.base_prefix or Path(sys.prefix) == VENV:
        return False
    pins = {name: version for file in files for name, version in read_pins(ROOT / file).items()}
    return is_new_enough(installed_version("torch")) and all(installed_version(n) == v for n, v in pins.items())


def prepare_venv(files: Sequence[str], *, cpu: bool) -> Path:
    """The Python of `.venv`, which is created and updated if necessary; immediate if nothing changed."""
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = read_stamp() if python.exists() else {}
    todo = [file for file in files if done.get(file) != fingerprint(ROOT / file)]
    if not todo:
        return python
    began = time.monotonic()
    if not has_pip(python):
        make_venv()
    install_torch(python, cpu=cpu)
    install_requirements(python, todo)
    STAMP.write_text(json.dumps({**done, **{file: fingerprint(ROOT / file) for file in todo}}), encoding="utf-8")
    say(f"Installed in {time.monotonic() - began:.0f} s; this is needed only once.")
    return python


def make_venv() -> None:
    """Create a fresh `.venv`, which can use a PyTorch that this Python already has."""
    say(f"Creating {VENV} with Python {platform.python_version()} …")
    has_torch = sys.prefix == sys.base_prefix and is_new_enough(installed_version("torch"))
    options = ["--clear", *(["--system-site-packages"] if has_torch else [])]
    if subprocess.call([sys.executable, "-m", "venv", *options, str(VENV)]):
        raise SetupError(f"{VENV} could not be created. Debian and Ubuntu need `sudo apt install python3-venv` first.")


def install_requirements(python: Path, files: Sequence[str]) -> None:
    """Install the pins of `files` without changing PyTorch."""
    say("Installing the libraries …")
    with tempfile.TemporaryDirectory() as folder:
        constraint = Path(folder) / "torch.txt"
        constraint.write_text(f"torch=={version_in(python, 'torch')}\n", encoding="utf-8")
        wanted = [argument for file in files for argument in ("-r", str(ROOT / file))]
        if not pip_installs(python, *wanted, "-c", str(constraint)):
            raise SetupError("The libraries could not be installed. Check the network and pip's message above.")


def pip_installs(python: Path, *arguments: str) -> bool:
    """Whether `pip install` with these arguments succeeded."""
    quiet = () if sys.stdout.isatty() else ("-qq",)
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *quiet, *arguments]
    return subprocess.call(command) == 0


def has_pip(python: Path) -> bool:
    """Whether this Python starts and has pip, which an interrupted set-up may lack."""
    return python.exists() and output_of(str(python), "-m", "pip", "--version") != ""


def fingerprint(file: Path) -> str:
    """A hash of the file's text, independent of line endings."""
    return hashlib.sha256(file.read_text(encoding="utf-8").encode()).hexdigest()


def read_stamp() -> Mapping[str, str]:
    """The fingerprints of the completely installed files; empty without a readable stamp."""
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
        return stamp if isinstance(stamp, dict) else {}
    except (OSError, ValueError):
        return {}


def read_pins(file: Path, minor: int = sys.version_info.minor) -> dict[str, str]:
    """Package → version for Python 3.`minor`; SetupError for a line that is not a pin."""
    pins = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        match = PIN.match(line.strip())
        if match is None:
            raise SetupError(f"{file.name}: {line!r} must have the form NAME==VERSION.")
        name, version, sign, limit = match.groups()
        if sign is None or (minor < int(limit)) == (sign == "<"):
            pins[name] = version
    return pins


def installed_version(name: str) -> str | None:
    """The version of a package in this Python, None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def version_in(python: Path, name: str) -> str | None:
    """The version of a package in another Python, None if it is not installed."""
    script = f"import importlib.metadata as m; print(m.version({name!r}))"
    return output_of(str(python), "-c", script).strip() or None


# --- PyTorch ---------------------------------------------------------------------------------------


def install_torch(python: Path, *, cpu: bool) -> None:
    """Keep an installed PyTorch if it is new enough, else install the build for this machine."""
    installed = version_in(python, "torch")
    if is_new_enough(installed):
        say(f"Keeping PyTorch {installed}.")
        return
    for source in torch_sources(inspect_machine(python, cpu=cpu)):
        say(f"Installing {' '.join(source)} …")
        if pip_installs(python, *source):
            return
    raise SetupError(
        "PyTorch could not be installed. Check the network, and that this Python is 3.10 to 3.13. "
        f"If you install PyTorch into {VENV} yourself, it is kept."
    )


def is_new_enough(version: str | None) -> bool:
    """Whether a PyTorch version such as `2.9.1+cu128` can be used."""
    match = re.match(r"(\d+)\.(\d+)", version or "")
    return match is not None and (int(match[1]), int(match[2])) >= OLDEST_TORCH


def torch_sources(machine: Machine) -> tuple[tuple[str, ...], ...]:
    """pip arguments that install PyTorch, in the order to try them."""
    default = (f"torch=={TORCH}",)
    if machine.offers_cpu_build:
        return ((f"torch=={TORCH}+cpu",), default)
    if machine.build == registry_build(machine.system) or not machine.reaches_torch_index:
        return (default,)
    oldest = ".".join(map(str, OLDEST_TORCH))
    return ((f"torch>={oldest},<={TORCH}", "--index-url", f"{TORCH_INDEX}/{machine.build}"), default)


def registry_build(system: str) -> str:
    """The build that pip installs by default."""
    return "cu130" if system == "Linux" else "cpu"


def cuda_build(cuda: tuple[int, int], capability: float | None) -> str:
    """The newest build that supports both the driver and the GPU.

    CUDA 13 dropped everything before Turing (compute capability 7.5).
    """
    if cuda >= (13, 0) and (capability is None or capability >= 7.5):
        return "cu130"
    return "cu126" if cuda >= (12, 0) else "cu118"


def inspect_machine(python: Path, *, cpu: bool) -> Machine:
    """What `torch_sources` needs to know; uses the network only if it matters, for one short request."""
    system = platform.system()
    cuda, capability = (None, None) if cpu or system == "Darwin" else find_nvidia()
    build = "cpu" if cuda is None else cuda_build(cuda, capability)
    if build == registry_build(system):
        return Machine(system, build)
    if build == "cpu" and offers_cpu_build(python):
        return Machine(system, build, offers_cpu_build=True)
    return Machine(system, build, reaches_torch_index=is_reachable(f"{TORCH_INDEX}/{build}/"))


def find_nvidia() -> tuple[tuple[int, int] | None, float | None]:
    """The CUDA version of the NVIDIA driver and the lowest compute capability of the GPUs; None if unknown."""
    driver = re.search(r"CUDA[^:|]*Version: *(\d+)\.(\d+)", output_of("nvidia-smi"))
    capabilities = output_of("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    cuda = (int(driver[1]), int(driver[2])) if driver else None
    return cuda, min(map(float, re.findall(r"^\d+\.\d+$", capabilities, re.M)), default=None)


def offers_cpu_build(python: Path) -> bool:
    """Whether pip's configured sources have a CPU build of our PyTorch."""
    return f"{TORCH}+cpu" in output_of(str(python), "-m", "pip", "index", "versions", "torch")


def output_of(*command: str) -> str:
    """The output of a command, "" if it fails or takes longer than a minute."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout if result.returncode == 0 else ""


def is_reachable(url: str, seconds: float = 3.0) -> bool:
    """Whether the URL responds in time. Uses a thread because name look-ups have no timeout."""
    answered = threading.Event()

    def request() -> None:
        head = urllib.request.Request(url, method="HEAD")
        with contextlib.suppress(OSError, ValueError), urllib.request.urlopen(head, timeout=seconds):
            answered.set()

    threading.Thread(target=request, daemon=True).start()
    return answered.wait(seconds)


# --- running the command ---------------------------------------------------------------------------


def run_command(python: Path, options: Options) -> int:
    """Run `python -m lib_lora_train`, in the caller's folder so that relative paths keep their meaning."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, **QUIET_LIBRARIES, "PYTHONPATH": path}
    flags = ("--cpu",) if options.cpu else ()
    command = [str(python), "-m", "lib_lora_train", options.command, *flags, *options.rest]
    if os.name == "posix":
        os.execve(command[0], command, environment)
    with subprocess.Popen(command, env=environment) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue  # the console sends Ctrl-C to the trainer too, which stops after its step


def run_tests(python: Path, options: Options) -> int:
    """Run the linters, the type checker and pytest (`tools/checks.py`); 0 only if all pass."""
    environment = {**os.environ, **QUIET_LIBRARIES, **({"CUDA_VISIBLE_DEVICES": "-1"} if options.cpu else {})}
    return subprocess.call([str(python), str(ROOT / "tools" / "checks.py"), *options.rest], env=environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
