"""Auto-tagging in a background thread: waiting generations, stop, broken images, failures, written captions."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from lib_lora_train.core.errors import DataError, HostError, OutputError
from lib_lora_train.dataset_tools.auto_tagger import AutoTagger, TaggerHost, TaggingRequest
from lib_lora_train.dataset_tools.tagger import ScoredTag, Tagger, TaggerResult, TagRule
from lib_lora_train.dataset_tools.tagger_names import WD14
from lib_lora_train.hosts.standalone import StandaloneHost
from tests.stand_ins.interrogators import install_interrogators
from tests.stand_ins.tiny_onnx import write_wd14
from tests.stand_ins.ui import write_images
from tests.stand_ins.webui.a1111 import A1111World
from tests.stand_ins.webui.worlds import host_in


class FakeTaggerHost:
    """A tagger that calls `at_image` before each image; `waiting` says whether a generation is waiting."""

    name = "Forge"

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
    """Records the tagger's results instead of writing captions."""

    def __init__(self) -> None:
        self.found: Mapping[Path, TaggerResult] = {}

    def __call__(self, request: TaggingRequest, found: Mapping[Path, TaggerResult]) -> str:
        self.found = {**self.found, **found}
        return f"{len(self.found)} captions were written."


def request_for(folder: Path, *, tagger: str = "DeepBooru", model: Path | None = None) -> TaggingRequest:
    return TaggingRequest(folder, tuple(sorted(folder.glob("*.png"))), tagger, model, TagRule(), "append")


def run_tagger(host: TaggerHost, request: TaggingRequest) -> tuple[AutoTagger, Written]:
    written = Written()
    work = AutoTagger(host, written)
    work.start(request)
    work.wait(60)
    return work, written


def test_all_images_are_tagged_at_once_if_no_generation_is_waiting(tmp_path: Path) -> None:
    host = FakeTaggerHost()
    folder = write_images(tmp_path / "set", 5)
    work, written = run_tagger(host, request_for(folder))
    status = work.status()
    assert (status["state"], status["done"], status["total"]) == ("done", 5, 5)
    assert status["message"] == "5 captions were written." and len(written.found) == 5 and host.turns == 1


def test_a_waiting_generation_runs_between_two_images(tmp_path: Path) -> None:
    host = FakeTaggerHost()
    host.waiting = True
    work, _ = run_tagger(host, request_for(write_images(tmp_path / "set", 3)))
    assert (work.status()["done"], host.turns) == (3, 3)


def test_a_broken_image_is_reported_and_the_others_are_tagged(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "set", 3)
    (folder / "001.png").write_bytes(b"no image")
    work, written = run_tagger(FakeTaggerHost(), request_for(folder))
    status = work.status()
    assert (status["state"], status["done"], status["skipped_count"]) == ("done", 3, 1)
    assert status["skipped"][0]["name"] == "001.png" and "cannot be decoded" in status["skipped"][0]["reason"]
    assert sorted(path.name for path in written.found) == ["000.png", "002.png"]


def test_after_a_stop_the_images_tagged_so_far_are_written(tmp_path: Path) -> None:
    host, written = FakeTaggerHost(), Written()
    work = AutoTagger(host, written)
    host.at_image = work.stop  # type: ignore[method-assign]
    work.start(request_for(write_images(tmp_path / "set", 4)))
    work.wait(60)
    assert (work.status()["state"], work.status()["done"], len(written.found)) == ("stopped", 1, 1)


def test_after_a_failure_the_images_tagged_so_far_are_written_and_the_reason_is_shown(tmp_path: Path) -> None:
    host = FakeTaggerHost()
    seen: list[int] = []

    def fail_at_the_third() -> None:
        seen.append(1)
        if len(seen) == 3:
            raise HostError("The webui's DeepBooru failed.")

    host.at_image = fail_at_the_third  # type: ignore[method-assign]
    work, written = run_tagger(host, request_for(write_images(tmp_path / "set", 4)))
    assert work.status()["state"] == "failed" and len(written.found) == 2
    assert work.status()["message"] == "The webui's DeepBooru failed. 2 captions were written."


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_after_an_unexpected_error_the_images_tagged_so_far_are_written(tmp_path: Path) -> None:
    host = FakeTaggerHost()
    left = iter(range(2))
    host.at_image = lambda: next(left)  # type: ignore[assignment, method-assign]
    work, written = run_tagger(host, request_for(write_images(tmp_path / "set", 4)))
    assert work.status()["state"] == "failed" and len(written.found) == 2
    assert work.status()["message"] == "It failed unexpectedly; see the console. 2 captions were written."


