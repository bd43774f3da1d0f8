"""Shared fixtures: the embedded model and the demo dataset."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from lib_lora_train.core.cpu_environment import set_cpu_environment
from tests.paths import ROOT

# Both must be set before torch loads.
# Tiny models compute no faster on two threads, and on a busy machine two threads wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
set_cpu_environment(os.environ)

settings.register_profile("any machine", deadline=None)  # a loaded machine takes its time
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser tests come first: their files take longest, and none of them may be what one worker is left with."""
    items.sort(key=lambda item: item.get_closest_marker("browser") is None)


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Path:
    """The embedded tiny Stable Diffusion."""
    return ROOT / "assets" / "tiny-sd" / "tiny-sd.safetensors"


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Path:
    """The tokenizer folder that ships with it."""
    return ROOT / "assets" / "tiny-sd" / "tokenizer"


@pytest.fixture(scope="session")
def demo_dir() -> Path:
    """The shipped demo dataset."""
    return ROOT / "assets" / "demo"
