"""Captions to text conditions: encoded anew while a text encoder learns, kept while none does.

Both are exact. A kept condition is found by its token ids, and every caption is encoded alone for it, so that
its numbers do not depend on which captions happened to stand beside it. An empty (dropped) caption is encoded
like any other: the UNet never sees zeros where the webui would show it "".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from lib_lora_train.config import TrainConfig
from lib_lora_train.models.model import DiffusionModel
from lib_lora_train.models.text import CHUNK, TextCondition, chunks_needed, encode_text, token_weights, tokenize

_Value = TypeVar("_Value")
_CONDITION_BYTES = 256 << 20
_TOKENISED_CAPTIONS = 20_000


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
    brackets weigh; `chunks` how many of 75 tokens a caption has at most.
    """

    def __init__(self, *, trained: bool, clip_skip: int, weighted: bool = False, chunks: int = 3) -> None:
        self._trained = trained
        self._clip_skip = clip_skip
        self._weighted = weighted
        self._chunks = chunks
        self._lengths: Recent[int] = Recent(_TOKENISED_CAPTIONS)
        self._ids: Recent[_Tokens] = Recent(_TOKENISED_CAPTIONS)
        self._kept: Recent[TextCondition] = Recent(_CONDITION_BYTES)

    @property
    def are_kept(self) -> bool:
        """Whether each caption is encoded once; never while a text encoder learns."""
        return not self._trained

    def of(self, model: DiffusionModel, captions: Sequence[str]) -> TextCondition:
        """One condition per caption, on the UNet's device and in its dtype; all as long as the longest caption."""
        chunks = max(self._length(model, caption) for caption in captions)
        different = list(dict.fromkeys(captions))
        tokens = [self._tokens(model, caption, chunks) for caption in different]
        if self._trained:
            found = self._encoded(model, _together(tokens))
        else:
            found = _stacked([self._condition(model, one) for one in tokens])
        if len(different) == len(captions):
            return found
        return _taken(found, [different.index(caption) for caption in captions])

    def _length(self, model: DiffusionModel, caption: str) -> int:
        known = self._lengths.get(caption)
        if known is not None:
            return known
        return self._lengths.put(caption, chunks_needed(model, [caption], self._chunks, weighted=self._weighted))

    def _tokens(self, model: DiffusionModel, caption: str, chunks: int) -> _Tokens:
        known = self._ids.get((caption, chunks))
        if known is not None:
            return known
        ids = tokenize(model, [caption], chunks, weighted=self._weighted)
        weights = token_weights(model, [caption], chunks) if self._weighted else None
        return self._ids.put((caption, chunks), _Tokens(ids, weights))

    def _encoded(self, model: DiffusionModel, tokens: _Tokens) -> TextCondition:
        return encode_text(model, tokens.ids, self._clip_skip, tokens.weights).to(model.device, model.dtype)

    def _condition(self, model: DiffusionModel, tokens: _Tokens) -> TextCondition:
        """The kept condition of one caption, encoded if it is new."""
        known = self._kept.get(tokens.key)
        if known is not None:
            return known
        with torch.no_grad():
            fresh = self._encoded(model, tokens)
        pooled_bytes = 0 if fresh.pooled is None else fresh.pooled.nbytes
        return self._kept.put(tokens.key, fresh, fresh.hidden.nbytes + pooled_bytes)


def text_conditions(config: TrainConfig, *, trained: bool) -> TextConditions:
    """The text conditions that the settings describe."""
    return TextConditions(
        trained=trained,
        clip_skip=config.clip_skip,
        weighted=config.weighted_captions,
        chunks=config.max_token_length // CHUNK,
    )


@dataclass(frozen=True, eq=False)
class _Tokens:
    """`ids` (B, 77·n) for each text encoder, and `weights` (B, 77·n) where brackets weigh."""

    ids: tuple[Tensor, ...]
    weights: Tensor | None

    @property
    def key(self) -> tuple[bytes, ...]:
        """Equal for equal tokens."""
        weights = () if self.weights is None else (self.weights,)
        return tuple(bytes(tensor.numpy()) for tensor in (*self.ids, *weights))


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
