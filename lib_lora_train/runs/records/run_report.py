"""The report of a run, to be attached to a bug report: one text without names and paths."""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from lib_lora_train.config.parameters import parameters_of
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.anonymous import Anonymiser
from lib_lora_train.core.errors import LoraTrainError
from lib_lora_train.core.project import PROJECT_ROOT
from lib_lora_train.core.wording import count
from lib_lora_train.formats.toml import PATH_SETTINGS, read_toml_config
from lib_lora_train.hosts.gpu import find_gpu
from lib_lora_train.hosts.webui.version import webui_version
from lib_lora_train.runs.records.event_log import read_lines
from lib_lora_train.runs.records.folder import RunFolder

_LIBRARIES = ("torch", "diffusers", "transformers", "peft", "gradio")
_EVENTS, _STEPS = 45, 5
_LONGEST_TEXT, _MOST_ENTRIES = 20_000, 5_000
_NO_PERSON = ("root", "user", "")
_HEAD = """Report of a LoRA Train run
Names, prompts and paths are replaced: the same name, the same placeholder. Read it before you publish it, because a
message can quote words of a caption."""
_PUBLIC_TEXTS = frozenset(
    (
        "caption_extension",
        "keep_tokens_separator",
        "custom_optimizer",
        "optimizer_args",
        "block_ranks",
        "block_alphas",
        "down_lr_weight",
        "mid_lr_weight",
        "up_lr_weight",
        "webui_sampler",
        "resolutions",
        "alpha_background",
    )
)
_CHOICES = frozenset(p.name for kind in (TrainConfig, Concept) for p in parameters_of(kind) if p.choices)
_LABELS = ("kind", "state", "phase", "level", "family", "device", "adapter")


@dataclass(frozen=True)
class RunFacts:
    """What a report is made of: versions by name, the run's settings, its last events (None: an unreadable line) and
    its traceback. `settings_problem` says why there are none.
    """

    versions: Mapping[str, str]
    settings: Mapping[str, Any]
    settings_problem: str
    events: tuple[Mapping[str, Any] | None, ...]
    traceback: str


@dataclass(frozen=True)
class Place:
    """What is personal on this machine: folders and names with their kinds, and the roots of code."""

    folders: Mapping[str, str]
    names: Mapping[str, str]
    code_roots: Mapping[str, str]


def read_report(folder: RunFolder, host: str) -> str:
    """The report of the run in a folder, whatever is missing or damaged there; `host` is the name of the host."""
    settings, problem = _read_settings(folder)
    events = tuple(_last_events(folder))
    facts = RunFacts(read_versions(host), settings, problem, events, _read_text(folder.crash_report))
    return make_report(facts, read_place(folder, settings))


def make_report(facts: RunFacts, place: Place) -> str:
    """The text of the report, without what is personal."""
    prompts = [text for text in _texts(facts.settings.get("sample_prompts")) if text.strip()]
    names = {**place.names, **_setting_names(facts.settings), **dict.fromkeys(prompts, "prompt")}
    names |= dict.fromkeys((prompt.partition(" --")[0].strip() for prompt in prompts), "prompt")
    anonymiser = Anonymiser({**place.folders, **_setting_folders(facts.settings)}, names, place.code_roots)
    settings = [f"{name} = {_json(_shown(anonymiser, name, value))}" for name, value in facts.settings.items()]
    events = ["(a line that cannot be read)" if one is None else _json(_event(anonymiser, one)) for one in facts.events]
    parts = {
        "Versions": [f"{name}: {anonymiser.text(version)}" for name, version in facts.versions.items()],
        "Settings": settings or [anonymiser.text(facts.settings_problem) or "none"],
        "Last events": events or ["none"],
        "Traceback": [anonymiser.text(facts.traceback).strip() or "none"],
    }
    text = "\n\n".join([_HEAD, *("\n".join([f"## {title}", *lines]) for title, lines in parts.items())]) + "\n"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


# --- what is replaced ----------------------------------------------------------------------------


