"""Promises of train/noise.py: every draw depends on the seed and the sample's number, and on nothing else."""

from __future__ import annotations

import torch

from lib_lora_train.train.noise import draw_noise, draw_sample_noise, draw_timestep

SHAPE = (4, 8, 8)


def test_draws_depend_on_seed_and_number_only() -> None:
    first = draw_sample_noise(1, 7, shape=SHAPE, timesteps=1000)
    torch.randn(100)  # the global generator moves on
    draw_sample_noise(1, 6, shape=(4, 16, 8), timesteps=1000)
    again = draw_sample_noise(1, 7, shape=SHAPE, timesteps=1000)
    assert torch.equal(first.noise, again.noise)
    assert torch.equal(first.posterior, again.posterior)
    assert first.timestep == again.timestep


def test_samples_seeds_and_purposes_differ() -> None:
    base = draw_sample_noise(1, 7, shape=SHAPE, timesteps=1000)
    others = [
        draw_sample_noise(1, 8, shape=SHAPE, timesteps=1000),
        draw_sample_noise(2, 7, shape=SHAPE, timesteps=1000),
    ]
    assert not any(torch.equal(base.noise, other.noise) for other in others)
    assert not torch.equal(base.noise, base.posterior)


def test_noise_is_standard_normal() -> None:
    many = torch.stack([draw_noise(3, draw, SHAPE) for draw in range(400)]).double()
    # 102,400 numbers: standard errors are 0.0031 for the mean and 0.0022 for the deviation; five of them are allowed
    assert abs(float(many.mean())) < 0.016
    assert abs(float(many.std()) - 1) < 0.011


def test_timesteps_are_uniform_over_the_schedule() -> None:
    drawn = torch.tensor([draw_timestep(0, draw, 10) for draw in range(10_000)])
    counts = torch.bincount(drawn, minlength=10).double()
    chi_square = float(((counts - 1000) ** 2 / 1000).sum())
    assert chi_square < 27.9  # 9 degrees of freedom, p = 0.001


def test_noise_offset_shifts_whole_channels_and_leaves_the_rest() -> None:
    plain, shifted = draw_noise(5, 3, SHAPE), draw_noise(5, 3, SHAPE, offset=0.1)
    shift = (shifted - plain).flatten(1)
    # float32 sums of numbers about 3 round at 2e-7
    assert torch.allclose(shift, shift[:, :1].expand_as(shift), atol=1e-6)
    assert float(shift.std(dim=0).max()) > 0
