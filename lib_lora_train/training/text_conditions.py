"""Captions to text conditions: encoded anew while a text encoder learns, kept while none does.

Both are exact. What is kept are chunks of 75 tokens, which the encoders see one by one: each is encoded alone for it,
so that its numbers do not depend on what happened to stand beside it, and found again by its tokens. An empty
(dropped) caption is encoded like any other: the UNet never sees zeros where the webui would show it "".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.events import Event, Progress
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.text_cache import TextStore, encoders_hash, text_key
from lib_lora_train.models.text_encoding import (
    CHUNK,
    TextCondition,
    chunks_needed,
    encode_text,
    tokenize,
    weighted_tokens,
)

_Value = TypeVar("_Value")
_CONDITION_BYTES = 256 << 20
_TOKENISED_CAPTIONS = 20_000
_TOLD_EVERY = 8  # captions: a turn of the model's lender is that many, and the page hears of each turn


class Recent(Generic[_Value]):
    """What was used most recently, up to a total cost."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._cost = 0
        self._entries: OrderedDict[Hashable, tuple[_Value, int]] = OrderedDict()

    def get(self, key: Hashable) -> _Value | None:
        """The value, now the most recent one; None if it is not (or no longer) there."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, key: Hashable, value: _Value, cost: int = 1) -> _Value:
        """Keep a new value and drop the oldest ones beyond the total cost; returns `value`."""
        self._entries[key] = (value, cost)
        self._cost += cost
        while self._cost > self._most and len(self._entries) > 1:
            self._cost -= self._entries.popitem(last=False)[1][1]
        return value


class TextConditions:
    """The text conditions of a run's micro-batches.

    `trained` says whether gradients have to reach a text encoder; `clip_skip` as for `encode_text`; `weighted` whether
    brackets weigh; `chunks` how many of 75 tokens a caption has at most. What is kept goes through `store`; a folder of
    it needs text encoders without adapters, as those are no part of a file's name.
    """

    def __init__(
        self,
        *,
        trained: bool,
        clip_skip: int,
        weighted: bool = False,
        chunks: int = 3,
        store: TextStore | None = None,
    ) -> None:
        self.trained = trained
        self._clip_skip = clip_skip
        self._weighted = weighted
        self._chunks = chunks
        self._lengths: Recent[int] = Recent(_TOKENISED_CAPTIONS)
        self._ids: Recent[_Tokens] = Recent(_TOKENISED_CAPTIONS)
        self._kept: Recent[TextCondition] = Recent(_CONDITION_BYTES)
        self._store = store or TextStore()
        self._encoders: str | None = None

    def of(self, model: DiffusionModel, captions: Sequence[str]) -> TextCondition:
        """One condition per caption, on the UNet's device and in its dtype; all as long as the longest caption."""
        chunks = max(self._length(model, caption) for caption in captions)
        different = list(dict.fromkeys(captions))
        tokens = [self._tokens(model, caption, chunks) for caption in different]
        if self.trained:
            found = self._encoded(model, _together(tokens))
        else:
            found = _stacked([self._condition(model, one) for one in tokens])
        if len(different) == len(captions):
            return found
        return _taken(found, [different.index(caption) for caption in captions])

    def encode_ahead(self, model: DiffusionModel, captions: Sequence[str]) -> Generator[Event, None, None]:
        """Encodes captions that will be asked for, and yields the progress; those kept from before cost nothing."""
        yield Progress("text", 0, len(captions))
        for start in range(0, len(captions), _TOLD_EVERY):
            some = captions[start : start + _TOLD_EVERY]
            for caption in some:
                self._condition(model, self._tokens(model, caption, self._length(model, caption)))
            yield Progress("text", start + len(some), len(captions))

    def _length(self, model: DiffusionModel, caption: str) -> int:
        known = self._lengths.get(caption)
        if known is not None:
            return known
        return self._lengths.put(caption, chunks_needed(model, [caption], self._chunks, weighted=self._weighted))

    def _tokens(self, model: DiffusionModel, caption: str, chunks: int) -> _Tokens:
        known = self._ids.get((caption, chunks))
        if known is not None:
            return known
        if self._weighted:
            tokens = _Tokens(*weighted_tokens(model, [caption], chunks))
        else:
            tokens = _Tokens(tokenize(model, [caption], chunks), None)
        return self._ids.put((caption, chunks), tokens)

    def _encoded(self, model: DiffusionModel, tokens: _Tokens) -> TextCondition:
        return encode_text(model, tokens.ids, self._clip_skip, tokens.weights).to(model.device, model.dtype)

    def _condition(self, model: DiffusionModel, tokens: _Tokens) -> TextCondition:
        """The condition of one caption, of its chunks' conditions one behind the other."""
        chunks = [self._chunk(model, one) for one in tokens.chunks]
        return TextCondition(torch.cat([one.hidden for one in chunks], dim=1), chunks[0].pooled)

    def _chunk(self, model: DiffusionModel, tokens: _Tokens) -> TextCondition:
        """The kept condition of one chunk, encoded if it is new."""
        if self._encoders is None:
            self._encoders = encoders_hash(model) if self._store.is_on_disk else ""
        key = text_key(model, self._encoders, self._clip_skip, tokens.tensors)
        known = self._kept.get(key)
        if known is not None:
            return known
        found = self._store.get(key)
        if found is None:
            with torch.no_grad():
                found = self._encoded(model, tokens)
            self._store.put(key, found)
        found = found.to(model.device, model.dtype)
        pooled_bytes = 0 if found.pooled is None else found.pooled.nbytes
        return self._kept.put(key, found, found.hidden.nbytes + pooled_bytes)


