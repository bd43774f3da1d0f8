"""The Muon optimiser for matrices: momentum whose singular values are all made about one.

K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the
coefficients of the Newton-Schulz iteration are theirs. Convolutions count as matrices of
shape (out, in × height × width). The processes share the work: each orthogonalises every
other shape and the sum over processes gathers the results.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist

RATE_PER_ADAM_RATE = 20.0  # gives updates about the Frobenius norm of Adam's


def orthogonalise(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Approximate U Vᵀ of each of the matrices (N, R, C), by Newton-Schulz iteration."""
    turned = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if turned else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    result: torch.Tensor = x.mT if turned else x
    return result


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum; ``step`` must be called by all processes together."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(list(parameters), {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Move every matrix along its orthogonalised momentum."""
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for parameter in group["params"]:
                by_shape[tuple(parameter.flatten(1).shape)].append(parameter)
            directions = self._directions(list(by_shape.values()), group["momentum"])
            for parameters, direction in zip(by_shape.values(), directions, strict=True):
                rows, columns = direction.shape[1:]
                scale = group["lr"] * max(1.0, rows / columns) ** 0.5
                for parameter, change in zip(parameters, direction, strict=True):
                    parameter.sub_(scale * change.view_as(parameter))

    def _directions(self, groups: list[list[torch.nn.Parameter]], momentum: float) -> list[torch.Tensor]:
        """The orthogonalised momentum (N, R, C) of each group of equal shapes."""
        mine = []
        by_cost = sorted(range(len(groups)), key=lambda index: -len(groups[index]) * groups[index][0].numel())
        rank_of = {index: place % dist.get_world_size() for place, index in enumerate(by_cost)}
        for index, group in enumerate(groups):
            blends = torch.stack([self._blend(parameter, momentum).flatten(1) for parameter in group])
            is_mine = rank_of[index] == dist.get_rank()
            mine.append(orthogonalise(blends) if is_mine else torch.zeros_like(blends))
        flat = torch.cat([part.reshape(-1) for part in mine])
        dist.all_reduce(flat)
        parts = torch.tensor_split(flat, torch.tensor([part.numel() for part in mine]).cumsum(0)[:-1])
        return [part.view_as(like) for part, like in zip(parts, mine, strict=True)]

    def _blend(self, parameter: torch.nn.Parameter, momentum: float) -> torch.Tensor:
        """Nesterov's mix of gradient and updated momentum."""
        state = self.state[parameter]
        gradient = parameter.grad
        assert gradient is not None
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(state["momentum"], momentum)
