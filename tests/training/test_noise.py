"""Every random draw depends on the seed and the sample's number, and on nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.seeding import random_for, seed_for
from lib_lora_train.models.noise_schedule import scaled_linear_schedule
from lib_lora_train.training.noise import (
    NoiseOptions,
    TimestepOptions,
    draw_input_noise,
    draw_noise,
    draw_posterior,
    draw_timestep,
    noise_options,
    offset_strength,
    timestep_options,
)

SHAPE = (4, 8, 8)
LATENT = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.5, -1.0, 0.0, 0.2]).view(
    4, 1, 1
)
PLAIN = NoiseOptions()
FLOAT32_SUM = 1e-6  # sums of a few numbers about 3 round at 2e-7
EVERY_OPTION = (
    NoiseOptions(offset=0.1),
    NoiseOptions(offset=0.1, offset_is_random=True),
    NoiseOptions(adaptive_scale=0.1),
    NoiseOptions(offset=0.1, adaptive_scale=-0.05),
    NoiseOptions(multires_iterations=6),
    NoiseOptions(input_gamma=0.1),
    NoiseOptions(input_gamma=0.1, input_gamma_is_random=True),
)
SD = scaled_linear_schedule("epsilon")
NAMES = ["offset", "random-offset", "adaptive", "adaptive-offset", "multires", "input", "random-input"]


def normal(shape: tuple[int, ...], seed: int, purpose: str, *counters: int) -> Tensor:
    """Standard normal numbers as this package draws them for a purpose."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed_for(seed, purpose, *counters)))


def whole(seed: int, draw: int, latent: Tensor, rule: NoiseOptions, timesteps: TimestepOptions) -> tuple[Any, ...]:
    """All draws of a sample."""
    noise = draw_noise(seed, draw, latent, rule)
    perturbed = draw_input_noise(seed, draw, noise, rule)
    posterior = draw_posterior(seed, draw, tuple(latent.shape))
    return noise, perturbed, posterior, draw_timestep(seed, draw, timesteps)


# --- independence -------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [PLAIN, *EVERY_OPTION], ids=["plain", *NAMES])
@pytest.mark.parametrize("sampling", ["uniform", "sigmoid"])
def test_draws_depend_on_seed_and_number_only(rule: NoiseOptions, sampling: str) -> None:
    timesteps = TimestepOptions(end=1000, sampling=sampling)
    first = whole(1, 7, LATENT, rule, timesteps)
    torch.randn(100)  # the global generator moves on
    whole(1, 6, torch.ones(4, 16, 8), rule, timesteps)
    again = whole(1, 7, LATENT, rule, timesteps)
    assert all(torch.equal(a, b) for a, b in zip(first[:3], again[:3], strict=True))
    assert first[3] == again[3]


@pytest.mark.parametrize("rule", [PLAIN, *EVERY_OPTION], ids=["plain", *NAMES])
def test_samples_seeds_and_purposes_differ(rule: NoiseOptions) -> None:
    base = draw_noise(1, 7, LATENT, rule)
    assert not torch.equal(base, draw_noise(1, 8, LATENT, rule))
    assert not torch.equal(base, draw_noise(2, 7, LATENT, rule))
    assert not torch.equal(base, draw_posterior(1, 7, SHAPE))


def test_default_draws_never_change() -> None:
    """Bit for bit: runs without the newer options must not change."""
    config = TrainConfig(noise_offset=0.07)
    for draw in range(5):
        noise = normal(SHAPE, 3, "noise", draw)
        assert torch.equal(draw_noise(3, draw, LATENT, PLAIN), noise)
        assert draw_input_noise(3, draw, noise, noise_options(config)) is noise
        shifted = noise + 0.07 * normal((4, 1, 1), 3, "noise offset", draw)
        assert torch.equal(draw_noise(3, draw, LATENT, noise_options(config)), shifted)
        assert torch.equal(draw_posterior(3, draw, SHAPE), normal(SHAPE, 3, "posterior", draw))
        assert draw_timestep(3, draw, timestep_options(config, SD)) == random_for(3, "timestep", draw).randrange(1000)


