"""Words whose token embeddings are trained vectors: what textual inversion teaches (Gal et al. 2022).

The tokenizer spells a word in ordinary tokens. Where a prompt has these, its ids are replaced by ids above the
vocabulary, one for each vector, and the text encoder's first layer looks these up among the vectors. That is how webuis
read embedding files. The table of the checkpoint's token embeddings is neither changed nor copied.

B: captions; L: tokens; N: vectors of a word; D: width of a text encoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lib_lora_train.core.errors import DataError
from lib_lora_train.models import library_compat as compat


class TextEncoders(Protocol):
    """A model's text encoders; `DiffusionModel` has them."""

    @property
    def text_encoders(self) -> tuple[nn.Module, ...]: ...


class TextParts(TextEncoders, Protocol):
    """The parts of a model that read text."""

    @property
    def tokenizers(self) -> tuple[Any, ...]: ...


class PlaceholderWord:
    """A word of `count` vectors, with the ids from `first` on; prompts are read without it while `is_on` is false."""

    def __init__(self, spelling: Sequence[int], first: int, count: int) -> None:
        self.spelling = list(spelling)
        self.first = first
        self.count = count
        self.is_on = True

    def replace(self, ids: Sequence[int]) -> list[int]:
        """The ids with the word's own ones in the places of its spelling."""
        found, length, place = list[int](), len(self.spelling), 0
        while place < len(ids):
            is_word = self.is_on and list(ids[place : place + length]) == self.spelling
            found += range(self.first, self.first + self.count) if is_word else [ids[place]]
            place += length if is_word else 1
        return found

    def is_inside(self, token: int) -> bool:
        """Whether the token is one of the word's vectors after the first: no chunk may begin with it."""
        return self.first < token < self.first + self.count


class PlaceholderEmbedding(nn.Module):
    """A text encoder's token embedding `table`, with the `vectors` (N, D) of a word for the ids above its rows.

    The vectors are no parameter of this module, so that those of the text encoder stay the checkpoint's.
    """

    def __init__(self, table: nn.Module, word: PlaceholderWord, vectors: Tensor) -> None:
        super().__init__()
        self.table = table
        self.word = word
        self._vectors = (vectors,)

    @property
    def vectors(self) -> Tensor:
        """The word's vectors, (N, D) in any float dtype."""
        return self._vectors[0]

    def forward(self, ids: Tensor) -> Tensor:
        """(B, L, D) in the table's dtype for ids (B, L), with gradients for the vectors."""
        first = self.word.first
        is_own = ids >= first
        rows: Tensor = self.table(ids.masked_fill(is_own, 0))
        own = nn.functional.embedding((ids - first).clamp(0, len(self.vectors) - 1), self.vectors).to(rows.dtype)
        return torch.where(is_own[..., None], own, rows)


def put_word(model: TextParts, word: str, vectors: Sequence[Tensor]) -> PlaceholderWord:
    """Put a word on the model, with its vectors (N, D) for each text encoder; DataError if it has no letters.

    It is there until `remove_word`. The model must have no other one.
    """
    spelling = spell(model, word)
    tables = [_embeddings(encoder).token_embedding for encoder in model.text_encoders]
    assert placeholder_word(model) is None
    placeholder = PlaceholderWord(spelling, len(tables[0].weight), len(vectors[0]))
    for encoder, table, own in zip(model.text_encoders, tables, vectors, strict=True):
        _embeddings(encoder).token_embedding = PlaceholderEmbedding(table, placeholder, own)
    return placeholder


def remove_word(model: TextEncoders) -> None:
    """Leave the text encoders as they were before `put_word`."""
    for encoder in model.text_encoders:
        embeddings = _embeddings(encoder)
        if isinstance(embeddings.token_embedding, PlaceholderEmbedding):
            embeddings.token_embedding = embeddings.token_embedding.table


@contextmanager
def word_in_place(model: TextParts, word: str, vectors: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the model has this word, in place of one that it may have."""
    before = [_embeddings(encoder).token_embedding for encoder in model.text_encoders]
    remove_word(model)
    try:
        put_word(model, word, vectors)
        yield
    finally:
        for encoder, table in zip(model.text_encoders, before, strict=True):
            _embeddings(encoder).token_embedding = table


@contextmanager
def without_word(model: TextEncoders) -> Iterator[None]:
    """Inside, prompts are read as if the model had no word put on it."""
    word = placeholder_word(model)
    was_on = word is not None and word.is_on
    if word:
        word.is_on = False
    try:
        yield
    finally:
        if word:
            word.is_on = was_on


def placeholder_word(model: TextEncoders) -> PlaceholderWord | None:
    """The word that is on the model, None if there is none."""
    if not model.text_encoders:
        return None
    table = _embeddings(model.text_encoders[0]).token_embedding
    return table.word if isinstance(table, PlaceholderEmbedding) else None


def active_word(model: TextEncoders) -> PlaceholderWord | None:
    """The word with which prompts are read now: None while the one on the model is off."""
    word = placeholder_word(model)
    return word if word and word.is_on else None


def spell(model: TextParts, word: str) -> list[int]:
    """The ordinary token ids of a word; DataError if there are none."""
    ids = compat.token_ids_without_ends(model.tokenizers[0], [word.strip()])[0] if word.strip() else []
    if not ids:
        raise DataError(f"“{word}” has no letters that the text encoder reads. Choose another trigger word.")
    return ids


def initial_vectors(model: TextParts, text: str, count: int) -> list[Tensor]:
    """The token embeddings of `text`, spread over `count` vectors, (N, D) float32 for each text encoder.

    Vector i of n is that of token ⌊i·m/n⌋ of m, as in A1111. DataError for a text without tokens.
    """
    ids = spell(model, text)
    rows = [ids[number * len(ids) // count] for number in range(count)]
    return [_embeddings(encoder).token_embedding.weight[rows].detach().float() for encoder in model.text_encoders]


def median_norms(model: TextEncoders) -> list[float]:
    """The median length of the checkpoint's token embeddings, for each text encoder without a word on it."""
    return [
        float(_embeddings(encoder).token_embedding.weight.detach().float().norm(dim=-1).median())
        for encoder in model.text_encoders
    ]


def _embeddings(encoder: nn.Module) -> Any:
    return compat.text_transformer(encoder).embeddings
