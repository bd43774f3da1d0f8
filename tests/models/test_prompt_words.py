"""Words of a prompt: found at the tokens that the UNet sees, whatever the prompt does with them."""

from __future__ import annotations

import pytest

from lib_lora_train.core.errors import DataError
from lib_lora_train.models.prompt_weights import split_words
from lib_lora_train.models.prompt_words import find_prompt_tokens
from lib_lora_train.models.text_encoding import tokenize, tokenize_weighted
from tests.stand_ins.training_parts import shared_model


def _found(prompt: str, word: str, *, weighted: bool = True, chunks: int = 3) -> list[str]:
    """The tokens of the encoded prompt at the word's positions, as text."""
    model = shared_model("sd1")
    positions = find_prompt_tokens(model, prompt, chunks=chunks, weighted=weighted).positions(word)
    ids = tokenize_weighted(model, [prompt], chunks)[0] if weighted else tokenize(model, [prompt], chunks)
    names = model.tokenizers[0].convert_ids_to_tokens(ids[0][0].tolist())
    return [names[position].replace("</w>", "") for position in positions]


@pytest.mark.parametrize(
    ("prompt", "word", "expected"),
    [
        ("a red ball", "red", ["red"]),
        ("a red ball", "Red Ball", ["red", "ball"]),
        ("a zorp on grass", "zorp", ["zor", "p"]),
        ("a fox and a fox", "fox", ["fox", "fox"]),
        ("a (red:1.3) ball", "red ball", ["red", "ball"]),
        ("a [[red]] ball", "red", ["red"]),
        (r"miku \(vocaloid\)", "miku (vocaloid)", ["miku", "(", "vocal", "oid", ")"]),
        (r"miku \(vocaloid\)", r"miku \(vocaloid\)", ["miku", "(", "vocal", "oid", ")"]),
        ("grass BREAK a fox", "fox", ["fox"]),
        ("BREAK BREAK a fox", "fox", ["fox"]),
        ("red, " * 40 + "blue hat", "blue hat", ["blue", "hat"]),
        ("red " * 74 + "blue hat", "blue hat", ["blue", "hat"]),  # the chunk ends between them
        ("1girl, solo", "1girl", ["1", "girl"]),
        (r"miku \(vocaloid\), solo", "miku (vocaloid)", ["miku", "(", "vocal", "oid", "),"]),  # a token of both
        ("C++, c", "C++", ["c", "+", "+,"]),
        ("C++, c", "c", ["c", "c"]),
        ("a red ball.", "ball", ["ball"]),
        ("it's a fox's den", "fox", ["fox"]),
        ("naïve fox", "fox", ["fox"]),
    ],
)
def test_a_word_is_found_at_its_own_tokens(prompt: str, word: str, expected: list[str]) -> None:
    assert _found(prompt, word) == expected


def test_brackets_of_captions_are_characters() -> None:
    assert _found("a (red) ball", "(red)", weighted=False) == ["(", "red", ")"]


@pytest.mark.parametrize(
    ("prompt", "word"),
    [
        ("a red ball", "dog"),
        ("a red ball", "balls"),
        ("cats", "cat"),
        ("zorp", "p"),
        ("red BREAK ball", "red ball"),
        ("long, hair", "long hair"),
        ("longhair", "long hair"),
        ("long hair", "longhair"),
        ("白い犬", "い犬"),
        ("", "fox"),
    ],
)
def test_what_is_not_in_the_prompt_is_an_error(prompt: str, word: str) -> None:
    with pytest.raises(DataError, match=f"“{word}” is not in the prompt"):
        _found(prompt, word)


def test_a_word_beyond_what_the_model_reads_is_an_error_that_says_so() -> None:
    with pytest.raises(DataError, match="“fox” is beyond the first 75 tokens"):
        _found("red " * 80 + "fox", "fox", chunks=1)
    assert _found("red " * 70 + "fox " + "red " * 20 + "fox", "fox", chunks=1) == ["fox"]


def test_no_word_is_an_error() -> None:
    with pytest.raises(DataError, match="Enter a word"):
        _found("a fox", " ")


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("zorp, long hair, red eyes", ("zorp", "long hair", "red eyes")),
        ("a photo of a red fox, green background", ("a", "photo", "of", "red", "fox", "green background")),
        ("(best quality:1.2), [hat] BREAK fox", ("best quality", "hat", "fox")),
        (r"miku \(vocaloid\), Miku \(vocaloid\)", ("miku (vocaloid)",)),
        (" , ,, --- ", ()),
        ("", ()),
    ],
)
def test_the_words_to_choose_from_are_tags_and_the_words_of_sentences(prompt: str, words: tuple[str, ...]) -> None:
    assert split_words(prompt, weighted=True) == words


def test_every_word_to_choose_from_is_found() -> None:
    prompt = r"(zorp:1.2), it's a well-known red fox at 50% BREAK 1girl, miku \(vocaloid\), C++, long_hair, :d, naïve"
    for word in split_words(prompt, weighted=True):
        assert _found(prompt, word), word
