"""The English of docs, messages, comments and the page: no misspellings, and none of the words listed in prose.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import PACKAGE, ROOT
from tests.prose import find_banned

ROOMS = sorted(path.name for path in PACKAGE.iterdir() if path.is_dir() and not path.name.startswith("__"))
NOT_MISSPELT = "te"  # kohya's prefix of text encoder layers


def _files(place: str) -> list[Path]:
    if place == "docs":
        return sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
    if place == "javascript":
        return sorted((ROOT / "javascript").glob("*.js"))
    if place == "root":
        return [*sorted(ROOT.glob("*.py")), *sorted(PACKAGE.glob("*.py")), *sorted((ROOT / "scripts").glob("*.py"))]
    return sorted((PACKAGE / place).rglob("*.py"))


@pytest.mark.parametrize("place", [*ROOMS, "root", "javascript", "docs"])
def test_prose_has_no_banned_words(place: str) -> None:
    found = [sentence for file in _files(place) for sentence in find_banned(file)]
    assert found == [], "\n" + "\n".join(found)


def test_nothing_is_misspelt() -> None:
    paths = [ROOT / name for name in ("README.md", "CHANGELOG.md", "docs", "lib_lora_train", "javascript", "scripts")]
    command = [sys.executable, "-m", "codespell_lib", "--ignore-words-list", NOT_MISSPELT, "--skip", "*.pyc"]
    result = subprocess.run([*command, *map(str, paths)], capture_output=True, text=True, check=False)
    assert result.stdout == "" and result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("a.py", "x = 1\n# It is told here\n", 2),
        ("a.py", 'x = f"a {1} picture"\n', 1),
        ("a.py", 'def f():\n    """Fine.\n\n    Read anew.\n    """\n', 4),
        ("a.py", "# The run\n# goes on.\n", 2),
        ("a.md", "# Title\n\nEach file and where it lies.\n", 3),
        ("a.js", "/* at most so many */\n", 1),
        ("a.py", 'x = f"{share:.0f} % of it"\n', 1),
        ("a.js", "f(`${share} %`);\n", 1),
        ("a.md", "It is 5 % slower.\n", 1),
        ("a.js", "const told = 1;\nf(`a ${told} picture`);\n", 2),
        ("a.js", "/* fine\n   the mended one */\n", 2),
        ("a.md", "# Title\n\n`told` is code, this is no file.\n", 3),
    ],
)
def test_banned_words_are_found_in_text_but_not_in_code(tmp_path: Path, name: str, text: str, line: int) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    (found,) = find_banned(path)
    assert found.startswith(f"{name}:{line}: ")


def test_ordinary_sentences_have_no_banned_words(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text(
        "There is no file. This tells the two apart. Recommended. As many times as `told`.", encoding="utf-8"
    )
    assert list(find_banned(path)) == []
