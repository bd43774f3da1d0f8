"""Time and memory in words: from past runs and the card, and nothing where nothing is known."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.events import Event, StepDone, Workload, to_record
from lib_lora_train.core.progress import format_duration
from lib_lora_train.core.wording import size_text
from lib_lora_train.hosts.host import Gpu, RunTarget
from lib_lora_train.runs.estimates.memory import MemoryEstimate
from lib_lora_train.runs.estimates.requirements import Requirements, check_precision, estimate_requirements
from lib_lora_train.runs.estimates.step_time import describe_workload, estimate_time, past_speeds
from tests.stand_ins.tiny_models import write_tiny_checkpoint
from tests.stand_ins.training_parts import small_plan

WANTED = Workload("sd1", "cpu", 8192.0, "lora standard", False, True)


def write_run(home: Path, name: str, seconds: list[float], **values: Any) -> None:
    """A run's log with these step times."""
    events: list[Event] = [dataclasses.replace(WANTED, **values)]
    events += [StepDone(n, 1, 0.1, {}, 0.5, second) for n, second in enumerate(seconds, start=1)]
    (home / name).mkdir(parents=True)
    lines = (json.dumps(to_record(event)) for event in events)
    (home / name / "events.jsonl").write_text("\n".join(lines), encoding="utf-8")


def test_no_estimate_before_the_first_run(tmp_path: Path) -> None:
    assert estimate_time(tmp_path, WANTED, 100) is None
    write_run(tmp_path, "1-short", [9.0, 9.0, 9.0])  # all of it warm-up
    assert estimate_time(tmp_path, WANTED, 100) is None


def test_time_grows_with_steps_and_pixels(tmp_path: Path) -> None:
    write_run(tmp_path, "1-run", [9.0, 9.0, 9.0, 2.0, 2.0, 30.0])
    same = estimate_time(tmp_path, WANTED, 100)
    twice = estimate_time(tmp_path, dataclasses.replace(WANTED, pixels_per_step=16384.0), 100)
    assert same is not None and twice is not None
    assert (same.seconds, twice.seconds) == (200.0, 400.0), "the median of the warm steps, 2 s"
    assert (same.run, same.is_extrapolated) == ("1-run", False)


@pytest.mark.parametrize(
    ("pixels", "is_extrapolated"), [(2047.0, True), (2048.0, False), (32768.0, False), (32769.0, True)]
)
def test_an_estimate_is_reliable_up_to_a_factor_of_four(tmp_path: Path, pixels: float, is_extrapolated: bool) -> None:
    write_run(tmp_path, "1-run", [2.0] * 9)
    found = estimate_time(tmp_path, dataclasses.replace(WANTED, pixels_per_step=pixels), 100)
    assert found is not None and found.is_extrapolated is is_extrapolated


@pytest.mark.parametrize("other", [{"family": "sdxl"}, {"device": "other card"}, {"checkpointing": True}])
def test_runs_that_are_not_comparable_are_ignored(tmp_path: Path, other: dict[str, Any]) -> None:
    write_run(tmp_path, "1-run", [1.0] * 9, **other)
    assert estimate_time(tmp_path, WANTED, 100) is None


def test_most_similar_run_is_used_then_the_newest(tmp_path: Path) -> None:
    write_run(tmp_path, "1-alike", [1.0] * 9)
    write_run(tmp_path, "2-alike", [2.0] * 9)
    write_run(tmp_path, "3-larger", [3.0] * 9, pixels_per_step=81920.0)
    write_run(tmp_path, "4-other-adapter", [4.0] * 9, adapter="loha all")
    write_run(tmp_path, "5-smaller", [5.0] * 9, pixels_per_step=819.2)
    write_run(tmp_path, "6-differs-twice", [6.0] * 9, adapter="loha all", text_encoder=False)
    found = estimate_time(tmp_path, WANTED, 1)
    assert found is not None
    assert found.run == "2-alike"


def test_of_runs_whose_steps_are_nearly_alike_the_newest_is_used(tmp_path: Path) -> None:
    """Steps that differ by a twentieth count as alike, by a quarter no more."""
    write_run(tmp_path, "1-alike", [1.0] * 9)
    write_run(tmp_path, "2-nearly", [2.0] * 9, pixels_per_step=8192 * 1.04)
    write_run(tmp_path, "3-larger", [3.0] * 9, pixels_per_step=8192 * 1.3)
    found = estimate_time(tmp_path, WANTED, 1)
    assert found is not None and found.run == "2-nearly"
    assert found.seconds == pytest.approx(2.0 / 1.04)


