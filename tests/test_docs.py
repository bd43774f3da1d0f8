"""The documentation is complete, current and without dead links."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import tomlkit

import launch
from lib_lora_train.cli.flags import GROUPS
from lib_lora_train.cli.main import make_parser
from lib_lora_train.config.parameters import parameters_of
from lib_lora_train.config.train_config import Concept, TrainConfig, read_config
from tests.paths import ROOT

PAGES = sorted(path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("assets/*/*.md")])
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def _anchors(page: Path) -> set[str]:
    """The anchors that a Markdown page's headings get."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _dead_links(page: Path) -> list[str]:
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    dead = []
    for groups in _LINK.findall(text):
        link = groups[0] or groups[1]
        if re.match(r"[a-z]+:", link):
            continue  # the network is not asked
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in _anchors(target)):
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    assert _dead_links(page) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text('# Top\n[a](#top) [b](#nowhere) ![c](gone.png) <img src="lost.png"> [d](https://example.org)\n')
    assert _dead_links(page) == ["#nowhere", "gone.png", "lost.png"]


def test_the_parameter_page_is_current() -> None:
    made = runpy.run_path(str(ROOT / "tools" / "make_parameter_page.py"))["parameter_page"]()
    written = (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8")
    assert written == made, "run: python -m tools.make_parameter_page"


@pytest.mark.parametrize("declared", [TrainConfig, Concept])
def test_every_parameter_is_documented(declared: type) -> None:
    page = (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8")
    undocumented = [p.name for p in parameters_of(declared) if f"| `{p.name}` | {p.help[:20]}" not in page]
    assert undocumented == []
    assert {p.group for p in parameters_of(declared)} <= set(GROUPS)


def test_the_glossary_is_sorted_and_has_one_line_per_term() -> None:
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^\| ([^|]+) \| [^|]+\. \|$", page, re.MULTILINE)
    assert len(terms) == page.count("\n| ") - 1
    assert terms == sorted(terms, key=str.lower)


def test_every_parameter_has_a_whole_sentence_of_help() -> None:
    parameters = [*parameters_of(TrainConfig), *parameters_of(Concept)]
    assert [p.name for p in parameters if len(p.help) < 15 or p.help[-1] not in ".`"] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_settings_in_the_documentation_can_be_read(page: Path) -> None:
    for language, text in _FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "toml":
            _, problems = read_config(tomlkit.parse(text).unwrap())
            assert problems == ()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_in_the_documentation_exist(page: Path) -> None:
    flags = {*_flags(), "--cpu", "--no-venv"}
    for line in re.findall(r"python launch\.py([^`\n|]*)", page.read_text(encoding="utf-8")):
        words = line.split()
        if words and not words[0].startswith(("-", "(")):
            assert words[0] in launch.COMMANDS, line
        if words[:1] in (["train"], ["demo"]):
            assert {word.strip("[]") for word in words if word.strip("[]").startswith("--")} <= flags, line


def _flags() -> set[str]:
    commands = make_parser()._subparsers
    assert commands is not None
    parsers = commands._group_actions[0].choices
    assert isinstance(parsers, dict)
    return {flag for parser in parsers.values() for action in parser._actions for flag in action.option_strings}
