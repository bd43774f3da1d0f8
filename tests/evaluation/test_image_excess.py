"""Which images stand out by their loss: against an independent definition, and what the reasons say."""

from __future__ import annotations

import random
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

from lib_lora_train.evaluation.image_excess import (
    STANDS_OUT,
    TWIN_LIKENESS,
    ImageLoss,
    RatedImage,
    describe_image,
    rate_images,
)


def image(
    name: str,
    *,
    fell: float = 0.5,
    caption: float = 0.2,
    before: float = 0.2,
    group: str = "zok",
    nearest: tuple[tuple[str, float], ...] = (),
) -> ImageLoss:
    """An image at two timesteps, whose loss fell by `fell`, and is lower by `caption` with its caption."""
    trained = (before * (1 - fell), before / 5 * (1 - fell))
    uncaptioned = tuple(loss / (1 - caption) for loss in trained)
    return ImageLoss(name, group, trained, uncaptioned, (before, before / 5), nearest)


def usual(count: int = 12, *, group: str = "zok", fell: float = 0.5) -> list[ImageLoss]:
    """Images that differ little in what was learnt of them, and much in how detailed they are."""
    rng = random.Random(1)
    return [
        image(
            f"{group}/{number:02}.png",
            fell=fell + rng.uniform(-0.05, 0.05),
            caption=0.2 + rng.uniform(-0.05, 0.05),
            before=rng.uniform(0.02, 0.6),
            group=group,
        )
        for number in range(count)
    ]


def first(images: list[ImageLoss]) -> RatedImage:
    return rate_images(images)[0]


def test_scores_and_excess_are_those_of_their_definition() -> None:
    """In numpy: robust z-scores of mean log ratios; agreement to rounding."""
    images = [*usual(), image("x.png", fell=0.1), image("y.png", caption=-0.1)]
    logs = {name: np.log([getattr(one, name) for one in images]) for name in ("trained", "untrained", "uncaptioned")}
    values = np.stack([(logs["trained"] - logs[name]).mean(axis=1) for name in ("untrained", "uncaptioned")])
    centred = values - np.median(values, axis=1, keepdims=True)  # (2, images)
    spread = np.median(np.abs(centred), axis=1, keepdims=True) / 0.6744897501960817  # the normal's third quartile
    scores, excess = (centred / spread).sum(axis=0) / np.sqrt(2), np.exp(centred.mean(axis=0)) - 1
    rated = {one.image.path: one for one in rate_images(images)}
    for number, one in enumerate(images):
        assert rated[one.path].score == pytest.approx(scores[number], rel=1e-4)
        assert rated[one.path].excess == pytest.approx(excess[number], rel=1e-4)
        assert rated[one.path].expected * (1 + excess[number]) == pytest.approx(np.mean(one.trained))
    assert [one.score for one in rate_images(images)] == sorted((one.score for one in rated.values()), reverse=True)


def test_a_loss_that_stayed_stands_out_and_a_detailed_image_does_not() -> None:
    found = first([*usual(), image("other.png", fell=-0.02), image("detailed.png", before=5.0)])
    assert (found.image.path, found.reason) == ("other.png", "loss") and found.score > STANDS_OUT
    assert describe_image(found).startswith("Its loss rose by 2%, the others' fell by 49%. Does it show")


def test_what_is_usual_is_said_without_a_question() -> None:
    said = {describe_image(one) for one in rate_images([image(f"{number}.png") for number in range(6)])}
    assert said == {"Its loss fell by 50%, the others' by 50%."}
    stayed = [image(f"{number}.png", fell=0.0, caption=0.0) for number in range(6)]
    assert {describe_image(one) for one in rate_images(stayed)} == {"Its loss stayed, the others' stayed."}


def test_shares_are_in_percent() -> None:
    said = {describe_image(one) for one in rate_images([image(f"{number}.png", fell=0.9) for number in range(6)])}
    assert said == {"Its loss fell by 90%, the others' by 90%."}


def test_scores_that_stand_out_are_as_rare_as_their_limit_says() -> None:
    assert NormalDist().cdf(-STANDS_OUT) == pytest.approx(1 / 740, rel=1e-2)


