"""Captions to token ids in the webui's chunks, and token ids to the UNet's text conditioning.

B: captions; n: chunks of 75 tokens, each between its own begin and end token, so 77·n ids per caption;
D: width of the UNet's text conditioning (SDXL: both encoders concatenated); P: width of the pooled text.

kohya's trainer joins chunks differently (75·n + 2); ours is what the webuis do when the LoRA is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lib_lora_train.core.encoding_limits import CHUNK_TOKENS, MAX_CHUNKS
from lib_lora_train.core.errors import ModelError
from lib_lora_train.models import library_compat as compat
from lib_lora_train.models.placeholder_words import PlaceholderWord, placeholder_word
from lib_lora_train.models.prompt_weights import WeightedText, parse_plain_prompt, parse_weighted_prompt

if TYPE_CHECKING:
    from lib_lora_train.models.architecture import TextEncoderSpec
    from lib_lora_train.models.diffusion_model import DiffusionModel

Chunk = list[tuple[int, float]]
"""Up to 75 token ids, each with its weight."""

_COMMA_BACKTRACK = 20  # the webuis' default: a chunk may end early at a comma among its last 20 tokens


@dataclass(frozen=True, eq=False)
class TextCondition:
    """`hidden` (B, 77·n, D) and, for SDXL, `pooled` (B, P), in the text encoders' dtype."""

    hidden: Tensor
    pooled: Tensor | None

    def to(self, device: torch.device | str, dtype: torch.dtype) -> TextCondition:
        """The same on another device and in another dtype."""
        pooled = None if self.pooled is None else self.pooled.to(device, dtype)
        return TextCondition(self.hidden.to(device, dtype), pooled)


def load_tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer from a folder with vocab.json and merges.txt; ModelError if they are missing."""
    missing = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{folder}: missing tokenizer files: {', '.join(missing)}. Add them, or reinstall.")
    try:
        return compat.load_clip_tokenizer(folder)
    except (OSError, ValueError) as reason:
        raise ModelError(f"{folder}: the tokenizer cannot be read ({reason}). Reinstall it.") from reason


def tokenize(
    model: DiffusionModel, captions: Sequence[str], chunks: int = 1, *, weighted: bool = False
) -> tuple[Tensor, ...]:
    """Token ids for each text encoder, (B, 77·chunks) int64 on the CPU; what does not fit is cut off.

    All captions get the same number of chunks, since they share a batch; `count_chunks` returns how many are needed.
    `weighted` parses brackets as the webuis do in prompts; `tokenize_weighted` also returns the weights.
    """
    return _all_ids(model, _webui_chunks(model, captions, chunks, weighted), chunks)


def tokenize_weighted(
    model: DiffusionModel, prompts: Sequence[str], chunks: int | None = None
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Token ids as from `tokenize`, with brackets parsed, and each token's weight, (B, 77·chunks) float32.

    Without `chunks`, as many as the longest prompt needs, at most 3. Begin, end and padding have the weight 1.
    """
    per_prompt = _webui_chunks(model, prompts, MAX_CHUNKS if chunks is None else chunks, True)
    count = max(1, *map(len, per_prompt)) if chunks is None else chunks
    return _all_ids(model, per_prompt, count), torch.tensor([_weights(prompt, count) for prompt in per_prompt])


def count_chunks(
    model: DiffusionModel, captions: Iterable[str], max_chunks: int = MAX_CHUNKS, *, weighted: bool = False
) -> int:
    """Chunks needed for the longest caption, from 1 to `max_chunks`."""
    longest = max((len(chunks) for chunks in _webui_chunks(model, list(captions), max_chunks, weighted)), default=1)
    return max(1, longest)


def _webui_chunks(model: DiffusionModel, captions: Sequence[str], max_chunks: int, weighted: bool) -> list[list[Chunk]]:
    """Each caption's chunks."""
    (comma,) = compat.token_ids_without_ends(model.tokenizers[0], [","])[0]
    sections, word = tokenize_sections(model, captions, weighted=weighted), placeholder_word(model)
    return [split_sections(one, max_chunks, comma, word) for one in sections]


