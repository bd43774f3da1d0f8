"""Weights for use that are not the ones in training: a running mean of the adapter, or a schedule-free optimiser's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lib_lora_train.training.master_weights import MasterWeights
from lib_lora_train.training.optimizers import Optimizer


class Ema:
    """An exponential moving mean of parameters (Polyak & Juditsky 1992; Tarvainen & Valpola 2017).

    After step t: mean ← d·mean + (1−d)·parameters with d = min(`decay`, (1 + t) / (10 + t)), so that the untrained
    beginning is forgotten quickly. On the parameters' device, always in fp32: a coarser mean would not move any more.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self._parameters = parameters
        self._decay = decay
        self.means = [parameter.detach().to(torch.float32, copy=True) for parameter in parameters]

    def update(self, step: int) -> None:
        """Take in the parameters after `step` steps."""
        decay = min(self._decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, parameter in zip(self.means, self._parameters, strict=True):
                mean.lerp_(parameter.float(), 1 - decay)

    def load_state(self, means: Sequence[Tensor]) -> None:
        """Go on from these means."""
        for mean, saved in zip(self.means, means, strict=True):
            mean.copy_(saved)


@contextmanager
def weights_for_use(working: MasterWeights, stepper: Optimizer, average: Ema | None) -> Iterator[None]:
    """Inside, the parameters are those to be saved, drawn with and measured; then the trained ones, to the last bit.

    A schedule-free optimiser could switch back by itself, but only up to rounding.
    """
    parameters = working.stored
    trained = [parameter.detach().clone() for parameter in parameters]
    with working.opened():
        stepper.set_train(False)
    with torch.no_grad():
        if average:
            _copy(parameters, average.means)
        try:
            yield
        finally:
            with working.opened():
                stepper.set_train(True)
            _copy(parameters, trained)


def _copy(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
