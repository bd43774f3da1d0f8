"""The plan's counts are those of the real epochs, and an epoch is a function of (seed, epoch) alone."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import DataError
from lib_lora_train.core.seeding import random_for, shuffle
from lib_lora_train.dataset.durations import describe_durations
from lib_lora_train.dataset.images import ImageFile
from lib_lora_train.dataset.plan import MicroBatch, Plan, epoch_steps
from lib_lora_train.dataset.plan_text import describe_plan
from lib_lora_train.dataset.plan_warnings import suggest_batch_size
from lib_lora_train.dataset.planner import make_plan
from lib_lora_train.dataset.repeats import (
    MIN_SAMPLES_PER_CONCEPT,
    apportion,
    balanced_repeats,
    draw_systematically,
    proportions,
)
from lib_lora_train.dataset.scan import Dataset, Item, ScannedConcept

SIZES = ((512, 512), (768, 512), (512, 768), (1024, 256))
CONFIG = TrainConfig(resolution=512)


def _dataset(*folders: tuple[list[tuple[int, int]], int, bool]) -> Dataset:
    """Folders as (image sizes, repeats, is_regularisation)."""
    items: list[Item] = []
    concepts: list[ScannedConcept] = []
    for number, (sizes, repeats, is_regularisation) in enumerate(folders):
        for size in sizes:
            path = Path(f"{number}/{len(items)}.png")
            items.append(Item(ImageFile(path, *size, content_hash=f"{len(items):064x}"), "a caption", number))
        concepts.append(
            ScannedConcept(f"folder{number}", Path(str(number)), repeats, "", is_regularisation, len(sizes))
        )
    return Dataset(tuple(items), tuple(concepts), ())


def _batches(plan: Plan, epoch: int, seed: int = 42) -> list[MicroBatch]:
    return [batch for step in epoch_steps(plan, seed, epoch) for batch in step]


def _counts(plan: Plan, epoch: int, seed: int = 42) -> Counter[int]:
    return Counter(item for batch in _batches(plan, epoch, seed) for item in batch.items)


_folder = st.tuples(st.lists(st.sampled_from(SIZES), min_size=1, max_size=7), st.integers(1, 5))


@st.composite
def _plans(draw: st.DrawFn) -> Plan:
    own = [(sizes, repeats, False) for sizes, repeats in draw(st.lists(_folder, min_size=1, max_size=2))]
    regularisation = [(sizes, repeats, True) for sizes, repeats in draw(st.lists(_folder, max_size=2))]
    config = CONFIG.replace(
        batch_size=draw(st.integers(1, 5)),
        gradient_accumulation=draw(st.integers(1, 3)),
        epochs=draw(st.integers(1, 3)),
        max_steps=draw(st.integers(0, 40)),
    )
    return make_plan(_dataset(*own, *regularisation), config)


# --- counts -------------------------------------------------------------------------------------


@given(_plans())
def test_the_run_has_the_predicted_steps_and_samples(plan: Plan) -> None:
    epochs = [epoch_steps(plan, 7, epoch) for epoch in range(1, plan.epochs + 1)]
    assert sum(map(len, epochs)) == plan.total_steps
    assert all(len(steps) == plan.steps_per_epoch for steps in epochs[:-1])
    assert 0 < len(epochs[-1]) <= plan.steps_per_epoch
    assert epoch_steps(plan, 7, plan.epochs + 1) == ()
    for steps in epochs[:-1]:
        samples = Counter((b.width, b.height) for step in steps for b in step for _ in b.items)
        assert samples == {(b.width, b.height): b.sample_count for b in plan.buckets if b.sample_count}


@given(_plans())
def test_micro_batches_never_mix_buckets_nor_exceed_their_size(plan: Plan) -> None:
    for step in epoch_steps(plan, 3, 1):
        assert 0 < len(step) <= plan.accumulation
        for batch in step:
            assert 0 < len(batch.items) <= plan.batch_size
            sizes = {(plan.placements[item].width, plan.placements[item].height) for item in batch.items}
            assert sizes == {(batch.width, batch.height)}


@given(_plans())
def test_draws_are_unique_over_the_run(plan: Plan) -> None:
    draws = [d for epoch in range(1, plan.epochs + 1) for batch in _batches(plan, epoch) for d in batch.draws]
    assert len(set(draws)) == len(draws)
    assert all(len(batch.draws) == len(batch.items) for batch in _batches(plan, 1))


@given(_plans())
def test_every_image_is_used_as_often_as_its_repeats(plan: Plan) -> None:
    if plan.total_steps < plan.steps_per_epoch:
        return
    counts = _counts(plan, 1)
    for item, repeats in enumerate(plan.repeats):
        if plan.is_regularisation(item):
            assert counts[item] <= repeats
        else:
            assert counts[item] == repeats == plan.dataset.concepts[plan.dataset.items[item].concept].repeats


def test_steps_are_rounded_up_per_bucket() -> None:
    dataset = _dataset(([(512, 512)] * 3 + [(768, 512)] * 2, 3, False))
    plan = make_plan(dataset, CONFIG.replace(batch_size=4, epochs=10))
    assert [(b.sample_count, b.last_batch_fill) for b in plan.buckets] == [(9, 1), (6, 2)]
    assert plan.micro_batches_per_epoch == 5
    assert (plan.steps_per_epoch, plan.epochs, plan.total_steps) == (5, 10, 50)


def test_accumulation_groups_consecutive_micro_batches() -> None:
    dataset = _dataset(([(512, 512)] * 10, 1, False))
    plan = make_plan(dataset, CONFIG.replace(batch_size=2, gradient_accumulation=3, epochs=1))
    steps = epoch_steps(plan, 0, 1)
    assert [len(step) for step in steps] == [3, 2]
    draws = [d for step in steps for batch in step for d in batch.draws]
    assert draws == list(range(10))


def test_max_steps_ends_the_run_early_and_is_reported() -> None:
    dataset = _dataset(([(512, 512)] * 10, 1, False))
    plan = make_plan(dataset, CONFIG.replace(batch_size=2, epochs=10, max_steps=12))
    assert (plan.steps_per_epoch, plan.epochs, plan.total_steps) == (5, 3, 12)
    assert len(epoch_steps(plan, 0, 3)) == 2
    assert any(p.where == "max_steps" and "within epoch 3" in p.message for p in plan.warnings)


def test_max_steps_beyond_the_epochs_changes_nothing() -> None:
    plan = make_plan(_dataset(([(512, 512)] * 10, 1, False)), CONFIG.replace(epochs=2, max_steps=999))
    assert (plan.epochs, plan.total_steps) == (2, 10)
    assert not plan.warnings


# --- order --------------------------------------------------------------------------------------


def test_an_epoch_depends_only_on_seed_and_number() -> None:
    dataset = _dataset((list(SIZES) * 5, 2, False), (list(SIZES) * 9, 1, True))
    plan = make_plan(dataset, CONFIG.replace(batch_size=3))
    third = epoch_steps(plan, 5, 3)
    assert epoch_steps(make_plan(dataset, CONFIG.replace(batch_size=3, epochs=3)), 5, 3) == third
    assert epoch_steps(plan, 6, 3) != third
    assert [b.items for b in _batches(plan, 4, 5)] != [b.items for b in _batches(plan, 3, 5)]


def test_batches_of_different_buckets_are_shuffled() -> None:
    plan = make_plan(_dataset((list(SIZES) * 20, 1, False)), CONFIG.replace(batch_size=2))
    sizes = [(batch.width, batch.height) for batch in _batches(plan, 1)]
    changes = sum(a != b for a, b in itertools.pairwise(sizes))
    assert changes > 20  # bucket after bucket would change 3 times; a fair shuffle about 30 times


def test_every_image_is_equally_likely_to_come_first() -> None:
    plan = make_plan(_dataset(([(512, 512)] * 4, 1, False)), CONFIG.replace(batch_size=1))
    first = Counter(_batches(plan, 1, seed)[0].items[0] for seed in range(2000))
    assert all(abs(first[item] - 500) < 100 for item in range(4))  # 5 standard deviations of a fair draw


@pytest.mark.parametrize("allowed", [0, 1, 3])
def test_making_the_order_of_a_long_epoch_ends_when_it_is_stopped(allowed: int) -> None:
    """400,000 samples: it is asked at least once per 100,000 of them, and never after the answer to stop."""
    plan = make_plan(_dataset(([(512, 512)] * 40, 10_000, False)), TrainConfig(batch_size=1))
    answers: list[bool] = []

    def is_stopped() -> bool:
        answers.append(len(answers) >= allowed)
        return answers[-1]

    assert epoch_steps(plan, 1, 1, is_stopped) == ()
    assert answers[allowed:] != []
    assert len(answers) <= allowed + 2, "the shuffle and the loop around it each ask once more"


@pytest.mark.parametrize("count", [0, 1, 50, 250_001])
def test_an_interruptible_shuffle_gives_the_same_order(count: int) -> None:
    expected, values = list(range(count)), list(range(count))
    random.Random(7).shuffle(expected)
    shuffle(values, random.Random(7), lambda: False)
    assert values == expected


def test_epochs_are_counted_from_one() -> None:
    plan = make_plan(_dataset(([(512, 512)], 1, False)), CONFIG)
    with pytest.raises(ValueError, match="from 1"):
        epoch_steps(plan, 0, 0)


# --- regularisation -----------------------------------------------------------------------------


@given(_plans())
def test_regularisation_has_as_many_samples_as_the_images_to_learn(plan: Plan) -> None:
    if plan.total_steps < plan.steps_per_epoch or not any(map(plan.is_regularisation, range(len(plan.repeats)))):
        return
    counts = _counts(plan, 1)
    regularisation = sum(n for item, n in counts.items() if plan.is_regularisation(item))
    assert regularisation == counts.total() - regularisation


def test_regularisation_images_are_used_equally_often_over_the_epochs() -> None:
    """kohya takes the first ones in order and never the rest."""
    dataset = _dataset(([(512, 512)] * 10, 1, False), ([(512, 512)] * 25, 1, True))
    plan = make_plan(dataset, CONFIG.replace(batch_size=1, epochs=2000))
    total: Counter[int] = Counter()
    for epoch in range(1, 501):
        counts = _counts(plan, epoch)
        assert all(counts[item] <= 1 for item in range(10, 35))
        total.update({item: counts[item] for item in range(10, 35)})
    assert all(abs(total[item] - 200) < 55 for item in range(10, 35))  # 5 standard deviations of 500 draws of 10 in 25


def test_few_regularisation_images_are_repeated_evenly() -> None:
    dataset = _dataset(([(512, 512)] * 10, 2, False), ([(512, 512)] * 3, 1, True))
    plan = make_plan(dataset, CONFIG)
    counts = _counts(plan, 1)
    assert sorted(counts[item] for item in range(10, 13)) == [6, 7, 7]
    assert any(p.where == "regularisation" for p in plan.warnings)


def test_a_dataset_with_only_regularisation_is_refused() -> None:
    with pytest.raises(DataError, match="only regularisation"):
        make_plan(_dataset(([(512, 512)], 1, True)), CONFIG)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=9), st.integers(0, 500))
def test_apportioned_shares_add_up_and_are_within_one_of_exact(weights: list[int], total: int) -> None:
    shares = apportion(total, weights)
    assert sum(shares) == total
    assert min(shares) >= (1 if total >= len(weights) else 0)
    if all(total * w >= sum(weights) for w in weights):  # none needs to be raised to 1
        assert all(abs(share - total * w / sum(weights)) < 1 for share, w in zip(shares, weights, strict=True))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=9), st.integers(0, 500), st.integers(0, 99))
def test_systematic_draws_add_up_and_are_the_exact_share_rounded(weights: list[int], total: int, seed: int) -> None:
    counts = draw_systematically(weights, total, random_for(seed, "test"))
    assert sum(counts) == total
    for count, weight in zip(counts, weights, strict=True):
        due = total * weight / sum(weights)
        assert math.floor(due) <= count <= math.ceil(due)


def test_systematic_draws_are_unbiased_for_uneven_weights() -> None:
    weights, total = [1, 2, 4], 5
    sums = [0, 0, 0]
    for number in range(7000):
        drawn = draw_systematically(weights, total, random_for(1, "test", number))
        sums = [a + b for a, b in zip(sums, drawn, strict=True)]
    dues = [7000 * total * weight / 7 for weight in weights]
    # a count's spread is at most that of a coin: 5 · √(7000 / 4)
    assert all(abs(found - due) < 210 for found, due in zip(sums, dues, strict=True))


# --- warnings -----------------------------------------------------------------------------------


def _warnings(plan: Plan) -> str:
    return "\n".join(map(str, plan.warnings))


def test_incomplete_batches_are_reported_with_advice() -> None:
    plan = make_plan(_dataset(([(512, 512)] * 6 + [(768, 512)] * 2, 1, False)), CONFIG.replace(batch_size=4))
    assert "2 of 3 batches per epoch are not full" in _warnings(plan)
    assert "(2 of 4)" in _warnings(plan)
    assert "A batch size of 2 fills every batch" in _warnings(plan)


def test_a_single_incomplete_batch_reports_the_missing_samples() -> None:
    plan = make_plan(_dataset(([(512, 512)] * 7, 1, False)), CONFIG.replace(batch_size=4))
    assert "1 more sample per epoch" in _warnings(plan)


def test_full_batches_give_no_warning() -> None:
    assert not make_plan(_dataset(([(512, 512)] * 8, 1, False)), CONFIG.replace(batch_size=4)).warnings


def test_enlarged_and_cropped_images_are_reported() -> None:
    dataset = _dataset(([(512, 512)] * 6 + [(100, 100), (5000, 500)], 1, False))
    warnings = _warnings(make_plan(dataset, CONFIG))
    assert "6.png (100×100) the most: 5.1×" in warnings
    assert "7.png (5000×500) the most: 60%" in warnings


@pytest.mark.parametrize(
    ("size", "warned"),
    [((420, 420), set()), ((400, 400), {"resolution"}), ((600, 512), set()), ((4000, 1000), {"max_bucket"})],
)
def test_small_enlargement_and_cropping_is_not_reported(size: tuple[int, int], warned: set[str]) -> None:
    """512 / 420 = 1.22 and 512 / 400 = 1.28 around the limit 1.25; cropping loses 15% and 37%."""
    plan = make_plan(_dataset(([size], 1, False)), CONFIG.replace(max_bucket=640))
    assert {problem.where for problem in plan.warnings} & {"resolution", "max_bucket"} == warned


@pytest.mark.parametrize(("images", "level"), [(19, "warning"), (21, "hint")])
def test_incomplete_batches_are_a_warning_from_one_in_ten(images: int, level: str) -> None:
    plan = make_plan(_dataset(([(512, 512)] * images, 1, False)), CONFIG.replace(batch_size=2))
    assert [problem.level for problem in plan.warnings if problem.where == "batch_size"] == [level]


def test_a_warm_up_longer_than_the_run_is_reported() -> None:
    plan = make_plan(_dataset(([(512, 512)] * 8, 1, False)), CONFIG.replace(epochs=1, warmup=100.0))
    assert "takes 100 steps, and the run" in _warnings(plan)


def test_a_decay_longer_than_the_run_is_reported() -> None:
    config = CONFIG.replace(epochs=1, lr_schedule="warmup_stable_decay", warmup=2.0, lr_decay=100.0)
    plan = make_plan(_dataset(([(512, 512)] * 8, 1, False)), config)
    assert "takes 100 steps and the warm-up 2 steps, but the run has only" in _warnings(plan)


def test_an_incomplete_last_accumulation_is_reported() -> None:
    plan = make_plan(_dataset(([(512, 512)] * 8, 1, False)), CONFIG.replace(gradient_accumulation=3))
    assert "1 of 3 micro-batches" in _warnings(plan)


# --- the printed plan ---------------------------------------------------------------------------


def test_the_printed_plan_has_all_counts_in_aligned_columns() -> None:
    dataset = _dataset((list(SIZES) * 5, 10, False), ([(512, 512)] * 300, 1, True))
    text = describe_plan(make_plan(dataset, CONFIG.replace(epochs=3, max_steps=500)))
    for part in ("200 samples per epoch", "balanced to 200", "max_steps", "512 × 512", "batch 2 × accumulation 1"):
        assert part in text
    table = [line for line in text.splitlines() if " × " in line and " of 2" in line]
    assert len(table) == 4
    assert len({line.index("×") for line in table}) == 1
    assert len({len(line) for line in table}) == 1


def test_settings_that_are_a_share_of_the_run_are_given_in_steps() -> None:
    """Each such setting, wherever it has an effect; the same numbers that training uses."""
    config = CONFIG.replace(max_steps=840, epochs=100, warmup=0.05, train_text_encoder=True, stop_text_encoder=300.0)
    plan = make_plan(_dataset(([(512, 512)] * 20, 1, False)), config)
    assert describe_durations(config, plan) == {
        "warmup": "5% = 42 of 840 steps",
        "stop_text_encoder": "300 of 840 steps",
    }
    decay = config.replace(lr_schedule="warmup_stable_decay", train_text_encoder=False, warmup=0.0)
    assert describe_durations(decay, plan) == {"lr_decay": "10% = 84 of 840 steps"}
    assert "warmup: 5% = 42" in describe_plan(plan, ["warmup: 5% = 42 of 840 steps"])


# --- balance and advice --------------------------------------------------------------------------


@given(st.lists(st.integers(1, 300), min_size=1, max_size=5))
def test_balanced_concepts_have_about_equally_many_samples(counts: list[int]) -> None:
    """Each is off the target by at most half of its images, or has one repeat."""
    wanted = max(MIN_SAMPLES_PER_CONCEPT, *counts)
    for count, repeats in zip(counts, balanced_repeats(counts), strict=True):
        assert repeats >= 1
        assert 2 * abs(count * repeats - wanted) <= count or repeats == 1


def test_balancing_is_reported_with_the_shares_before_and_after() -> None:
    dataset = _dataset(([(512, 512)] * 40, 2, False), ([(512, 512)] * 10, 1, False), ([(512, 512)] * 5, 3, True))
    plan = make_plan(dataset, CONFIG.replace(balance_repeats=True))
    assert [concept.repeats for concept in plan.dataset.concepts] == [3, 10, 3]  # regularisation is left alone
    message = next(problem.message for problem in plan.warnings if "every concept about equally" in problem.message)
    assert "folder0 × 2 → × 3 (89% → 55%), folder1 × 1 → × 10 (11% → 45%)" in message
    assert proportions([2, 6]) == [0.25, 0.75]
    again = make_plan(plan.dataset, CONFIG.replace(balance_repeats=True))
    assert again.dataset == plan.dataset and not [p for p in again.warnings if "about equally" in p.message]
    assert make_plan(dataset, CONFIG).dataset == dataset


@given(_plans())
def test_the_suggested_batch_size_leaves_no_batch_or_step_incomplete(plan: Plan) -> None:
    advice = suggest_batch_size(plan)
    if advice is None:
        common = math.gcd(*(bucket.sample_count for bucket in plan.buckets))
        assert all(common % size for size in range(2, plan.batch_size + 1))
        return
    size, accumulation = advice
    config = CONFIG.replace(batch_size=size, gradient_accumulation=accumulation)
    better = make_plan(plan.dataset, config)
    assert all(b.last_batch_fill in (0, size) for b in better.buckets)
    assert better.micro_batches_per_epoch % accumulation == 0


def test_the_suggestion_keeps_the_images_per_step() -> None:
    plan = make_plan(
        _dataset(([(512, 512)] * 12, 1, False), ([(768, 512)] * 20, 1, False)), CONFIG.replace(batch_size=8)
    )
    assert suggest_batch_size(plan) == (4, 2)
    message = next(problem.message for problem in plan.warnings if problem.where == "batch_size")
    assert "A batch size of 4 fills every batch; with gradient_accumulation 2 a step then has 8 images." in message
