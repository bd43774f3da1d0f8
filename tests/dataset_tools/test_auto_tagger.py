"""Many images tagged in a thread: turns, stop, broken images, failures, and what is written in the end."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from lib_lora_train.core.errors import DataError, HostError, OutputError
from lib_lora_train.dataset_tools.auto_tagger import WD14, AutoTagger, TaggerHost, TaggingRequest
from lib_lora_train.dataset_tools.tagger import ScoredTag, Tagger, TaggerResult, TagRule
from lib_lora_train.hosts.standalone import StandaloneHost
from tests.stand_ins.interrogators import install_interrogators
from tests.stand_ins.tiny_onnx import write_wd14
from tests.stand_ins.ui import write_images
from tests.stand_ins.webui import A1111World, host_in


class ToldHost:
    """A tagger whose every image is told to `at_image` first; `waiting` says when somebody waits."""

    def __init__(self) -> None:
        self.turns = 0
        self.waiting = False

    def at_image(self) -> None:
        pass

    def has_waiters(self) -> bool:
        return self.waiting

    def tagger_names(self) -> tuple[str, ...]:
        return ("DeepBooru",)

    @contextmanager
    def tagger(self, name: str) -> Iterator[Tagger]:
        self.turns += 1

        def tagger(image: Image.Image) -> TaggerResult:
            self.at_image()
            return TaggerResult((ScoredTag("hat", 0.9),))

        yield tagger


class Written:
    """Takes what was found instead of writing it."""

    def __init__(self) -> None:
        self.found: Mapping[Path, TaggerResult] = {}

    def __call__(self, order: TaggingRequest, found: Mapping[Path, TaggerResult]) -> str:
        self.found = dict(found)
        return f"{len(found)} captions were written."


def order_for(folder: Path, *, tagger: str = "DeepBooru", model: Path | None = None) -> TaggingRequest:
    return TaggingRequest(folder, tuple(sorted(folder.glob("*.png"))), tagger, model, TagRule(), "append")


def tagged(host: TaggerHost, order: TaggingRequest) -> tuple[AutoTagger, Written]:
    written = Written()
    work = AutoTagger(host, written)
    work.start(order)
    work.wait(60)
    return work, written


def test_all_images_are_tagged_in_one_turn_while_nobody_waits(tmp_path: Path) -> None:
    host = ToldHost()
    folder = write_images(tmp_path / "set", 5)
    work, written = tagged(host, order_for(folder))
    status = work.status()
    assert (status["state"], status["done"], status["total"]) == ("done", 5, 5)
    assert status["message"] == "5 captions were written." and len(written.found) == 5 and host.turns == 1


def test_whoever_waits_goes_between_two_images(tmp_path: Path) -> None:
    host = ToldHost()
    host.waiting = True
    work, _ = tagged(host, order_for(write_images(tmp_path / "set", 3)))
    assert (work.status()["done"], host.turns) == (3, 3)


def test_a_broken_image_is_named_and_the_others_are_tagged(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "set", 3)
    (folder / "001.png").write_bytes(b"no image")
    work, written = tagged(ToldHost(), order_for(folder))
    status = work.status()
    assert (status["state"], status["done"], status["skipped_count"]) == ("done", 3, 1)
    assert status["skipped"][0]["name"] == "001.png" and "cannot be decoded" in status["skipped"][0]["reason"]
    assert sorted(path.name for path in written.found) == ["000.png", "002.png"]


def test_a_stop_keeps_what_was_tagged_by_then(tmp_path: Path) -> None:
    host, written = ToldHost(), Written()
    work = AutoTagger(host, written)
    host.at_image = work.stop  # type: ignore[method-assign]
    work.start(order_for(write_images(tmp_path / "set", 4)))
    work.wait(60)
    assert (work.status()["state"], work.status()["done"], len(written.found)) == ("stopped", 1, 1)


def test_a_failure_keeps_what_was_tagged_by_then_and_says_why(tmp_path: Path) -> None:
    host = ToldHost()
    seen: list[int] = []

    def fail_at_the_third() -> None:
        seen.append(1)
        if len(seen) == 3:
            raise HostError("The webui's DeepBooru failed.")

    host.at_image = fail_at_the_third  # type: ignore[method-assign]
    work, written = tagged(host, order_for(write_images(tmp_path / "set", 4)))
    assert work.status()["state"] == "failed" and len(written.found) == 2
    assert work.status()["message"] == "The webui's DeepBooru failed. 2 captions were written."


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_of_the_tagger_keeps_what_was_tagged_by_then(tmp_path: Path) -> None:
    host = ToldHost()
    left = iter(range(2))
    host.at_image = lambda: next(left)  # type: ignore[assignment, method-assign]
    work, written = tagged(host, order_for(write_images(tmp_path / "set", 4)))
    assert work.status()["state"] == "failed" and len(written.found) == 2
    assert work.status()["message"] == "It failed unexpectedly; see the console. 2 captions were written."


def test_captions_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    def full(order: TaggingRequest, found: Mapping[Path, TaggerResult]) -> str:
        raise OutputError("The disk is full.")

    work = AutoTagger(ToldHost(), full)
    work.start(order_for(write_images(tmp_path / "set", 1)))
    work.wait(60)
    assert (work.status()["state"], work.status()["message"]) == ("failed", "The disk is full.")


def test_one_set_is_tagged_at_a_time(tmp_path: Path) -> None:
    host, resume_run, is_at_work = ToldHost(), threading.Event(), threading.Event()

    def hold() -> None:
        is_at_work.set()
        resume_run.wait(60)

    host.at_image = hold  # type: ignore[method-assign]
    work = AutoTagger(host, Written())
    order = order_for(write_images(tmp_path / "set", 1))
    work.start(order)
    assert is_at_work.wait(60)
    with pytest.raises(DataError, match="already"):
        work.start(order)
    resume_run.set()
    work.wait(60)
    work.start(order)
    work.wait(60)
    assert work.status()["state"] == "done"


def test_nothing_to_tag_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="all have captions"):
        AutoTagger(ToldHost(), Written()).start(TaggingRequest(tmp_path, (), WD14, None, TagRule(), "skip"))


def test_a_generation_of_the_webuis_goes_between_and_finds_its_image(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Somebody presses Generate at the first image: it is drawn before the second one, the tagger off the card."""
    world = A1111World(monkeypatch, tmp_path / "Lora")
    booru, _ = install_interrogators(monkeypatch, world, tmp_path / "models")
    before = world.generate()
    drawn: list[tuple[str, bool]] = []

    def generate() -> None:
        with world.queue_lock:
            assert booru.model is not None
            drawn.append((world.drawn(""), booru.model.is_on_card))

    thread = threading.Thread(target=generate)
    host = host_in(world)
    names: list[int] = []
    start = booru.start

    def press_generate_once() -> None:
        start()
        names.append(len(drawn))
        if len(names) == 2:  # the first image of the first turn
            thread.start()
            while not world.queue_lock._pending_threads:
                threading.Event().wait(0.005)

    monkeypatch.setattr(booru, "start", press_generate_once)
    folder = write_images(tmp_path / "set", 3)
    work, written = tagged(host, order_for(folder))
    thread.join(60)
    assert (work.status()["state"], work.status()["message"]) == ("done", "3 captions were written.")
    assert drawn == [(before, False)]
    assert names[:2] == [0, 0] and names[-1] == 1 and booru.log == ["start", "stop", "start", "stop"]
    assert len(written.found) == 3


def test_wd14_needs_no_webui(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    write_wd14(tmp_path / "tagger", [("hat", 0), ("saber", 4)])
    host = StandaloneHost(None, None, tmp_path, "cpu")
    folder = write_images(tmp_path / "set", 2)
    work, written = tagged(host, order_for(folder, tagger=WD14, model=tmp_path / "tagger"))
    assert work.names() == (WD14,) and work.status()["state"] == "done"
    assert [tag.name for tag in written.found[folder / "001.png"].tags] == ["hat", "saber"]


@pytest.mark.parametrize(("tagger", "reason"), [(WD14, "Name the folder"), ("BLIP", "belongs to a webui")])
def test_a_tagger_that_is_not_there_is_told_and_nothing_is_written(tmp_path: Path, tagger: str, reason: str) -> None:
    host = StandaloneHost(None, None, tmp_path, "cpu")
    work, written = tagged(host, order_for(write_images(tmp_path / "set", 1), tagger=tagger))
    assert work.status()["state"] == "failed" and reason in work.status()["message"]
    assert work.status()["message"].endswith("Nothing was written.") and not written.found
