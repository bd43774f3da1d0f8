"""The advisor: what it names, when it is unsure, which shapes it sees in a loss, and what it recommends."""

from __future__ import annotations

import pytest

from lib_lora_train.core.measures import BLEED, COPIES, LIKENESS, STEADY_LOSS, VALIDATION_LOSS
from lib_lora_train.evaluation.advisor import BestSoFar, advise, advise_by_losses, hint_after, is_equal, loss_shape
from lib_lora_train.evaluation.strength_search import Trial

_GOOD = Trial(3, 1.0, (0.8, 0.9, 0.7), (0.1, 0.1), 1.1)
_BAD = Trial(4, 1.0, (0.6, 0.7, 0.5), (0.4, 0.4), 1.6)


def _text(trials: list[Trial], measured: dict[int, dict[str, float]] | None = None) -> str:
    found = advise(trials, measured or {})
    assert found
    return " ".join([*found.reasons, *found.remedies])


def test_the_best_trial_is_named_with_its_numbers_and_with_why_not_the_last_epoch() -> None:
    found = advise([_BAD, _GOOD], {})
    assert found and (found.epoch, found.strength, found.is_sure) == (3, 1.0, True)
    assert found.reasons == (
        "Likeness to the training images is 80%, control images change by 10%.",
        "Epoch 4, the last one, has 60% and 40% at strength 1.",
    )


def test_the_neighbouring_strengths_are_compared() -> None:
    trials = [_GOOD, Trial(3, 0.8, (0.5, 0.6, 0.4), (0.0, 0.1)), Trial(3, 1.25, (0.9, 0.8, 1.0), (0.5, 0.6))]
    assert "They are 50% and 5% at strength 0.8, 90% and 55% at strength 1.25." in _text(trials)
    without_controls = [Trial(3, 1.0, (0.8,)), Trial(3, 0.8, (0.5,))]
    assert "Likeness to the training images is 80%. It is 50% at strength 0.8." in _text(without_controls)


def test_only_the_nearest_strengths_on_either_side_are_compared() -> None:
    others = [Trial(3, strength, (strength / 4,)) for strength in (2.0, 0.6, 1.25, 0.8, 1.5)]
    assert "It is 20% at strength 0.8, 31% at strength 1.25." in _text([Trial(3, 1.0, (0.9,)), *others])


def test_equal_epochs_make_it_unsure_and_it_says_what_would_settle_it() -> None:
    rival = Trial(2, 1.0, (0.95, 0.72, 0.71), (0.1, 0.11))
    found = advise([_GOOD, rival], {})
    assert found and not found.is_sure
    assert "Epochs 2 and 3 are equally good as far as these samples show. More sample prompts" in found.reasons[-1]


def test_trials_are_compared_image_by_image() -> None:
    """Paired differences: the same offset in every image is certain however different the images are."""
    best = Trial(1, 1.0, (0.1, 0.5, 0.9))
    assert not is_equal(Trial(2, 1.0, (0.0, 0.4, 0.8)), best)
    assert is_equal(Trial(2, 1.0, (0.3, 0.1, 0.8)), best)
    assert is_equal(best, best)


@pytest.mark.parametrize(
    ("differences", "equal"),
    [
        ((0.0, 0.1, 0.2), False),  # mean 0.1, standard error 0.1 / √3
        ((-0.1, 0.1, 0.2), True),  # mean 0.067, standard error 0.088
        ((-0.1, 0.3), True),  # mean 0.1, standard error 0.2
        ((0.1,), False),
    ],
)
def test_two_trials_are_equal_within_the_standard_error_of_their_mean_difference(
    differences: tuple[float, ...], equal: bool
) -> None:
    best = Trial(1, 1.0, (0.5,) * len(differences))
    assert is_equal(Trial(2, 1.0, tuple(0.5 - more for more in differences)), best) == equal


@pytest.mark.parametrize("trial", [Trial(1, 1.25, (0.1, -0.1), (0.3, 0.2)), Trial(1, 1.0, (0.0, 0.0))])
def test_a_run_without_a_good_epoch_names_none(trial: Trial) -> None:
    """A score of 0 is as much as no LoRA is worth."""
    found = advise([trial], {})
    assert found and (found.epoch, found.strength, found.is_sure) == (0, 1.0, True)
    assert "undertrained" in found.remedies[0]
    assert advise([], {}) is None


