"""Memory of one training step, counted on the meta device, which needs neither a GPU nor the memory itself.

    python benchmarks/memory.py [--architectures sd1,sdxl]

Real diffusers modules of the published sizes run forward and backward with our adapters on tensors without data; every
tensor's bytes are counted while it is alive, and printed beside the estimate of `runs/estimates/memory.py`. The largest
ratios printed here are that estimate's constants (`WORKING` and `ENCODING`).
"""

from __future__ import annotations

import argparse
import itertools
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of all storages created inside it that are still alive (`now`), and their maximum (`peak`)."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.peak: int = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count the storages it created."""
        before = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in before:
                self._add(leaf.untyped_storage())
        return out

    def _add(self, storage: Any) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, size)

    def _remove(self, size: int) -> None:
        self.now -= size


@contextmanager
def flash_on_meta() -> Iterator[None]:
    """Attention as computed on a GPU; on the meta device PyTorch would use the plain formula."""

    def flash(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        output: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
        return output

    with mock.patch.object(F, "scaled_dot_product_attention", flash):
        yield


def meta_unet(spec: Any, dtype: torch.dtype) -> Any:
    """The frozen UNet on the meta device, as it is trained."""
    from lib_lora_train.models.library_compat import build_unet

    return build_unet(spec.unet).to(dtype)


def count_step(unet: Any, spec: Any, adapter: Any, *, side: int, batch: int = 1, checkpointing: bool = False) -> Any:
    """(bytes saved by the forward pass, peak bytes of the backward pass) of one step with latents of `side` × `side`.

    Not including the adapter's weights, gradients and cast.
    """
    weight = unet.conv_in.weight
    width, pooled = spec.unet["cross_attention_dim"], spec.text_encoders[-1].config["projection_dim"]
    with torch.device(weight.device):
        noisy = torch.zeros(batch, 4, side, side, dtype=weight.dtype)
        text = torch.zeros(batch, 77, width, dtype=weight.dtype)
        added = {"text_embeds": torch.zeros(batch, pooled or 1), "time_ids": torch.zeros(batch, 6)}
    parameters = [parameter for group in adapter.groups.values() for parameter in group]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    cast = sum(p.numel() for p in parameters) * weight.element_size() * (weight.dtype != torch.float32)
    if checkpointing:
        unet.train()
        unet.enable_gradient_checkpointing()
    with LiveBytes() as live:
        times = torch.zeros(batch, device=weight.device)
        output = unet(noisy, times, encoder_hidden_states=text, added_cond_kwargs=added).sample
        saved = live.now - cast
        output.float().pow(2).mean().backward()
    return saved, live.peak - cast


def count_encoding(spec: Any, dtype: torch.dtype, side: int) -> int:
    """Peak bytes of encoding one image of `side` px."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        vae: Any = AutoencoderKL(**spec.vae).to(dtype)
    with torch.no_grad(), torch.device("meta"), LiveBytes() as live:
        vae.encode(torch.zeros(1, 3, side, side, dtype=dtype))
    return int(live.peak)


def estimated(spec: Any, config: Any, positions: int) -> tuple[int, int]:
    """(values saved, values alive at the peak) per image, according to the estimate."""
    from lib_lora_train.runs.estimates.memory import unet_pass

    trace, _ = unet_pass(spec, config, positions=positions, tokens=77)
    return trace.saved, trace.peak


def print_steps(architecture: str, spec: Any, side: int) -> None:
    """Print a line for each value of targets, with and without checkpointing."""
    from types import SimpleNamespace

    from lib_lora_train.adapters.inject import inject
    from lib_lora_train.adapters.registry import spec_from_config
    from lib_lora_train.config.train_config import TrainConfig

    for targets, checkpointing in itertools.product(("attention", "standard", "all"), (False, True)):
        config = TrainConfig(targets=targets, train_text_encoder=False, gradient_checkpointing=checkpointing)
        unet = meta_unet(spec, torch.bfloat16)
        model = SimpleNamespace(unet=unet, text_encoders=(), spec=spec)
        adapter = inject(model, spec_from_config(config), seed=0)
        saved, peak = count_step(unet, spec, adapter, side=side, checkpointing=checkpointing)
        expected_saved, expected_peak = (2 * number for number in estimated(spec, config, side * side))
        working = (peak - expected_peak) / (2 * spec.unet["block_out_channels"][0] * side * side)
        name = f"{architecture} {8 * side} px, {targets}{', checkpointing' if checkpointing else ''}"
        sizes = "".join(f"{number / 2**20:10.1f}" for number in (saved, expected_saved, peak))
        print(f"{name:42}{sizes}{working:9.2f}", flush=True)


def main() -> None:
    """Print the table."""
    from lib_lora_train.models.infer_spec import infer_spec
    from tests.stand_ins.tiny_models import full_shapes

    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--architectures", default="sd1,sd2,sdxl")
    print(f"{'':42}{'saved MiB':>10}{'estimate':>10}{'peak':>10}{'working':>9}")
    for architecture in parser.parse_args().architectures.split(","):
        spec = infer_spec(full_shapes(architecture))
        side = {"sd1": 64, "sd2": 96, "sdxl": 128}[architecture]
        with flash_on_meta():
            print_steps(architecture, spec, side)
            encoding = count_encoding(spec, torch.float16, 8 * side)
        width = spec.vae["block_out_channels"][0]
        print(f"{architecture} VAE: {encoding / (2 * width * (8 * side) ** 2):.2f} widths per pixel")


if __name__ == "__main__":
    main()
