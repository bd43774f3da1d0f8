"""What is beside a class: subjects that a LoRA of this class must leave alone, and unrelated ones."""

from __future__ import annotations

from collections.abc import Iterable

from lib_lora_train.core.words import has_word

_NEIGHBOURS = {
    "1girl": ("1boy", "old man"),
    "1boy": ("1girl", "old woman"),
    "girl": ("boy", "woman"),
    "boy": ("girl", "man"),
    "woman": ("man", "girl"),
    "man": ("woman", "boy"),
    "person": ("child", "crowd of people"),
    "character": ("woman", "robot"),
    "child": ("woman", "old man"),
    "baby": ("child", "puppy"),
    "dog": ("cat", "wolf"),
    "puppy": ("kitten", "dog"),
    "cat": ("dog", "fox"),
    "kitten": ("puppy", "cat"),
    "fox": ("dog", "wolf"),
    "wolf": ("dog", "fox"),
    "horse": ("cow", "deer"),
    "bird": ("butterfly", "duck"),
    "dragon": ("lizard", "horse"),
    "creature": ("dog", "bird"),
    "monster": ("dog", "robot"),
    "animal": ("woman", "bird"),
    "pokemon": ("cat", "dragon"),
    "robot": ("man", "car"),
    "car": ("truck", "motorcycle"),
    "truck": ("car", "bus"),
    "motorcycle": ("bicycle", "car"),
    "house": ("castle", "barn"),
    "building": ("house", "bridge"),
    "flower": ("tree", "mushroom"),
    "tree": ("flower", "rock"),
    "dress": ("coat", "shirt"),
    "outfit": ("swimsuit", "suit"),
    "clothes": ("swimsuit", "suit"),
    "hat": ("helmet", "scarf"),
    "shoes": ("socks", "hat"),
    "bag": ("hat", "umbrella"),
    "sword": ("spear", "umbrella"),
    "toy": ("ball", "cup"),
    "food": ("flowers", "cup"),
}
_OTHERS = ("dog", "woman", "car")
"""Beside a class that the table does not know."""

_STYLE_WORDS = ("style", "artstyle", "art", "painting", "drawing", "illustration", "photo", "photography")

SUBJECTS = ("woman in a park", "house by a lake", "bowl of fruit on a table", "mountain landscape")
"""Subjects without anything in common, which any model knows."""


def known_class(texts: Iterable[str]) -> str:
    """The class of the table that most texts contain; "" if fewer than three quarters of them do."""
    texts = list(texts)
    counts = {word: sum(has_word(text, word) for text in texts) for word in _NEIGHBOURS}
    best = max(counts, key=lambda word: counts[word])
    return best if texts and 4 * counts[best] >= 3 * len(texts) else ""


def is_style(class_word: str) -> bool:
    """Whether the class is a look rather than a thing."""
    return any(has_word(class_word, word) for word in _STYLE_WORDS)


def neighbours_of(class_word: str) -> tuple[str, str]:
    """Two subjects near the class, which its LoRA must not change; general ones for a style or an unknown class."""
    if is_style(class_word):
        return SUBJECTS[0], SUBJECTS[1]
    known = [word for word in _NEIGHBOURS if has_word(class_word, word)]
    if known:
        return _NEIGHBOURS[max(known, key=len)]
    first, second = [word for word in _OTHERS if not has_word(class_word, word)][:2]
    return first, second
