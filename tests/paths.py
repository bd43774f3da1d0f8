"""Where the tests find the project and the files that they read."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lib_lora_train"
KOHYA_FILES = ROOT / "tests" / "files" / "kohya"
