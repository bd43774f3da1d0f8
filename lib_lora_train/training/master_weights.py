"""fp32 master weights for an adapter that is stored in 16 bits ("full bf16", "full fp16").

A step changes a number by less than bfloat16 can resolve (1/256 of it), and the same goes for the running mean of
squared gradients: in 16 bits, training would stall. So the optimiser always computes in fp32, on weights and gradients
that exist in fp32 only during the step, when no activations are in memory. Its moments stay in fp32, or in the
precision it chooses. The result is rounded to one of the two nearest 16-bit numbers at random, with probabilities that
make the mean exact (stochastic rounding; Gupta et al. 2015, "Deep Learning with Limited Numerical Precision"), so that
small steps add up instead of being lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lib_lora_train.core.seeding import seed_for

_CHUNK_SIZE = 2**24  # numbers rounded together: limits temporary memory to a few hundred MiB


class MasterWeights:
    """The parameters that the optimiser sees: the adapter's own where they are fp32, else fp32 copies of them.

    `groups` is laid out like the adapter's. Outside `loaded` and `step` a copy holds no memory and no values, while
    views of it stay valid.
    """

    def __init__(self, groups: Mapping[str, Sequence[nn.Parameter]]) -> None:
        self.stored = [parameter for group in groups.values() for parameter in group]
        self._masters = {id(stored): _empty_master(stored) for stored in self.stored}
        self.groups = {name: [self.master_of(stored) for stored in group] for name, group in groups.items()}

    @property
    def is_rounded(self) -> bool:
        """Whether the adapter's weights are rounded after a step, so that they differ from the optimiser's result."""
        return any(True for _ in self._pairs())

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All of them, in the order of `stored`."""
        return [self.master_of(stored) for stored in self.stored]

    def master_of(self, stored: nn.Parameter) -> nn.Parameter:
        """The parameter that the optimiser sees for one of the adapter's."""
        return self._masters[id(stored)]

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """Inside, the copies hold the adapter's weights; changes to them are then written back, rounded to nearest."""
        yield from self._load(None)

    @contextmanager
    def step(self, seed: int, step: int) -> Iterator[None]:
        """Inside, the copies hold weights and gradients; the weights are then written back, rounded stochastically.

        The randomness follows from `seed` and `step` alone. If an exception is raised, nothing is written back.
        """
        for stored, master in self._pairs():
            master.grad, stored.grad = None if stored.grad is None else stored.grad.float(), None
        yield from self._load(seed_for(seed, "rounding", step))

    def _load(self, seed: int | None) -> Iterator[None]:
        """Rounds to nearest without a seed."""
        try:
            with torch.no_grad():
                for stored, master in self._pairs():
                    master.untyped_storage().resize_(master.numel() * master.element_size())
                    master.copy_(stored)
            yield
            with torch.no_grad():
                _round(list(self._pairs()), seed)
        finally:
            for _, master in self._pairs():
                master.grad = None
                master.untyped_storage().resize_(0)

    def _pairs(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """(the adapter's parameter, its fp32 copy) where there is one."""
        return ((stored, self.master_of(stored)) for stored in self.stored if self.master_of(stored) is not stored)


def _empty_master(stored: nn.Parameter) -> nn.Parameter:
    if stored.dtype == torch.float32:
        return stored
    master = nn.Parameter(torch.empty_like(stored, dtype=torch.float32), requires_grad=stored.requires_grad)
    master.untyped_storage().resize_(0)
    return master


def _round(pairs: Sequence[tuple[Tensor, Tensor]], seed: int | None) -> None:
    """Write each pair's second tensor into the first: to nearest without a seed, at random with one."""
    if seed is None:
        for target, values in pairs:
            target.copy_(values)
        return
    generators = {target.device: torch.Generator(target.device).manual_seed(seed) for target, _ in pairs}
    for target, values in pairs:
        for here, part in zip(torch.split(target, _CHUNK_SIZE), torch.split(values, _CHUNK_SIZE), strict=True):
            here.copy_(stochastically_rounded(part, target.dtype, generators[target.device]))


def stochastically_rounded(values: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """fp32 `values` as bfloat16 or float16: each becomes one of its two neighbours there, exact on average.

    With neighbours a ≤ x ≤ b, x becomes b with probability (x − a) / (b − a), else a. What `dtype` represents exactly
    is unchanged, and what is beyond its range becomes its largest number.
    """
    most = torch.finfo(dtype).max
    values = values.clamp(-most, most)
    near = values.to(dtype)
    error = values - near.float()  # exact: it has no more digits than fp32 has
    other = _neighbour(near, error)
    probability = error / (other.float() - near.float())
    drawn = torch.rand(values.shape, generator=generator, device=values.device)
    return torch.where(drawn < probability, other, near)


def _neighbour(near: Tensor, error: Tensor) -> Tensor:
    """The next 16-bit number from `near` in the direction of `error`.

    The format is sign and magnitude: the next higher bit pattern is one step away from 0, for either sign.
    """
    bits = near.view(torch.int16)
    away = torch.where((error > 0) == (near > 0), 1, -1).to(torch.int16)
    from_zero = torch.where(error < 0, -(2**15) + 1, 1).to(torch.int16)  # the smallest numbers below and above 0
    return torch.where(near == 0, from_zero, bits + away).view(near.dtype)
