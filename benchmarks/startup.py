"""What the extension adds to a webui's start, and what the first page that loads adds later.

    python benchmarks/startup.py [--rounds 5]

Each round is a new Python process that imports what a webui has imported before any extension (gradio, PyTorch,
transformers), then registers the tab as a webui does, then opens the session as the first page does. Processor time,
so that other programs disturb little; the medians are printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_ROUND = """
import json, sys, tempfile, time
from pathlib import Path
import gradio, torch, fastapi
from transformers import CLIPTextModel, CLIPTokenizer
began = time.process_time()
from lib_lora_train.ui.extension import build_tab, lazy_session
home = Path(tempfile.mkdtemp())
def open_here():
    from lib_lora_train.hosts.standalone import StandaloneHost
    from lib_lora_train.ui.app import open_session
    return open_session(home / "outputs", lambda: StandaloneHost(None, None, home / "Lora"))
session = lazy_session(open_here)
build_tab(session)
registered, modules = time.process_time(), len([name for name in sys.modules if name.startswith("lib_lora_train")])
session.draft()
opened = time.process_time()
print(json.dumps([registered - began, opened - registered, modules]))
"""


def main() -> None:
    """Print the medians of all rounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    rounds = [_round() for _ in range(parser.parse_args().rounds)]
    start, first_page, modules = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"start: {1000 * start:.0f} ms, {modules:.0f} modules; first page: {1000 * first_page:.0f} ms more")


def _round() -> list[float]:
    answer = subprocess.run([sys.executable, "-c", _ROUND], cwd=ROOT, capture_output=True, text=True, check=True)
    values: list[float] = json.loads(answer.stdout.splitlines()[-1])
    return values


if __name__ == "__main__":
    main()
