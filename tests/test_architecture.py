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

# Room → the rooms it may import from, beside itself and what those may import. Read downwards they tell a run.
BELOW: dict[str, tuple[str, ...]] = {
    "core": (),
    "config": ("core",),
    "dataset": ("config",),
    "dataset_tools": ("dataset",),
    "models": ("dataset",),
    "adapters": ("models",),
    "formats": ("models",),
    "methods": ("adapters",),
    "training": ("methods",),
    "sampling": ("training",),
    "lora_tools": ("adapters", "formats"),
    "evaluation": ("sampling",),
    "hosts": ("sampling", "dataset_tools"),
    "runs": ("evaluation", "hosts", "training", "formats"),
    "api": ("runs", "lora_tools"),
    "web": ("runs", "dataset_tools", "lora_tools"),
    "ui": ("web",),
    "cli": ("ui",),
    "scripts": ("ui",),
}


def _reachable(room: str) -> set[str]:
    return {room}.union(*(_reachable(below) for below in BELOW[room]))


MAY_IMPORT: dict[str, set[str]] = {room: _reachable(room) for room in BELOW}

# Package → the rooms that may import it; all other rooms may not.
WEBUI = ("modules", "modules_forge", "backend", "ldm_patched", "k_diffusion", "sgm", "ldm")
ONLY_IN: dict[str, set[str]] = {
    **{name: {"hosts", "scripts"} for name in WEBUI},
    "fastapi": {"web"},
    "gradio": {"ui"},
    "peft": {"models", "adapters"},
    "transformers": {"models"},
    "diffusers": {"models", "training"},
    "onnxruntime": {"dataset_tools"},
    "torch": set(BELOW) - {"core", "config", "dataset", "dataset_tools", "web", "ui", "cli", "scripts"},
    "safetensors": set(BELOW) - {"core", "config", "dataset", "dataset_tools", "web", "ui", "cli", "scripts"},
}
STDLIB_ONLY = {"core", "config", "root"}
LOOSE = "loose"  # a module beside the rooms: only __init__.py and __main__.py stand there
MOST_ARROWS = 100


@dataclass(frozen=True)
class Import:
    """One import of `target` (a dotted name) in `file`, a path relative to the repository."""

    file: str
    line: int
    target: str
    at_load: bool


def room_of(file: str) -> str:
    """`lib_lora_train/dataset/scan.py` → dataset; launch.py and install.py → root."""
    parts = Path(file).with_suffix("").parts
    if parts[0] == "scripts":
        return "scripts"
    if parts[0] != PACKAGE:
        return "root"
    if len(parts) > 2:
        return parts[1]
    return {"__init__": "api", "__main__": "cli"}.get(parts[1], LOOSE)


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
    assert [file for file in read_sources() if room_of(file) not in {*BELOW, "root"}] == []


def test_the_table_of_rooms_has_no_cycle() -> None:
    pairs = [(room, below) for room, rooms in MAY_IMPORT.items() for below in rooms if below != room]
    assert [(a, b) for a, b in pairs if a in MAY_IMPORT[b]] == []


def test_rooms_have_few_arrows_between_them() -> None:
    files = read_sources()
    targets = [(room_of(file), module_file(i.target, files)) for file in files for i in imports_in(file, files[file])]
    arrows = {(room, room_of(target)) for room, target in targets if target}
    assert len({(a, b) for a, b in arrows if a != b}) <= MOST_ARROWS


def test_package_init_files_are_empty() -> None:
    written = [file for file, source in read_sources().items() if file.endswith("__init__.py") and source.strip()]
    # The package's own one offers the public API, and loads it only when it is used (tests/api/test_public.py).
    assert written == [f"{PACKAGE}/__init__.py"]


_BASE = {
    f"{PACKAGE}/__init__.py": "",
    f"{PACKAGE}/dataset/__init__.py": "",
    f"{PACKAGE}/core/errors.py": "import ast\n",
}


@pytest.mark.parametrize(
    ("file", "source", "reason"),
    [
        ("dataset/scan.py", "import torch\n", "dataset imports torch"),
        (
            "dataset/scan.py",
            "def scan():\n    from lib_lora_train.models.checkpoint import load_vae\n",
            "models is not below",
        ),
        ("dataset/scan.py", "if TYPE_CHECKING:\n    import lib_lora_train.models.checkpoint\n", "models is not below"),
        ("dataset/scan.py", "from ..models import checkpoint\n", "models is not below"),
        ("core/events.py", "import numpy\n", "only the standard library"),
        ("models/checkpoint.py", "from modules import shared\n", "only hosts, scripts may"),
        ("models/checkpoint.py", "import lib_lora_train.nowhere\n", "there is no such module"),
        ("training/loop.py", "import gradio as gr\n", "only ui may"),
        ("ui/tab.py", "from fastapi import FastAPI\n", "only web may"),
        ("ui/tab.py", "import torch.nn\n", "ui imports torch.nn"),
        ("../launch.py", "import tqdm\n", "only the standard library"),
        ("../launch.py", "import lib_lora_train.core.errors\n", "is not below"),
        ("../scripts/lora_train.py", "import numpy\n", "only our own package"),
        ("dataset/scan.py", "from lib_lora_train.dataset import plan\n", "modules import each other"),
    ],
)
def test_the_checker_finds_a_violation(file: str, source: str, reason: str) -> None:
    files = {
        **_BASE,
        f"{PACKAGE}/models/checkpoint.py": "",
        f"{PACKAGE}/dataset/plan.py": "import lib_lora_train.dataset.scan\n",
        f"{PACKAGE}/dataset/scan.py": "",
    }
    assert violations(files) == []
    path = file[3:] if file.startswith("../") else f"{PACKAGE}/{file}"
    found = violations({**files, path: source})
    assert len(found) == 1
    assert reason in found[0]


def test_downward_imports_are_allowed() -> None:
    files = {
        **_BASE,
        f"{PACKAGE}/dataset/scan.py": "from PIL import Image\nfrom lib_lora_train.core.errors import DataError\n",
        f"{PACKAGE}/runs/trainer.py": "from lib_lora_train.dataset.scan import scan_dataset\nimport torch\n",
    }
    assert violations(files) == []


_LIGHT = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(sorted({"torch", "diffusers", "transformers", "gradio"} & set(sys.modules)))
"""


def test_the_command_line_starts_without_loading_heavy_packages() -> None:
    command = [
        sys.executable,
        "-c",
        _LIGHT,
        f"{PACKAGE}.cli.main",
        f"{PACKAGE}.cli.terminal",
        f"{PACKAGE}.config.train_config",
    ]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_a_webui_starts_without_loading_what_trains() -> None:
    """The tab and routes are registered with the settings and the page alone; a page that loads opens the rest."""
    script = f"import sys, gradio, {PACKAGE}.ui.extension; print(*sorted(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(answer.stdout.split())
    assert not loaded & {"torch", "diffusers", "transformers", "peft"}
    own = {name for name in loaded if name.startswith(f"{PACKAGE}.")}
    heavy = ("adapters", "api", "evaluation", "lora_tools", "models", "runs", "training")
    assert {name.split(".")[1] for name in own}.isdisjoint(heavy) and len(own) < 115


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
