"""docs/errors.md lists every error message as the sources have it."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from lib_lora_train.core import errors
from tests.paths import ROOT

_PACKAGE = ROOT / "lib_lora_train"
_TOOL: Any = importlib.import_module("tools.make_error_page")


def texts_in(code: str) -> list[str]:
    return sorted(message.text for message in messages_in(code))


def messages_in(code: str) -> list[Any]:
    return list(_TOOL.Source(code).messages(frozenset({"DataError"}), with_values=True))


def test_the_error_page_is_current() -> None:
    written = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    assert written == _TOOL.error_page(), "run: python -m tools.make_error_page"


def test_the_classes_are_those_of_the_tree() -> None:
    tree = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type)
        and issubclass(value, errors.LoraTrainError)
        and not issubclass(value, errors.ConfigError)  # these hold Problems
    }
    assert _TOOL.error_classes() == tree


def test_every_room_has_a_title() -> None:
    rooms = {path.name for path in _PACKAGE.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert rooms <= set(_TOOL.ROOMS)


def test_every_error_class_that_is_raised_has_messages() -> None:
    listed = {message.error for messages in _TOOL.messages_by_room().values() for message in messages}
    assert _TOOL.error_classes() - listed == set()


@pytest.mark.parametrize(
    ("code", "texts"),
    [
        ('raise DataError("The folder is empty.")', ["The folder is empty."]),
        ('raise DataError(f"{path.name} has {n:,} images.")', ["… has … images."]),
        ("raise DataError(f\"has {count(n, 'image')}.\")", ["has … images."]),
        ("raise DataError(count(n, 'key is', 'keys are') + ' odd.')", ["… keys are odd."]),
        ('raise DataError(f"{a} {b}, {c} are missing.")', ["… are missing."]),
        ('def f(ok):\n    raise DataError("Yes it is." if ok else "No it is not.")', ["No it is not.", "Yes it is."]),
        ('def f():\n    text = f"{x} is odd"\n    raise DataError(f"{text}: use 2.")', ["… is odd: use 2."]),
        ('ADVICE = "Try again."\ndef f():\n    raise DataError(f"Lost. {ADVICE}")', ["Lost. Try again."]),
        ('def f(why):\n    raise DataError(f"Cannot: {why}")\nf("the disk is full")', ["Cannot: the disk is full"]),
        ('def why():\n    return "It is gone."\nraise DataError(why())', ["It is gone."]),
        ('raise DataError("was {} before".format(x))', ["was … before"]),
        ("raise DataError(str(error))", []),
        ('raise ValueError("is not a number")', ["is not a number"]),
        ('raise KeyError("internal name")', []),
    ],
)
def test_a_message_is_followed_to_its_text(code: str, texts: list[str]) -> None:
    assert texts_in(code) == texts


def test_the_text_that_is_assigned_last_is_taken() -> None:
    code = 'def f():\n    text = "first one"\n    warn(text)\n    text = "second one"\n    raise DataError(text)'
    assert texts_in(code) == ["second one"]


def test_both_branches_before_count() -> None:
    branches = ["    if x:", '        text = "with it"', "    else:", '        text = "without it"']
    code = "\n".join(["def f(x):", *branches, "    raise DataError(text)"])
    assert texts_in(code) == ["with it", "without it"]


def test_a_problem_carries_its_setting_and_hints_are_left_out() -> None:
    code = (
        'Problem("error", "rank", f"{x} is too large.")\nerror_at("alpha", "is missing.")\nhint_at("seed", "is odd.")'
    )
    assert {(m.where, m.text) for m in messages_in(code)} == {("rank", "… is too large."), ("alpha", "is missing.")}
