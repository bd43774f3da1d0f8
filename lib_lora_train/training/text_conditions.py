"""Captions to text conditions: encoded every time while a text encoder or a word is trained, cached otherwise.

Both are exact. The cache holds chunks of 75 tokens, which the encoders see one by one: each is encoded by itself, so
that its values do not depend on its neighbours in a batch, and looked up by its tokens. An empty (dropped) caption is
encoded like any other: the UNet never sees zeros where the webui would show it "".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.encoding_limits import CHUNK_TOKENS
from lib_lora_train.core.events import Event, Noted, Progress
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.placeholder_words import active_word
from lib_lora_train.models.prompt_encoder import pad_conditions
from lib_lora_train.models.text_cache import TextCache, encoders_hash, prompt_key, text_key
from lib_lora_train.models.text_encoding import (
    TextCondition,
    count_chunks,
    encode_text,
    tokenize,
    tokenize_weighted,
)

_Value = TypeVar("_Value")
_CACHE_BYTES = 256 << 20
_TOKENISED_CAPTIONS = 20_000
_CAPTIONS_PER_EVENT = 8  # the lease may change hands, and the page updates, after that many


class LruCache(Generic[_Value]):
    """The most recently used values, up to a total cost."""

    def __init__(self, max_cost: int) -> None:
        self._max_cost = max_cost
        self._cost = 0
        self._entries: OrderedDict[Hashable, tuple[_Value, int]] = OrderedDict()

    def get(self, key: Hashable) -> _Value | None:
        """The value, now the most recently used one; None if it is not (or no longer) cached."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, key: Hashable, value: _Value, cost: int = 1) -> _Value:
        """`value`, now cached; the least recently used ones beyond the total cost are dropped."""
        self._entries[key] = (value, cost)
        self._cost += cost
        while self._cost > self._max_cost and len(self._entries) > 1:
            self._cost -= self._entries.popitem(last=False)[1][1]
        return value


class TextConditions:
    """The text conditions of a run's micro-batches.

    `trained`: whether gradients must reach a text encoder; `clip_skip` as for `encode_text`; `weighted`: whether
    brackets set weights; `chunks`: the most chunks of 75 tokens that a caption may have. `store` may cache on disk;
    that needs text encoders without adapters, as these are not in the files' names.
    """

    def __init__(
        self,
        *,
        trained: bool,
        clip_skip: int,
        weighted: bool = False,
        chunks: int = 3,
        store: TextCache | None = None,
    ) -> None:
        self.trained = trained
        self._clip_skip = clip_skip
        self._weighted = weighted
        self._chunks = chunks
        self._lengths: LruCache[int] = LruCache(_TOKENISED_CAPTIONS)
        self._ids: LruCache[_Tokens] = LruCache(_TOKENISED_CAPTIONS)
        self._cached: LruCache[TextCondition] = LruCache(_CACHE_BYTES)
        self._store = store or TextCache()
        self._encoders: str | None = None

    def encode(self, model: DiffusionModel, captions: Sequence[str]) -> TextCondition:
        """One condition per caption, on the UNet's device and in its dtype, padded to the longest caption."""
        if model.prompt_encoder is not None:
            rows = [self._prompt(model, caption).hidden for caption in captions]
            return TextCondition(pad_conditions(rows, model.prompt_encoder.padded_tokens), None)
        chunks = max(self._length(model, caption) for caption in captions)
        unique = list(dict.fromkeys(captions))
        tokens = [self._tokens(model, caption, chunks) for caption in unique]
        if self.trained or active_word(model):
            found = self._encoded(model, _concatenated(tokens))
        else:
            found = _stacked([self._condition(model, one) for one in tokens])
        if len(unique) == len(captions):
            return found
        return _rows(found, [unique.index(caption) for caption in captions])

    def encode_captions(self, model: DiffusionModel, captions: Sequence[str]) -> Generator[Event, None, None]:
        """Encode and cache captions ahead of training, yielding progress; cached ones cost nothing."""
        yield Progress("text", 0, len(captions))
        for start in range(0, len(captions), _CAPTIONS_PER_EVENT):
            batch = captions[start : start + _CAPTIONS_PER_EVENT]
            for caption in batch:
                self._prepare(model, caption)
            yield Progress("text", start + len(batch), len(captions))
        if self._store.files.problem:
            yield Noted("warning", "cache_to_disk", self._store.files.problem)

    def _prepare(self, model: DiffusionModel, caption: str) -> None:
        if model.prompt_encoder is not None:
            self._prompt(model, caption)
        else:
            self._condition(model, self._tokens(model, caption, self._length(model, caption)))

    def _length(self, model: DiffusionModel, caption: str) -> int:
        key = (caption, active_word(model))
        known = self._lengths.get(key)
        if known is not None:
            return known
        return self._lengths.put(key, count_chunks(model, [caption], self._chunks, weighted=self._weighted))

    def _tokens(self, model: DiffusionModel, caption: str, chunks: int) -> _Tokens:
        key = (caption, chunks, active_word(model))
        known = self._ids.get(key)
        if known is not None:
            return known
        if self._weighted:
            tokens = _Tokens(*tokenize_weighted(model, [caption], chunks))
        else:
            tokens = _Tokens(tokenize(model, [caption], chunks), None)
        return self._ids.put(key, tokens)

    def _encoded(self, model: DiffusionModel, tokens: _Tokens) -> TextCondition:
        return encode_text(model, tokens.ids, self._clip_skip, tokens.weights).to(model.device, model.dtype)

    def _condition(self, model: DiffusionModel, tokens: _Tokens) -> TextCondition:
        """The condition of one caption: its chunks' conditions, concatenated."""
        chunks = [self._chunk(model, one) for one in tokens.chunks]
        return TextCondition(torch.cat([one.hidden for one in chunks], dim=1), chunks[0].pooled)

    def _chunk(self, model: DiffusionModel, tokens: _Tokens) -> TextCondition:
        """The condition of one chunk, from the cache if it is there."""
        key = text_key(model, self._encoders_hash(model), self._clip_skip, tokens.tensors)
        return self._cached_or(model, key, lambda: self._encoded(model, tokens))

    def _prompt(self, model: DiffusionModel, caption: str) -> TextCondition:
        """The condition (tokens, D) of a caption that the host encodes as a whole, from the cache if it is there."""
        encoder = model.prompt_encoder
        assert encoder is not None
        emphasis = encoder.emphasis if self._weighted else ""
        key = prompt_key(model, self._encoders_hash(model), caption, emphasis=emphasis)
        return self._cached_or(
            model, key, lambda: TextCondition(encoder.encode([caption], is_weighted=self._weighted)[0], None)
        )

    def _encoders_hash(self, model: DiffusionModel) -> str:
        """The hash of the text encoders, made once and only where conditions are kept on disk."""
        if self._encoders is None:
            self._encoders = encoders_hash(model) if self._store.is_on_disk else ""
        return self._encoders

    def _cached_or(self, model: DiffusionModel, key: str, encode: Callable[[], TextCondition]) -> TextCondition:
        """The condition under `key`, made and stored if it is not there, on the UNet's device and in its dtype."""
        known = self._cached.get(key)
        if known is not None:
            return known
        found = self._store.get(key)
        if found is None:
            with torch.no_grad():
                found = encode()
            self._store.put(key, found)
        found = found.to(model.device, model.dtype)
        pooled_bytes = 0 if found.pooled is None else found.pooled.nbytes
        return self._cached.put(key, found, found.hidden.nbytes + pooled_bytes)


