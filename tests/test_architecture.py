"""Imports run downwards only, heavy and foreign packages stay in their rooms, importing does nothing.

The checker reads every import statement of the sources, those inside functions and `if TYPE_CHECKING` too.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.paths import ROOT

PACKAGE = "lib_lora_train"

GROUND = {"ground"}
DATA = {*GROUND, "data"}
MODELS = {*DATA, "models"}
ADAPTERS = {*MODELS, "adapters"}
FORMATS = {*ADAPTERS, "formats"}
TRAIN = {*FORMATS, "train"}
EVALUATE = {*TRAIN, "evaluate"}
HOSTS = {*FORMATS, "hosts"}
JOBS = {*EVALUATE, *HOSTS, "tools", "jobs"}
DEMO = {*JOBS, "demo"}
UI = {*DEMO, "ui"}

# Room → the rooms it may import from, itself among them.
MAY_IMPORT: dict[str, set[str]] = {
    "ground": GROUND,
    "data": DATA,
    "models": MODELS,
    "adapters": ADAPTERS,
    "formats": FORMATS,
    "train": TRAIN,
    "evaluate": EVALUATE,
    "tools": {*FORMATS, "tools"},
    "hosts": HOSTS,
    "jobs": JOBS,
    "demo": DEMO,
    "ui": UI,
    "cli": {*UI, "cli"},
    "scripts": {*UI, "scripts"},
}
GROUND_MODULES = [
    "block_lists",
    "config",
    "errors",
    "events",
    "judge",
    "judge_captions",
    "judge_concepts",
    "judge_network",
    "judge_training",
    "judge_optimizer",
    "judge_problems",
    "optimizer_args",
    "optimizer_kinds",
    "parameters",
    "presets",
    "progress",
    "randomness",
    "run_folder",
    "run_log",
    "history",
    "run_queue",
    "tensor_header",
    "typed_paths",
    "whole_file",
]
ROOM_OF_MODULE = {
    **dict.fromkeys(GROUND_MODULES, "ground"),
    "jobs": "jobs",
    "board": "jobs",
    "job_files": "jobs",
    "job_pictures": "jobs",
    "job_run": "jobs",
    "runner": "jobs",
    "planning": "jobs",
    "forecast": "jobs",
    "memory_estimate": "jobs",
    "time_estimate": "jobs",
    "painted": "jobs",
    "auto_tag": "jobs",
    "long_work": "jobs",
    "past_runs": "jobs",
    "demo": "demo",
    "cli": "cli",
    "cli_settings": "cli",
    "cli_tools": "cli",
    "terminal": "cli",
    "__main__": "cli",
}

# Package → the rooms that may import it; all other rooms may not.
WEBUI = ("modules", "modules_forge", "backend", "ldm_patched", "k_diffusion", "sgm", "ldm")
ONLY_IN: dict[str, set[str]] = {
    **{name: {"hosts", "scripts"} for name in WEBUI},
    "fastapi": {"hosts"},
    "gradio": {"ui"},
    "peft": {"models", "adapters"},
    "transformers": {"models"},
    "diffusers": {"models", "train"},
    "onnxruntime": {"data"},
    "torch": set(MAY_IMPORT) - {"ground", "data", "ui", "cli", "scripts"},
    "safetensors": set(MAY_IMPORT) - {"ground", "data", "ui", "cli", "scripts"},
}
STDLIB_ONLY = {"ground", "root"}
UNPLACED = "unplaced"  # a new module beside the rooms: give it one in ROOM_OF_MODULE


@dataclass(frozen=True)
class Import:
    """One import of `target` (a dotted name) in `file`, a path relative to the repository."""

    file: str
    line: int
    target: str
    at_load: bool


def room_of(file: str) -> str:
    """`lib_lora_train/data/scan.py` → data; launch.py and install.py → root."""
    parts = Path(file).with_suffix("").parts
    if parts[0] == "scripts":
        return "scripts"
    if parts[0] != PACKAGE:
        return "root"
    if len(parts) > 2:
        return "ground" if parts[1] == "settings" else parts[1]
    return "ground" if parts[1] == "__init__" else ROOM_OF_MODULE.get(parts[1], UNPLACED)


def imports_in(file: str, source: str) -> Iterator[Import]:
    """Every import of a source file; relative ones are made absolute."""
    tree = ast.parse(source, file)
    loaded = {id(node) for node in _run_at_load(tree)}
    package = Path(file).with_suffix("").parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield Import(file, node.lineno, name.name, id(node) in loaded)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for name in node.names:
                yield Import(file, node.lineno, f"{origin}.{name.name}", id(node) in loaded)


def _run_at_load(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that importing the file executes: nothing within functions or `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _run_at_load(node)


def module_file(target: str, files: Mapping[str, str]) -> str | None:
    """The source file that `target` (module, or name in a module) lies in."""
    path = target.replace(".", "/")
    parent = path.rpartition("/")[0]
    candidates = (f"{path}.py", f"{path}/__init__.py", f"{parent}.py")  # __init__ files are empty: no names in them
    return next((c for c in candidates if c in files), None)


def violations(files: Mapping[str, str]) -> list[str]:
    """A sentence for every import that is not allowed; `files` maps path → source."""
    found = []
    for file, source in files.items():
        room = room_of(file)
        for item in imports_in(file, source):
            reason = _judge(room, item, files)
            if reason:
                found.append(f"{file}:{item.line}: {room} imports {item.target}: {reason}")
    return found + [f"modules import each other: {' → '.join(cycle)}" for cycle in load_cycles(files)]


def _judge(room: str, item: Import, files: Mapping[str, str]) -> str:
    top = item.target.partition(".")[0]
    if top == PACKAGE:
        target = module_file(item.target, files)
        if target is None:
            return "there is no such module"
        if room_of(target) not in MAY_IMPORT.get(room, ()):
            return f"{room_of(target)} is not below"
        return ""
    if top in sys.stdlib_module_names:
        return ""
    if room in STDLIB_ONLY:
        return "only the standard library is allowed here"
    if room == "scripts" and top not in WEBUI:
        return "only our own package and the webui's modules are allowed here"
    if top in ONLY_IN and room not in ONLY_IN[top]:
        return f"only {', '.join(sorted(ONLY_IN[top]))} may"
    return ""


def load_cycles(files: Mapping[str, str]) -> list[list[str]]:
    """Cycles among our modules by what they import when they are loaded."""
    edges: dict[str, set[str]] = {}
    for file, source in files.items():
        targets = (module_file(i.target, files) for i in imports_in(file, source) if i.at_load)
        edges[file] = {target for target in targets if target and target != file}
    cycles: list[list[str]] = []
    finished: set[str] = set()

    def visit(file: str, trail: list[str]) -> None:
        if file in trail:
            cycles.append([*trail[trail.index(file) :], file])
        elif file not in finished:
            for target in sorted(edges[file]):
                visit(target, [*trail, file])
            finished.add(file)

    for file in sorted(edges):
        visit(file, [])
    return cycles


def read_sources() -> dict[str, str]:
    """Path → source of everything that the rules are about."""
    paths = [*(ROOT / PACKAGE).rglob("*.py"), *(ROOT / "scripts").glob("*.py"), ROOT / "launch.py", ROOT / "install.py"]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def test_imports_run_downwards_only() -> None:
    assert violations(read_sources()) == []


def test_every_module_has_a_room() -> None:
    assert [file for file in read_sources() if room_of(file) not in {*MAY_IMPORT, "root"}] == []


def test_the_table_of_rooms_has_no_cycle() -> None:
    pairs = [(room, below) for room, rooms in MAY_IMPORT.items() for below in rooms if below != room]
    assert [(a, b) for a, b in pairs if a in MAY_IMPORT[b]] == []
    gaps = [(a, b, c) for a, b in pairs for c in MAY_IMPORT[b] if c not in MAY_IMPORT[a]]
    assert gaps == [], "what a room below may import, the room above may too"


def test_package_init_files_are_empty() -> None:
    written = [file for file, source in read_sources().items() if file.endswith("__init__.py") and source.strip()]
    assert written == []


_BASE = {f"{PACKAGE}/__init__.py": "", f"{PACKAGE}/data/__init__.py": "", f"{PACKAGE}/errors.py": "import ast\n"}


@pytest.mark.parametrize(
    ("file", "source", "reason"),
    [
        ("data/scan.py", "import torch\n", "data imports torch"),
        (
            "data/scan.py",
            "def scan():\n    from lib_lora_train.models.checkpoint import load_vae\n",
            "models is not below",
        ),
        ("data/scan.py", "if TYPE_CHECKING:\n    import lib_lora_train.models.checkpoint\n", "models is not below"),
        ("data/scan.py", "from ..models import load\n", "models is not below"),
        ("events.py", "import numpy\n", "only the standard library"),
        ("models/load.py", "from modules import shared\n", "only hosts, scripts may"),
        ("models/load.py", "import lib_lora_train.nowhere\n", "there is no such module"),
        ("train/loop.py", "import gradio as gr\n", "only ui may"),
        ("ui/tab.py", "from fastapi import FastAPI\n", "only hosts may"),
        ("ui/tab.py", "import torch.nn\n", "ui imports torch.nn"),
        ("../launch.py", "import tqdm\n", "only the standard library"),
        ("../launch.py", "import lib_lora_train.core.errors\n", "is not below"),
        ("../scripts/lora_train.py", "import numpy\n", "only our own package"),
        ("data/scan.py", "from lib_lora_train.data import plan\n", "modules import each other"),
    ],
)
def test_the_checker_finds_a_violation(file: str, source: str, reason: str) -> None:
    files = {
        **_BASE,
        f"{PACKAGE}/models/load.py": "",
        f"{PACKAGE}/data/plan.py": "import lib_lora_train.dataset.scan\n",
        f"{PACKAGE}/data/scan.py": "",
    }
    assert violations(files) == []
    path = file[3:] if file.startswith("../") else f"{PACKAGE}/{file}"
    found = violations({**files, path: source})
    assert len(found) == 1
    assert reason in found[0]


def test_downward_imports_are_allowed() -> None:
    files = {
        **_BASE,
        f"{PACKAGE}/data/scan.py": "from PIL import Image\nfrom lib_lora_train.core.errors import DataError\n",
        f"{PACKAGE}/jobs.py": "from lib_lora_train.dataset.scan import scan_dataset\nimport torch\n",
    }
    assert violations(files) == []


_LIGHT = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(sorted({"torch", "diffusers", "transformers", "gradio"} & set(sys.modules)))
"""