# --- losses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "shape"),
    [
        ([0.20, 0.12, 0.10, 0.09, 0.085], "falls"),
        ([0.20, 0.12, 0.10, 0.12, 0.15], "turns"),
        ([0.20, 0.12, 0.10, 0.1005, 0.10], "falls"),  # within its noise
        ([0.20, 0.18, 0.22, 0.40, 0.90], "diverges"),
        ([0.20, 0.12, 0.11, 0.095, 0.07], "plunges"),
        ([0.20, 0.12, 0.08, 0.06, 0.05], "falls"),  # ever more slowly
        ([0.20, 0.12, 0.11, 0.09], "falls"),  # too short to tell
        ([0.20, 0.12], ""),
        ([], ""),
    ],
)
def test_the_shapes_of_the_guides_are_recognised(losses: list[float], shape: str) -> None:
    assert loss_shape(dict(enumerate(losses))) == shape


@pytest.mark.parametrize(
    ("losses", "shape"),
    [
        ([20, 12, 10, 11], "falls"),
        ([20, 12, 10, 11.5], "turns"),
        ([20, 12, 10, 10.5], "falls"),  # more than a tenth of what it fell after the first epoch
    ],
)
def test_a_loss_turns_when_it_rises_by_more_than_a_tenth_of_its_fall(losses: list[float], shape: str) -> None:
    assert loss_shape(dict(enumerate(losses))) == shape


def test_a_loss_that_ends_where_it_began_has_not_diverged() -> None:
    assert loss_shape({0: 0.2, 1: 0.2, 2: 0.2}) == "falls"
    assert loss_shape({0: 0.2, 1: 0.1, 2: 0.2}) == "turns"


@pytest.mark.parametrize(
    ("falls", "shape"),
    [
        ((1, 1.5, 2), "plunges"),
        ((2, 2.5, 4), "plunges"),
        ((2, 2.5, 3.5), "plunges"),
        ((2, 2.5, 3), "falls"),  # not more than half as fast again as the first fall
        ((2, 1, 1.5, 2), "falls"),
        ((1, 1, 2), "falls"),
        ((1, 2, 2), "falls"),
        ((1, 3, 2), "falls"),
        ((0, 1, 2), "falls"),
        ((-0.5, 1, 2), "falls"),
    ],
)
def test_a_loss_plunges_when_three_falls_grow_to_more_than_one_and_a_half_of_the_first(
    falls: tuple[float, ...], shape: str
) -> None:
    """The falls after the first epoch, which is always the largest."""
    losses = [30.0, 20.0, *(20.0 - sum(falls[:number]) for number in range(1, len(falls) + 1))]
    assert loss_shape(dict(enumerate(losses))) == shape


def test_epochs_that_were_not_measured_are_skipped() -> None:
    assert loss_shape({0: 0.2, 3: 0.1, 6: 0.15}) == "turns"


def test_a_rising_validation_loss_is_a_reason() -> None:
    losses = [0.20, 0.15, 0.12, 0.14, 0.17]
    text = _text([_GOOD], {epoch: {VALIDATION_LOSS: loss} for epoch, loss in enumerate(losses)})
    assert "The validation loss is lowest after epoch 2 and rises from there." in text


# --- what to change ------------------------------------------------------------------------------


def test_an_undertrained_run_needs_more_epochs_and_an_overtrained_one_fewer() -> None:
    assert "undertrained" in _text([Trial(3, 1.5, (0.8, 0.8))]) and "more epochs" in _text([Trial(3, 1.5, (0.8, 0.8))])
    assert "overtrained" in _text([Trial(3, 0.8, (0.8, 0.8))])
    assert "trained" not in _text([_GOOD]).replace("training", "")


def test_a_diverged_run_needs_a_lower_rate() -> None:
    diverged = {epoch: {STEADY_LOSS: loss} for epoch, loss in enumerate([0.2, 0.18, 0.3, 0.5])}
    assert "diverged. Lower the learning rate" in _text([_BAD], diverged)


def test_copies_bleed_and_burning_have_their_own_remedies() -> None:
    assert "Look for duplicates" in _text([_GOOD], {3: {COPIES: 0.5}})
    assert "60% of what the trigger does happens to the class word too" in _text([_GOOD], {3: {BLEED: 0.6}})
    assert "The roughness of plain areas is 3.0 ×" in _text([Trial(3, 1.0, (0.8, 0.8), (0.1,), 3.0)])
    assert advise([_GOOD], {3: {COPIES: 0.0, BLEED: 0.2}}).remedies == ()  # type: ignore[union-attr]
    assert advise([_GOOD], {3: {LIKENESS: 0.8}}).remedies == ()  # type: ignore[union-attr]
    assert advise([Trial(3, 1.0, (0.8,))], {}).remedies == ()  # type: ignore[union-attr]


def test_half_of_the_effect_is_much_bleed_and_twice_the_roughness_is_rough() -> None:
    assert "50% of what the trigger does happens to the class word too" in _text([_GOOD], {3: {BLEED: 0.5}})
    assert "The roughness of plain areas is 2.0 ×" in _text([Trial(3, 1.0, (0.8, 0.8), (0.1,), 2.0)])


