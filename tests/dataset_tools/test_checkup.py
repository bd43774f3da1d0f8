"""The checkup finds all problems in a folder, and its repairs keep every original."""

from __future__ import annotations

import io
import random
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw, ImageEnhance

from lib_lora_train.config.train_config import Concept
from lib_lora_train.core.errors import DataError
from lib_lora_train.dataset.scan import scan_dataset
from lib_lora_train.dataset_tools import image_cache
from lib_lora_train.dataset_tools.checkup import CheckReport, Finding, check_dataset
from lib_lora_train.dataset_tools.image_cache import ImageFacts, ImageFactsCache, inspect_image
from lib_lora_train.dataset_tools.perceptual_hash import (
    MAX_COLOUR_DIFFERENCE,
    MAX_DIFFERENT_BITS,
    Fingerprint,
    compute_fingerprint,
    group_similar,
)
from lib_lora_train.dataset_tools.repairs import SHRUNK_SIDE, originals_folder, write_repairs, write_undo
from tests.stand_ins.work import calls_of


def is_similar(one: Fingerprint, other: Fingerprint) -> bool:
    """Whether two images look nearly the same: the definition, one pair at a time."""
    difference = sum(abs(a - b) for a, b in zip(one.colours, other.colours, strict=True))
    is_near = (one.bits ^ other.bits).bit_count() <= MAX_DIFFERENT_BITS
    return is_near and difference <= MAX_COLOUR_DIFFERENCE * len(one.colours)


def scene(seed: int, size: tuple[int, int] = (512, 512)) -> Image.Image:
    """Soft blotches, as different between seeds as photos are."""
    rng = random.Random(seed)
    small = Image.frombytes("RGB", (6, 6), rng.randbytes(108))
    return small.resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "cats"
    images.mkdir()
    return images


def put(folder: Path, name: str, image: Image.Image, caption: str | None = "a, b", **options: Any) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    image.save(path, **options)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def found(report: CheckReport) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {}
    for finding in report.findings:
        kinds.setdefault(finding.kind, []).append(finding.path.name)
    return kinds


def of_kind(report: CheckReport, kind: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.kind == kind]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_all_problems(folder: Path) -> None:
    """A folder with every kind of problem."""
    put(folder, "fine.png", scene(1))
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbut no more")
    put(folder, "tiny.png", scene(2, (200, 300)))
    put(folder, "huge.jpg", scene(3, (3200, 1600)))
    holes = scene(4).convert("RGBA")
    holes.paste((0, 0, 0, 0), (0, 0, 100, 100))
    put(folder, "holes.png", holes)
    put(folder, "solid.png", scene(5).convert("RGBA"))
    put(folder, "moving.webp", scene(6), save_all=True, append_images=[scene(7)], duration=100)
    exif = Image.Exif()
    exif[0x0112] = 6
    put(folder, "turned.jpg", scene(8, (768, 512)), exif=exif)
    put(folder, "twin.png", scene(9))
    put(folder, "twin copy.png", scene(9))
    put(folder, "twin smaller.jpg", scene(9, (480, 480)), quality=60)
    put(folder, "uncaptioned.png", scene(10), None)
    put(folder, "empty.png", scene(11), " \n")
    put(folder, "latin.png", scene(12), None).with_suffix(".txt").write_bytes("schön".encode("latin-1"))
    (folder / "nobody.txt").write_text("whose caption?")
    scene(13).save(folder / "old.gif")
    put(folder, "fine-mask.png", Image.new("L", (512, 512)), None)


def test_every_problem_is_found_and_nothing_else(folder: Path) -> None:
    write_all_problems(folder)
    progress: list[tuple[int, int]] = []
    report = check_dataset(folder, on_progress=lambda done, total: progress.append((done, total)))
    assert found(report) == {
        "broken": ["broken.png"],
        "no caption": ["broken.png", "uncaptioned.png"],
        "tiny": ["tiny.png"],
        "huge": ["huge.jpg"],
        "transparent": ["holes.png"],
        "animated": ["moving.webp"],
        "rotated": ["turned.jpg"],
        "duplicate": ["twin.png"],
        "near-duplicate": ["twin smaller.jpg"],
        "empty caption": ["empty.png"],
        "caption encoding": ["latin.txt"],
        "orphan caption": ["nobody.txt"],
        "unsupported format": ["old.gif"],
    }
    assert progress[-1] == (14, 14) and len(report.images) == 13
    assert of_kind(report, "duplicate")[0].like == folder / "twin copy.png"
    assert next(p for p in report.images if p.path.name == "turned.jpg").height == 768