def test_broken_log_is_skipped(tmp_path: Path) -> None:
    write_run(tmp_path, "1-run", [1.0] * 9)
    (tmp_path / "2-broken").mkdir()
    (tmp_path / "2-broken" / "events.jsonl").write_text('{"kind": "Workload", "older": 1}\n{', encoding="utf-8")
    (tmp_path / "3-other").mkdir()
    (tmp_path / "3-other" / "events.jsonl").write_text('{"kind": "StepDone", "step": 1}\n', encoding="utf-8")
    assert [speed.run for speed in past_speeds(tmp_path)] == ["1-run"]


def test_a_run_of_no_pixels_is_skipped(tmp_path: Path) -> None:
    write_run(tmp_path, "1-empty", [1.0] * 9, pixels_per_step=0.0)
    assert list(past_speeds(tmp_path)) == []


def test_pixels_of_the_only_step_of_an_epoch_are_all_of_them() -> None:
    config = TrainConfig(resolution=64, min_bucket=64, batch_size=8)
    plan = small_plan(config)
    assert plan.steps_per_epoch == 1
    assert describe_workload(config, plan, architecture="sd1", device="").pixels_per_step == 8 * 64 * 64


def test_pixels_per_step_count_all_images() -> None:
    config = TrainConfig(resolution=64, min_bucket=64, batch_size=2, gradient_accumulation=2)
    work = describe_workload(config, small_plan(config), architecture="sd1", device="cpu")
    assert work.pixels_per_step == 4 * 64 * 64


def test_prior_preservation_makes_steps_longer() -> None:
    """One pass with gradients and one of half the cost; masks: one of half the cost, only where there are masks."""
    plain = TrainConfig(resolution=64, min_bucket=64, batch_size=2)
    masks = plain.replace(concepts=(Concept("a", use_masks=True),))

    def cost(config: TrainConfig) -> float:
        work = describe_workload(config, small_plan(plain), architecture="sd1", device="cpu")
        return work.pixels_per_step / (2 * 64 * 64)

    assert cost(plain.replace(prior_preservation="class")) == 2.5
    assert cost(plain.replace(prior_preservation="class", prior_preservation_weight=0.0)) == 1
    assert cost(plain.replace(masked_prior_preservation_weight=1.0)) == 1
    assert cost(masks.replace(masked_prior_preservation_weight=1.0)) == 1.5
    assert cost(masks.replace(masked_prior_preservation_weight=1.0, prior_preservation="empty")) == 3


# --- the estimate_requirements --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny.safetensors", "sd1")


CONFIG = TrainConfig(resolution=64, min_bucket=64, batch_size=4, rank=4)


def estimated(path: Path | None, home: Path, config: TrainConfig = CONFIG, gpu: Gpu | None = None) -> Requirements:
    """The requirements of a small plan."""
    run_target = RunTarget(path, is_loaded=False, dtype_bytes=0, device="card" if gpu else "cpu", gpu=gpu)
    return estimate_requirements(config, small_plan(config), run_target, home)


def test_fp16_on_the_cpu_is_warned_of(checkpoint: Path, tmp_path: Path) -> None:
    for precision, warned in (("auto", False), ("fp32", False), ("bf16", False), ("fp16", True)):
        found = estimated(checkpoint, tmp_path, CONFIG.replace(precision=precision)).problems
        assert any("slower than fp32 on a CPU" in problem.message for problem in found) == warned
    assert tuple(check_precision("fp16", "cuda")) == ()


def test_unreadable_checkpoint_has_no_estimates(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"no checkpoint")
    for path in (None, tmp_path / "nowhere.safetensors", tmp_path / "model.safetensors"):
        found = estimated(path, tmp_path)
        assert (found.memory_summary, found.time_summary) == ("not known", "not known yet")
        assert "unknown" in found.sentences[0]


def test_estimates_are_labelled_as_such(checkpoint: Path, tmp_path: Path) -> None:
    write_run(tmp_path, "1-run", [60.0] * 9, pixels_per_step=4 * 4096.0)
    found = estimated(checkpoint, tmp_path)
    assert found.memory_summary.startswith("about ")
    assert found.time_summary == "about 20 min", "10 epochs of 2 steps of a minute"
    assert "Estimated" in found.sentences[0] and "1-run" in found.sentences[1]
    assert found.values["seconds"] == 1200.0
    assert found.values["memory_bytes"]["total"] == found.memory.total if found.memory else False


def test_run_that_fits_has_no_warning(checkpoint: Path, tmp_path: Path) -> None:
    assert estimated(checkpoint, tmp_path, gpu=Gpu("card", 2**33, 2**32)).problems == ()


def test_full_gpu_is_reported(checkpoint: Path, tmp_path: Path) -> None:
    (problem,) = estimated(checkpoint, tmp_path, gpu=Gpu("RTX", 2**33, 2**20)).problems
    assert problem.level == "hint" and "free now" in problem.message


