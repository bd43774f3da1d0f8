"""Token counts of captions, tokens that trigger words share, and rare words for new triggers."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from lib_lora_train.core.errors import LoraTrainError
from lib_lora_train.dataset_tools.blocked_words import is_blocked

_WORD_END = "</w>"  # CLIP's mark of a token that ends a word
_MAX_LETTERS = 4


class Tokenizer(Protocol):
    """The methods of a CLIP tokenizer that are used here."""

    def __call__(self, texts: list[str], *, add_special_tokens: bool, verbose: bool) -> Mapping[str, Any]: ...

    def tokenize(self, text: str) -> list[str]: ...

    def get_vocab(self) -> dict[str, int]: ...


class TokenAnalysis:
    """Analyses texts with a tokenizer that is loaded when first needed. Counts are cached by text."""

    def __init__(self, load: Callable[[], Tokenizer]) -> None:
        self._load = load
        self._tokenizer: Tokenizer | None = None
        self._counts: dict[str, int] = {}
        self._loading = threading.Lock()

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, loaded on first use."""
        with self._loading:
            if self._tokenizer is None:
                self._tokenizer = self._load()
            return self._tokenizer

    def count_if_loaded(self, texts: Sequence[str]) -> list[int] | None:
        """The counts, or None while the tokenizer is loading, which can take seconds."""
        if self._tokenizer is not None:
            return self.count(texts)
        if not self._loading.locked():
            threading.Thread(target=self._load_in_background, name="lora-train-tokenizer", daemon=True).start()
        return None

    def _load_in_background(self) -> None:
        """Load the tokenizer; the next call of `count` raises the error if that fails."""
        with contextlib.suppress(LoraTrainError, ImportError, OSError):
            self.count([""])

    def count(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, without the begin and end token."""
        unknown = list({text for text in texts if text not in self._counts})
        if unknown:
            found = self.tokenizer(unknown, add_special_tokens=False, verbose=False)["input_ids"]
            self._counts.update((text, len(ids)) for text, ids in zip(unknown, found, strict=True))
        return [self._counts[text] for text in texts]

    def tokenize(self, word: str) -> list[str]:
        """The tokens of a word as text; the last one ends with a space."""
        return [token.replace(_WORD_END, " ") for token in self.tokenizer.tokenize(word)]

    def shared_tokens(self, triggers: Iterable[str]) -> list[str]:
        """A warning for every pair of triggers with a token in common: what one learns bleeds into the other."""
        known = {trigger: self.tokenize(trigger) for trigger in dict.fromkeys(t for t in triggers if t.strip())}
        return list(_shared_token_warnings(known))

    def rare_words(self, used: Collection[str], limit: int = 60) -> list[str]:
        """Words of at most four letters that are one token, the rarest first, without rude ones and those in `used`.

        CLIP's tokens are numbered in the order in which byte-pair encoding made them, which is by frequency: a high
        number means a rare word.
        """
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
