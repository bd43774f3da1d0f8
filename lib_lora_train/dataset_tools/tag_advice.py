"""Advice on tag captions, from training guides: tags that compete with the trigger word, contradictions, duplicates."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from lib_lora_train.core.tag_patterns import normalise_tag
from lib_lora_train.core.wording import count
from lib_lora_train.core.words import has_word
from lib_lora_train.dataset_tools.caption_files import CaptionSet

MIN_PRUNE_SHARE = 0.5
"""Of the captions with the trigger. From here on a tag's absence means something: guides call it the navel case."""
NEARLY_ALL = 0.9
MIN_TAGS, MAX_TAGS = 5, 20
_MIN_CAPTIONS = 3

# An image can show only one tag of each group.
_EXCLUSIVE_GROUPS: tuple[tuple[str, ...], ...] = (
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
_MULTICOLOURED_TAGS = {
    "hair": ("multicolored hair", "two-tone hair", "gradient hair", "streaked hair"),
    "eyes": ("heterochromia",),
}
_IMPLIED = {
    **dict.fromkeys(("german shepherd", "golden retriever", "poodle", "husky", "corgi", "dachshund", "puppy"), "dog"),
    **dict.fromkeys(("siamese cat", "persian cat", "kitten", "calico"), "cat"),
    **dict.fromkeys(("sparrow", "crow", "owl", "parrot", "penguin"), "bird"),
    **dict.fromkeys(("rose", "tulip", "sunflower", "lily (flower)"), "flower"),
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


Implications = Mapping[str, Collection[str]]
"""Tag → the tags that it implies."""


@dataclass(frozen=True)
class FrequentTag:
    """A tag in many captions with the trigger word.

    If it is in nearly all, the model may learn the concept under it; if it is frequent, its absence gains a meaning:
    what the other images do not show is learnt as not to be shown.

    `share` is the fraction of the captions with the trigger that have the tag, `share_elsewhere` of those without.
    """

    tag: str
    count: int
    share: float
    share_elsewhere: float

    def __str__(self) -> str:
        share = f"{self.tag!r} is in {self.share:.0%} of the captions with the trigger"
        if self.share >= NEARLY_ALL:
            return f"{share}. Remove it if it belongs to the concept; keep it if prompts should be able to change it."
        return (
            f"{share}, so leaving it out of a prompt means something too. Generate with and without it; if it is part "
            "of the concept, remove it, train again and compare."
        )


def find_tags_to_prune(captions: CaptionSet, trigger: str, min_share: float = MIN_PRUNE_SHARE) -> list[FrequentTag]:
    """The tags in at least `min_share` of the captions with the trigger, most frequent first.

    Without a trigger, all captions count. Empty for fewer than three captions, where every tag is frequent.
    """
    own: Counter[str] = Counter()
    others: Counter[str] = Counter()
    own_count = 0
    for caption in captions.captions:
        tags = {tag.lower() for tag in caption.tags}
        is_own = not trigger or has_word(caption.text, trigger)
        own_count += is_own
        (own if is_own else others).update(tags)
    if own_count < _MIN_CAPTIONS:
        return []
    rest = max(len(captions) - own_count, 1)
    return [
        FrequentTag(tag, count, count / own_count, others[tag] / rest)
        for tag, count in sorted(own.items(), key=lambda entry: (-entry[1], entry[0]))
        if count >= min_share * own_count and not (trigger and has_word(tag, trigger))
    ]


@dataclass(frozen=True)
class Topic:
    """A kind of advice: the same title and explanation for all captions that it applies to."""

    title: str
    why: str


@dataclass(frozen=True)
class Advice:
    """One remark on the caption of this number; `tags` are the tags concerned, `detail` what is special to it."""

    number: int
    tags: tuple[str, ...]
    topic: Topic
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.detail or self.topic.title}: {self.topic.why}"


def find_advice(captions: CaptionSet, implications: Implications = MappingProxyType({})) -> list[Advice]:
    """The advice on each caption, in order; sentences (no comma, many words) are skipped.

    `implications` maps tags to those that they imply, in addition to some common ones.
    """
    found: list[Advice] = []
    for number, caption in enumerate(captions.captions):
        tags = [normalise_tag(tag) for tag in caption.tags]
        if len(tags) > 1 or (tags and len(tags[0].split()) <= MIN_TAGS):
            found += (Advice(number, *finding) for finding in _check_tags(tags, implications))
    return found


def group_advice(advice: Iterable[Advice]) -> list[list[Advice]]:
    """The advice by topic, the topic with the most captions first."""
    groups: dict[Topic, list[Advice]] = {}
    for remark in advice:
        groups.setdefault(remark.topic, []).append(remark)
    return sorted(groups.values(), key=len, reverse=True)


_Finding = tuple[tuple[str, ...], Topic, str]
_USUAL = f"{MIN_TAGS} to {MAX_TAGS} are usual."
_FEW = Topic(f"fewer than {MIN_TAGS} tags", f"whatever they do not mention is learnt with the trigger. {_USUAL}")
_MANY = Topic(f"more than {MAX_TAGS} tags", f"each tag is learnt a little less. {_USUAL}")
_DUPLICATES = Topic("duplicate tags", "they only make the caption longer. Remove them.")


def _check_tags(tags: Sequence[str], implications: Implications) -> Iterator[_Finding]:
    yield from _check_length(tags)
    yield from _check_contradictions(tags)
    yield from _check_implications(tags, implications)
    repeated = tuple(tag for tag, count in Counter(tags).items() if count > 1)
    if repeated:
        yield repeated, _DUPLICATES, _quote_all(repeated)


def _check_length(tags: Sequence[str]) -> Iterator[_Finding]:
    detail = count(len(tags), "tag")
    if len(tags) < MIN_TAGS:
        yield (), _FEW, detail
    elif len(tags) > MAX_TAGS:
        yield (), _MANY, detail


def _check_contradictions(tags: Sequence[str]) -> Iterator[_Finding]:
    present = set(tags)
    for group in _EXCLUSIVE_GROUPS:
        both = tuple(tag for tag in group if tag in present)
        if len(both) > 1:
            yield both, Topic(f"{_quote_all(both)} contradict each other", "keep the one that the image shows."), ""
    for part, exceptions in _MULTICOLOURED_TAGS.items():
        both = tuple(f"{colour} {part}" for colour in _COLOURS if f"{colour} {part}" in present)
        if len(both) > 1 and present.isdisjoint(exceptions):
            why = f"keep the one that the image shows, unless you mean {exceptions[0]}."
            yield both, Topic(f"{_quote_all(both)} contradict each other", why), ""


def _check_implications(tags: Sequence[str], implications: Implications) -> Iterator[_Finding]:
    """Tags that imply another one: they end with it or are a known kind of it."""
    present = set(tags)
    for tag in dict.fromkeys(tags):
        for other in implied_tags(tag, implications):
            if other in present and not re.fullmatch(r"\d*(girls?|boys?)", other):
                yield (tag, other), Topic(f"{tag!r} implies {other!r}", "one of them is enough."), ""


def implied_tags(tag: str, implications: Implications) -> list[str]:
    """The tags that a tag implies, and those that these imply in turn; never the tag itself, even in a cycle."""
    found = dict.fromkeys([tag])
    waiting = [tag]
    for one in waiting:  # grows
        words = one.split()
        endings = (" ".join(words[start:]) for start in range(1, len(words)))
        general = [_IMPLIED[one]] if one in _IMPLIED else []
        new = [other for other in (*general, *implications.get(one, ()), *endings) if other not in found]
        found.update(dict.fromkeys(new))
        waiting += dict.fromkeys(new)
    return [other for other in found if other != tag]


def _quote_all(tags: Sequence[str]) -> str:
    return " and ".join(map(repr, tags))
