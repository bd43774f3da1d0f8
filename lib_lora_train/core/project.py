"""The project's folder: the checkout, or the extension's folder inside a webui."""

from __future__ import annotations

from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parents[2]
