"""Training on a CPU beside busy processes: how much longer it takes with threads that spin while they wait.

    python -m benchmarks.shared_cpu [--busy 2] [--rounds 3] [--steps 12]

Each round trains the same steps of the tiny model in fresh processes, in the order A B C C B A: as PyTorch does it by
itself (A), with `OMP_WAIT_POLICY=PASSIVE`, as `launch.py` and the command line set it (B), and with the thread limit
that is used inside a webui (C). Only the ratios count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = {"as PyTorch does it": {}, "waiting passively": {"OMP_WAIT_POLICY": "PASSIVE"}, "thread limit": {}}


def train(steps: int, *, limit: bool) -> float:
    """Seconds for so many steps of SD's layers in the tiny model's size, after two to warm up."""
    import torch

    from lib_lora_train.hosts.webui.cpu_threads import ThreadLimit, limited_threads
    from lib_lora_train.models.embedded import EMBEDDED_CHECKPOINT
    from lib_lora_train.models.loading import ModelChoice, load_model

    unet = load_model(ModelChoice(EMBEDDED_CHECKPOINT), torch.device("cpu")).unet
    for parameter in unet.parameters():
        parameter.requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(4, 4, 32, 32, generator=generator)
    text = torch.randn(4, 77, unet.config.cross_attention_dim, generator=generator)
    threads = ThreadLimit(torch.get_num_threads()) if limit else None
    began = time.monotonic()
    for number in range(steps + 2):
        if number == 2:
            time.sleep(2.1 if limit else 0.0)  # the limit's first measurement
            began = time.monotonic()
        with limited_threads(threads, latents.device):
            unet(latents, 500, text).sample.square().mean().backward()
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=2, help="processes that compute beside it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(train(options.steps, limit=options.one == "thread limit"))
        return
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.busy)]
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    try:
        for _ in range(options.rounds):
            for name in [*VARIANTS, *reversed(VARIANTS)]:
                seconds[name].append(run_one(name, options.steps))
    finally:
        for process in busy:
            process.kill()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    first = next(iter(medians.values()))
    print(json.dumps({"busy": options.busy, "seconds": seconds}, indent=1))
    for name, value in medians.items():
        print(f"{name:20} {value:7.2f} s   {value / first:.2f} of the first")


def run_one(name: str, steps: int) -> float:
    """One measurement in a separate process, since the wait policy is read when PyTorch is loaded."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OMP_")}
    command = [sys.executable, "-m", "benchmarks.shared_cpu", "--one", name, "--steps", str(steps)]
    done = subprocess.run(
        command, cwd=ROOT, env={**environment, **VARIANTS[name]}, capture_output=True, text=True, check=True
    )
    return float(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
