"""Buckets of any resolution, square or not, agree with an independent computation from sd-scripts' rules.

The table is every bucket setting that was compared with sd-scripts side by side, on the same fifteen odd sizes.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.config.validation.validate import validate
from lib_lora_train.dataset.buckets import list_bucket_sizes, make_bucket_rule, place_image
from lib_lora_train.formats.kohya.importer import from_script

Size = tuple[int, int]

SIZES: tuple[Size, ...] = (
    *((512, 512), (800, 600), (600, 800), (1920, 1080), (1080, 1920), (333, 777), (2000, 500), (500, 2000)),
    *((1023, 1024), (640, 641), (150, 150), (4000, 400), (1365, 768), (896, 1152), (50, 700)),
)
SETTINGS: dict[str, dict[str, Any]] = {
    "512": {"resolution": "512"},
    "1024 to 2048": {"resolution": "1024", "max_bucket_reso": 2048},
    "768 in steps of 32": {"resolution": "768", "bucket_reso_steps": 32},
    "1024 not enlarged": {"resolution": "1024", "bucket_no_upscale": True, "max_bucket_reso": 2048},
    "512 not enlarged": {"resolution": "512", "bucket_no_upscale": True},
    "768 not enlarged in steps of 32": {"resolution": "768", "bucket_no_upscale": True, "bucket_reso_steps": 32},
    "512 without buckets": {"resolution": "512", "enable_bucket": False},
    "768 by 512": {"resolution": "768,512"},
    "512 by 768": {"resolution": "512,768"},
    "768 by 512 without buckets": {"resolution": "768,512", "enable_bucket": False},
    "768 by 512 not enlarged": {"resolution": "768,512", "bucket_no_upscale": True},
    "384 to 768": {"resolution": "512", "min_bucket_reso": 384, "max_bucket_reso": 768},
    "300 to 1000": {"resolution": "512", "min_bucket_reso": 300, "max_bucket_reso": 1000},
    "500": {"resolution": "500"},
    "640 to 1536": {"resolution": "640", "max_bucket_reso": 1536},
}


def _config(name: str) -> TrainConfig:
    return from_script({"network_dim": 4, "enable_bucket": True, **SETTINGS[name]}).config


def _floor(length: Fraction | int, step: int) -> int:
    return int(length // step) * step


def _half_up(length: Fraction) -> int:
    return int(length + Fraction(1, 2))


def _expected(name: str, image: Size) -> tuple[Size, Size]:
    """The bucket and the resized size by sd-scripts' rules, in exact fractions."""
    values: dict[str, Any] = {
        "min_bucket_reso": 256,
        "max_bucket_reso": 1024,
        "bucket_reso_steps": 64,
        **SETTINGS[name],
    }
    sides = [int(side) for side in str(values["resolution"]).split(",")]
    width, height = sides[0], sides[-1]
    step = int(values["bucket_reso_steps"])
    if values.get("bucket_no_upscale"):
        return _not_enlarged(image, width * height, step)
    if values.get("enable_bucket") is False:
        return _covered(image, (width, height))
    low, high = _floor(int(values["min_bucket_reso"]), step), -_floor(-int(values["max_bucket_reso"]), step)
    area, square = width * height, step
    while (square + step) ** 2 <= area:
        square += step
    buckets = {(square, square)}
    for side in range(low, high + 1, step):
        other = min(high, _floor(Fraction(area, side), step))
        if other >= low:
            buckets |= {(side, other), (other, side)}
    ratio = Fraction(*image)
    return _covered(image, min(buckets, key=lambda size: (abs(Fraction(*size) - ratio), -size[0])))


def _covered(image: Size, bucket: Size) -> tuple[Size, Size]:
    scale = max(Fraction(bucket[0], image[0]), Fraction(bucket[1], image[1]))
    return bucket, (_half_up(image[0] * scale), _half_up(image[1] * scale))


def _not_enlarged(image: Size, area: int, step: int) -> tuple[Size, Size]:
    resized = image
    if image[0] * image[1] > area:
        ratio, exact = Fraction(*image), image[0] / image[1]
        wide = _floor(_half_up(Fraction((area * exact) ** 0.5)), step)
        high = _floor(_half_up(Fraction((area / exact) ** 0.5)), step)
        error_wide = abs(Fraction(wide, max(_floor(_half_up(wide / ratio), step), 1)) - ratio)
        error_high = abs(Fraction(_floor(_half_up(high * ratio), step), high) - ratio)
        by_width = error_wide < error_high
        resized = (wide, _half_up(wide / ratio)) if by_width else (_half_up(high * ratio), high)
    bucket = (_floor(resized[0], step), _floor(resized[1], step))
    if 0 in bucket:  # sd-scripts stops here; the image is enlarged to one step instead
        return _covered(image, (max(bucket[0], step), max(bucket[1], step)))
    return bucket, resized


@pytest.mark.parametrize("image", SIZES, ids=str)
@pytest.mark.parametrize("name", SETTINGS)
def test_every_size_gets_the_bucket_of_sd_scripts(name: str, image: Size) -> None:
    config = _config(name)
    placement = place_image(*image, make_bucket_rule(config))
    found = (placement.width, placement.height), (placement.resize_width, placement.resize_height)
    assert found == _expected(name, image)


@pytest.mark.parametrize("name", SETTINGS)
def test_imported_bucket_settings_are_valid(name: str) -> None:
    wheres = ("resolution", "resolution_height", "min_bucket", "max_bucket", "bucket_step")
    errors = [problem for problem in validate(_config(name)) if problem.level == "error" and problem.where in wheres]
    assert errors == []


def test_an_image_of_the_resolution_is_not_cropped() -> None:
    placement = place_image(512, 768, make_bucket_rule(TrainConfig(resolution=512, resolution_height=768)))
    assert (placement.width, placement.height) == (placement.resize_width, placement.resize_height) == (512, 768)


def test_without_buckets_every_image_is_cropped_to_the_rectangle() -> None:
    config = TrainConfig(resolution=768, resolution_height=512, enable_buckets=False)
    assert list_bucket_sizes(make_bucket_rule(config)) == ((768, 512),)


def test_at_another_resolution_a_rectangle_keeps_its_shape() -> None:
    config = TrainConfig(resolution=1024, resolution_height=512, enable_buckets=False)
    assert list_bucket_sizes(make_bucket_rule(config, 362)) == ((512, 256),)


def test_a_rectangle_off_the_step_is_rejected_only_without_buckets() -> None:
    config = TrainConfig(resolution=512, resolution_height=500)
    assert [p.where for p in validate(config.replace(enable_buckets=False)) if p.level == "error"].count(
        "resolution_height"
    ) == 1
    assert not [p for p in validate(config) if p.where in ("resolution", "resolution_height")]


def test_limits_between_two_steps_are_rounded_with_a_note() -> None:
    imported = from_script({"network_dim": 4, "min_bucket_reso": 300, "max_bucket_reso": 1000})
    assert (imported.config.min_bucket, imported.config.max_bucket) == (256, 1024)
    noted = {problem.where for problem in imported.problems}
    assert {"min_bucket", "max_bucket"} <= noted


def test_a_step_that_latents_do_not_have_becomes_the_usual_one() -> None:
    imported = from_script({"network_dim": 4, "bucket_reso_steps": 1})
    assert imported.config.bucket_step == 64
    assert [ignored.key for ignored in imported.ignored if not ignored.is_harmless] == ["bucket_reso_steps"]
