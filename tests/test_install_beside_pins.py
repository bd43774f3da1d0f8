"""install.py, run as by the webuis, adds packages to their environment and changes none.

The pins of each webui's `requirements_versions.txt` that share dependencies with ours are really installed into a
separate environment. Only PyTorch is replaced by its metadata, which is all that pip reads of it here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.paths import ROOT

PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input", "--retries", "1", "--timeout", "15")
OURS = {"diffusers", "peft", "prodigyopt", "tomlkit"}
NAME = re.compile(r"[\w.-]+")
_LIST = """
import importlib.metadata, json
found = importlib.metadata.distributions()
print(json.dumps([[d.metadata["Name"], d.version, d.requires or []] for d in found]))
"""

A1111 = [
    "torch==2.1.2+cu121",
    "Pillow==9.5.0",
    "accelerate==0.21.0",
    "fastapi==0.94.0",
    "httpcore==0.15",
    "httpx==0.24.1",
    "numpy==1.26.2",
    "protobuf==3.20.0",
    "psutil==5.9.5",
    "pydantic==1.10.27",
    "safetensors==0.4.2",
    "transformers==4.30.2",
]
FORGE = [
    "torch==2.3.1+cu121",
    "Pillow==9.5.0",
    "accelerate==0.31.0",
    "diffusers==0.31.0",
    "fastapi==0.104.1",
    "httpcore==0.15",
    "httpx==0.24.1",
    "huggingface-hub==0.26.2",
    "numpy==1.26.2",
    "peft==0.13.2",
    "protobuf==3.20.0",
    "psutil==5.9.5",
    "pydantic==2.8.2",
    "safetensors==0.4.2",
    "tqdm==4.66.1",
    "transformers==4.46.1",
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.version_info >= (3, 12), reason="these pins have no wheels for a newer Python"),
]


def plain(requirement: str) -> str:
    """`Importlib_Metadata>=1 ; marker` → importlib-metadata."""
    match = NAME.match(requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


@dataclass(frozen=True)
class Webui:
    """A webui's folder and its environment."""

    folder: Path

    @property
    def environment(self) -> Path:
        return self.folder / "venv"

    @property
    def python(self) -> Path:
        return self.environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """This environment's Python in the webui's folder, with the webui's search path, as its launch.py does it."""
        return subprocess.run(
            [str(self.python), *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.folder), "PYTHONIOENCODING": "utf-8", "PIP_NO_COMPILE": "1"},
            capture_output=True,
            encoding="utf-8",
            check=False,
        )

    def listed(self) -> list[tuple[str, str, set[str]]]:
        """Name, version and the names of what it may need, of everything installed."""
        found = json.loads(self.run("-c", _LIST).stdout)
        return [(plain(name), version, {plain(need) for need in needs}) for name, version, needs in found]

    def packages(self) -> dict[str, str]:
        """Name → version of everything installed."""
        return {name: version for name, version, _ in self.listed()}

    def needed_by(self, names: set[str]) -> set[str]:
        """These packages, what they may need, what that may need, and so on."""
        installed, reached = self.listed(), set(names)
        while more := set().union(*(needs for name, _, needs in installed if name in reached)) - reached:
            reached |= more
        return reached

    def complaints(self) -> set[str]:
        """Every requirement of an installed package that is not met."""
        return {line for line in self.run(*PIP, "check").stdout.splitlines() if "No broken" not in line}

    def start(self) -> str:
        """What install.py says at a start of the webui."""
        answer = self.run(str(ROOT / "install.py"))
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    def pretend(self, *pins: str) -> None:
        """Installs the metadata of these packages, without a file of theirs and without what they need."""
        (library,) = self.environment.glob("[Ll]ib/**/site-packages")
        for pin in pins:
            name, version = pin.split("==")
            folder = library / f"{name}-{version}.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            (folder / "INSTALLER").write_text("pip\n")
            (folder / "RECORD").write_text(
                f"{folder.name}/METADATA,,\n{folder.name}/INSTALLER,,\n{folder.name}/RECORD,,\n"
            )


@pytest.fixture
def webui(tmp_path: Path) -> Webui:
    """A webui with nothing installed; skipped where no package registry answers."""
    made = Webui(tmp_path)
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "launch_utils.py").touch()
    venv.create(made.environment, with_pip=True)
    answer = made.run(*PIP, "download", "--quiet", "--no-deps", "--dest", "answer", "tomlkit==0.14.0")
    if answer.returncode:
        pytest.skip(f"the package registry does not answer: {answer.stderr.strip().splitlines()[-1]}")
    return made


@pytest.mark.parametrize(
    ("pins", "lacking"), [(A1111, OURS), (FORGE, {"prodigyopt", "tomlkit"})], ids=["a1111", "forge"]
)
def test_no_package_of_the_webui_changes(webui: Webui, pins: list[str], lacking: set[str]) -> None:
    torch, *others = pins
    webui.pretend(torch)
    prepared = webui.run(*PIP, "install", "--quiet", "--only-binary", ":all:", *others)
    assert prepared.returncode == 0, prepared.stderr
    before, complaints = webui.packages(), webui.complaints()
    assert dict(pin.lower().split("==") for pin in pins).items() <= {**before, "httpcore": "0.15"}.items()

    said = webui.start()
    after = webui.packages()
    assert "could not be installed" not in said
    assert {name: after.get(name) for name in before} == before
    assert lacking <= after.keys() - before.keys() <= webui.needed_by(lacking)
    assert webui.complaints() <= complaints, "what is added must have all it needs, in the versions it needs"

    assert webui.start() == "", "the second start finds nothing to do"
    assert webui.packages() == after


def test_package_that_would_change_another_is_not_installed(webui: Webui) -> None:
    """No diffusers we can use runs with safetensors 0.3.0. pip by itself would replace it; install.py gives up."""
    webui.pretend("torch==2.1.2", "transformers==4.30.2", "accelerate==0.21.0", "safetensors==0.3.0")
    before = webui.packages()
    alone = webui.run(*PIP, "install", "--dry-run", "--no-deps", "safetensors>=0.3.1")
    assert "Would install safetensors" in alone.stdout

    assert "could not be installed" in webui.start()
    assert webui.packages() == before