def text_conditions(config: TrainConfig, *, trained: bool, folder: Path | None = None) -> TextConditions:
    """The text conditions that the settings describe; what is kept lies in `folder` too, if one is given."""
    return TextConditions(
        trained=trained,
        clip_skip=config.clip_skip,
        weighted=config.weighted_captions,
        chunks=config.max_token_length // CHUNK,
        store=TextStore(folder),
    )


@dataclass(frozen=True, eq=False)
class _Tokens:
    """`ids` (B, 77·n) for each text encoder, and `weights` (B, 77·n) where brackets weigh."""

    ids: tuple[Tensor, ...]
    weights: Tensor | None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that the condition follows from."""
        return self.ids if self.weights is None else (*self.ids, self.weights)

    @property
    def chunks(self) -> list[_Tokens]:
        """The same, 77 by 77."""
        weights = [None] * self.ids[0].shape[1] if self.weights is None else torch.split(self.weights, CHUNK + 2, dim=1)
        parts = zip(*(torch.split(ids, CHUNK + 2, dim=1) for ids in self.ids), strict=True)
        return [_Tokens(part, own) for part, own in zip(parts, weights, strict=False)]


def _together(tokens: Sequence[_Tokens]) -> _Tokens:
    weights = [one.weights for one in tokens if one.weights is not None]
    ids = tuple(torch.cat(same_encoder) for same_encoder in zip(*(one.ids for one in tokens), strict=True))
    return _Tokens(ids, torch.cat(weights) if weights else None)


def _stacked(conditions: Sequence[TextCondition]) -> TextCondition:
    pooled = [one.pooled for one in conditions if one.pooled is not None]
    return TextCondition(torch.cat([one.hidden for one in conditions]), torch.cat(pooled) if pooled else None)


def _taken(condition: TextCondition, rows: list[int]) -> TextCondition:
    """The rows, some of them several times; built from slices, since an index on the processor would be waited for."""

    def taken(values: Tensor) -> Tensor:
        return torch.cat([values[row : row + 1] for row in rows])

    return TextCondition(taken(condition.hidden), None if condition.pooled is None else taken(condition.pooled))