def tokenize_sections(model: DiffusionModel, captions: Sequence[str], *, weighted: bool) -> list[list[Chunk]]:
    """Each caption's tokens with their weights, in sections between BREAKs; any number of tokens, any may be empty.

    Both SDXL encoders have the same vocabulary, so the first tokenizer is enough. The ids of a placeholder word that is
    on the model are above it.
    """
    parsed = [parse_weighted_prompt(caption) if weighted else parse_plain_prompt(caption) for caption in captions]
    texts = [part.text for parts in parsed for part in parts]
    spelled = compat.token_ids_without_ends(model.tokenizers[0], texts) if texts else []
    word = placeholder_word(model)
    ids = iter(map(word.replace, spelled) if word else spelled)
    return [_sections([(part, next(ids)) for part in parts]) for parts in parsed]


def _sections(parts: Sequence[tuple[WeightedText, list[int]]]) -> list[Chunk]:
    """The sections of one caption, from its parts and their ids."""
    sections: list[Chunk] = [[]]
    for part, ids in parts:
        if part.is_break:
            sections.append([])
        else:
            sections[-1] += [(token, part.weight) for token in ids]
    return sections


def split_sections(
    sections: Sequence[Chunk], max_chunks: int, comma: int, word: PlaceholderWord | None = None
) -> list[Chunk]:
    """The chunks of one caption; a BREAK ends a chunk, even an empty one."""
    chunks: list[Chunk] = []
    for number, section in enumerate(sections):
        rest = section
        for ids in split_chunks([token for token, _ in section], max_chunks - len(chunks), comma, word):
            chunks.append(rest[: len(ids)])
            rest = rest[len(ids) :]
        if not section and number < len(sections) - 1:
            chunks.append([])
    return chunks[:max_chunks]


def split_chunks(
    ids: Sequence[int], max_chunks: int, comma: int, word: PlaceholderWord | None = None
) -> list[list[int]]:
    """The ids in at most `max_chunks` chunks of up to 75.

    A chunk that would split a tag ends after its last comma instead, if that is among the last 20 tokens, as in the
    webuis; only the last chunk is always filled, so that as little as possible is lost. The vectors of a placeholder
    `word` stay together: one that does not fit begins the next chunk.
    """
    chunks: list[list[int]] = []
    rest = list(ids)
    while rest and len(chunks) < max_chunks:
        end = min(CHUNK_TOKENS, len(rest))
        if word and len(rest) > CHUNK_TOKENS and word.is_inside(rest[CHUNK_TOKENS]):
            end -= rest[CHUNK_TOKENS] - word.first
        elif len(rest) > CHUNK_TOKENS and len(chunks) + 1 < max_chunks and rest[CHUNK_TOKENS] != comma:
            tail = [i for i in range(CHUNK_TOKENS - _COMMA_BACKTRACK, CHUNK_TOKENS) if rest[i] == comma]
            end = tail[-1] + 1 if tail else CHUNK_TOKENS
        chunks.append(rest[:end])
        rest = rest[end:]
    return chunks


def _all_ids(model: DiffusionModel, captions: Sequence[list[Chunk]], chunks: int) -> tuple[Tensor, ...]:
    """The captions' ids for each text encoder."""
    return tuple(
        torch.tensor([_ids(caption, chunks, encoder) for caption in captions]) for encoder in model.spec.text_encoders
    )


def _ids(caption: list[Chunk], chunks: int, encoder: TextEncoderSpec) -> list[int]:
    """77·chunks ids: begin, up to 75 tokens, end, then the encoder's padding; missing chunks are empty."""
    begin, end = encoder.config["bos_token_id"], encoder.config["eos_token_id"]
    ids: list[int] = []
    for number in range(chunks):
        tokens = [token for token, _ in caption[number]] if number < len(caption) else []
        ids += [begin, *tokens, end, *[encoder.pad_token] * (CHUNK_TOKENS - len(tokens))]
    return ids


