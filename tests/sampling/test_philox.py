"""Noise as NVIDIA cards generate it, against published vectors and PyTorch on a card."""

from __future__ import annotations

import math

import pytest
import torch

from lib_lora_train.sampling.philox import PhiloxNoise, Words, box_muller, philox_4x32

# Random123's kat_vectors, lines "philox4x32 10": counter, key, answer.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
# torch.manual_seed(0); torch.randn(3, 4, device="cuda")
ON_A_CARD = [
    [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
    [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
    [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
]


def words(text: str) -> Words:
    """One counter, each word in its own tensor."""
    first, second, third, fourth = (torch.tensor([int(word, 16)]) for word in text.split())
    return first, second, third, fourth


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_matches_the_published_vectors(counter: str, key: str, answer: str) -> None:
    first, second = (int(word, 16) for word in key.split())
    assert philox_4x32(words(counter), (first, second)) == words(answer)


def test_philox_noise_equals_cuda() -> None:
    """5e-7: PyTorch computes logarithm and sine in single precision there, and prints eight digits."""
    torch.testing.assert_close(PhiloxNoise(0).draw((3, 4)), torch.tensor(ON_A_CARD), rtol=0, atol=5e-7)


def test_box_muller_equals_plain_python() -> None:
    """One rounding to float32 apart: both compute in double precision, with 2π in single."""
    x, y = torch.tensor([0, 1, 2**31, 2**32 - 1, 123456789]), torch.tensor([2**32 - 1, 0, 2**30, 7, 3 * 2**30])
    turn = 6.2831854820251465
    expected = [
        math.sqrt(-2 * math.log((a + 0.5) / 2**32)) * math.sin((b + 0.5) / 2**32 * turn)
        for a, b in zip(x.tolist(), y.tolist(), strict=True)
    ]
    torch.testing.assert_close(box_muller(x, y), torch.tensor(expected), rtol=2**-23, atol=0)


def test_a_seed_draws_one_tensor_after_another() -> None:
    noise, again = PhiloxNoise(7), PhiloxNoise(7)
    first, second = noise.draw((4, 8, 8)), noise.draw((4, 8, 8))
    assert not torch.equal(first, second)
    torch.testing.assert_close([again.draw((4, 8, 8)), again.draw((4, 8, 8))], [first, second], rtol=0, atol=0)


def test_both_halves_of_a_long_seed_matter() -> None:
    assert not torch.equal(PhiloxNoise(5).draw((64,)), PhiloxNoise(5 + 2**32).draw((64,)))


def test_the_numbers_are_normal() -> None:
    """100,000 numbers; mean and variance stray by 1/√n and √(2/n): four of these are allowed, the fourth moment ten."""
    drawn = PhiloxNoise(3).draw((100_000,)).double()
    assert abs(float(drawn.mean())) < 4 / 100_000**0.5
    assert abs(float(drawn.var()) - 1) < 4 * (2 / 100_000) ** 0.5
    assert abs(float((drawn**4).mean()) - 3) < 10 * (2 / 100_000) ** 0.5