def test_sigmoid_timesteps_never_change() -> None:
    """Number for number, not only in distribution: a resumed run draws what the uninterrupted one would have."""
    rule = TimestepOptions(900, 100, "sigmoid", 0.5, -1.0)
    for draw in range(5):
        normal_number = random_for(3, "timestep", draw).gauss(0.0, 1.0)
        share = 1 / (1 + math.exp(1.0 - 0.5 * normal_number))
        assert draw_timestep(3, draw, rule) == 100 + int(800 * share)


@pytest.mark.parametrize("rule", EVERY_OPTION, ids=NAMES)
def test_every_option_changes_only_its_own_draw(rule: NoiseOptions) -> None:
    timesteps = TimestepOptions(end=1000)
    plain, changed = (whole(1, 7, LATENT, r, timesteps) for r in (PLAIN, rule))
    assert torch.equal(plain[0], changed[0]) == bool(rule.input_gamma)
    assert not torch.equal(plain[1], changed[1])
    assert torch.equal(plain[2], changed[2])
    assert plain[3] == changed[3]


def test_combined_options_use_the_same_draws_as_single_ones() -> None:
    both = draw_noise(1, 7, LATENT, NoiseOptions(offset=0.1, multires_iterations=4))
    multires = draw_noise(1, 7, LATENT, NoiseOptions(multires_iterations=4))
    shift = 0.1 * normal((4, 1, 1), 1, "noise offset", 7)
    plain = draw_noise(1, 7, LATENT, PLAIN)
    added = multires * _deviation_before(plain, multires) - plain  # what multires added, before it was scaled
    expected = plain + shift + added
    assert torch.allclose(both, expected / expected.std(), atol=1e-5)  # float32, through a division and back


def _deviation_before(plain: Tensor, multires: Tensor) -> Tensor:
    levels = multires_levels(1, 7, 4, 0.3)
    return (plain.double() + levels).std().float()


# --- distributions ------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [PLAIN, NoiseOptions(multires_iterations=1)], ids=["plain", "multires"])
def test_noise_is_standard_normal(rule: NoiseOptions) -> None:
    """Multires noise of one level is the sum of two full-size noises, scaled back."""
    many = torch.stack([draw_noise(3, draw, LATENT, rule) for draw in range(400)]).double()
    # 102,400 numbers: standard errors are 0.0031 for the mean and 0.0022 for the deviation; five of them are allowed
    assert abs(float(many.mean())) < 0.016
    assert abs(float(many.std()) - 1) < 0.011


def chi_square(drawn: Sequence[float], bounds: Sequence[float], shares: list[float]) -> float:
    """Pearson's statistic for the bins between `bounds`, against their expected shares."""
    counts = [sum(low <= timestep < high for timestep in drawn) for low, high in pairwise(bounds)]
    assert sum(counts) == len(drawn)
    return sum((n - len(drawn) * p) ** 2 / (len(drawn) * p) for n, p in zip(counts, shares, strict=True))