def _weights(caption: list[Chunk], chunks: int) -> list[float]:
    """77·chunks weights, at the positions of `_ids`."""
    weights: list[float] = []
    for number in range(chunks):
        own = [weight for _, weight in caption[number]] if number < len(caption) else []
        weights += [1.0, *own, *[1.0] * (CHUNK_TOKENS + 1 - len(own))]
    return weights


def encode_text(
    model: DiffusionModel, token_ids: Sequence[Tensor], clip_skip: int, weights: Tensor | None = None
) -> TextCondition:
    """The UNet's text conditioning for `tokenize`'s ids; gradients flow to adapters on the text encoders.

    SD1 and SD2: the output of layer −`clip_skip` through the final layer norm. SDXL: the second-to-last layer of both
    encoders without norm, ignoring `clip_skip` as the webuis do, and the pooled text of the second's first chunk.
    `weights` are those of `tokenize_weighted`; they do not affect the pooled text, as in the webuis.
    """
    encoded = [_run(encoder, ids) for encoder, ids in zip(model.text_encoders, token_ids, strict=True)]
    count = token_ids[0].shape[0]
    if model.spec.architecture != "sdxl":
        core = compat.text_transformer(model.text_encoders[0])
        return TextCondition(
            _joined(apply_token_weights(core.final_layer_norm(encoded[0][-clip_skip]), weights), count), None
        )
    hidden = torch.cat([_joined(apply_token_weights(states[-2], weights), count) for states in encoded], dim=-1)
    return TextCondition(hidden, _pooled(model, encoded[-1][-1], token_ids[-1]))


def apply_token_weights(states: Tensor, weights: Tensor | None) -> Tensor:
    """Each token's state times its weight, then each chunk rescaled to its original mean, the webuis' default.

    `states` (B·n, 77, D) from one encoder, `weights` (B, 77·n). z·w·mean(z)/mean(z·w), with means over a whole chunk of
    one caption: the webui's batch is one prompt, repeated. If all weights are 1, the result is bit-identical.
    """
    if weights is None:
        return states
    own = weights.to(states.device, states.dtype).reshape(-1, CHUNK_TOKENS + 2, 1)
    weighted = states * own
    means, weighted_means = (z.mean(dim=(1, 2), keepdim=True) for z in (states, weighted))
    return weighted * (means / weighted_means)


def _run(encoder: nn.Module, ids: Tensor) -> tuple[Tensor, ...]:
    """Hidden states (B·n, 77, D) of all layers; chunks pass through the encoder as if they were captions."""
    device = next(encoder.parameters()).device
    return compat.text_hidden_states(encoder, ids.to(device).reshape(-1, CHUNK_TOKENS + 2))


def _joined(states: Tensor, count: int) -> Tensor:
    return states.reshape(count, -1, states.shape[-1])  # (B·n, 77, D) → (B, 77·n, D)


def _pooled(model: DiffusionModel, last: Tensor, ids: Tensor) -> Tensor:
    """(B, P): the state at the first end token of the first chunk, through the text projection."""
    encoder: Any = model.text_encoders[-1]
    first = ids[:, : CHUNK_TOKENS + 2].to(last.device)
    states = last.reshape(len(ids), -1, *last.shape[1:])[:, 0]  # (B, 77, D) of the first chunk
    ends = (first == model.spec.text_encoders[-1].config["eos_token_id"]).int().argmax(dim=-1)
    normed = compat.text_transformer(encoder).final_layer_norm(states)
    pooled: Tensor = encoder.text_projection(normed[torch.arange(len(ids), device=last.device), ends])
    return pooled


def size_condition(
    original: Sequence[tuple[int, int]], crop: Sequence[tuple[int, int]], target: Sequence[tuple[int, int]]
) -> Tensor:
    """SDXL's size conditioning (B, 6) float32, from (height, width), (top, left) and (height, width) per image."""
    rows = [(*a, *b, *c) for a, b, c in zip(original, crop, target, strict=True)]
    return torch.tensor(rows, dtype=torch.float32)
