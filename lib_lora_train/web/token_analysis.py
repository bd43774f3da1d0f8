"""Token counts of captions, tokens that trigger words share, and rare words for new triggers."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lib_lora_train.core.encoding_limits import TOKEN_LIMITS
from lib_lora_train.core.errors import DataError, LoraTrainError
from lib_lora_train.dataset_tools.blocked_words import is_blocked

_WORD_END = "</w>"  # CLIP's mark of a token that ends a word
_MAX_LETTERS = 4


class Tokenizer(Protocol):
    """The methods of a CLIP tokenizer that are used here."""

    def __call__(self, texts: list[str], *, add_special_tokens: bool, verbose: bool) -> Mapping[str, Any]: ...

    def tokenize(self, text: str) -> list[str]: ...

    def get_vocab(self) -> dict[str, int]: ...


@dataclass(frozen=True)
class OwnTokens:
    """The tokens of a model without CLIP: `title` is its name, `limit` how many a prompt may have.

    `split` returns the tokens of each text, None while its tokenizer is not at hand.
    """

    title: str
    limit: int
    split: Callable[[Sequence[str]], list[list[str]] | None]


NOT_COUNTED = -1
"""The number of tokens where they cannot be counted."""


class TokenAnalysis:
    """Analyses texts with a tokenizer that is loaded when first needed. Counts are cached by text.

    `own` returns the tokens of the model in use if it has no CLIP; it is asked each time, since models are changed.
    """

    def __init__(self, load: Callable[[], Tokenizer], own: Callable[[], OwnTokens | None] = lambda: None) -> None:
        self._load = load
        self._own = own
        self._tokenizer: Tokenizer | None = None
        self._counts: dict[str, int] = {}
        self._loading = threading.Lock()

    @property
    def limits(self) -> tuple[int, ...]:
        """How many tokens a caption may have: those of one, two and three chunks of CLIP, or the model's own limit."""
        own = self._own()
        return (own.limit,) if own else TOKEN_LIMITS

    @property
    def note(self) -> str:
        """Why tokens are not counted, as a sentence; "" if they are."""
        own = self._own()
        if own is None or own.split([""]) is not None:
            return ""
        return f"Tokens for {own.title} are counted by its own tokenizer, once the webui has the model loaded."

    @property
    def tokenizer(self) -> Tokenizer:
        """CLIP's tokenizer, loaded on first use."""
        with self._loading:
            if self._tokenizer is None:
                self._tokenizer = self._load()
            return self._tokenizer

    def count_if_loaded(self, texts: Sequence[str]) -> list[int] | None:
        """The counts, NOT_COUNTED where there is a `note`; None while the tokenizer is loading, which takes seconds."""
        own = self._own()
        if own:
            split = own.split(texts)
            return [NOT_COUNTED] * len(texts) if split is None else list(map(len, split))
        if self._tokenizer is not None:
            return self.count(texts)
        if not self._loading.locked():
            threading.Thread(target=self._load_in_background, name="lora-train-tokenizer", daemon=True).start()
        return None

    def _load_in_background(self) -> None:
        """Load the tokenizer; the next call of `count` raises the error if that fails."""
        with contextlib.suppress(LoraTrainError, ImportError, OSError):
            self._count_by_clip([""])

    def count(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, without the begin and end token; DataError if they cannot be counted."""
        own = self._own()
        if own is None:
            return self._count_by_clip(texts)
        split = own.split(texts)
        if split is None:
            raise DataError(self.note)
        return list(map(len, split))

    def _count_by_clip(self, texts: Sequence[str]) -> list[int]:
        unknown = list({text for text in texts if text not in self._counts})
        if unknown:
            found = self.tokenizer(unknown, add_special_tokens=False, verbose=False)["input_ids"]
            self._counts.update((text, len(ids)) for text, ids in zip(unknown, found, strict=True))
        return [self._counts[text] for text in texts]

    def tokenize(self, word: str) -> list[str]:
        """The tokens of a word as text; CLIP's last one ends with a space. DataError as for `count`."""
        own = self._own()
        if own:
            split = own.split([word])
            if split is None:
                raise DataError(self.note)
            return split[0]
        return [token.replace(_WORD_END, " ") for token in self.tokenizer.tokenize(word)]

    def shared_tokens(self, triggers: Iterable[str]) -> list[str]:
        """A warning for every pair of triggers with a token in common: what one learns bleeds into the other.

        None for a model without CLIP, whose encoder makes tokens depend on those beside them.
        """
        if self._own():
            return []
        known = {trigger: self.tokenize(trigger) for trigger in dict.fromkeys(t for t in triggers if t.strip())}
        return list(_shared_token_warnings(known))

    def rare_words(self, used: Collection[str], limit: int = 60) -> list[str]:
        """Words of at most four letters that are one token, the rarest first, without rude ones and those in `used`.

        CLIP's tokens are numbered in the order in which byte-pair encoding made them, which is by frequency: a high
        number means a rare word. None for a model without CLIP.
        """
        if self._own():
            return []
        words = {
            token.removesuffix(_WORD_END): number
            for token, number in self.tokenizer.get_vocab().items()
            if token.endswith(_WORD_END)
        }
        short = [word for word in words if 3 <= len(word) <= _MAX_LETTERS and word.isascii() and word.isalpha()]
        ordered = sorted(short, key=lambda word: -words[word])
        return list(itertools.islice((word for word in ordered if word not in used and not is_blocked(word)), limit))


def _shared_token_warnings(known: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for (one, tokens), (other, others) in itertools.combinations(known.items(), 2):
        common = [token.strip() for token in dict.fromkeys(tokens) if token in others and token.strip(" ,")]
        if common:
            yield (
                f"{one} and {other} share the token {' and '.join(map(repr, common))}: what one learns bleeds into the "
                "other. Choose words that begin differently."
            )
