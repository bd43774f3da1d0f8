"""The words of a prompt, and where each of them is among the tokens that the UNet sees.

A word may be several tokens, may occur several times, and may be a phrase such as a tag. It is found as the text
encoder sees it: without brackets and weights, in lower case, and never as part of a longer word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lib_lora_train.core.encoding_limits import CHUNK_TOKENS
from lib_lora_train.core.errors import DataError
from lib_lora_train.core.wording import count, shorten_list
from lib_lora_train.models import library_compat as compat
from lib_lora_train.models.placeholder_words import without_word
from lib_lora_train.models.prompt_weights import parse_plain_prompt, split_words
from lib_lora_train.models.text_encoding import split_sections, tokenize_sections

if TYPE_CHECKING:
    from lib_lora_train.models.diffusion_model import DiffusionModel

_END_OF_WORD = "</w>"
_SHOWN = 12


@dataclass(frozen=True, eq=False)
class PromptTokens:
    """A prompt's tokens as text, in sections between BREAKs, and the place of each among the 77·n of the condition.

    `places` counts through all sections, and ends where the prompt is cut off.
    """

    words: tuple[str, ...]
    sections: tuple[tuple[str, ...], ...]
    places: tuple[int, ...]
    tokenizer: Any

    def positions(self, word: str) -> tuple[int, ...]:
        """The places of all tokens of a word or phrase, each time it occurs; DataError if the prompt lacks it.

        A token that the word shares with its neighbour, such as the end of `(x),`, counts.
        """
        text = "".join(part.text for part in parse_plain_prompt(word) if not part.is_break)
        spelled, _ = _spell(_token_texts(self.tokenizer, compat.token_ids_without_ends(self.tokenizer, [text])[0]))
        if not spelled:
            raise DataError("Enter a word of the prompt.")
        found = tuple(dict.fromkeys(self._occurrences(spelled)))
        if not found:
            advice = f"Choose among: {shorten_list(self.words, _SHOWN)}." if self.words else "It has no words."
            raise DataError(f"“{word}” is not in the prompt. {advice}")
        kept = tuple(self.places[number] for number in found if number < len(self.places))
        if not kept:
            raise DataError(
                f"“{word}” is beyond the first {count(len(self.places), 'token')} of the prompt, and the model "
                "does not "
                "read it."
            )
        return kept

    def _occurrences(self, word: str) -> Iterator[int]:
        """The numbers of the tokens of each occurrence, counted through all sections."""
        before = 0
        for section in self.sections:
            text, owners = _spell(section)
            start = text.find(word)
            while start >= 0:
                end = start + len(word)
                if not (_is_within_word(text, start) or _is_within_word(text, end)):
                    yield from (before + owner for owner in owners[start:end])
                start = text.find(word, start + 1)
            before += len(section)


def _spell(tokens: Sequence[str]) -> tuple[str, list[int]]:
    """The tokens as one text, and for each character the number of its token; words have a space between them."""
    text, owners, is_new_word = "", list[int](), False
    for number, token in enumerate(tokens):
        part = token.removesuffix(_END_OF_WORD)
        if is_new_word and _is_of_word(text[-1:]) and _is_of_word(part[:1]):
            part = f" {part}"
        text += part
        owners += [number] * len(part)
        is_new_word = token.endswith(_END_OF_WORD)
    return text, owners


def _is_within_word(text: str, place: int) -> bool:
    """Whether the characters before and at this place belong to one word."""
    return _is_of_word(text[max(0, place - 1) : place]) and _is_of_word(text[place : place + 1])


def _is_of_word(character: str) -> bool:
    """Letters and digits; all others than ASCII are bytes of some letter here."""
    return character.isalnum() or character > "\x7f"


def _token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    texts: list[str] = tokenizer.convert_ids_to_tokens(list(ids))
    return texts


def find_prompt_tokens(model: DiffusionModel, prompt: str, *, chunks: int, weighted: bool) -> PromptTokens:
    """The tokens of a prompt that is encoded in at most this many chunks (`text_encoding`)."""
    tokenizer = model.tokenizers[0]
    (comma,) = compat.token_ids_without_ends(tokenizer, [","])[0]
    with without_word(model):  # that of a run in progress
        (sections,) = tokenize_sections(model, [prompt], weighted=weighted)
    places = [
        number * (CHUNK_TOKENS + 2) + 1 + index
        for number, chunk in enumerate(split_sections(sections, chunks, comma))
        for index in range(len(chunk))
    ]
    return PromptTokens(
        words=split_words(prompt, weighted=weighted),
        sections=tuple(tuple(_token_texts(tokenizer, [token for token, _ in section])) for section in sections),
        places=tuple(places),
        tokenizer=tokenizer,
    )