@pytest.mark.parametrize(("first", "end"), [(0, 10), (200, 700)])
def test_timesteps_are_uniform_over_the_range(first: int, end: int) -> None:
    # Seed 1: over seeds 0 to 29 the statistic has mean 9.4, as it must, and seed 0 is the one in a thousand.
    drawn = [draw_timestep(1, draw, TimestepOptions(end, first)) for draw in range(10_000)]
    bounds = [first + (end - first) * n // 10 for n in range(11)]
    assert chi_square(drawn, bounds, [0.1] * 10) < 27.9  # 9 degrees of freedom, p = 0.001


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (0.8, 0.6), (-1.0, 2.0)])
@pytest.mark.parametrize(("first", "end"), [(0, 1000), (200, 700)])
def test_sigmoid_timesteps_are_logit_normal_over_the_range(first: int, end: int, mean: float, scale: float) -> None:
    """The share below u is Φ((logit u − mean) / scale), by definition of the distribution."""
    rule = TimestepOptions(end, first, "sigmoid", scale, mean)
    drawn = [draw_timestep(0, draw, rule) for draw in range(10_000)]
    normal_law = NormalDist(mean, scale)
    bounds = [first + (end - first) * n // 10 for n in range(11)]
    below = [0.0, *(normal_law.cdf(math.log(n / (10 - n))) for n in range(1, 10)), 1.0]
    assert chi_square(drawn, bounds, [b - a for a, b in pairwise(below)]) < 27.9


@pytest.mark.parametrize("sampling", ["uniform", "sigmoid"])
def test_timesteps_stay_in_their_range(sampling: str) -> None:
    rule = TimestepOptions(103, 100, sampling, 5.0, 4.0)
    assert {draw_timestep(0, draw, rule) for draw in range(300)} == {100, 101, 102}


def test_a_timestep_beyond_every_rounding_is_still_the_last_one() -> None:
    """The sigmoid of 60 is 1 in float64, which is no share of the range any more; that of −60 is the first."""
    drawn = [draw_timestep(0, draw, TimestepOptions(1000, 100, "sigmoid", 1.0, 60.0)) for draw in range(20)]
    assert set(drawn) == {999}
    assert draw_timestep(0, 0, TimestepOptions(1000, 100, "sigmoid", 1.0, -60.0)) == 100


# --- noise offset -------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", EVERY_OPTION[:4], ids=NAMES[:4])
def test_noise_offset_shifts_whole_channels_only(rule: NoiseOptions) -> None:
    plain, shifted = draw_noise(5, 3, LATENT, PLAIN), draw_noise(5, 3, LATENT, rule)
    shift = (shifted - plain).flatten(1)
    assert torch.allclose(shift, shift[:, :1].expand_as(shift), atol=FLOAT32_SUM)
    assert float(shift.std(dim=0).max()) > 0


def test_adaptive_strength_follows_each_channels_mean() -> None:
    """max(0, offset + scale · |mean|), with the means taken in float64."""
    means = LATENT.double().mean(dim=(1, 2)).abs()
    more = offset_strength(5, 3, LATENT, NoiseOptions(offset=0.05, adaptive_scale=0.1))
    less = offset_strength(5, 3, LATENT, NoiseOptions(offset=0.05, adaptive_scale=-0.1))
    assert isinstance(more, Tensor) and isinstance(less, Tensor)
    assert torch.allclose(more.flatten().double(), 0.05 + 0.1 * means, atol=FLOAT32_SUM)
    assert torch.allclose(less.flatten().double(), (0.05 - 0.1 * means).clamp(min=0), atol=FLOAT32_SUM)
    assert float(less.min()) == 0.0 and float(less.max()) > 0.0


def test_the_shift_is_the_strength_times_one_number_per_channel() -> None:
    rule = NoiseOptions(offset=0.05, adaptive_scale=0.1)
    shift = draw_noise(5, 3, LATENT, rule) - draw_noise(5, 3, LATENT, PLAIN)
    expected = offset_strength(5, 3, LATENT, rule) * normal((4, 1, 1), 5, "noise offset", 3)
    assert torch.allclose(shift, expected.expand(SHAPE), atol=FLOAT32_SUM)


def test_random_noise_offsets_are_uniform_up_to_the_setting() -> None:
    rule = NoiseOptions(offset=0.2, offset_is_random=True)
    strengths = [float(offset_strength(0, draw, LATENT, rule)) / 0.2 for draw in range(10_000)]
    bins = [int(10 * strength) for strength in strengths]
    assert chi_square(bins, list(range(11)), [0.1] * 10) < 27.9  # 9 degrees of freedom, p = 0.001


# --- multires noise -----------------------------------------------------------------------------


def enlarging(inside: int, outside: int) -> Tensor:
    """(outside, inside): linear interpolation between the centres of cells, the outer ones kept to the edge."""
    matrix = torch.zeros(outside, inside, dtype=torch.float64)
    for row in range(outside):
        place = min(max((row + 0.5) * inside / outside - 0.5, 0.0), inside - 1.0)
        left = min(int(place), inside - 2) if inside > 1 else 0
        matrix[row, left] += 1 - (place - left)
        if inside > 1:
            matrix[row, left + 1] += place - left
    return matrix


def multires_levels(seed: int, draw: int, iterations: int, discount: float, size: int = 8) -> Tensor:
    """Σ discountⁱ · enlarged noise, in float64 and by matrices."""
    total = torch.zeros(4, size, size, dtype=torch.float64)
    for level in range(iterations):
        side = max(1, int(size / random_for(seed, "multires shrink", draw, level).uniform(2, 4) ** level))
        coarse = normal((1, 4, side, side), seed, "multires noise", draw, level)[0].double()
        total += discount**level * enlarging(side, size) @ coarse @ enlarging(side, size).T
        if side == 1:
            break
    return total


@pytest.mark.parametrize(("iterations", "discount", "size"), [(1, 0.3, 8), (2, 0.8, 32), (10, 0.8, 32)])
def test_multires_noise_is_its_definition(iterations: int, discount: float, size: int) -> None:
    latent = torch.zeros(4, size, size)
    found = draw_noise(1, 7, latent, NoiseOptions(multires_iterations=iterations, multires_discount=discount))
    summed = normal((4, size, size), 1, "noise", 7).double() + multires_levels(1, 7, iterations, discount, size)
    assert torch.allclose(found.double(), summed / summed.std(), atol=5e-6)  # float32 sums of up to ten levels


def test_multires_noise_has_deviation_one_and_stronger_large_areas() -> None:
    """The mean of a channel of 64 independent numbers has deviation 1/8; with coarse layers it is larger."""
    rule = NoiseOptions(multires_iterations=8, multires_discount=0.8)
    many = torch.stack([draw_noise(2, draw, LATENT, rule) for draw in range(300)]).double()
    assert torch.allclose(many.flatten(1).std(dim=1), torch.ones(300).double(), atol=1e-6)  # float32
    assert float(many.mean(dim=(2, 3)).std()) > 0.25


def test_multires_noise_fits_latents_of_any_shape() -> None:
    for shape in ((4, 1, 1), (4, 3, 17), (4, 64, 8)):
        assert draw_noise(1, 1, torch.zeros(shape), NoiseOptions(multires_iterations=10)).shape == shape


# --- input perturbation -------------------------------------------------------------------------


def test_input_perturbation_adds_its_own_noise() -> None:
    noise = draw_noise(5, 3, LATENT, PLAIN)
    found = draw_input_noise(5, 3, noise, NoiseOptions(input_gamma=0.1))
    assert torch.equal(found, noise + 0.1 * normal(SHAPE, 5, "input perturbation", 3))
    assert torch.equal(noise, draw_noise(5, 3, LATENT, PLAIN))  # what is to be predicted stays


def test_perturbed_noise_has_the_papers_variance() -> None:
    """1 + γ² (Ning et al. 2023, eq. 8); 102,400 numbers of variance 1.25: five standard errors are 0.028."""
    rule = NoiseOptions(input_gamma=0.5)
    many = torch.stack([draw_input_noise(3, d, draw_noise(3, d, LATENT, rule), rule) for d in range(400)]).double()
    assert abs(float(many.var()) - 1.25) < 0.028


def test_random_perturbations_are_uniform_up_to_the_setting() -> None:
    rule = NoiseOptions(input_gamma=0.2, input_gamma_is_random=True)
    nothing = torch.zeros(1, 1, 1)
    drawn = [draw_input_noise(0, draw, nothing, rule) for draw in range(5000)]
    whole_ones = [
        draw_input_noise(0, draw, nothing, replace(rule, input_gamma_is_random=False)) for draw in range(5000)
    ]
    shares = [int(10 * float(a / b)) for a, b in zip(drawn, whole_ones, strict=True)]
    assert chi_square(shares, list(range(11)), [0.1] * 10) < 27.9  # 9 degrees of freedom, p = 0.001


# --- settings -----------------------------------------------------------------------------------


def test_settings_become_noise_and_timestep_options() -> None:
    config = TrainConfig(
        noise_offset=0.1,
        noise_offset_random_strength=True,
        adaptive_noise_scale=0.02,
        multires_noise_iterations=6,
        multires_noise_discount=0.2,
        ip_noise_gamma=0.05,
        ip_noise_gamma_random_strength=True,
        min_timestep=100,
        max_timestep=900,
        timestep_sampling="sigmoid",
        sigmoid_scale=0.5,
        sigmoid_mean=-1.0,
    )
    assert noise_options(config) == NoiseOptions(0.1, True, 0.02, 6, 0.2, 0.05, True)
    assert timestep_options(config, SD) == TimestepOptions(900, 100, "sigmoid", 0.5, -1.0)
    assert noise_options(TrainConfig()) == NoiseOptions()
    assert timestep_options(TrainConfig(), SD) == TimestepOptions(1000)