def test_kohya_sub_folders_are_checked_too(folder: Path) -> None:
    put(folder, "10_cat/a.png", scene(1), None)
    put(folder, "other/b.png", scene(2), None)
    assert found(check_dataset(folder)) == {"no caption": ["a.png"], "folder not read": ["other"]}


def test_sub_folders_that_are_not_read_are_named_as_in_the_plan(folder: Path) -> None:
    """Not those that are concepts themselves, nor originals that a repair has kept."""
    put(folder, "a.png", scene(1), "a cat")
    put(folder, "face/b.png", scene(2), "a face")
    put(folder, "face/deep/c.png", scene(3), "a face")
    (folder / "notes").mkdir()
    (finding, deep) = of_kind(check_dataset(folder), "folder not read")
    assert (finding.path, deep.path) == (folder / "face", folder / "face" / "deep")
    assert finding.message.startswith("is not read, with 1 image. Move the images up, rename") and not finding.repair
    assert not of_kind(check_dataset(folder, others={(folder / "face").resolve()}), "folder not read")
    planned = scan_dataset([Concept(str(folder))], ".txt").problems
    assert any("sub-folders not read: face, face/deep (2 images)" in problem.message for problem in planned)


def test_the_limit_for_tiny_images_follows_the_resolution(folder: Path) -> None:
    put(folder, "a.png", scene(1, (600, 600)))
    assert found(check_dataset(folder)) == {}
    assert found(check_dataset(folder, resolution=1024)) == {"tiny": ["a.png"]}


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        check_dataset(tmp_path / "none")


# --- similar images -----------------------------------------------------------------------------------


def test_copies_are_similar_and_other_images_are_not() -> None:
    original = scene(1)
    prints = compute_fingerprint(original)
    buffer = io.BytesIO()
    original.resize((300, 300)).save(buffer, "JPEG", quality=40)
    with Image.open(buffer) as copy:
        assert is_similar(prints, compute_fingerprint(copy.convert("RGB")))
    assert is_similar(prints, compute_fingerprint(ImageEnhance.Brightness(original).enhance(1.03)))
    others = [compute_fingerprint(scene(seed)) for seed in range(2, 200)]
    assert not any(is_similar(prints, other) for other in others)
    flat = [compute_fingerprint(Image.new("RGB", (64, 64), colour)) for colour in ("red", "blue", "white")]
    assert not is_similar(flat[0], flat[1]) and not is_similar(flat[1], flat[2])


