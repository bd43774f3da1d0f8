"""What contributors are offered agrees with what the tests do: hooks, workflow, forms, the documentation site."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomlkit

import launch
from tests.paths import ROOT
from tests.prose import find_banned

yaml: Any = importlib.import_module("yaml")
CHECKS: Any = importlib.import_module("tools.checks")
docs_site: Any = importlib.import_module("tools.docs_site")


def read_yaml(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


# --- hooks and workflow -----------------------------------------------------------------------------


def test_the_hooks_before_a_commit_are_the_linters_of_launch_py() -> None:
    (local,) = read_yaml(".pre-commit-config.yaml")["repos"]
    linters = [(name, command) for name, command in CHECKS.checks(()) if name != "pytest"]
    assert [hook["name"] for hook in local["hooks"]] == [name for name, _ in linters]
    assert [hook["entry"] for hook in local["hooks"]] == [" ".join(["python -m", *command]) for _, command in linters]
    # In the active environment, and over the whole project as there: so versions and files are the same.
    assert {(hook["language"], hook["pass_filenames"]) for hook in local["hooks"]} == {("system", False)}


def test_every_linter_is_pinned_for_the_tests() -> None:
    pins = launch.read_pins(ROOT / "requirements-test.txt")
    assert {command[0] for _, command in CHECKS.checks(())} <= pins.keys()


def test_the_workflow_runs_the_same_on_every_supported_python() -> None:
    job = read_yaml(".github/workflows/test.yml")["jobs"]["test"]
    assert job["steps"][-1]["run"] == ".ci/run"
    minors = [int(version.split(".")[1]) for version in job["strategy"]["matrix"]["python"]]
    lowest, highest = re.findall(r"Python 3\.(\d+)–3\.(\d+)", (ROOT / "README.md").read_text(encoding="utf-8"))[0]
    assert minors == list(range(int(lowest), int(highest) + 1))
    project = tomlkit.parse((ROOT / "pyproject.toml").read_text(encoding="utf-8")).unwrap()["project"]
    assert project["requires-python"] == f">=3.{lowest}"


@pytest.mark.parametrize("form", ["bug", "feature"])
def test_a_form_asks_with_unique_fields(form: str) -> None:
    fields = read_yaml(f".github/ISSUE_TEMPLATE/{form}.yml")["body"]
    names = [field["id"] for field in fields if field["type"] != "markdown"]
    assert len(names) == len(set(names)) and any(field.get("validations", {}).get("required") for field in fields)
    assert all(field["attributes"].get("label") for field in fields if field["type"] != "markdown")


# --- releases ---------------------------------------------------------------------------------------


def test_the_newest_release_has_a_date_a_note_and_the_projects_version() -> None:
    project = tomlkit.parse((ROOT / "pyproject.toml").read_text(encoding="utf-8")).unwrap()["project"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.findall(r"^## (\d+\.\d+\.\d+) - (\d{4}-\d{2}-\d{2})$", changes, re.M)
    assert releases and releases[0][0] == project["version"]
    for version, date in releases:
        note = (ROOT / "docs" / "releases" / f"{version}.md").read_text(encoding="utf-8")
        assert note.startswith(f"# {version} - {date}\n")


# --- the documentation site -------------------------------------------------------------------------


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = [path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")]
    assert [str(page) for page in pages if page.name != "index" and not (tmp_path / "site" / page).is_dir()] == []
    assert (tmp_path / "site" / "examples" / "style.toml").is_file(), "what pages link to is there"


def test_the_site_needs_what_the_tests_pin() -> None:
    tests = launch.read_pins(ROOT / "requirements-test.txt")
    assert launch.read_pins(ROOT / "requirements-docs.txt").items() <= tests.items()


@pytest.mark.parametrize(
    ("page", "is_outside", "link", "there"),
    [
        ("index.md", False, "tab.md", "tab.md"),
        ("index.md", False, "../CHANGELOG.md", "CHANGELOG.md"),
        ("tiny-model.md", False, "../assets/tiny-sd/README.md", "assets/tiny-sd/README.md"),
        ("releases/0.1.0.md", False, "../methods.md", "../methods.md"),
        ("releases/0.1.0.md", False, "../../CHANGELOG.md", "../CHANGELOG.md"),
        ("CHANGELOG.md", True, "docs/methods.md", "methods.md"),
        ("examples/README.md", True, "../docs/parameters.md", "../parameters.md"),
        ("examples/README.md", True, "style.toml", "style.toml"),
        ("index.md", False, "https://example.org/a.md", "https://example.org/a.md"),
    ],
)
def test_links_are_rewritten_to_the_sites_places(page: str, is_outside: bool, link: str, there: str) -> None:
    found = docs_site.with_site_links(f"see [it]({link}#part)", page, is_outside=is_outside)
    assert found == f"see [it]({there}#part)"


# --- the recipes ------------------------------------------------------------------------------------

CODE = "\n".join(
    path.read_text(encoding="utf-8")
    for folder in ("lib_lora_train", "tests", "tools")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path != Path(__file__)
)
INVENTED = {"ortho", "Ortho", "max_timestep_weight", "max_weight", "is_cached"}  # by the guide
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
_FENCES = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def test_every_name_in_the_guide_is_in_the_code() -> None:
    inline = re.findall(r"`(\w+)`", _FENCES.sub("", GUIDE))
    called = [name for block in _FENCES.findall(GUIDE) for name in re.findall(r"\b(\w+)\(", block)]
    names = {name for name in (*inline, *called) if re.search("[A-Z_]", name) and not name.startswith("test_")}
    assert [name for name in sorted(names - INVENTED) if not re.search(rf"\b{name}\b", CODE)] == []


def test_every_file_in_the_guide_exists() -> None:
    paths = set(re.findall(r"`([\w./-]+/(?:[\w-]+\.\w+)?)`", GUIDE)) - {
        "lib_lora_train/adapters/families/ortho.py",
        "docs/releases/VERSION.md",
    }
    roots = (ROOT, ROOT / "lib_lora_train", ROOT / "lib_lora_train/adapters", ROOT / "lib_lora_train/config")
    missing = [path for path in sorted(paths) if not any((root / path).exists() for root in roots)]
    assert missing == [] and len(paths) > 20


# --- English ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["CONTRIBUTING.md", "examples/README.md", "docs/releases/*.md", "tools/make_*.py"])
def test_what_contributors_read_has_no_banned_words(pattern: str) -> None:
    found = [sentence for path in sorted(ROOT.glob(pattern)) for sentence in find_banned(path)]
    assert found == [], "\n" + "\n".join(found)
