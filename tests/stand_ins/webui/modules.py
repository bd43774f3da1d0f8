"""How a stand-in puts modules of a webui in place, for the time of a test."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest


def module_of(name: str, **values: Any) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(values)
    return module


def install(monkeypatch: pytest.MonkeyPatch, *found: ModuleType) -> None:
    for module in found:
        monkeypatch.setitem(sys.modules, module.__name__, module)
        parent, _, child = module.__name__.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
