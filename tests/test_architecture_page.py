"""The diagram and table of rooms in docs/architecture.md match the code."""

from __future__ import annotations

import runpy

from tests.paths import ROOT

TOOL = runpy.run_path(str(ROOT / "tools" / "make_architecture_page.py"))


def test_the_architecture_page_is_current() -> None:
    written = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert written == TOOL["architecture_page"](), "run: python -m tools.make_architecture_page"


def test_the_diagram_leaves_out_imports_by_way_of_another_room() -> None:
    imports = {"top": ("middle", "bottom"), "middle": ("bottom",), "bottom": ()}
    assert TOOL["direct_imports"](imports) == {"top": ("middle",), "middle": ("bottom",), "bottom": ()}
