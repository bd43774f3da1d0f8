"""Sample prompts made from trigger, class word and captions, so that every run has samples and a grid.

The first group shows each concept: its trigger alone, with the tags that its captions have most often, and in a setting
that they do not have. The control group shows what must not change: the class without the trigger, what is near to it,
and something unrelated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

from lib_lora_train.config.sample_prompts import (
    CONCEPT_HEADING,
    CONTROL_HEADING,
    mentions_trigger,
    prompt_lines,
    split_options,
)
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.words import has_word
from lib_lora_train.dataset.captions import put_trigger_first, split_tags, trigger_tags
from lib_lora_train.dataset.class_neighbours import SUBJECTS, is_style, known_class, neighbours_of
from lib_lora_train.dataset.scan import Dataset

_MAX_CONCEPT_PROMPTS, _MAX_CONTROL_PROMPTS = 6, 4
_TAGS = 4
_SETTINGS = ("on a beach", "in a snowy forest", "in a kitchen", "on a city street at night", "in a desert")


@dataclass(frozen=True)
class _Subject:
    """What a concept is called and described by. `captions` are without its trigger and class word."""

    trigger: str
    class_word: str
    captions: tuple[tuple[str, ...], ...]

    @property
    def name(self) -> str:
        """Trigger and class word, unless the trigger contains it."""
        is_known = self.class_word and has_word(self.trigger, self.class_word)
        return ", ".join(filter(None, (self.trigger, "" if is_known else self.class_word)))


def suggest_prompts(config: TrainConfig, dataset: Dataset | None = None) -> tuple[str, ...]:
    """Lines for `sample_prompts` under their headings, without prompts that the config has already.

    The concepts take turns until there are enough prompts. Without a dataset, only triggers and class words are used.
    () if nothing is known.
    """
    subjects = [_subject(config, concept, dataset) for concept in config.concepts if not concept.is_regularisation]
    given = {split_options(line)[0] for line in prompt_lines(config.sample_prompts)}
    concept = _lines(_in_turns(map(_concept_prompts, subjects)), given)[:_MAX_CONCEPT_PROMPTS]
    if not concept and dataset is not None and not given:  # images without any word: the LoRA changes everything
        concept = list(SUBJECTS[:2])
    names = [subject.trigger or subject.class_word for subject in subjects]
    control = _lines(_in_turns(map(_control_prompts, subjects)), {*given, *concept})
    control = [text for text in control if not mentions_trigger(text, filter(None, names))][: _MAX_CONTROL_PROMPTS - 1]
    unrelated = _lines([_unrelated(subjects)] if control else [], {*given, *concept, *control})
    return (
        *([CONCEPT_HEADING, *concept] if concept else []),
        *([CONTROL_HEADING, *control, *unrelated] if control else []),
    )


def _subject(config: TrainConfig, concept: Concept, dataset: Dataset | None) -> _Subject:
    trigger, class_word = concept.trigger.strip(), concept.class_word.strip()
    texts = list(_captions(config, concept, dataset))
    class_word = class_word or (known_class(texts) if trigger else "")
    own = {*trigger_tags(trigger), *trigger_tags(class_word)}
    captions = (tuple(tag for tag in split_tags(text) if tag.lower() not in own) for text in texts)
    return _Subject(trigger, class_word, tuple(filter(None, captions)))


def _captions(config: TrainConfig, concept: Concept, dataset: Dataset | None) -> Iterator[str]:
    items = dataset.items if dataset else ()
    for item in items:
        if dataset and item.caption and dataset.concepts[item.concept].settings == concept:
            separator = config.keep_tokens_separator
            yield _as_prompt(item.caption.replace(separator, ", ") if separator else item.caption)


# --- the prompts of one concept -------------------------------------------------------------------


def _concept_prompts(subject: _Subject) -> Iterator[str]:
    """The concept alone, as in its captions and in a new setting."""
    described = ", ".join(_frequent_tags(subject.captions))
    unnamed = [word for word in split_tags(subject.name) if not has_word(described, word)]
    yield subject.name
    if described:
        yield put_trigger_first(", ".join((*unnamed, described)), subject.trigger)
    if subject.name:
        yield f"{subject.name}, {_new_setting(subject)}"


def _frequent_tags(captions: Sequence[Sequence[str]]) -> list[str]:
    """Tags that some caption has together: the most frequent one, then the most frequent one beside it, and so on."""
    chosen: list[str] = []
    while len(chosen) < _TAGS:
        counts = Counter(tag for tags in captions for tag in dict.fromkeys(tags) if tag not in chosen)
        if not counts:
            break
        best = max(counts, key=lambda tag: counts[tag])  # the first one of several
        chosen.append(best)
        captions = [tags for tags in captions if best in tags]
    return chosen


def _new_setting(subject: _Subject) -> str:
    places = SUBJECTS[2:] if is_style(subject.class_word) else _SETTINGS
    known = " ".join(chain.from_iterable(subject.captions))
    unknown = (place for place in places if not any(has_word(known, word) for word in place.split() if len(word) > 3))
    return next(unknown, places[0])


def _control_prompts(subject: _Subject) -> Iterator[str]:
    """The class without the trigger, and its neighbours; nothing if the concept has neither trigger nor class."""
    if subject.trigger and subject.class_word and not is_style(subject.class_word):
        yield subject.class_word
    if subject.name and (subject.trigger or not is_style(subject.class_word)):
        yield from neighbours_of(subject.class_word)


def _unrelated(subjects: Sequence[_Subject]) -> str:
    known = " ".join(chain.from_iterable((subject.name, *chain(*subject.captions)) for subject in subjects))
    candidates = SUBJECTS[::-1]
    unknown = (text for text in candidates if not any(has_word(known, word) for word in text.split() if len(word) > 3))
    return next(unknown, candidates[0])


# --- lines ----------------------------------------------------------------------------------------


def _in_turns(lists: Iterable[Iterable[str]]) -> Iterator[str]:
    """The first of every list, then the second of every list, and so on."""
    return (text for texts in zip_longest(*lists, fillvalue="") for text in texts)


def _lines(texts: Iterable[str], given: Iterable[str]) -> list[str]:
    known = set(given)
    return [text for text in dict.fromkeys(map(_as_prompt, texts)) if text and text not in known]


def _as_prompt(text: str) -> str:
    """The text as one prompt line: without options, and never a comment."""
    return " ".join(split_options(text)[0].split()).lstrip("# ").strip(", ")
