"""The search for an epoch and a strength: it finds the best trial with few of them, and compares image by image."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lib_lora_train.evaluation.strength_search import (
    MAX_TRIALS,
    STRENGTHS,
    Trial,
    TrialPlace,
    best_trial,
    next_place,
    score,
)


def _search(worth: Callable[[TrialPlace], float], epochs: list[int]) -> list[Trial]:
    """All trials of a search, where the likeness of a trial is `worth` of its place."""
    trials: list[Trial] = []
    while place := next_place(trials, epochs):
        assert place not in {trial.place for trial in trials}
        trials.append(Trial(place.epoch, place.strength, (worth(place),) * 2))
    return trials


def test_the_score_is_what_the_concept_gains_less_what_control_images_lose() -> None:
    assert score(Trial(1, 1.0, (0.2, 0.6), (0.1, 0.3))) == pytest.approx(0.4 - 0.2)
    assert score(Trial(1, 1.0, (0.2, 0.6))) == pytest.approx(0.4)  # without control prompts


def test_a_copy_of_one_image_does_not_make_up_for_another_sample_without_the_concept() -> None:
    assert score(Trial(1, 1.0, (3.0, 0.0))) == score(Trial(1, 1.0, (1.0, 0.0))) == pytest.approx(0.5)


def test_a_control_image_cannot_be_lost_more_than_once() -> None:
    assert score(Trial(1, 1.0, (0.9,), (1.0, 0.2))) == score(Trial(1, 1.0, (0.9,), (3.0, 0.2))) == pytest.approx(0.3)


@pytest.mark.parametrize(("gain", "named"), [(0.04, 1.0), (0.06, 1.5)])
def test_another_strength_than_1_has_to_gain_a_tenth_per_unit(gain: float, named: float) -> None:
    trials = [Trial(1, 1.0, (0.5,)), Trial(1, 1.5, (0.5 + gain,))]
    assert best_trial(trials).strength == named
    assert best_trial(trials[::-1]).strength == named


@pytest.mark.parametrize("epoch", [1, 3, 5])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_it_finds_the_top_of_a_hill(epoch: int, strength: float) -> None:
    """A score that falls with the distance from one place, in epochs and in steps of the strength."""

    def worth(place: TrialPlace) -> float:
        return (
            1 - 0.1 * abs(place.epoch - epoch) - 0.12 * abs(STRENGTHS.index(place.strength) - STRENGTHS.index(strength))
        )

    trials = _search(worth, [1, 2, 3, 4, 5])
    assert best_trial(trials).place == (epoch, strength)
    assert sum(trial.strength != 1.0 for trial in trials) <= MAX_TRIALS


def test_every_epoch_is_tried_at_strength_1_first() -> None:
    trials = _search(lambda place: place.epoch / 10, [2, 4, 6])
    assert [trial.place for trial in trials[:3]] == [(2, 1.0), (4, 1.0), (6, 1.0)]


def test_an_undertrained_run_is_followed_to_more_strength_and_an_overtrained_one_to_less() -> None:
    """A ridge: what counts is epoch × strength."""
    for best in (7.5, 2.0):
        trials = _search(lambda place, best=best: 1 - abs(place.epoch * place.strength - best) / 10, [3, 4])  # type: ignore[misc]
        assert abs(best_trial(trials).epoch * best_trial(trials).strength - best) < 0.6


def test_next_comes_the_stronger_one_then_the_weaker_one_then_the_epochs_beside_it() -> None:
    top = TrialPlace(3, 1.25)
    trials = _search(lambda place: 1.0 if place == top else 0.5 if place == (3, 1.0) else 0.1, [1, 2, 3, 4, 5])
    assert [trial.place for trial in trials[5:]] == [(3, 1.25), (3, 1.5), (4, 1.25), (2, 1.25)]
    weaker = _search(lambda place: 1.0 if place == (3, 1.0) else 0.1, [1, 2, 3, 4, 5])
    assert [trial.place for trial in weaker[5:]] == [(3, 1.25), (3, 0.8)]


def test_a_search_ends_after_eight_trials_beside_those_at_strength_1() -> None:
    """However many of those there are, and though a ninth would be better still."""

    def worth(place: TrialPlace) -> float:
        if place.strength == STRENGTHS[-1]:
            return 0.5 + place.epoch / 20
        return place.strength / 4 - place.epoch / 1000

    trials = _search(worth, list(range(1, 13)))
    assert len(trials) == 12 + 8 == 12 + MAX_TRIALS
    assert best_trial(trials).place == trials[-1].place == (4, 2.0)


def test_of_equal_trials_strength_1_is_named_and_then_the_earliest_epoch() -> None:
    equal = [Trial(epoch, strength, (0.5,)) for epoch in (3, 2) for strength in (1.25, 1.0, 0.8)]
    assert best_trial(equal).place == (2, 1.0)


def test_trials_that_were_made_before_are_not_made_again_and_those_of_other_epochs_do_not_count() -> None:
    done = _search(lambda place: place.epoch / 10, [1, 2])
    assert next_place(done, [1, 2]) is None
    assert next_place(done, [1, 2, 3]) == (3, 1.0)
    assert next_place([Trial(9, 1.0, (0.9,))], [1]) == (1, 1.0)
    assert next_place([], []) is None
