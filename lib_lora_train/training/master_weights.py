"""What optimisers work on where the adapter's own numbers are stored in 16 bits ("full bf16", "full fp16").

A step changes a number by less than bfloat16 can tell (1/256 of it), and so does the running mean of squared gradients:
computed in 16 bits, training comes to a halt. So the optimiser always computes in fp32, on numbers and gradients that
exist in fp32 for the moment of the step only, when no activations are in memory. Its own moments stay in fp32, or in
what it chooses. The result is rounded to one of the two nearest 16-bit numbers at random, with the probabilities that
make the mean exact (stochastic rounding; Gupta et al. 2015, "Deep Learning with Limited Numerical Precision"), so
small steps add up instead of being lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lib_lora_train.core.seeding import seed_for

_AT_ONCE = 2**24  # numbers rounded together: bounds the temporary memory to a few hundred MiB


class MasterWeights:
    """The parameters that an optimiser gets: the adapter's own where they are fp32, else fp32 stand-ins.

    `groups` is laid out like the adapter's. Outside of `opened` and `step` a stand-in holds no memory and no numbers,
    while views of it stay valid.
    """

    def __init__(self, groups: Mapping[str, Sequence[nn.Parameter]]) -> None:
        self.stored = [parameter for group in groups.values() for parameter in group]
        self._stand_ins = {id(stored): _stand_in(stored) for stored in self.stored}
        self.groups = {name: [self.of(stored) for stored in group] for name, group in groups.items()}

    @property
    def is_rounded(self) -> bool:
        """Whether the adapter's numbers are others after a step than the optimiser made them."""
        return any(True for _ in self._pairs())

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All of them, in the order of `stored`."""
        return [self.of(stored) for stored in self.stored]

    def of(self, stored: nn.Parameter) -> nn.Parameter:
        """What stands in for one of the adapter's parameters."""
        return self._stand_ins[id(stored)]

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Inside, the stand-ins hold the adapter's numbers; what has become of them is then rounded to nearest."""
        yield from self._open(None)

    @contextmanager
    def step(self, seed: int, step: int) -> Iterator[None]:
        """Inside, the stand-ins hold numbers and gradients; the numbers are then rounded at random, and kept.

        The randomness follows from `seed` and `step` alone. Stand-ins' numbers are dropped if an exception comes out.
        """
        for stored, own in self._pairs():
            own.grad, stored.grad = None if stored.grad is None else stored.grad.float(), None
        yield from self._open(seed_for(seed, "rounding", step))

    def _open(self, seed: int | None) -> Iterator[None]:
        """Rounding is to nearest without a seed."""
        try:
            with torch.no_grad():
                for stored, own in self._pairs():
                    own.untyped_storage().resize_(own.numel() * own.element_size())
                    own.copy_(stored)
            yield
            with torch.no_grad():
                _round(list(self._pairs()), seed)
        finally:
            for _, own in self._pairs():
                own.grad = None
                own.untyped_storage().resize_(0)

    def _pairs(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """(the adapter's, its stand-in) where these are two."""
        return ((stored, self.of(stored)) for stored in self.stored if self.of(stored) is not stored)


def _stand_in(stored: nn.Parameter) -> nn.Parameter:
    if stored.dtype == torch.float32:
        return stored
    own = nn.Parameter(torch.empty_like(stored, dtype=torch.float32), requires_grad=stored.requires_grad)
    own.untyped_storage().resize_(0)
    return own


def _round(pairs: Sequence[tuple[Tensor, Tensor]], seed: int | None) -> None:
    """Write each pair's second tensor into the first: to nearest without a seed, at random with one."""
    generators = {target.device: torch.Generator(target.device) for target, _ in pairs}
    for generator in generators.values():
        generator.manual_seed(seed or 0)
    for target, values in pairs:
        if seed is None:
            target.copy_(values)
            continue
        for here, part in zip(torch.split(target, _AT_ONCE), torch.split(values, _AT_ONCE), strict=True):
            here.copy_(stochastically_rounded(part, target.dtype, generators[target.device]))


def stochastically_rounded(values: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """fp32 `values` as bfloat16 or float16: each one of its two neighbours there, and exact on average.

    With neighbours a ≤ x ≤ b, x becomes b with probability (x − a) / (b − a), else a; what `dtype` holds exactly stays,
    and what is beyond its range becomes its largest number.
    """
    most = torch.finfo(dtype).max
    values = values.clamp(-most, most)
    near = values.to(dtype)
    error = values - near.float()  # exact: it has no more digits than fp32 has
    other = _neighbour(near, error)
    chance = error / (other.float() - near.float())
    drawn = torch.rand(values.shape, generator=generator, device=values.device)
    return torch.where(drawn < chance, other, near)


def _neighbour(near: Tensor, error: Tensor) -> Tensor:
    """The next 16-bit number from `near` in the direction of `error`.

    Sign and magnitude: one bit pattern higher is one step away from 0, for either sign.
    """
    bits = near.view(torch.int16)
    away = torch.where((error > 0) == (near > 0), 1, -1).to(torch.int16)
    from_zero = torch.where(error < 0, -(2**15) + 1, 1).to(torch.int16)  # the smallest numbers below and above 0
    return torch.where(near == 0, from_zero, bits + away).view(near.dtype)
