"""How alike images are by their latents: against numpy, for other sizes and mirrored ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lib_lora_train.evaluation import image_likeness
from lib_lora_train.evaluation.image_likeness import nearest_images


def latent(seed: int, height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.randn((4, height, width), generator=torch.Generator().manual_seed(seed)) + 3 * seed


def test_the_likeness_is_the_correlation_around_each_channels_mean() -> None:
    latents = {number: latent(number) for number in range(5)}
    found = nearest_images(latents, count=4)
    for item, pairs in found.items():
        for other, alike in pairs:
            one, two = (np.asarray(latents[n]).reshape(4, -1) for n in (item, other))
            turned = np.asarray(latents[other].flip(-1)).reshape(4, -1)
            assert alike == pytest.approx(max(_correlation(one, two), _correlation(one, turned)), abs=1e-5)
        assert [alike for _, alike in pairs] == sorted((alike for _, alike in pairs), reverse=True)


def _correlation(one: np.ndarray, two: np.ndarray) -> float:
    one, two = (values - values.mean(axis=1, keepdims=True) for values in (one, two))
    return float((one * two).sum() / np.sqrt((one**2).sum() * (two**2).sum()))


def test_a_mirrored_image_and_one_of_another_size_are_the_same() -> None:
    large = latent(7, 64, 64)
    small = torch.nn.functional.avg_pool2d(large, 2)
    found = nearest_images({1: large, 2: small, 3: large.flip(-1), 4: latent(8)})
    assert {other: round(alike, 4) for other, alike in found[1][:2]} == {2: 1.0, 3: 1.0}
    assert max(alike for _, alike in found[4]) < 0.5


def test_images_are_never_more_than_entirely_alike() -> None:
    """In fp32 the length of a unit vector may be rounded to more than 1."""
    alike = [nearest_images({1: latent(seed), 2: latent(seed)})[1][0][1] for seed in range(30)]
    assert max(alike) == 1 and min(alike) == pytest.approx(1)


def test_many_images_are_compared_in_blocks_and_never_with_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    latents = {number: latent(number) for number in range(7)}
    whole = nearest_images(latents)
    monkeypatch.setattr(image_likeness, "_ROWS", 2)
    for item, pairs in nearest_images(latents).items():
        assert [other for other, _ in pairs] == [other for other, _ in whole[item]]
        assert [alike for _, alike in pairs] == pytest.approx([alike for _, alike in whole[item]], abs=1e-6)
    assert all(item not in dict(pairs) and len(pairs) == 3 for item, pairs in whole.items())


def test_a_plain_image_is_like_no_other_and_a_single_one_has_no_neighbours() -> None:
    plain = torch.ones(4, 16, 16)
    found = nearest_images({1: plain, 2: plain, 3: latent(3)})
    assert all(alike == pytest.approx(0, abs=1e-6) for _, alike in found[1])
    assert nearest_images({1: plain}) == {1: []} and nearest_images({}) == {}
