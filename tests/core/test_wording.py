"""Small pieces of text: a file is named once, and advice fits what failed."""

from __future__ import annotations

import errno

import pytest

from lib_lora_train.core.errors import Problem
from lib_lora_train.core.events import Noted
from lib_lora_train.core.wording import as_sentence, did_you_mean, fixed, located, percent, size_text, without_name
from lib_lora_train.core.writable import failed_write_advice

_OTHER = "Check that the folder exists and can be written"


@pytest.mark.parametrize(
    ("sentence", "where", "rest"),
    [
        ("bad.avif cannot be decoded: x.", "/my set/bad.avif", "cannot be decoded: x."),
        ("/my set/bad.avif cannot be decoded.", "bad.avif", "cannot be decoded."),
        (r"C:\my set\bad.avif cannot be decoded.", r"C:\my set\bad.avif", "cannot be decoded."),
        ("bad.avif: has changed.", "/my set/bad.avif", "has changed."),
        ("rank is too high.", "rank", "is too high."),
        ("another.avif cannot be decoded.", "/my set/bad.avif", "another.avif cannot be decoded."),
        ("bad.avif.png cannot be decoded.", "bad.avif", "bad.avif.png cannot be decoded."),
        ("The disk is full: /my set/bad.avif cannot be written.", "bad.avif", None),
        ("ranks differ.", "rank", "ranks differ."),
        ("Anything.", "", "Anything."),
    ],
)
def test_a_message_beside_a_files_name_does_not_repeat_it(sentence: str, where: str, rest: str | None) -> None:
    rest = sentence if rest is None else rest
    assert without_name(sentence, where) == rest
    assert Noted("warning", where, sentence).message == Problem("warning", where, sentence).message == rest


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "Free some space there, or choose another folder."),
        (OSError(errno.EROFS, "Read-only file system"), "Change the permissions there, or choose another folder."),
        (
            OSError(errno.ENOENT, "No such file"),
            "Check that the folder exists and can be written, or choose another folder.",
        ),
        (RuntimeError("I/O error: No space (os error 28)"), "Free some space there, or choose another folder."),
    ],
)
def test_advice_fits_the_kind_of_failed_write(error: Exception, advice: str) -> None:
    assert failed_write_advice(error) == advice
    assert failed_write_advice(error, instead="wait") == advice.replace("choose another folder", "wait")


@pytest.mark.parametrize("value", [0.0, -0.0, -0.001, -0.0049, 0.004])
def test_what_rounds_to_zero_has_no_sign(value: float) -> None:
    assert fixed(value) == "0.00"
    assert percent(value) == "0%"


def test_numbers_are_rounded_as_by_format() -> None:
    """1,001 values from -5 to 5, against Python's own formatting, which signs zeros."""
    for value in [number / 100 for number in range(-500, 501)]:
        assert fixed(value, 1) == f"{value:.1f}".replace("-0.0", "0.0"), value


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cosin", " Did you mean 'cosine'?"),
        ("EULER A", " Did you mean 'Euler a'?"),
        ("euler", " Did you mean 'Euler'?"),
        ("quaternion", ""),
    ],
)
def test_the_most_similar_name_is_suggested_whatever_its_case(name: str, hint: str) -> None:
    assert did_you_mean(name, ["cosine", "Euler", "Euler a"]) == hint


def test_a_text_becomes_one_sentence() -> None:
    assert [as_sentence(text) for text in ("no", "no.", "no?")] == ["no.", "no.", "no?"]


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("is high.", "rank is high."),
        ("300 is high.", "rank 300 is high."),
        ("1e-05 with Prodigy is low.", "rank 1e-05 with Prodigy is low."),
        ("3 of 4 layers have one.", "rank: 3 of 4 layers have one."),
        ("'x' is not a number.", "rank: 'x' is not a number."),
        ("The file has none.", "rank: The file has none."),
    ],
)
def test_a_message_that_continues_the_name_has_no_colon_before_it(message: str, sentence: str) -> None:
    assert str(Problem("error", "rank", message)) == sentence
    assert located("", message) == message


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 MB"),
        (300_000, "1 MB"),
        (5 * 2**20, "5 MB"),
        (int(0.94 * 2**30), "963 MB"),
        (int(0.96 * 2**30), "1.0 GB"),
        (2**30, "1.0 GB"),
        (int(6.34 * 2**30), "6.3 GB"),
        (10 * 2**30 - 2**25, "10.0 GB"),
        (10 * 2**30, "10 GB"),
        (int(12.4 * 2**30), "12 GB"),
    ],
)
def test_size_text(size: int, words: str) -> None:
    assert size_text(size) == words
