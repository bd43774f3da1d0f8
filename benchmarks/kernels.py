"""Kernels of one training step, counted on the meta device: launches, casts, matrix products.

    python benchmarks/kernels.py [--architectures sd1,sdxl] [--families lora,loha] [--operations]

Real diffusers modules of the published sizes run forward and backward with our adapters on tensors without data. Every
operation that a GPU would run as a kernel counts once; views and allocations count as none. Batches of one are bound by
these launches rather than by arithmetic, so the numbers predict a GPU's speed better than the time on a CPU does.

Not counted: encoded text, which is cached, the optimiser (a handful of kernels over the flat buffers) and the loss.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

FREE = frozenset(
    (
        *(
            "view",
            "_unsafe_view",
            "view_as",
            "reshape",
            "_reshape_alias",
            "t",
            "transpose",
            "permute",
            "alias",
            "detach",
        ),
        *(
            "expand",
            "expand_as",
            "as_strided",
            "select",
            "slice",
            "narrow",
            "split",
            "unsafe_split",
            "split_with_sizes",
        ),
        *("chunk", "unbind", "unfold", "squeeze", "unsqueeze", "set_", "resize_", "lift_fresh", "is_same_size"),
        *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    )
)
"""Operations that launch no kernel: they make another view of a tensor, or allocate one."""
CASTS = frozenset(["_to_copy"])
PRODUCTS = frozenset(("mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_", "convolution", "convolution_backward"))
SIDES = {"sd1": 64, "sd2": 96, "sdxl": 128}


@dataclass
class Kernels:
    """What one step launches: kernels by operation."""

    by_operation: Counter[str]

    @property
    def total(self) -> int:
        return self.by_operation.total()

    @property
    def casts(self) -> int:
        """Copies to another dtype."""
        return sum(self.by_operation[name] for name in CASTS)

    @property
    def products(self) -> int:
        """Matrix products and convolutions; a backward convolution that gives two gradients counts as two."""
        return sum(self.by_operation[name] for name in PRODUCTS)


class KernelCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the kernels that run inside it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by_operation: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count it."""
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name == "convolution_backward":
            self.by_operation[name] += sum(args[-1])
        elif name not in FREE:
            self.by_operation[name] += 1
        return func(*args, **kwargs)


def count_kernels(
    unet: Any, spec: Any, adapter: Any, *, side: int, batch: int = 1, checkpointing: bool = False
) -> Kernels:
    """The kernels of a micro-batch through the UNet, with latents of `side` × `side` and cached text."""
    from lib_lora_train.adapters.dropout import DropoutRates

    weight = unet.conv_in.weight
    width, pooled = spec.unet["cross_attention_dim"], spec.text_encoders[-1].config["projection_dim"]
    with torch.device(weight.device):
        noisy = torch.zeros(batch, 4, side, side, dtype=weight.dtype)
        text = torch.zeros(batch, 77, width, dtype=weight.dtype)
        added = {
            "text_embeds": torch.zeros(batch, pooled or 1, dtype=weight.dtype),
            "time_ids": torch.zeros(batch, 6, dtype=weight.dtype),
        }
        times = torch.zeros(batch)
        pull = torch.zeros_like(noisy)
    unet.train(checkpointing)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    with KernelCounter() as counter, adapter.training(DropoutRates(), 0):
        output: Tensor = unet(noisy, times, encoder_hidden_states=text, added_cond_kwargs=added).sample
        output.backward(pull)  # type: ignore[no-untyped-call]
    return Kernels(counter.by_operation)


def adapted_unet(architecture: Any, family: str, **settings: Any) -> tuple[Any, Any, Any]:
    """A bf16 UNet of the published size, its spec, and the adapter injected into it."""
    from benchmarks.memory import meta_unet
    from lib_lora_train.adapters.inject import inject
    from lib_lora_train.adapters.registry import spec_from_config
    from lib_lora_train.config.train_config import TrainConfig
    from lib_lora_train.models.infer_spec import infer_spec
    from tests.stand_ins.tiny_models import full_shapes

    spec = infer_spec(full_shapes(architecture))
    unet = meta_unet(spec, torch.bfloat16)
    config = TrainConfig(family=family, rank=16, train_text_encoder=False, **settings)
    adapter = inject(SimpleNamespace(unet=unet, text_encoders=(), spec=spec), spec_from_config(config), seed=0)
    for parameter in itertools.chain(*adapter.groups.values()):
        parameter.grad = torch.zeros_like(parameter)
    return unet, spec, adapter


def main() -> None:
    """Print the table."""
    from benchmarks.memory import flash_on_meta

    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--architectures", default="sd1,sdxl")
    parser.add_argument("--families", default="lora")
    parser.add_argument("--operations", action="store_true", help="also print the number of kernels by operation")
    arguments = parser.parse_args()
    print(f"{'':34}{'kernels':>10}{'casts':>8}{'products':>10}")
    for architecture, family in itertools.product(arguments.architectures.split(","), arguments.families.split(",")):
        for checkpointing in (False, True):
            unet, spec, adapter = adapted_unet(architecture, family)
            with flash_on_meta():
                found = count_kernels(unet, spec, adapter, side=SIDES[architecture], checkpointing=checkpointing)
            name = f"{architecture}, {family}{', checkpointing' if checkpointing else ''}"
            print(f"{name:34}{found.total:10,}{found.casts:8,}{found.products:10,}", flush=True)
            if arguments.operations:
                for operation, number in found.by_operation.most_common():
                    print(f"    {operation:40}{number:8,}")


if __name__ == "__main__":
    main()
