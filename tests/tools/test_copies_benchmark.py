"""The truth of `benchmarks/copies.py`, which decides by pixels alone what a copy is, and its counts."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image, ImageChops, ImageFilter

from benchmarks.copies import IS_COPY, IS_OTHER, Counts, Design, changed_shares, count_epoch, dataset_pairs
from lib_lora_train.evaluation.sample_scale import CopyRule


def _recoloured(image: Image.Image) -> Image.Image:
    """The image with black where its background was."""
    backdrop = Image.new("RGB", image.size, image.getpixel((0, 64)))
    mask = ImageChops.difference(image, backdrop).convert("L").point(lambda value: 255 if value > 8 else 0)
    return Image.composite(image, Image.new("RGB", image.size), mask)


def test_a_blurred_and_shifted_image_is_a_copy_and_another_one_of_the_same_subject_is_none() -> None:
    first, *others = [image for image, _ in dataset_pairs(Design("many-100"))]
    whole, objects = changed_shares(ImageChops.offset(first.filter(ImageFilter.GaussianBlur(1)), 2, 0), first)
    assert whole <= IS_COPY and objects <= IS_COPY
    assert min(objects for _, objects in (changed_shares(first, other) for other in others)) >= IS_OTHER


def test_a_copy_on_another_background_is_neither() -> None:
    [image] = [image for image, _ in dataset_pairs(Design("copy-100"))]
    whole, objects = changed_shares(_recoloured(image), image)
    assert whole > IS_COPY and objects < IS_OTHER


@pytest.mark.parametrize(("name", "images"), [("copy-1", 2), ("copy-2", 1), ("many-1", 24)])
def test_a_run_has_as_many_images_as_its_name_says(name: str, images: int) -> None:
    design = Design(name)
    assert len(dataset_pairs(design)) == design.images == images


def test_copies_others_and_unclear_samples_are_counted_apart() -> None:
    alike = {"found": [0.9, 0.9, 0.1, 0.1], "missed": [0.9, 0.5, 0.1, 0.1], "alarm": [0.9, 0.9, 0.9, 0.9]}
    alike |= {"other": [0.5, 0.5, 0.9, 0.9], "unclear": [0.9, 0.9, 0.9, 0.1]}
    record: dict[str, Any] = {"pairs": [], "samples": {f"epoch-000001-{name}": [one] for name, one in alike.items()}}
    assert count_epoch(record, 1, CopyRule(0.8, 0.86)) == Counts(copies=2, found=1, others=2, alarms=1, unclear=1)
    assert count_epoch(record, 2) == Counts(0, 0, 0, 0, 0)