def test_copies_of_other_sizes_and_aspect_ratios_are_similar() -> None:
    """Drawings with hard edges, which a coarse grid of cells would see differently at each size."""
    rng = random.Random(3)
    for seed in range(40):
        original = scene(seed, (448, 384))
        draw = ImageDraw.Draw(original)
        for _ in range(6):
            left, top, size = (rng.randrange(first, last) for first, last in ((0, 400), (0, 340), (20, 120)))
            draw.ellipse((left, top, left + size, top + size // 2), fill=rng.randrange(1 << 24))
        copy = original.resize((rng.randrange(200, 700), rng.randrange(200, 700)), Image.Resampling.LANCZOS)
        assert is_similar(compute_fingerprint(original), compute_fingerprint(copy)), seed


def test_groups_equal_those_of_comparing_every_pair() -> None:
    """Random fingerprints, some a few bits away from others; found by matrix products, checked pair by pair."""
    rng = random.Random(0)
    bits = [rng.getrandbits(128) for _ in range(60)]
    for _ in range(60):
        flipped = rng.choice(bits)
        for place in rng.sample(range(128), rng.randrange(MAX_DIFFERENT_BITS + 4)):
            flipped ^= 1 << place
        bits.append(flipped)
    prints = [Fingerprint(one, bytes(48)) for one in bits]
    near = {n: {m for m in range(len(bits)) if is_similar(prints[n], prints[m])} for n in range(len(bits))}
    expected: list[set[int]] = []
    for number in range(len(bits)):
        reached, edge = {number}, {number}
        while edge:
            edge = set().union(*(near[n] for n in edge)) - reached
            reached |= edge
        if len(reached) > 1 and reached not in expected:
            expected.append(reached)
    assert [set(group) for group in group_similar(prints)] == expected
    assert len(expected) > 10


@pytest.mark.parametrize("bits", ["all different", "all the same"])
def test_grouping_thousands_of_fingerprints_makes_no_call_per_pair(bits: str) -> None:
    """2,000 images make two million pairs; drawings on white have many bits in common."""
    rng = random.Random(1)
    prints = [Fingerprint(rng.getrandbits(128) * (bits == "all different"), rng.randbytes(48)) for _ in range(2000)]
    groups: list[list[int]] = []
    assert calls_of(lambda: groups.extend(group_similar([*prints, prints[7]]))) < 20 * len(prints)
    assert groups == [[7, 2000]]


# --- cache, progress, stop -------------------------------------------------------------------------


def test_images_are_decoded_again_only_if_they_have_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_all_problems(folder)
    decoded: list[str] = []

    def counted(path: Path) -> ImageFacts | str:
        decoded.append(path.name)
        return inspect_image(path)

    monkeypatch.setattr(image_cache, "inspect_image", counted)
    cache = ImageFactsCache()
    first = check_dataset(folder, cache=cache)
    assert len(decoded) == 14
    decoded.clear()
    assert check_dataset(folder, cache=cache) == first and decoded == []
    put(folder, "broken.png", scene(20))
    again = check_dataset(folder, cache=cache)
    assert decoded == ["broken.png"] and "broken" not in found(again)


def test_a_stopped_checkup_reports_how_far_it_got_and_decodes_no_more(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(30):
        put(folder, f"{n}.png", scene(n, (64, 64)), None)
    (folder / "nobody.txt").write_text("whose caption?")
    inspected: list[Path] = []
    turn = threading.Semaphore(1)  # the threads do not run ahead, so that the count is the same on every machine

    def in_turn(path: Path) -> ImageFacts | str:
        turn.acquire(timeout=1)
        inspected.append(path)
        return inspect_image(path)

    monkeypatch.setattr(image_cache, "inspect_image", in_turn)
    progress: list[int] = []

    def on_progress(done: int, _total: int) -> None:
        progress.append(done)
        turn.release()

    report = check_dataset(folder, on_progress=on_progress, is_stopped=lambda: len(progress) == 5)
    assert progress == [1, 2, 3, 4, 5] and report.checked_count == 5
    assert len(report.images) == 5 and found(report)["orphan caption"] == ["nobody.txt"]
    assert len(inspected) <= 10  # 6 turns, and at most 4 threads that wait for one


# --- repairs -----------------------------------------------------------------------------------


def test_after_the_repairs_nothing_is_found_and_undo_restores_every_byte(folder: Path) -> None:
    write_all_problems(folder)
    before = snapshot(folder)
    chosen = {folder / "latin.txt": "cp1252"}
    fixed = write_repairs(folder, check_dataset(folder).findings, words="zorp cat", encodings=chosen)
    assert fixed.failed == ()
    left = found(check_dataset(folder))
    assert left == {"no caption": ["old.png"]}  # the converted image has none yet
    assert (folder / "uncaptioned.txt").read_text() == (folder / "empty.txt").read_text() == "zorp cat\n"
    assert (folder / "latin.txt").read_text(encoding="utf-8") == "schön"
    assert fixed.undo is not None and fixed.undo.parent == originals_folder(folder)
    put_away = ["broken.png", "tiny.png", "tiny.txt", "twin.png", "twin.txt", "twin smaller.jpg", "twin smaller.txt"]
    changed = ["huge.jpg", "holes.png", "moving.webp", "turned.jpg", "latin.txt", "empty.txt", "old.gif"]
    assert write_undo(fixed.undo) == len([*put_away, "nobody.txt", *changed, "uncaptioned.txt", "old.png"])
    assert snapshot(folder) == before
    assert not originals_folder(folder).exists()


def test_each_repair_does_what_its_name_says(folder: Path) -> None:
    write_all_problems(folder)
    write_repairs(folder, check_dataset(folder).findings)
    with Image.open(folder / "huge.jpg") as image:
        assert image.size == (SHRUNK_SIDE, SHRUNK_SIDE // 2)
    with Image.open(folder / "holes.png") as image:
        assert image.mode == "RGB" and image.getpixel((5, 5)) == (255, 255, 255)
    with Image.open(folder / "turned.jpg") as image:
        assert image.size == (512, 768) and 0x0112 not in image.getexif()
    with Image.open(folder / "moving.webp") as image:
        assert not getattr(image, "is_animated", False)
    assert not (folder / "uncaptioned.txt").exists()  # without words there is nothing to write


def test_a_converted_image_does_not_overwrite_another(folder: Path) -> None:
    scene(1).save(folder / "a.gif")
    put(folder, "a.png", scene(2))
    before = snapshot(folder)
    fixed = write_repairs(folder, of_kind(check_dataset(folder), "unsupported format"))
    assert fixed.repaired == () and "a.png exists already" in fixed.failed[0][1]
    assert snapshot(folder) == before and fixed.undo is None


def test_the_originals_of_two_repairs_are_both_kept(folder: Path) -> None:
    for seed in (1, 2):
        put(folder, "a.png", scene(seed, (100, 100)))
        write_repairs(folder, check_dataset(folder).findings)
    kept = sorted(path.name for path in originals_folder(folder).glob("*.png"))
    assert kept == ["a (2).png", "a.png"]


def test_a_shared_caption_stays_with_the_remaining_image(folder: Path) -> None:
    put(folder, "a.png", scene(1, (100, 100)))
    put(folder, "a.jpg", scene(2))
    write_repairs(folder, of_kind(check_dataset(folder), "tiny"))
    assert (folder / "a.txt").exists() and not (folder / "a.png").exists()


def test_a_mask_is_set_aside_and_restored_with_its_image(folder: Path) -> None:
    put(folder, "small.png", scene(1, (40, 40)))
    put(folder, "small-mask.png", scene(2, (40, 40)).convert("L"), caption=None)
    before = snapshot(folder)
    fixed = write_repairs(folder, of_kind(check_dataset(folder), "tiny"))
    assert not list(folder.glob("small*")), "a mask left behind would be trained on as an image"
    assert fixed.undo is not None
    write_undo(fixed.undo)
    assert snapshot(folder) == before


def test_the_repaired_folder_can_be_trained_on(folder: Path) -> None:
    write_all_problems(folder)
    write_repairs(folder, check_dataset(folder).findings, words="zorp cat", encodings={folder / "latin.txt": "cp1252"})
    dataset = scan_dataset([Concept(str(folder), trigger="zorp")], ".txt")
    assert [problem for problem in dataset.problems if problem.level == "warning"] == []


def test_the_captioned_copy_stays_and_the_larger_of_those(folder: Path) -> None:
    put(folder, "a.png", scene(1), None)
    put(folder, "b.png", scene(1))
    put(folder, "c.png", scene(1, (600, 600)), None)
    put(folder, "d.png", scene(1, (560, 560)))
    gone = {finding.path.name: finding for finding in check_dataset(folder).findings if finding.like}
    assert set(gone) == {"a.png", "b.png", "c.png"}
    assert "without caption beside 560×560 with caption: d.png stays" in gone["c.png"].message


def test_no_guess_of_an_encoding_is_written(folder: Path) -> None:
    caption = put(folder, "a.png", scene(1), None).with_suffix(".txt")
    caption.write_bytes("рыжий кот".encode("cp1251"))
    (finding,) = check_dataset(folder).findings
    assert finding.readings[0].text == "рыжий кот" and "'рыжий кот'" in finding.message
    refused = write_repairs(folder, [finding])
    assert refused.repaired == () and "choose its encoding first" in refused.failed[0][1]
    assert caption.read_bytes() == "рыжий кот".encode("cp1251")
    write_repairs(folder, [finding], encodings={caption: "cp1251"})
    assert caption.read_text(encoding="utf-8") == "рыжий кот" and check_dataset(folder).findings == ()


def test_files_changed_after_the_check_are_not_repaired(folder: Path) -> None:
    tiny = put(folder, "a.png", scene(1, (100, 100)))
    report = check_dataset(folder)
    put(folder, "a.png", scene(2))
    fixed = write_repairs(folder, report.findings, seen=report.seen)
    assert "has changed since the check" in fixed.failed[0][1] and tiny.exists()