def test_a_run_that_fits_exactly_fits(checkpoint: Path, tmp_path: Path) -> None:
    """Into the whole card and into what is free of it; a byte less is too little."""
    memory = estimated(checkpoint, tmp_path).memory
    assert memory is not None

    def levels(total: int, free: int) -> list[str]:
        return [problem.level for problem in estimated(checkpoint, tmp_path, gpu=Gpu("RTX", total, free)).problems]

    assert levels(memory.total, memory.extra) == []
    assert levels(memory.total, memory.extra - 1) == ["hint"]
    assert levels(memory.total - 1, memory.extra) == ["warning"]
    frugal = estimated(checkpoint, tmp_path, CONFIG.replace(gradient_checkpointing=True)).memory
    assert frugal is not None
    (problem,) = estimated(checkpoint, tmp_path, gpu=Gpu("RTX", frugal.total, 2**40)).problems
    assert dict(problem.remedy) == {"gradient_checkpointing": True}, "which makes it fit exactly"


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "advised"), [(4, 3, 12), (4, 64, 256), (4, 65, 256), (2, 1, 2), (1, 4, None)]
)
def test_a_smaller_batch_is_made_up_for_by_accumulation(
    batch_size: int, accumulation: int, advised: int | None, checkpoint: Path, tmp_path: Path
) -> None:
    """As many images in a step as before, up to the most that may be accumulated."""
    config = CONFIG.replace(gradient_checkpointing=True, batch_size=batch_size, gradient_accumulation=accumulation)
    (problem,) = estimated(checkpoint, tmp_path, config, Gpu("RTX", 2**20, 2**20)).problems
    said = f"batch_size to 1 and gradient_accumulation to {advised}"
    assert said in problem.message if advised else "batch_size" not in problem.message


def test_a_smaller_batch_is_one_image(checkpoint: Path, tmp_path: Path) -> None:
    config = CONFIG.replace(gradient_checkpointing=True)
    frugal = estimated(checkpoint, tmp_path, config.replace(batch_size=1)).memory
    assert frugal is not None
    (problem,) = estimated(checkpoint, tmp_path, config, Gpu("RTX", frugal.total, 2**40)).problems
    assert dict(problem.remedy) == {"batch_size": 1, "gradient_accumulation": 4}


def test_memory_is_explained_by_what_needs_most_of_it() -> None:
    """Training, or encoding where that needs more; bytes in the units of cards, and whether the card has them."""
    training = MemoryEstimate(3 * 2**30, 2**28, 2**29, 2**28 + 2**29, is_loaded=True)
    (text, _) = Requirements(training, None, Gpu("RTX", 12 * 2**30, 5 * 2**30), "card").sentences
    assert text.startswith("Estimated memory: 3.8 GB, of which 3.0 GB for the model that is already loaded, 256 MB for")
    assert "its optimiser, 512 MB for activations. The RTX has 12 GB, 5.0 GB of it free." in text
    encoding = dataclasses.replace(training, encoding=2**30, is_loaded=False)
    (text, _) = Requirements(encoding, None, None, "cpu").sentences
    assert "4.0 GB, of which 3.0 GB for the model's weights, 1.0 GB for encoding the images (training: 768 MB)." in text
    assert "This is system memory" in text


def test_advice_names_the_first_change_that_makes_it_fit(checkpoint: Path, tmp_path: Path) -> None:
    plain = estimated(checkpoint, tmp_path).memory
    frugal = estimated(checkpoint, tmp_path, CONFIG.replace(gradient_checkpointing=True)).memory
    assert plain is not None and frugal is not None and frugal.total < plain.total
    (problem,) = estimated(checkpoint, tmp_path, gpu=Gpu("RTX", plain.total - 1, plain.total)).problems
    assert (problem.level, problem.where) == ("warning", "gradient_checkpointing")
    assert size_text(frugal.total) in problem.message and "batch_size" not in problem.message


def test_advice_lists_everything_if_nothing_suffices(checkpoint: Path, tmp_path: Path) -> None:
    (problem,) = estimated(checkpoint, tmp_path, gpu=Gpu("RTX", 2**20, 2**20)).problems
    assert "Turn on gradient_checkpointing, set batch_size to 1" in problem.message
    for name in ("gradient_checkpointing", "batch_size to 1", "fp8_base", "train_text_encoder", "resolution"):
        assert name in problem.message


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 s"),
        (89, "89 s"),
        (100, "2 min"),
        (5300, "88 min"),
        (5400, "1 h 30 min"),
        (7200, "2 h"),
        (7380, "2 h 5 min"),
    ],
)
def test_time_text(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words
