"""Augmented views: drawn uniformly, the same for the same content; SDXL is conditioned on their real crop."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.errors import DataError
from lib_lora_train.dataset.augmentation import (
    View,
    find_asymmetric_word,
    make_views,
    mirror_view,
    parse_background_colours,
)
from lib_lora_train.dataset.buckets import Placement
from lib_lora_train.dataset.images import (
    WHITE,
    ImageFile,
    PixelTransform,
    jitter_colours,
    read_image_file,
    read_mask,
    read_pixels,
)
from lib_lora_train.dataset.plan import Plan, epoch_steps
from lib_lora_train.dataset.planner import make_plan
from lib_lora_train.dataset.sample_captions import caption_for_draw, captions_to_cache
from lib_lora_train.dataset.scan import Dataset, Item, ScannedConcept, scan_dataset
from lib_lora_train.training.step import size_conditions

PLACE = Placement(96, 64, 16, 0, 64, 64)
CONFIG = TrainConfig(resolution=64, min_bucket=64, bucket_step=64, enable_buckets=False)


def views(place: Placement = PLACE, *, has_alpha: bool = False, content: str = "ab" * 32, **values: Any) -> list[View]:
    return list(make_views(0, place, Concept("x", **values), content=content, has_alpha=has_alpha))


def noise(size: tuple[int, int] = (96, 64), seed: int = 0) -> Image.Image:
    return Image.frombytes("RGB", size, random.Random(seed).randbytes(size[0] * size[1] * 3))


def plan_of(
    *sizes: tuple[int, int], captions: tuple[str, ...] = ("zok, red",), alpha: bool = False, **values: Any
) -> Plan:
    """A plan of images that exist only by name."""
    items = tuple(
        Item(ImageFile(Path(f"{n}.png"), *size, f"{n:064x}", alpha), captions[n % len(captions)], 0)
        for n, size in enumerate(sizes)
    )
    concept = Concept("x", **values)
    scanned = ScannedConcept("x", Path("x"), 1, "", False, len(sizes), concept)
    return make_plan(Dataset(items, (scanned,), ()), CONFIG.replace(concepts=(concept,)))


# --- which views ---------------------------------------------------------------------------------


def test_without_augmentation_there_is_only_the_plain_view() -> None:
    assert views() == [View(0, PLACE)]
    assert views(alpha_background="black, white") == [View(0, PLACE)]  # opaque


def test_the_first_view_is_always_the_plain_one() -> None:
    assert views(flip=True, random_crop=True, colour_jitter=0.3)[0] == View(0, PLACE)


def test_mirroring_doubles_the_views_and_mirrors_the_crop() -> None:
    plain, flipped = views(Placement(96, 64, 20, 0, 64, 64), flip=True)
    assert flipped.transform.is_mirrored and not plain.transform.is_mirrored
    assert flipped.placement.left == 96 - 64 - 20
    assert mirror_view(flipped).placement == plain.placement


def test_crops_lie_within_the_image_and_reach_its_edges() -> None:
    found = [v.placement for n in range(200) for v in views(random_crop=True, content=f"{n:015x}")]
    assert {(p.width, p.height, p.top) for p in found} == {(64, 64, 0)}
    assert {p.left for p in found} == set(range(33))  # 96 − 64 px of room


def test_jitter_stays_within_its_strength() -> None:
    jitters = [v.transform.jitter for n in range(50) for v in views(colour_jitter=0.2, content=f"{n:015x}")]
    assert jitters[0] is None
    for jitter in jitters:
        if jitter is not None:
            assert all(0.8 <= factor <= 1.2 for factor in jitter[:3])
            assert abs(jitter[3]) <= 0.05


def test_augment_variants_sets_the_number_of_views() -> None:
    assert len(views(colour_jitter=0.1)) == 8
    assert len(views(colour_jitter=0.1, augment_variants=3, flip=True)) == 6
    assert len(views(Placement(64, 64, 0, 0, 64, 64), random_crop=True)) == 1  # no room: all crops are the same


def test_views_depend_only_on_the_content() -> None:
    one = views(random_crop=True, colour_jitter=0.1)
    assert one == views(random_crop=True, colour_jitter=0.1)
    assert one[1:] != views(random_crop=True, colour_jitter=0.1, content="cd" * 32)[1:]
    # one setting does not change the random draws of another
    assert [v.placement for v in one] == [v.placement for v in views(random_crop=True, colour_jitter=0.3)]


def test_background_colours_alternate_behind_transparent_images() -> None:
    found = views(has_alpha=True, alpha_background="white, black, #808080")
    assert [(v.background, v.transform.background) for v in found] == [
        ("white", WHITE),
        ("black", (0, 0, 0)),
        ("#808080", (128, 128, 128)),
    ]
    assert Counter(v.background for v in views(has_alpha=True, alpha_background="white, black", colour_jitter=0.1)) == {
        "white": 4,
        "black": 4,
    }


def test_an_unknown_colour_is_refused() -> None:
    with pytest.raises(DataError, match="'blorange' is not a colour"):
        parse_background_colours("white, blorange")


def test_views_are_drawn_uniformly_and_depend_only_on_the_sample() -> None:
    plan = plan_of((96, 64), flip=True)
    assert plan.view_numbers == ((0, 1),)
    drawn = [plan.draw_view(7, 0, draw) for draw in range(2000)]
    assert abs(drawn.count(1) - 1000) < 112  # 5 standard deviations of a fair coin
    assert drawn == [plan.draw_view(7, 0, draw) for draw in range(2000)]


def test_the_first_views_of_all_items_are_numbered_first() -> None:
    plan = plan_of((96, 64), (96, 64), flip=True)
    assert plan.view_numbers == ((0, 2), (1, 3))
    assert [view.item for view in plan.all_views] == [0, 1, 0, 1]


# --- pixels --------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> ImageFile:
    noise().save(tmp_path / "a.png")
    return read_image_file(tmp_path / "a.png")


def test_a_mirrored_view_is_the_mirror_image_of_the_plain_one(image: ImageFile) -> None:
    for left in (0, 5, 32):
        view = View(0, Placement(96, 64, left, 0, 64, 64))
        other = mirror_view(view)
        plain = read_pixels(image, view.placement, view.transform)
        flipped = read_pixels(image, other.placement, other.transform)
        assert flipped.tobytes() == plain.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes()


def test_a_crop_starts_at_its_left_top_corner(image: ImageFile) -> None:
    for view in views(random_crop=True, flip=True):
        whole = noise()
        if view.transform.is_mirrored:
            whole = whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        left, top = view.placement.left, view.placement.top
        expected = whole.crop((left, top, left + 64, top + 64))
        assert read_pixels(image, view.placement, view.transform).tobytes() == expected.tobytes()


def test_sdxl_is_conditioned_on_the_corner_of_the_crop() -> None:
    plan = plan_of((192, 64), random_crop=True, flip=True, augment_variants=4)
    found = size_conditions(plan, range(len(plan.all_views))).tolist()
    assert found == [[64, 192, v.placement.top, v.placement.left, 64, 64] for v in plan.all_views]
    lefts = [row[3] for row in found]
    pairs = {(min(a, b), max(a, b)) for a in lefts for b in lefts if a + b == 192 - 64}
    assert len(pairs) >= 4  # every crop has its mirror image


def test_each_jitter_factor_changes_only_its_own_property() -> None:
    image = noise()
    assert jitter_colours(image, (1.0, 1.0, 1.0, 0.0)).tobytes() == image.tobytes()

    def mean(one: Image.Image) -> float:
        pixels = one.tobytes()
        return sum(pixels) / len(pixels)

    assert mean(jitter_colours(image, (0.5, 1.0, 1.0, 0.0))) == pytest.approx(mean(image) / 2, abs=1)  # rounding
    grey = jitter_colours(image, (1.0, 1.0, 0.0, 0.0))
    assert all(r == g == b for r, g, b in zip(*[iter(grey.tobytes())] * 3, strict=True))
    red = Image.new("RGB", (1, 1), (255, 0, 0))
    red_value, green, _ = jitter_colours(red, (1.0, 1.0, 1.0, 1 / 3)).tobytes()  # a third of the circle on: green
    assert green > 240 and red_value < 15


def test_transparent_parts_get_the_background_of_the_view(tmp_path: Path) -> None:
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 32, 64))
    image.save(tmp_path / "a.png")
    file = read_image_file(tmp_path / "a.png")
    assert file.has_alpha
    found = read_pixels(file, Placement(64, 64, 0, 0, 64, 64), PixelTransform(background=(1, 2, 3)))
    assert (found.getpixel((5, 5)), found.getpixel((60, 5))) == ((1, 2, 3), (255, 0, 0))


# --- captions ------------------------------------------------------------------------------------


def test_the_caption_names_the_background_of_the_view() -> None:
    plan = plan_of((64, 64), alpha=True, alpha_background="white, black, #123456", tag_background=True)
    found = {
        (plan.all_views[plan.draw_view(CONFIG.seed, 0, draw)].background, caption_for_draw(plan, 0, draw, CONFIG))
        for draw in range(50)
    }
    assert found == {
        ("white", "zok, red, white background"),
        ("black", "zok, red, black background"),
        ("#123456", "zok, red"),
    }
    assert set(captions_to_cache(plan, CONFIG.replace(epochs=10))) == {caption for _, caption in found}


def test_a_background_tag_is_not_added_twice() -> None:
    captions = ("zok, White Background",)
    plan = plan_of((64, 64), captions=captions, alpha=True, tag_background=True)
    assert caption_for_draw(plan, 0, 0, CONFIG) == captions[0]


# --- masks ---------------------------------------------------------------------------------------


def put(folder: Path, name: str, image: Image.Image) -> None:
    folder.mkdir(exist_ok=True)
    image.save(folder / name)


def half_white(size: tuple[int, int] = (96, 64)) -> Image.Image:
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


def test_masks_are_found_next_to_their_images_and_not_trained_on(tmp_path: Path) -> None:
    put(tmp_path, "a.png", noise())
    put(tmp_path, "a-mask.png", half_white())
    put(tmp_path, "b.jpg", noise(seed=1))
    put(tmp_path, "b_mask.png", half_white())
    put(tmp_path, "c.png", noise(seed=2))
    put(tmp_path, "theater_mask.png", noise(seed=3))  # no mask: there is no image "theater"
    dataset = scan_dataset([Concept(str(tmp_path), use_masks=True)], ".txt")
    found = {item.image.path.name: item.mask.path.name if item.mask else "" for item in dataset.items}
    assert found == {"a.png": "a-mask.png", "b.jpg": "b_mask.png", "c.png": "", "theater_mask.png": ""}
    assert any("2 images have no mask" in str(problem) for problem in dataset.problems)
    unused = scan_dataset([Concept(str(tmp_path))], ".txt")
    assert len(unused.items) == 4 and not any(item.mask for item in unused.items)
    assert any("2 masks are not used" in str(problem) for problem in unused.problems)


def test_transparency_is_the_mask_if_there_is_no_mask_file(tmp_path: Path) -> None:
    image = noise().convert("RGBA")
    image.putalpha(half_white())
    put(tmp_path, "a.png", image)
    (item,) = scan_dataset([Concept(str(tmp_path), use_masks=True)], ".txt").items
    assert item.mask == item.image
    mask = read_mask(item.image, Placement(96, 64, 16, 0, 64, 64), is_mirrored=False, alpha=True)
    assert (mask.getpixel((0, 0)), mask.getpixel((31, 9)), mask.getpixel((32, 9))) == (255, 255, 0)


def test_a_mask_is_cropped_and_mirrored_like_its_image(tmp_path: Path) -> None:
    put(tmp_path, "m.png", half_white((48, 32)))  # half the image's size
    mask = read_image_file(tmp_path / "m.png")
    plain = View(0, Placement(96, 64, 20, 0, 64, 64))
    straight = read_mask(mask, plain.placement, is_mirrored=False, alpha=False)
    flipped = read_mask(mask, mirror_view(plain).placement, is_mirrored=True, alpha=False)
    assert straight.tobytes() == flipped.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes()
    assert (straight.getpixel((0, 0)), straight.getpixel((63, 0))) == (255, 0)


# --- several resolutions, warnings ----------------------------------------------------------------


def test_every_image_is_trained_at_each_resolution() -> None:
    plan = plan_of((256, 256), (256, 128), resolutions="64 128")
    assert [
        (item.resolution, place.width) for item, place in zip(plan.dataset.items, plan.placements, strict=True)
    ] == [
        (64, 64),
        (128, 128),
        (64, 64),
        (128, 128),
    ]
    assert {(b.width, b.image_count) for b in plan.buckets} == {(64, 2), (128, 2)}
    assert plan.samples_per_epoch == 4
    shown = Counter(item for step in epoch_steps(plan, 1, 1) for batch in step for item in batch.items)
    assert shown == {0: 1, 1: 1, 2: 1, 3: 1}
    again = make_plan(plan.dataset, CONFIG)
    assert again.dataset == plan.dataset


def test_bucket_limits_scale_with_the_resolution() -> None:
    config = TrainConfig(resolution=512, min_bucket=256, max_bucket=1024)
    dataset = plan_of((3000, 1000), resolutions="1024").dataset
    (place,) = make_plan(dataset, config).placements
    assert (place.width, place.height) == (1728, 576)  # 1024 would be the longest side at 512


def test_an_invalid_resolution_is_refused() -> None:
    with pytest.raises(DataError, match="'big' is not a size from 64 to 2048 px"):
        plan_of((64, 64), resolutions="512 big")


@pytest.mark.parametrize(
    ("caption", "word"),
    [
        ("zok, red hat", ""),
        ("zok, eyepatch", "eyepatch"),
        ("her left_arm up", "left"),
        ("Text, bright", "text"),
        ("brightly lit", ""),
        ("hair_over_one_eye, smile", "hair over one eye"),
        ("english text on a wall", "text"),
    ],
)
def test_asymmetric_words_are_found(caption: str, word: str) -> None:
    assert find_asymmetric_word(caption) == word


def test_the_plan_warns_of_mirrored_words_and_of_crops_without_effect() -> None:
    captions = ("zok, text", "zok")
    plan = plan_of((64, 64), (64, 64), captions=captions, flip=True, random_crop=True)
    found = {problem.where: problem.message for problem in plan.warnings}
    assert "1 of 2" in found["concepts[1].flip"] and "'text'" in found["concepts[1].flip"]
    assert "no effect on 2 of 2" in found["random_crop"]
    assert "concepts[1].flip" not in {problem.where for problem in plan_of((64, 64), captions=captions).warnings}


def test_a_plan_without_views_uses_the_plain_ones() -> None:
    plan = dataclasses.replace(plan_of((64, 64), (64, 64)), views=())
    assert plan.all_views == (View(0, plan.placements[0]), View(1, plan.placements[1]))
    assert torch.equal(size_conditions(plan, [1]), size_conditions(plan_of((64, 64), (64, 64)), [1]))


def test_transparency_is_detected_only_if_it_matters(tmp_path: Path) -> None:
    image = noise().convert("RGBA")
    image.putalpha(half_white())
    put(tmp_path, "a.png", image)
    for values, seen in (
        ({}, False),
        ({"use_masks": True}, True),
        ({"tag_background": True}, True),
        ({"alpha_background": "white, black"}, True),
    ):
        concept = dataclasses.replace(Concept(str(tmp_path)), **values)
        (item,) = scan_dataset([concept], ".txt").items
        assert item.image.has_alpha is seen
