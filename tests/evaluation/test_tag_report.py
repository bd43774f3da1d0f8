"""From measured numbers to what became of a tag: learnt, ignored, a thief, one that pulls another along."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lib_lora_train.evaluation.tag_report import RatedTag, TagMeasure, TagPull, may_pull, rate_tags

_NOISE = (-0.02, 0.02, -0.01, 0.01, -0.02, 0.02, -0.01, 0.01)


def _about(value: float) -> tuple[float, ...]:
    """One value for each of eight seeds."""
    return tuple(value + one for one in _NOISE)


def _tag(
    tag: str = "hat", images: int = 6, *, having: float = 0.9, without: float = 0.1, **values: object
) -> TagMeasure:
    measure = TagMeasure(
        trigger="zok",
        tag=tag,
        prompt=f"zok, {tag}",
        images=images,
        total=20,
        separation=5.0,
        without=_about(without),
        nonsense=_about(0.2)[::-1],
        having=_about(having)[1:] + _about(having)[:1],
        effect=_about(1.0),
        floor=_about(0.6),
    )
    return replace(measure, **values)  # type: ignore[arg-type]


def _pull(both: int, others: int, *, pulled: float, own: float = 0.9, **values: object) -> TagPull:
    pull = TagPull("beach", both, others, 5.0, _about(0.1), _about(0.2)[::-1], _about(own), _about(pulled)[2:] * 2)
    return replace(pull, pulled=pull.pulled[:8], **values)  # type: ignore[arg-type]


def _rated(measure: TagMeasure) -> RatedTag:
    (rated,) = rate_tags([measure])
    return rated


def test_a_tag_that_brings_what_its_images_show_is_learnt() -> None:
    rated = _rated(_tag())
    assert (rated.verdict, rated.steals, rated.pulls, rated.stands_out) == ("learnt", False, (), False)
    assert rated.sentence == "Learnt: what it stands for goes from 10% to 90%."
    assert rated.advice == ""


def test_a_tag_that_changes_no_more_than_a_word_without_meaning_is_ignored() -> None:
    for measure in (_tag(having=0.1, effect=_about(0.5)), _tag(separation=0.5, effect=_about(0.6))):
        rated = _rated(measure)
        assert rated.verdict == "ignored" and rated.stands_out
        assert "a word without meaning by 60%" in rated.sentence and rated.advice


def test_effects_above_those_of_another_seed_are_shown_as_they_are() -> None:
    rated = _rated(_tag(having=0.1, effect=_about(1.1), floor=_about(1.3)))
    assert rated.sentence.startswith("Ignored: it changes images by 110% of what another seed does, a word")
    assert rated.sentence.endswith("by 130%.")


def test_a_tag_that_does_only_what_any_unknown_word_does_is_unclear() -> None:
    """The LoRA answers each unknown word with what it draws by default; that says nothing about the tag."""
    rated = _rated(_tag(having=0.2))
    assert rated.verdict == "unclear" and "so does a word without meaning" in rated.sentence


def test_a_tag_that_changes_images_in_some_other_way_is_unclear() -> None:
    assert _rated(_tag(having=0.1, effect=_about(1.4))).verdict == "unclear"


@pytest.mark.parametrize(("images", "without", "is_thief"), [(14, 0.1, True), (9, 0.1, False), (14, 0.6, False)])
def test_a_thief_is_frequent_and_the_trigger_alone_shows_little_of_it(
    images: int, without: float, is_thief: bool
) -> None:
    rated = _rated(_tag(images=images, without=without))
    assert rated.steals == is_thief
    if is_thief:
        assert rated.sentence == "zok alone shows 10% of what this tag stands for, with the tag it is 90%."
        assert rated.advice.startswith("If it belongs to zok, leave the tag out and train again")


def test_an_ignored_tag_steals_nothing_however_frequent() -> None:
    assert not _rated(_tag(images=18, having=0.1, effect=_about(0.3))).steals


def test_gains_that_differ_from_seed_to_seed_are_chance() -> None:
    one_lucky_seed = (*_about(0.1)[:7], 3.0)
    assert _rated(_tag(having=0.1, effect=_about(0.5))).verdict == "ignored"
    assert _rated(replace(_tag(), having=one_lucky_seed)).verdict != "learnt"


def test_a_tag_pulls_another_one_along_that_it_appears_with() -> None:
    rated = _rated(_tag(pulls=(_pull(6, 7, pulled=0.8),)))
    assert rated.pulls == ("beach",) and rated.stands_out
    assert rated.sentence.endswith("It brings beach along, which 6 of its 6 images have too.")
    assert "one without the other" in rated.advice


@pytest.mark.parametrize(
    "pull",
    [
        _pull(6, 7, pulled=0.2),  # no more than a word without meaning does
        _pull(6, 7, pulled=0.35, own=2.0),  # little of what the tag itself does
        _pull(2, 7, pulled=0.8),  # seldom together
        _pull(6, 18, pulled=0.8),  # the other one is nearly everywhere
        _pull(6, 7, pulled=0.8, separation=0.5),  # nothing is common to its images
    ],
)
def test_it_pulls_nothing_along_that_is_not_brought_by_it(pull: TagPull) -> None:
    assert _rated(_tag(pulls=(pull,))).pulls == ()


def test_tags_occur_together_by_chance_unless_it_is_more_often_than_expected() -> None:
    assert may_pull(both=5, images=6, others=7, total=20)
    assert not may_pull(both=5, images=6, others=16, total=20)
    assert not may_pull(both=1, images=1, others=1, total=20)


def test_a_tag_that_was_not_drawn_is_only_counted() -> None:
    rated = _rated(TagMeasure("zok", "cape", "zok, cape", 1, 20))
    assert (rated.verdict, rated.sentence, rated.stands_out) == ("rare", "Not drawn.", False)


def test_thieves_come_first_then_pulls_then_ignored_tags_then_frequent_ones() -> None:
    tags = [
        TagMeasure("zok", "rare", "zok, rare", 1, 20),
        _tag("few", 3),
        _tag("many", 8),
        _tag("ignored", 5, having=0.1, effect=_about(0.4)),
        _tag("pulling", 6, pulls=(_pull(6, 7, pulled=0.8),)),
        _tag("thief", 14),
    ]
    assert [one.measure.tag for one in rate_tags(tags)] == ["thief", "pulling", "ignored", "many", "few", "rare"]