def text_conditions(config: TrainConfig, *, trained: bool, folder: Path | None = None) -> TextConditions:
    """The text conditions for the settings; cached in `folder` too, if it is given."""
    return TextConditions(
        trained=trained,
        clip_skip=config.clip_skip,
        weighted=config.weighted_captions,
        chunks=config.max_token_length // CHUNK_TOKENS,
        store=TextCache(folder),
    )


@dataclass(frozen=True, eq=False)
class _Tokens:
    """`ids` (B, 77·n) for each text encoder, and `weights` (B, 77·n) if brackets set weights."""

    ids: tuple[Tensor, ...]
    weights: Tensor | None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Everything that determines the condition."""
        return self.ids if self.weights is None else (*self.ids, self.weights)

    @property
    def chunks(self) -> list[_Tokens]:
        """The same in chunks, (B, 77) each."""
        ids = zip(*(torch.split(one, CHUNK_TOKENS + 2, dim=1) for one in self.ids), strict=True)
        if self.weights is None:
            return [_Tokens(part, None) for part in ids]
        weights = torch.split(self.weights, CHUNK_TOKENS + 2, dim=1)
        return [_Tokens(*part) for part in zip(ids, weights, strict=True)]


def _concatenated(tokens: Sequence[_Tokens]) -> _Tokens:
    weights = [one.weights for one in tokens if one.weights is not None]
    ids = tuple(torch.cat(same_encoder) for same_encoder in zip(*(one.ids for one in tokens), strict=True))
    return _Tokens(ids, torch.cat(weights) if weights else None)


def _stacked(conditions: Sequence[TextCondition]) -> TextCondition:
    pooled = [one.pooled for one in conditions if one.pooled is not None]
    return TextCondition(torch.cat([one.hidden for one in conditions]), torch.cat(pooled) if pooled else None)


def _rows(condition: TextCondition, rows: list[int]) -> TextCondition:
    """The given rows, repeats allowed; from slices, since indexing with a tensor from the processor would wait."""

    def pick(values: Tensor) -> Tensor:
        return torch.cat([values[row : row + 1] for row in rows])

    return TextCondition(pick(condition.hidden), None if condition.pooled is None else pick(condition.pooled))