def _shown(anonymiser: Anonymiser, name: str, value: Any) -> Any:
    """A setting's value: numbers and choices unchanged, other texts as placeholders."""
    if isinstance(value, Mapping):
        return {key: _shown(anonymiser, key, one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shown(anonymiser, name, one) for one in value]
    if not isinstance(value, str):
        return value if isinstance(value, (bool, int, float)) else anonymiser.text(str(value))
    if name in _CHOICES or name in _PUBLIC_TEXTS:
        return anonymiser.text(value) if name in _PUBLIC_TEXTS else value
    if name in PATH_SETTINGS or name == "folder":
        return anonymiser.path(value) if value.strip() else value
    return anonymiser.hidden("text", value)


def _event(anonymiser: Anonymiser, record: Mapping[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for key, value in record.items():
        if key == "prompt" and isinstance(value, str):
            shown[key] = anonymiser.hidden("prompt", value)
        elif key == "standing_out" and isinstance(value, Mapping):  # tags and files of the dataset
            shown[key] = len(value)
        else:
            shown[key] = value if key in _LABELS else anonymiser.value(value)
    return shown


def _concepts(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    concepts = settings.get("concepts")
    return [one for one in concepts if isinstance(one, Mapping)] if isinstance(concepts, list) else []


def _setting_folders(settings: Mapping[str, Any]) -> dict[str, str]:
    """The datasets' folders."""
    return {text: "dataset" for one in _concepts(settings) for text in _texts(one.get("folder")) if text.strip()}


def _setting_names(settings: Mapping[str, Any]) -> dict[str, str]:
    """The words of the settings that can be personal, with their kinds."""
    names = {Path(folder).name: "dataset" for folder in _setting_folders(settings)}
    names |= {re.sub(r"^\d+_", "", name): kind for name, kind in names.items()}
    for one in _concepts(settings):
        for text in _texts(one.get("trigger")):
            names |= dict.fromkeys([text.strip(), *re.split(r"[\s,]+", text)], "trigger")
    for setting, kind in (("leave_out_tags", "tag"), ("leave_out_images", "file")):
        names |= dict.fromkeys(_texts(settings.get(setting)), kind)
    default = TrainConfig().output_name
    names |= dict.fromkeys((text for text in _texts(settings.get("output_name")) if text != default), "name")
    return {name: kind for name, kind in names.items() if name}


def _texts(value: Any) -> Iterator[str]:
    """The texts of a setting, none for a value of a wrong kind."""
    yield from (one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


# --- reading -------------------------------------------------------------------------------------


def read_versions(host: str) -> dict[str, str]:
    """The versions of everything that matters, and the devices, by name."""
    gpu = find_gpu(torch.device("cuda"))
    card = f"{gpu.name}, {gpu.total / 2**30:.1f} GiB, {gpu.free / 2**30:.1f} GiB free" if gpu else "none that is used"
    return {
        "LoRA Train": _own_version(),
        "Host": f"{host} {webui_version()}".strip(),
        "Python": platform.python_version(),
        **{name: _version(name) for name in _LIBRARIES},
        "System": f"{platform.system()} {platform.release()} {platform.machine()}",
        "CPU": f"{count(os.cpu_count() or 1, 'thread')}, {torch.get_num_threads()} used",
        "GPU": card,
    }


def read_place(folder: RunFolder, settings: Mapping[str, Any]) -> Place:
    """The personal names of this machine, of the run's folder and of its datasets' files."""
    names = {platform.node(): "machine", folder.root.name: "run", Path.home().name: "user", _user(): "user"}
    for dataset in _setting_folders(settings):
        names |= dict.fromkeys(_names_in(Path(dataset)), "file")
    roots = {
        str(PROJECT_ROOT): "<project>",
        sys.prefix: "<python>",
        sys.base_prefix: "<python>",
        str(Path.cwd()): "<webui>",
    }
    folders = {str(Path.home()): "home", str(folder.root.absolute()): "run"}
    return Place(folders, {name: kind for name, kind in names.items() if name not in _NO_PERSON}, roots)


def _names_in(folder: Path) -> list[str]:
    """Names of files and folders that the pattern of a file name does not cover: those with spaces, and folders."""
    try:
        paths: Iterable[Path] = list(islice(folder.rglob("*"), _MOST_ENTRIES))
    except (OSError, ValueError):
        return []
    return [path.name for path in paths if " " in path.name or not path.suffix]


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""


def _read_settings(folder: RunFolder) -> tuple[Mapping[str, Any], str]:
    """The settings as they are in the file; without them, why."""
    try:
        return read_toml_config(folder.config, is_ours=True), ""
    except (LoraTrainError, OSError, ValueError) as error:
        return {}, str(error)


def _last_events(folder: RunFolder) -> Iterator[Mapping[str, Any] | None]:
    """The last events in order; of the many steps only the last ones."""
    others: deque[tuple[int, Mapping[str, Any] | None]] = deque(maxlen=_EVENTS)
    steps: deque[tuple[int, Mapping[str, Any] | None]] = deque(maxlen=_STEPS)
    for number, record in enumerate(read_lines(folder.log)):
        (steps if record and record["kind"] in ("StepDone", "Progress") else others).append((number, record))
    yield from (record for _, record in sorted([*others, *steps], key=lambda pair: pair[0]))


def _read_text(path: Path) -> str:
    """The end of a text file; "" if there is none or it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")[-_LONGEST_TEXT:] if path.is_file() else ""
    except OSError:
        return ""


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _own_version() -> str:
    found = re.search(r'^version = "(.+)"', _read_text(PROJECT_ROOT / "pyproject.toml"), re.MULTILINE)
    return found[1] if found else "unknown"