def test_a_plunging_loss_means_that_the_dataset_is_copied() -> None:
    plunging = {epoch: {STEADY_LOSS: loss} for epoch, loss in enumerate([0.20, 0.12, 0.11, 0.095, 0.07])}
    assert "The steady loss falls faster and faster: the LoRA copies the dataset." in _text([_GOOD], plunging)


# --- while training ------------------------------------------------------------------------------


def _hints(name: str, values: list[float]) -> list[str]:
    """What is said after each epoch; the first value is that without LoRA."""
    measured = {epoch: {name: value} for epoch, value in enumerate(values)}
    return [hint_after(measured, epoch) for epoch in measured]


def test_the_best_epoch_is_named_once_after_three_epochs_without_a_gain() -> None:
    hints = _hints(VALIDATION_LOSS, [0.1, 0.3, 0.2, 0.25, 0.21, 0.26, 0.27, 0.28])
    assert hints[5] == "Epoch 2 has the lowest validation loss so far; the 3 epochs after it were not better."
    assert [bool(hint) for hint in hints] == [number == 5 for number in range(8)]
    assert _hints(LIKENESS, [0.0, 0.5, 0.4, 0.3, 0.2])[4].startswith("Epoch 1 has the highest likeness so far")
    assert _hints(LIKENESS, [0.0, 0.3, 0.5, 0.4, 0.3, 0.2])[5].startswith("Epoch 2 has the highest likeness so far")
    assert not any(_hints(VALIDATION_LOSS, [0.5, 0.4, 0.3, 0.2, 0.1]))


@pytest.mark.parametrize(("count", "text"), [(1, "the epoch after it was not"), (2, "the 2 epochs after it were not")])
def test_the_best_epoch_so_far_counts_those_after_it(count: int, text: str) -> None:
    assert (
        BestSoFar(6, VALIDATION_LOSS, count).sentence == f"Epoch 6 has the lowest validation loss so far; {text} better"
    )


def test_a_better_epoch_starts_the_count_again() -> None:
    hints = _hints(VALIDATION_LOSS, [0.5, 0.3, 0.31, 0.32, 0.2, 0.21, 0.22, 0.23])
    assert [number for number, hint in enumerate(hints) if hint] == [7] and hints[7].startswith("Epoch 4")


def test_divergence_is_said_once() -> None:
    hints = _hints(STEADY_LOSS, [0.2, 0.18, 0.19, 0.4, 0.9])
    assert [number for number, hint in enumerate(hints) if hint] == [3] and "diverged" in hints[3]


# --- by the losses alone --------------------------------------------------------------------------


def validated(*losses: float, **last: float) -> dict[int, dict[str, float]]:
    """Epochs from 0 with these validation losses; `last` are further measures of the last one."""
    found = {epoch: {VALIDATION_LOSS: loss} for epoch, loss in enumerate(losses)}
    found[len(losses) - 1].update(last)
    return found


def test_without_samples_the_lowest_validation_loss_names_the_epoch_and_is_never_sure() -> None:
    advice = advise_by_losses(validated(1.0, 0.8, 0.6, 0.7), (1, 2, 3))
    assert advice and (advice.epoch, advice.strength, advice.is_sure) == (2, 1.0, False)
    assert "lowest after epoch 2: 0.6, 1 before training and 0.7 after epoch 3, the last one." in advice.reasons[0]
    assert "strengths were not tested" in advice.reasons[1]


def test_only_epochs_with_a_file_are_advised() -> None:
    advice = advise_by_losses(validated(1.0, 0.8, 0.6, 0.7), (1, 3))
    assert advice and advice.epoch == 3 and "the last one" not in advice.reasons[0]
    assert advise_by_losses(validated(1.0, 0.8), ()) is None


@pytest.mark.parametrize("measured", [{}, {1: {STEADY_LOSS: 0.5}}, validated(1.0, 1.0), validated(0.5, 0.8, 0.9)])
def test_a_validation_loss_that_is_missing_or_never_fell_names_no_epoch(measured: dict[int, dict[str, float]]) -> None:
    assert advise_by_losses(measured, (1, 2, 3)) is None


def test_the_measures_of_that_epoch_have_their_remedies() -> None:
    advice = advise_by_losses(validated(1.0, 0.8, 0.6, **{BLEED: 0.9}), (1, 2))
    assert advice and "regularisation images" in advice.remedies[0]
    steady = {epoch: {STEADY_LOSS: loss} for epoch, loss in enumerate((1.0, 0.9, 1.2))}
    both = {epoch: {**values, **steady[epoch]} for epoch, values in validated(1.0, 0.8, 0.6).items()}
    diverged = advise_by_losses(both, (1, 2))
    assert diverged and "has diverged" in diverged.remedies[0]