def test_a_loss_that_neither_training_nor_the_caption_lowered_is_named_before_the_caption() -> None:
    """Where the LoRA learnt nothing but the captions, both say the same."""
    images = [image(f"{number}.png", fell=0.3 + number / 50) for number in range(6)]
    images = [replace(one, uncaptioned=one.untrained) for one in (*images, image("other.png", fell=0.0))]
    assert first(images).reason == "loss"


def test_a_caption_that_does_not_help_stands_out_though_the_loss_fell() -> None:
    found = first([*usual(), image("caption.png", caption=-0.1)])
    assert (found.image.path, found.reason) == ("caption.png", "caption")
    assert describe_image(found) == (
        "Its caption raises its loss by 10%, those of the others lower theirs by 19%. Does the caption describe "
        "this image?"
    )


def test_of_two_images_that_are_nearly_the_same_one_stands_out() -> None:
    pair = [
        image("a.png", fell=0.6, nearest=(("b.jpg", TWIN_LIKENESS),)),
        image("b.jpg", fell=0.6, nearest=(("a.png", TWIN_LIKENESS), ("zok/01.png", 0.5))),
    ]
    rated = {one.image.path: one for one in rate_images([*usual(), *pair])}
    assert (rated["b.jpg"].reason, rated["b.jpg"].twin) == ("twin", "a.png") and rated["b.jpg"].score >= STANDS_OUT
    assert rated["a.png"].reason == "" and not rated["a.png"].twin
    assert describe_image(rated["b.jpg"]).startswith("Nearly the same as a.png, so both together are trained twice")
    assert rated["b.jpg"].score == 2 * STANDS_OUT
    alike = [image(name, nearest=((other, TWIN_LIKENESS - 0.01),)) for name, other in (("a", "b"), ("b", "a"))]
    assert not any(one.twin for one in rate_images([*usual(), *alike]))


@pytest.mark.parametrize(("likeness", "is_twin"), [(0.99, True), (0.97, True), (0.96, False), (0.5, False)])
def test_images_are_nearly_the_same_from_97_percent_on(likeness: float, is_twin: bool) -> None:
    rated = {one.image.path: one for one in rate_images([image("a"), image("b", nearest=(("a", likeness),))])}
    assert (rated["b"].twin == "a") == is_twin


def test_of_several_duplicates_the_nearest_is_named_and_the_one_with_more_loss_comes_first() -> None:
    nearest = (("zok/02.png", 0.99), ("zok/01.png", 0.98))
    twins = [image("zz/low.png", fell=0.6, nearest=nearest), image("zz/high.png", fell=0.45, nearest=nearest)]
    rated = rate_images([*usual(), *twins])[:2]
    assert [(one.image.path, one.twin) for one in rated] == [
        ("zz/high.png", "zok/02.png"),
        ("zz/low.png", "zok/02.png"),
    ]


def test_five_images_are_enough_to_be_compared_with_each_other() -> None:
    assert first([*usual(4), image("zok/other.png", fell=-0.1)]).reason == "loss"
    assert not any(one.reason for one in rate_images([*usual(12), *usual(5, group="late", fell=0.1)]))


def test_images_are_compared_within_their_folder_unless_it_has_too_few() -> None:
    """A concept that is learnt later does not stand out as a whole; a single image has no peers but all."""
    images = [*usual(12), *usual(6, group="late", fell=0.1)]
    assert not any(one.reason for one in rate_images(images))
    assert first([*usual(12), *usual(2, group="few", fell=0.1)]).image.group == "few"


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
def test_of_too_few_images_none_stands_out_by_its_loss(count: int) -> None:
    images = [image(f"{number}.png", fell=number / 5) for number in range(count)]
    assert [(one.score, one.reason) for one in rate_images(images)] == [(0, "")] * count


def test_the_order_does_not_depend_on_that_of_the_images() -> None:
    images = [*usual(), image("x.png", fell=0.0), image("y.png", caption=-0.3)]
    mixed = random.Random(3).sample(images, len(images))
    assert rate_images(mixed) == rate_images(images)
