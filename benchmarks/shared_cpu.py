"""Training on a CPU beside busy processes: how much faster it is with threads that do not spin while they wait.

    python -m benchmarks.shared_cpu [--busy 2] [--rounds 3] [--seconds 3]

Each round trains for some seconds in fresh processes, in the order A B C C B A: as PyTorch does it by itself (A), with
`OMP_WAIT_POLICY=PASSIVE`, as `launch.py` and the command line set it (B), and with the thread limit that is used inside
a webui (C). The busy processes run only while steps are counted. A round takes less than a minute, and prints its
result at once. Only the ratios count.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = {"as PyTorch does it": {}, "waiting passively": {"OMP_WAIT_POLICY": "PASSIVE"}, "thread limit": {}}
_LIMIT_MEASURES_SECONDS = 2.1  # how long the thread limit looks at the other processes before it first acts
_BLOCKS = 8


def make_step() -> Any:
    """A function that takes one training step of small layers of a UNet's kinds: many short parallel regions."""
    import torch
    from torch import nn

    def block() -> nn.Module:
        return nn.Sequential(nn.GroupNorm(32, 64), nn.SiLU(), nn.Conv2d(64, 64, 3, padding=1))

    torch.manual_seed(0)
    layers = nn.Sequential(*(block() for _ in range(_BLOCKS)))
    attention = nn.MultiheadAttention(64, 8, batch_first=True)
    images = torch.randn(2, 64, 16, 16)

    def step() -> None:
        tokens = layers(images).flatten(2).transpose(1, 2)
        attention(tokens, tokens, tokens)[0].square().mean().backward()

    return step


def measure(name: str, seconds: float) -> float:
    """Steps per second, beside the busy processes that the parent starts when this one is ready."""
    import torch

    from lib_lora_train.hosts.webui.cpu_threads import ThreadLimit, limited_threads

    has_limit, step, device = name == "thread limit", make_step(), torch.device("cpu")
    threads = ThreadLimit(torch.get_num_threads()) if has_limit else None
    step()
    print("ready", flush=True)
    sys.stdin.readline()
    if has_limit:
        with limited_threads(threads, device):
            step()
        time.sleep(_LIMIT_MEASURES_SECONDS)
    began, steps = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        with limited_threads(threads, device):
            step()
        steps += 1
    return steps / (time.monotonic() - began)


def run_one(name: str, options: argparse.Namespace) -> float:
    """One measurement in a separate process, since the wait policy is read when PyTorch is loaded."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "MKL_"))}
    command = [sys.executable, "-m", "benchmarks.shared_cpu", "--one", name, "--seconds", str(options.seconds)]
    busy: list[subprocess.Popen[bytes]] = []
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**environment, **VARIANTS[name]},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin and child.stdout
    try:
        child.stdout.readline()
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.busy)]
        return float(child.communicate("\n")[0].splitlines()[-1])
    finally:
        for process in (*busy, child):
            process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=2, help="processes that compute beside it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each measurement counts steps")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(measure(options.one, options.seconds))
        return
    speeds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for number in range(1, options.rounds + 1):
        began = time.monotonic()
        for name in [*VARIANTS, *reversed(VARIANTS)]:
            speeds[name].append(run_one(name, options))
        print(f"\nround {number} of {options.rounds}, {time.monotonic() - began:.0f} s, {options.busy} busy")
        first = statistics.median(next(iter(speeds.values())))
        for name, values in speeds.items():
            value = statistics.median(values)
            shown = " ".join(f"{one:.2f}" for one in values)
            print(f"{name:20} {value:7.2f} steps/s   {value / first:5.2f} × the first   ({shown})", flush=True)


if __name__ == "__main__":
    main()
