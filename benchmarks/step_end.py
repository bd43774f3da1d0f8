"""The cost of options at the end of a step: max norm, EMA, 16-bit LoRA weights.

    python benchmarks/step_end.py [--rank 32] [--repeats 5] [--pixels 256]   SD1.5's UNet on the CPU: seconds
    python benchmarks/step_end.py --count [--rank 32]                        SD1.5 and SDXL on meta tensors: operations

Seconds: random weights of the published sizes, kohya's standard layers, AdamW, batch 1; all variants interleaved in one
process, medians of CPU time. Operations: those dispatched to the device, of one or a few kernels each, which is what
small operations cost on a GPU. `per layer` limits norms as other trainers do: with each layer's ΔW in full, and its
norm read back.
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
from diffusers import UNet2DConditionModel
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parent.parent))

from lib_lora_train.adapters.inject import Adapter, inject
from lib_lora_train.adapters.registry import AdapterSpec
from lib_lora_train.models.architecture import Architecture
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.infer_spec import infer_spec
from lib_lora_train.models.lean_modules import use_lean_modules
from lib_lora_train.models.noise_schedule import schedule_for
from lib_lora_train.training.ema import Ema
from lib_lora_train.training.grad_scaling import clip_gradients
from lib_lora_train.training.master_weights import MasterWeights
from tests.stand_ins.tiny_models import full_shapes

LIMIT = 1.0


class Counted(TorchDispatchMode):
    """Counts dispatched operations, except views and allocations, which launch no kernel."""

    FREE = ("view", "as_strided", "detach", "empty", "expand", "permute", "transpose", "aten.t.", "split", "unbind")

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        self.operations += not any(free in name for free in self.FREE)
        return func(*args, **(kwargs or {}))


class Bench:
    """One UNet with a LoRA, and everything that a step may do."""

    def __init__(self, architecture: Architecture, *, rank: int, pixels: int, device: str) -> None:
        spec = infer_spec(full_shapes(architecture))
        with torch.device(device):
            unet = UNet2DConditionModel(**spec.unet).requires_grad_(False).eval()
        use_lean_modules(unet)
        self.model = DiffusionModel(spec, unet, None, (), (), schedule_for(spec), architecture, "")
        self.adapter = self._adapter(rank, torch.float32)
        (self.parameter,) = self.adapter.groups["unet"]
        self.limit = self.adapter.norm_limit(LIMIT)
        self.average = Ema([self.parameter], 0.99)
        self.optimizer = torch.optim.AdamW([self.parameter], lr=1e-4)
        self.x = torch.randn(1, 4, pixels // 8, pixels // 8, device=device)
        self.text = torch.randn(1, 77, spec.unet["cross_attention_dim"], device=device)
        sizes = {"text_embeds": torch.randn(1, 1280, device=device), "time_ids": torch.ones(1, 6, device=device)}
        self.added = sizes if architecture == "sdxl" else None
        self.stored = torch.nn.Parameter(self.parameter.detach().to(torch.bfloat16))
        self.working = MasterWeights({"unet": [self.stored]})
        if device != "meta":
            with torch.no_grad():
                self.parameter.add_(torch.randn_like(self.parameter) / 50)  # as after training: some layers too long

    def _adapter(self, rank: int, dtype: torch.dtype) -> Adapter:
        return inject(self.model, AdapterSpec(rank=rank, alpha=rank / 2, text_encoder=False, dtype=dtype), seed=1)

    def passes(self) -> None:
        """Forward and backward."""
        answer = self.model.unet(
            self.x, torch.ones(1, device=self.x.device), encoder_hidden_states=self.text, added_cond_kwargs=self.added
        ).sample
        answer.square().mean().backward()

    def optimise(self) -> None:
        """Clip and AdamW; the gradient is kept for the next measurement."""
        clip_gradients([self.parameter], 1.0)
        self.optimizer.step()

    def limit_norms(self) -> None:
        """Our max norm, with its results read back once, together with the loss, as in the training loop."""
        self.limit.apply()

    def limit_per_layer(self) -> None:
        """Max norm layer by layer: ΔW in full, its norm read back, its factors scaled."""
        is_real = self.parameter.device.type != "meta"
        with torch.no_grad():
            for layer in self.adapter.layers.values():
                down, up = (tensor.flatten(1) for tensor in layer.slices.tensors().values())
                norm = ((up @ down) * layer.scale).norm().clamp(min=LIMIT / 2)
                factor = (norm.clamp(max=LIMIT) / norm).sqrt()
                if not is_real or float(factor) != 1:
                    up.mul_(factor)
                    down.mul_(factor)

    def average_weights(self) -> None:
        """`ema_decay`."""
        self.average.update(10)

    def round_numbers(self) -> None:
        """`lora_precision` bf16: gradient and weights cast to fp32, and back with stochastic rounding."""
        self.stored.grad = torch.zeros_like(self.stored)
        with self.working.step(1, 1):
            pass


def parts(bench: Bench) -> dict[str, Callable[[], None]]:
    """Name → the function to measure."""
    return {
        "forward and backward": bench.passes,
        "clip and AdamW": bench.optimise,
        "scale_weight_norms": bench.limit_norms,
        "the same per layer": bench.limit_per_layer,
        "ema_decay": bench.average_weights,
        "lora_precision bf16": bench.round_numbers,
    }


def measure(rank: int, pixels: int, repeats: int) -> None:
    """Print the table of seconds."""
    bench = Bench("sd1", rank=rank, pixels=pixels, device="cpu")
    works = parts(bench)
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(repeats + 1):
        for name in list(works)[:: 1 if number % 2 else -1] if number else works:
            began = time.process_time()  # other programs on the machine do not count
            works[name]()
            if number:  # the first round warms up
                found[name].append(time.process_time() - began)
    step = sum(statistics.median(found[name]) for name in list(works)[:2])
    optimiser = statistics.median(found["clip and AdamW"])
    print(f"SD1.5 UNet, {pixels} px, rank {rank}, {len(bench.adapter.layers)} layers, {torch.get_num_threads()} thread")
    for name, seconds in found.items():
        median = statistics.median(seconds)
        print(
            f"{name:22} {1e3 * median:9.1f} ms  {100 * median / step:7.2f}% of a step  {median / optimiser:6.2f} ×"
            f" the optimiser  ({1e3 * min(seconds):.1f} to {1e3 * max(seconds):.1f})"
        )


def count(rank: int) -> None:
    """Print the tables of operations."""
    families: list[tuple[str, Architecture, int]] = [("SD1.5", "sd1", 512), ("SDXL", "sdxl", 1024)]
    for name, architecture, pixels in families:
        bench = Bench(architecture, rank=rank, pixels=pixels, device="meta")
        bench.passes()
        found = {}
        for part, work in list(parts(bench).items())[:4]:
            if part == "clip and AdamW":
                continue  # one fused kernel on a graphics card
            with Counted() as counted:
                work()
            found[part] = counted.operations
        whole = found["forward and backward"]
        print(f"{name} UNet, rank {rank}, {len(bench.adapter.layers)} layers")
        for part, operations in found.items():
            print(f"{part:22} {operations:6} operations  {100 * operations / whole:6.1f}%")


def main() -> None:
    """Print the tables that the command line selects."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--count", action="store_true")
    chosen = parser.parse_args()
    count(chosen.rank) if chosen.count else measure(chosen.rank, chosen.pixels, chosen.repeats)


if __name__ == "__main__":
    main()
