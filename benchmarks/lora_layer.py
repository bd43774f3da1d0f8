"""Forward and backward time of one adapted layer: our fused Function, PEFT's LoRA and the plain formula.

    python benchmarks/lora_layer.py [--seconds 2] [--dtype fp32]

The variants run interleaved (A-B-C-C-B-A) in one process, on the shapes of SD1.5 at 512 px, batch 1; the table shows
medians and what each adds to the bare layer. Differences below the spread are noise.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from peft import LoraConfig, inject_adapter_in_model

from lib_lora_train.adapters.adapted_layer import AdaptedLayer, AdapterSwitch
from lib_lora_train.adapters.families.lora import delta
from lib_lora_train.adapters.families.options import Options
from lib_lora_train.adapters.flat_parameters import FlatBuffer, Slices
from lib_lora_train.adapters.registry import FAMILIES

RANK = 16
OPTIONS = Options(rank=RANK, alpha=RANK / 2)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "to_q 320, 4096 tokens": (lambda: nn.Linear(320, 320, bias=False), (1, 4096, 320)),
    "ff.net.2 5120→1280, 256 tokens": (lambda: nn.Linear(5120, 1280), (1, 256, 5120)),
    "conv 3×3 640, 32×32": (lambda: nn.Conv2d(640, 640, 3, padding=1), (1, 640, 32, 32)),
}


def fused(base: nn.Module) -> nn.Module:
    """Our fused layer."""
    weights = FAMILIES["lora"].init_weights(base, OPTIONS, torch.Generator().manual_seed(0))
    buffer = FlatBuffer(list(weights.values()), torch.device("cpu"))
    slices = Slices(buffer, {name: n for n, name in enumerate(weights)})
    return AdaptedLayer(base, FAMILIES["lora"], slices, options=OPTIONS, switch=AdapterSwitch())


def peft_layer(base: nn.Module) -> nn.Module:
    """PEFT's own LoRA layer."""
    config = LoraConfig(r=RANK, lora_alpha=RANK // 2, target_modules=["0"])
    layer: nn.Module = inject_adapter_in_model(config, nn.Sequential(base))[0]
    return layer


class Plain(nn.Module):
    """The formula as written, with ordinary autograd and a cast per call if the base is in half precision."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        weights = FAMILIES["lora"].init_weights(base, OPTIONS, torch.Generator().manual_seed(0))
        self.weights = nn.ParameterDict(weights)

    def forward(self, x: Tensor) -> Tensor:
        """Base output plus delta."""
        weights = {name: weight.to(x.dtype) for name, weight in self.weights.items()}
        output: Tensor = self.base(x)
        return output + delta(self.base, x, weights, 0.5)


def seconds_of(layer: nn.Module, x: Tensor, pull: Tensor) -> float:
    """One forward and backward pass, with a gradient for the input as inside a network."""
    x = x.detach().requires_grad_()
    trained = [layer.slices.anchor] if isinstance(layer, AdaptedLayer) else layer.parameters()
    for parameter in trained:
        parameter.grad = None
    start = time.perf_counter()
    layer(x).backward(pull)
    return time.perf_counter() - start


def measure(name: str, dtype: torch.dtype, seconds: float) -> None:
    """Print one layer's row for every variant."""
    build, shape = LAYERS[name]
    makers: dict[str, Callable[[nn.Module], nn.Module]] = {
        "bare": lambda base: base,
        "plain": Plain,
        "peft": peft_layer,
        "fused": fused,
    }
    layers: dict[str, Any] = {}
    for variant, make in makers.items():
        layers[variant] = make(build().to(dtype).requires_grad_(False))
    x = torch.randn(shape).to(dtype)
    pull = torch.randn_like(layers["bare"](x))
    times: dict[str, list[float]] = {variant: [] for variant in layers}
    for layer in layers.values():
        seconds_of(layer, x, pull)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for variant in (*layers, *reversed(layers)):
            times[variant].append(seconds_of(layers[variant], x, pull))
    _report(name, times)


def _report(name: str, times: dict[str, list[float]]) -> None:
    bare = statistics.median(times["bare"])
    print(f"\n{name} ({len(times['bare'])} passes each)")
    for variant, values in times.items():
        median = statistics.median(values)
        low, _, high = statistics.quantiles(values, n=4)
        added = "" if variant == "bare" else f"  +{(median / bare - 1) * 100:5.1f}% over the bare layer"
        print(f"  {variant:6} {median * 1e3:8.3f} ms  (middle half {low * 1e3:.3f}…{high * 1e3:.3f}){added}")
    median_of = {variant: statistics.median(values) for variant, values in times.items()}
    print(f"  fused / peft {median_of['fused'] / median_of['peft']:.3f}", end="")
    print(f"   fused / plain {median_of['fused'] / median_of['plain']:.3f}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=4.0, help="measuring time per layer")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.dtype}, rank {RANK}, {arguments.threads} thread(s)")
    for name in LAYERS:
        measure(name, DTYPES[arguments.dtype], arguments.seconds)


if __name__ == "__main__":
    main()
