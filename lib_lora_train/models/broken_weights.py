"""Finds checkpoints whose weights cannot be right: NaN or infinity, or tensors of zeros in a half-written file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from lib_lora_train.core.errors import ModelError
from lib_lora_train.core.wording import count
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.fp8 import FP8_DTYPES


def refuse_broken_weights(model: DiffusionModel) -> None:
    """ModelError if weights are NaN or infinite, or if a matrix or kernel is zero throughout; call it in a lease.

    Each tensor is reduced to one number where it is, and the numbers are read back once.
    """
    names, peaks = [], []
    for name, weight in _weights(model):
        names.append((name, weight.dim()))
        peaks.append((weight.to(torch.float16) if weight.dtype in FP8_DTYPES else weight).abs().amax().float())
    values = torch.stack([peak.to(peaks[0].device) for peak in peaks]).cpu()
    broken = [name for (name, _), bad in zip(names, (~torch.isfinite(values)).tolist(), strict=True) if bad]
    if broken:
        text = f"{_listed(broken, len(names))} contain NaN or infinite values, so nothing can be learned on them"
        raise ModelError(f"{model.name}: {text}. {_advice(broken)}")
    zero = [name for (name, rank), value in zip(names, values.tolist(), strict=True) if rank > 1 and value == 0]
    if zero:
        text = f"{_listed(zero, len(names))} contain only zeros: the file was not written or downloaded completely"
        raise ModelError(f"{model.name}: {text}. Download or copy it again.")


def _weights(model: DiffusionModel) -> Iterator[tuple[str, Tensor]]:
    """Every weight with its name, those stored in fp8 too."""
    encoders = {f"text_encoder_{number}": module for number, module in enumerate(model.text_encoders, start=1)}
    parts: dict[str, nn.Module] = {"unet": model.unet, "vae": model.vae, **encoders}
    for label, module in parts.items():
        stored = ((name, buffer) for name, buffer in module.named_buffers() if name.endswith("stored"))
        for name, weight in (*module.named_parameters(), *stored):
            if weight.numel():
                yield f"{label}.{name}", weight.detach()


def _listed(names: Sequence[str], total: int) -> str:
    return f"{len(names)} of its {count(total, 'tensor')} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"


def _advice(broken: Sequence[str]) -> str:
    if all(name.startswith("vae.") for name in broken):
        return "Choose another VAE file."
    return "The checkpoint is broken, perhaps by a merge; no learning rate helps. Choose another one."
