"""Advice about tag captions, from the guides: what steals from the trigger, contradicts, repeats or is too much."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from lib_lora_train.dataset.captions import has_word
from lib_lora_train.dataset_tools.caption_files import CaptionSet

NEARLY_ALWAYS = 0.9
FEWEST_TAGS, MOST_TAGS = 5, 20
_FEW_CAPTIONS = 3

# Of each group an image can show one only.
_EITHER_OR: tuple[tuple[str, ...], ...] = (
    ("solo", "2girls", "3girls", "2boys", "multiple girls", "multiple boys", "couple", "group"),
    ("1girl", "2girls", "3girls", "4girls", "multiple girls", "no humans"),
    ("1boy", "2boys", "3boys", "multiple boys", "no humans"),
    ("very short hair", "short hair", "medium hair", "long hair", "very long hair", "bald"),
    ("open mouth", "closed mouth"),
    ("indoors", "outdoors"),
    ("day", "night"),
    ("standing", "sitting", "lying", "kneeling"),
    ("from above", "from below"),
    ("from front", "from behind"),
    ("looking at viewer", "looking away", "looking back"),
    ("full body", "upper body", "portrait", "cowboy shot", "close-up"),
    ("small breasts", "medium breasts", "large breasts", "flat chest"),
    ("short sleeves", "long sleeves", "sleeveless"),
)
_COLOURS = re.findall(r"\w+", "black blonde blue brown green grey orange pink purple red silver white yellow aqua")
_COLOURED = {
    "hair": ("multicolored hair", "two-tone hair", "gradient hair", "streaked hair"),
    "eyes": ("heterochromia",),
}
_IMPLIED = {
    "cat ears": "animal ears",
    "dog ears": "animal ears",
    "fox ears": "animal ears",
    "rabbit ears": "animal ears",
    "very long hair": "long hair",
    "very short hair": "short hair",
    "twin braids": "braid",
    "pleated skirt": "skirt",
    "serafuku": "school uniform",
    "katana": "sword",
    "sword": "weapon",
    "gun": "weapon",
}


@dataclass(frozen=True)
class FrequentTag:
    """A tag that comes with the trigger nearly always: what it names is learnt under it instead of the trigger.

    `share` of the captions with the trigger have it, `elsewhere` of those without.
    """

    tag: str
    count: int
    share: float
    elsewhere: float

    def __str__(self) -> str:
        return (
            f"{self.tag!r} stands in {self.share:.0%} of the captions with the trigger. Take it out if it belongs to "
            "the concept; keep it if prompts shall be able to change it."
        )


def find_tags_to_prune(captions: CaptionSet, trigger: str, nearly: float = NEARLY_ALWAYS) -> list[FrequentTag]:
    """The tags that stand in at least the share `nearly` of the captions with the trigger, most frequent first.

    Without a trigger all captions count as having it. None for fewer than three captions, where all is frequent.
    """
    own: Counter[str] = Counter()
    others: Counter[str] = Counter()
    put_trigger_first = 0
    for caption in captions.captions:
        tags = {tag.lower() for tag in caption.tags}
        is_own = not trigger or has_word(caption.text, trigger)
        put_trigger_first += is_own
        (own if is_own else others).update(tags)
    if put_trigger_first < _FEW_CAPTIONS:
        return []
    rest = max(len(captions) - put_trigger_first, 1)
    return [
        FrequentTag(tag, count, count / put_trigger_first, others[tag] / rest)
        for tag, count in sorted(own.items(), key=lambda entry: (-entry[1], entry[0]))
        if count >= nearly * put_trigger_first and not (trigger and has_word(tag, trigger))
    ]


@dataclass(frozen=True)
class Topic:
    """What is to be looked at, and what to do about it: equal in all captions that it is true of."""

    title: str
    why: str


@dataclass(frozen=True)
class Advice:
    """One thing to look at in the caption of this number; `tags` are those it is about, `detail` how it is there."""

    number: int
    tags: tuple[str, ...]
    topic: Topic
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.detail or self.topic.title}: {self.topic.why}"


def find_advice(captions: CaptionSet) -> list[Advice]:
    """What stands out in single captions, in their order; sentences (no comma, many words) are left alone."""
    found: list[Advice] = []
    for number, caption in enumerate(captions.captions):
        tags = [tag.lower().replace("_", " ") for tag in caption.tags]
        if len(tags) > 1 or (tags and len(tags[0].split()) <= FEWEST_TAGS):
            found += (Advice(number, *finding) for finding in _of_tags(tags))
    return found


def group_advice(advice: Iterable[Advice]) -> list[list[Advice]]:
    """Advice of one topic together, the topic of most captions first."""
    groups: dict[Topic, list[Advice]] = {}
    for one in advice:
        groups.setdefault(one.topic, []).append(one)
    return sorted(groups.values(), key=len, reverse=True)


_Finding = tuple[tuple[str, ...], Topic, str]
_USUAL = f"{FEWEST_TAGS} to {MOST_TAGS} is usual."
_FEW = Topic(f"fewer than {FEWEST_TAGS} tags", f"what they leave out is learnt with the trigger. {_USUAL}")
_MANY = Topic(f"more than {MOST_TAGS} tags", f"each is learnt a little less. {_USUAL}")
_REPEATED = Topic("tags that stand there more than once", "it changes nothing but the length. Drop repeated tags.")


def _of_tags(tags: Sequence[str]) -> Iterator[_Finding]:
    yield from _length(tags)
    yield from _contradictions(tags)
    yield from _implications(tags)
    repeated = tuple(tag for tag, count in Counter(tags).items() if count > 1)
    if repeated:
        yield repeated, _REPEATED, _listed(repeated)


def _length(tags: Sequence[str]) -> Iterator[_Finding]:
    detail = f"{len(tags)} {'tag' if len(tags) == 1 else 'tags'}"
    if len(tags) < FEWEST_TAGS:
        yield (), _FEW, detail
    elif len(tags) > MOST_TAGS:
        yield (), _MANY, detail


def _contradictions(tags: Sequence[str]) -> Iterator[_Finding]:
    present = set(tags)
    for group in _EITHER_OR:
        both = tuple(tag for tag in group if tag in present)
        if len(both) > 1:
            yield both, Topic(f"{_listed(both)} contradict each other", "keep the one that is seen."), ""
    for part, exceptions in _COLOURED.items():
        both = tuple(f"{colour} {part}" for colour in _COLOURS if f"{colour} {part}" in present)
        if len(both) > 1 and present.isdisjoint(exceptions):
            why = f"keep the one that is seen, unless {exceptions[0]} is meant."
            yield both, Topic(f"{_listed(both)} contradict each other", why), ""


def _implications(tags: Sequence[str]) -> Iterator[_Finding]:
    """A tag that ends with another one, or is known to be a kind of it, says the other one too."""
    present = set(tags)
    for tag in dict.fromkeys(tags):
        general = _IMPLIED.get(tag)
        endings = (" ".join(tag.split()[start:]) for start in range(1, len(tag.split())))
        for other in (*([general] if general else []), *endings):
            if other in present and other != tag and not re.fullmatch(r"\d*(girls?|boys?)", other):
                yield (tag, other), Topic(f"{tag!r} says {other!r} already", "one of them will do."), ""


def _listed(tags: Sequence[str]) -> str:
    return " and ".join(map(repr, tags))
