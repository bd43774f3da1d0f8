"""Captions to text conditions: encoded anew while a text encoder learns, kept while none does.

Both are exact. A kept condition is found by its token ids, and every caption is encoded alone for it, so that
its numbers do not depend on which captions happened to stand beside it. An empty (dropped) caption is encoded
like any other: the UNet never sees zeros where the webui would show it "".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from lib_lora_train.models.model import DiffusionModel
from lib_lora_train.models.text import TextCondition, chunks_needed, encode_text, tokenize

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

    `trained` says whether gradients have to reach a text encoder; `clip_skip` as for `encode_text`.
    """

    def __init__(self, *, trained: bool, clip_skip: int) -> None:
        self._trained = trained
        self._clip_skip = clip_skip
        self._lengths: Recent[int] = Recent(_TOKENISED_CAPTIONS)
        self._ids: Recent[tuple[Tensor, ...]] = Recent(_TOKENISED_CAPTIONS)
        self._kept: Recent[TextCondition] = Recent(_CONDITION_BYTES)

    def of(self, model: DiffusionModel, captions: Sequence[str]) -> TextCondition:
        """One condition per caption, on the UNet's device and in its dtype; all as long as the longest caption."""
        chunks = max(self._length(model, caption) for caption in captions)
        different = list(dict.fromkeys(captions))
        ids = [self._token_ids(model, caption, chunks) for caption in different]
        if self._trained:
            joined = tuple(torch.cat(same_encoder) for same_encoder in zip(*ids, strict=True))
            found = encode_text(model, joined, self._clip_skip).to(model.device, model.dtype)
        else:
            found = _stacked([self._condition(model, one) for one in ids])
        if len(different) == len(captions):
            return found
        return _taken(found, [different.index(caption) for caption in captions])

    def _length(self, model: DiffusionModel, caption: str) -> int:
        known = self._lengths.get(caption)
        return self._lengths.put(caption, chunks_needed(model, [caption])) if known is None else known

    def _token_ids(self, model: DiffusionModel, caption: str, chunks: int) -> tuple[Tensor, ...]:
        """(1, 77·chunks) per text encoder."""
        known = self._ids.get((caption, chunks))
        return self._ids.put((caption, chunks), tokenize(model, [caption], chunks)) if known is None else known

    def _condition(self, model: DiffusionModel, ids: tuple[Tensor, ...]) -> TextCondition:
        """The kept condition of one caption, encoded if it is new."""
        key = tuple(bytes(one.numpy()) for one in ids)
        known = self._kept.get(key)
        if known is not None:
            return known
        with torch.no_grad():
            fresh = encode_text(model, ids, self._clip_skip).to(model.device, model.dtype)
        pooled_bytes = 0 if fresh.pooled is None else fresh.pooled.nbytes
        return self._kept.put(key, fresh, fresh.hidden.nbytes + pooled_bytes)


def _stacked(conditions: Sequence[TextCondition]) -> TextCondition:
    pooled = [one.pooled for one in conditions if one.pooled is not None]
    return TextCondition(torch.cat([one.hidden for one in conditions]), torch.cat(pooled) if pooled else None)


def _taken(condition: TextCondition, rows: list[int]) -> TextCondition:
    """The rows, some of them several times; built from slices, since an index on the processor would be waited for."""

    def taken(values: Tensor) -> Tensor:
        return torch.cat([values[row : row + 1] for row in rows])

    return TextCondition(taken(condition.hidden), None if condition.pooled is None else taken(condition.pooled))