def test_the_command_line_starts_without_loading_heavy_packages() -> None:
    command = [sys.executable, "-c", _LIGHT, f"{PACKAGE}.cli", f"{PACKAGE}.terminal", f"{PACKAGE}.config"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


_AUDIT = """
import contextlib, importlib, json, os, sys, threading
for name in ("torch", "diffusers", "transformers", "peft", "safetensors.torch", "fastapi", "tqdm", "tomlkit", "gradio"):
    importlib.import_module(name)
threads, found = set(threading.enumerate()), []
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
EVENTS = ("os.mkdir", "os.remove", "os.rename", "os.putenv", "subprocess.Popen", "os.system")
def watch(event, details):
    if event == "open":
        if not isinstance(details[0], int) and details[2] & WRITING:
            found.append(f"writes {details[0]}")
    elif event in EVENTS or event.startswith("socket."):
        found.append(f"{event} {details[0]}")
sys.addaudithook(watch)
state = (os.getcwd(), dict(os.environ))
import torch, random
seeds = (torch.initial_seed(), random.getstate())
for name in sys.argv[1:]:
    importlib.import_module(name)
found += [f"starts {thread}" for thread in set(threading.enumerate()) - threads]
if state != (os.getcwd(), dict(os.environ)): found.append("changes folder or environment")
if seeds != (torch.initial_seed(), random.getstate()): found.append("uses global randomness")
if torch.cuda.is_initialized(): found.append("initialises CUDA")
print(json.dumps(found))
"""


@pytest.mark.slow
def test_importing_the_whole_package_does_nothing(tmp_path: Path) -> None:
    files = [Path(file) for file in read_sources() if file.startswith(PACKAGE)]
    names = sorted({".".join(f.with_suffix("").parts).removesuffix(".__init__") for f in files})
    answer = subprocess.run(
        [sys.executable, "-B", "-c", _AUDIT, *names],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout.splitlines()[-1]) == []
