"""The weights to save and sample with where they are not the trained ones: EMA, or a schedule-free optimiser's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lib_lora_train.training.master_weights import MasterWeights
from lib_lora_train.training.optimizers import Optimizer


class Ema:
    """An exponential moving average of parameters (Polyak & Juditsky 1992; Tarvainen & Valpola 2017).

    After step t: mean ← d·mean + (1−d)·parameters with d = min(`decay`, (1 + t) / (10 + t)), so that the untrained
    beginning is soon forgotten. On the parameters' device, always in fp32: in 16 bits the mean would stop moving.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self._parameters = parameters
        self._decay = decay
        self.means = [parameter.detach().to(torch.float32, copy=True) for parameter in parameters]

    def update(self, step: int) -> None:
        """Average in the parameters after `step` steps."""
        decay = min(self._decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, parameter in zip(self.means, self._parameters, strict=True):
                mean.lerp_(parameter.float(), 1 - decay)

    def load_state(self, means: Sequence[Tensor]) -> None:
        """Continue from these means."""
        copy_into(self.means, means)


@contextmanager
def eval_weights(master_weights: MasterWeights, optimizer: Optimizer, ema: Ema | None) -> Iterator[None]:
    """Inside, the parameters are those to save, sample and validate with; after it the trained ones, bit for bit.

    A schedule-free optimiser can switch back too, but only up to rounding.
    """
    parameters = master_weights.stored
    trained = [parameter.detach().clone() for parameter in parameters]
    with master_weights.loaded():
        optimizer.set_train(False)
    with torch.no_grad():
        if ema:
            copy_into(parameters, ema.means)
        try:
            yield
        finally:
            with master_weights.loaded():
                optimizer.set_train(True)
            copy_into(parameters, trained)


def copy_into(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Overwrite each tensor with the value in its place."""
    with torch.no_grad():
        for target, value in zip(targets, values, strict=True):
            target.copy_(value)
