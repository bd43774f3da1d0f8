"""The nearest matrix of a rank: exact against a dense decomposition in float64, randomised within its distance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lib_lora_train.lora_tools.low_rank import decompose, find_range, lora_tensors
from lib_lora_train.lora_tools.rank_rule import RankRule


def falling_matrix(rows: int, columns: int, power: float = 0.5) -> Tensor:
    """A matrix with the singular values 1, 2⁻ᵖ, 3⁻ᵖ …, fp32."""
    generator, side = torch.Generator().manual_seed(0), min(rows, columns)
    left, right = (
        torch.linalg.qr(torch.randn(n, side, generator=generator, dtype=torch.float64)).Q for n in (rows, columns)
    )
    matrix: Tensor = left * torch.arange(1, side + 1, dtype=torch.float64) ** -power @ right.T
    return matrix.float()


def product(up: Tensor, down: Tensor) -> Tensor:
    return up.double() @ down.double()


@pytest.mark.parametrize("shape", [(40, 70), (70, 40), (30, 30)])
@pytest.mark.parametrize("rule", [RankRule(7), RankRule(rule="sv_fro", threshold=0.8), RankRule(100)])
def test_exact_factors_are_the_truncated_decomposition(shape: tuple[int, int], rule: RankRule) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    rank = rule.rank_of(values)
    factors = decompose(matrix, rule)
    # float64; the Gram matrix squares the values, which costs half of the digits of the smallest ones
    torch.testing.assert_close(factors.values, values[:rank], rtol=1e-10, atol=1e-8)
    best = left[:, :rank] * values[:rank] @ right[:rank]
    for up, down in (factors.balanced, factors.with_values_in_up):
        torch.testing.assert_close(product(up, down), best, rtol=0, atol=1e-9)
    for identity in (factors.left.T @ factors.left, factors.right @ factors.right.T):
        torch.testing.assert_close(identity, torch.eye(rank, dtype=torch.float64), rtol=0, atol=1e-10)


def test_a_matrix_of_lower_rank_and_one_of_zeros_are_exact() -> None:
    generator = torch.Generator().manual_seed(1)
    parts = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((30, 3), (3, 20))]
    matrix = parts[0] @ parts[1]
    torch.testing.assert_close(product(*decompose(matrix, RankRule(8)).balanced), matrix, rtol=0, atol=1e-9)
    nothing = decompose(torch.zeros(30, 20), RankRule(4))
    assert all(torch.isfinite(part).all() for part in nothing.balanced) and not product(*nothing.balanced).any()


@pytest.mark.parametrize("shape", [(600, 900), (900, 600)])
def test_the_randomised_way_is_within_a_hundredth_of_the_smallest_distance(shape: tuple[int, int]) -> None:
    matrix = falling_matrix(*shape)
    values, rank = torch.linalg.svdvals(matrix.double()), 32
    smallest = float(values[rank:].square().sum().sqrt())
    distances = {
        seed: float((product(*decompose(matrix, RankRule(rank), seed=seed).balanced) - matrix).norm())
        for seed in (1, 2)
    }
    assert all(smallest < found <= 1.01 * smallest for found in distances.values())
    assert distances[1] != distances[2], "the seed decides, so it was not the exact way"
    again = decompose(matrix, RankRule(rank), seed=1)
    assert torch.equal(again.left, decompose(matrix, RankRule(rank), seed=1).left)
    assert float((product(*decompose(matrix, RankRule(rank)).balanced) - matrix).norm()) == pytest.approx(
        smallest, rel=1e-6
    )


def test_the_range_of_a_matrix_of_that_rank_is_found_whole() -> None:
    """Halko et al. 2011, theorem 1.1: nothing is left if the rank is not larger than the space."""
    generator = torch.Generator().manual_seed(2)
    matrix = torch.randn(50, 5, generator=generator) @ torch.randn(5, 80, generator=generator)
    basis = find_range(matrix, 8, seed=0)
    assert basis.shape == (50, 8)
    torch.testing.assert_close(basis.T @ basis, torch.eye(8), rtol=0, atol=1e-5)
    # fp32 with entries near 2: a few units of 1e-7 each
    torch.testing.assert_close(basis @ (basis.T @ matrix), matrix, rtol=0, atol=1e-5)


def test_tensors_have_the_shapes_of_a_lora_file() -> None:
    up, down = torch.ones(6, 2), torch.ones(2, 36)
    assert {key: tuple(t.shape) for key, t in lora_tensors(up, down, (6, 4, 3, 3)).items()} == {
        "lora_down.weight": (2, 4, 3, 3),
        "lora_up.weight": (6, 2, 1, 1),
        "alpha": (),
    }
    linear = lora_tensors(up, down, (6, 36))
    assert linear["lora_up.weight"].shape == (6, 2) and float(linear["alpha"]) == 2