def test_captions_that_cannot_be_written_are_reported(tmp_path: Path) -> None:
    def full(request: TaggingRequest, found: Mapping[Path, TaggerResult]) -> str:
        raise OutputError("The disk is full.")

    work = AutoTagger(FakeTaggerHost(), full)
    work.start(request_for(write_images(tmp_path / "set", 1)))
    work.wait(60)
    assert (work.status()["state"], work.status()["message"]) == ("failed", "The disk is full. Nothing was written.")


def test_one_set_is_tagged_at_a_time(tmp_path: Path) -> None:
    host, resume_run, is_at_work = FakeTaggerHost(), threading.Event(), threading.Event()

    def hold() -> None:
        is_at_work.set()
        resume_run.wait(60)

    host.at_image = hold  # type: ignore[method-assign]
    work = AutoTagger(host, Written())
    request = request_for(write_images(tmp_path / "set", 1))
    work.start(request)
    assert is_at_work.wait(60)
    with pytest.raises(DataError, match="already"):
        work.start(request)
    resume_run.set()
    work.wait(60)
    work.start(request)
    work.wait(60)
    assert work.status()["state"] == "done"


def test_nothing_to_tag_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="every image already has a caption"):
        AutoTagger(FakeTaggerHost(), Written()).start(TaggingRequest(tmp_path, (), WD14, None, TagRule(), "skip"))


def test_a_webui_generation_runs_between_two_images_and_is_not_disturbed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Generate is pressed during the first image: it runs before the second one, with the tagger off the card."""
    world = A1111World(monkeypatch, tmp_path / "Lora")
    booru, _ = install_interrogators(monkeypatch, world, tmp_path / "models")
    before = world.generate()
    generated: list[tuple[str, bool]] = []

    def generate() -> None:
        with world.queue_lock:
            assert booru.model is not None
            generated.append((world.generate_unlocked(""), booru.model.is_on_card))

    thread = threading.Thread(target=generate)
    host = host_in(world)
    starts: list[int] = []
    start = booru.start

    def press_generate_once() -> None:
        start()
        starts.append(len(generated))
        if len(starts) == 2:  # the first image
            thread.start()
            while not world.queue_lock._pending_threads:
                threading.Event().wait(0.005)

    monkeypatch.setattr(booru, "start", press_generate_once)
    folder = write_images(tmp_path / "set", 3)
    work, written = run_tagger(host, request_for(folder))
    thread.join(60)
    assert (work.status()["state"], work.status()["message"]) == ("done", "3 captions were written.")
    assert generated == [(before, False)]
    assert starts[:2] == [0, 0] and starts[-1] == 1 and booru.log == ["start", "stop", "start", "stop"]
    assert len(written.found) == 3


def test_wd14_needs_no_webui(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    write_wd14(tmp_path / "tagger", [("hat", 0), ("saber", 4)])
    host = StandaloneHost(None, None, tmp_path, "cpu")
    folder = write_images(tmp_path / "set", 2)
    work, written = run_tagger(host, request_for(folder, tagger=WD14, model=tmp_path / "tagger"))
    assert work.tagger_names() == (WD14,) and work.status()["state"] == "done"
    assert [tag.name for tag in written.found[folder / "001.png"].tags] == ["hat", "saber"]


@pytest.mark.parametrize(("tagger", "reason"), [(WD14, "Enter the folder"), ("BLIP", "needs a webui")])
def test_a_missing_tagger_is_reported_and_nothing_is_written(tmp_path: Path, tagger: str, reason: str) -> None:
    host = StandaloneHost(None, None, tmp_path, "cpu")
    work, written = run_tagger(host, request_for(write_images(tmp_path / "set", 1), tagger=tagger))
    assert work.status()["state"] == "failed" and reason in work.status()["message"]
    assert work.status()["message"].endswith("Nothing was written.") and not written.found
