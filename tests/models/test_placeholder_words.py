"""A trained word is read as webuis read an embedding, and as a text encoder with more rows would."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from lib_lora_train.core.errors import DataError
from lib_lora_train.models import library_compat as compat
from lib_lora_train.models.architecture import Architecture
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.placeholder_words import (
    PlaceholderWord,
    initial_vectors,
    placeholder_word,
    put_word,
    remove_word,
    spell,
    without_word,
    word_in_place,
)
from lib_lora_train.models.text_encoding import encode_text, split_chunks, tokenize, tokenize_weighted
from tests.stand_ins.training_parts import shared_model

_COMMA = 5


@pytest.fixture
def model(request: pytest.FixtureRequest) -> Iterator[DiffusionModel]:
    found = shared_model(getattr(request, "param", "sd1"))
    yield found
    remove_word(found)


def vectors_for(model: DiffusionModel, count: int, *, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    widths = [encoder.config["hidden_size"] for encoder in model.spec.text_encoders]
    return [torch.randn(count, width, generator=generator) for width in widths]


# --- tokens ---------------------------------------------------------------------------------------


def test_word_is_found_by_its_tokens_wherever_it_stands() -> None:
    word = PlaceholderWord([7, 8], first=100, count=3)
    assert word.replace([7, 8, 1, 7, 2, 7, 8]) == [100, 101, 102, 1, 7, 2, 100, 101, 102]
    word.is_on = False
    assert word.replace([7, 8]) == [7, 8]


def test_vectors_of_a_word_begin_the_next_chunk_if_they_do_not_fit() -> None:
    """As in the webuis; a comma before them does not matter then."""
    word = PlaceholderWord([7], first=100, count=4)
    ids = [1] * 60 + [_COMMA] + [1] * 12 + [100, 101, 102, 103] + [2] * 3
    first, second = split_chunks(ids, 3, _COMMA, word)
    assert first == [1] * 60 + [_COMMA] + [1] * 12 and second == [100, 101, 102, 103, 2, 2, 2]
    fits = [1] * 71 + [100, 101, 102, 103, 2]
    assert split_chunks(fits, 3, _COMMA, word) == [fits[:75], [2]]
    assert split_chunks([1] * 73 + [100, 101, 102, 103], 1, _COMMA, word) == [[1] * 73]


def test_word_right_behind_a_full_chunk_leaves_it_at_the_comma_as_any_tag_does() -> None:
    """It begins the next chunk anyway: only a word that would be torn apart takes precedence over the comma."""
    word = PlaceholderWord([7], first=100, count=4)
    ids = [1] * 60 + [_COMMA] + [1] * 14 + [100, 101, 102, 103]
    assert split_chunks(ids, 3, _COMMA, word) == [ids[:61], ids[61:]]
    assert split_chunks(ids, 3, _COMMA, word) == split_chunks(ids, 3, _COMMA)


def test_weights_in_brackets_are_those_of_every_vector(model: DiffusionModel) -> None:
    put_word(model, "zorp", vectors_for(model, 3))
    ids, weights = tokenize_weighted(model, ["a (zorp:1.3) on grass"])
    is_own = ids[0][0] >= model.spec.text_encoders[0].config["vocab_size"]
    assert is_own.sum() == 3 and weights[0][is_own].tolist() == pytest.approx([1.3] * 3)
    assert set(weights[0][~is_own].tolist()) == {1.0}


def test_word_without_letters_is_refused(model: DiffusionModel) -> None:
    with pytest.raises(DataError, match="no letters"):
        spell(model, "  ")


# --- vectors --------------------------------------------------------------------------------------


def test_init_text_is_spread_over_the_vectors(model: DiffusionModel) -> None:
    """⌊i·m/n⌋: 5 vectors of 2 tokens are the first one three times, as in A1111."""
    table = compat.text_transformer(model.text_encoders[0]).embeddings.token_embedding.weight
    one, two = spell(model, "cat dog")
    (found,) = initial_vectors(model, "cat dog", 5)
    assert torch.equal(found, table[[one, one, one, two, two]].float())
    assert torch.equal(initial_vectors(model, "cat dog", 1)[0], table[[one]].float())


@pytest.mark.parametrize("model", ["sd1", "sd2", "sdxl"], indirect=True)
def test_encoding_and_gradient_equal_those_of_a_longer_embedding_table(model: DiffusionModel) -> None:
    """Against transformers with real rows in `nn.Embedding`, both in float64: only the last digits may differ."""
    double = in_float64(model)
    vectors = [one.double().requires_grad_() for one in vectors_for(model, 3)]
    put_word(double, "zorp", vectors)
    captions = ["a zorp on grass", "zorp, zorp", "a cat"]
    ids = tokenize(double, captions)
    ours = encode_text(double, ids, 1)
    remove_word(double)

    reference = in_float64(model)
    tables = [lengthened(encoder, own) for encoder, own in zip(reference.text_encoders, vectors, strict=True)]
    theirs = encode_text(reference, ids, 1)
    assert torch.allclose(ours.hidden, theirs.hidden, rtol=0, atol=1e-12)
    direction = torch.randn(ours.hidden.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (ours.hidden * direction).sum().backward()  # type: ignore[no-untyped-call]
    (theirs.hidden * direction).sum().backward()  # type: ignore[no-untyped-call]
    for own, table in zip(vectors, tables, strict=True):
        assert table.weight.grad is not None and own.grad is not None
        expected = table.weight.grad[-3:]
        assert torch.allclose(own.grad, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
        assert expected.abs().max() > 0


def test_captions_without_the_word_give_it_no_gradient(model: DiffusionModel) -> None:
    """A whole batch may consist of such captions, and is trained on all the same."""
    (vectors,) = (one.requires_grad_() for one in vectors_for(model, 2))
    put_word(model, "zorp", [vectors])
    encode_text(model, tokenize(model, ["a cat", ""]), 1).hidden.sum().backward()  # type: ignore[no-untyped-call]
    assert vectors.grad is not None and not vectors.grad.any()


def in_float64(model: DiffusionModel) -> DiffusionModel:
    """The model with copies of its text encoders in float64."""
    return dataclasses.replace(model, text_encoders=tuple(copy.deepcopy(one).double() for one in model.text_encoders))


def lengthened(encoder: nn.Module, vectors: Tensor) -> nn.Embedding:
    """The encoder's token embedding, replaced by one that has the vectors as its last rows."""
    embeddings = compat.text_transformer(encoder).embeddings
    weight = torch.cat([embeddings.token_embedding.weight.detach(), vectors.detach()])
    embeddings.token_embedding = nn.Embedding(weight.shape[0], weight.shape[1], _weight=weight)
    table: nn.Embedding = embeddings.token_embedding
    return table


# --- the model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["sd1", "sdxl"])
def test_text_encoders_are_as_before_once_the_word_is_removed(architecture: Architecture) -> None:
    model = shared_model(architecture)
    before = [[(name, p.data_ptr()) for name, p in encoder.named_parameters()] for encoder in model.text_encoders]
    values = [[p.clone() for p in encoder.parameters()] for encoder in model.text_encoders]
    put_word(model, "zorp", vectors_for(model, 2))
    remove_word(model)
    assert placeholder_word(model) is None
    assert before == [[(n, p.data_ptr()) for n, p in encoder.named_parameters()] for encoder in model.text_encoders]
    for encoder, known in zip(model.text_encoders, values, strict=True):
        assert all(map(torch.equal, encoder.parameters(), known))


def test_another_word_takes_the_place_of_the_first_for_a_while(model: DiffusionModel) -> None:
    put_word(model, "zorp", vectors_for(model, 2))
    with word_in_place(model, "blib", vectors_for(model, 5)):
        found = placeholder_word(model)
        assert found and (found.spelling, found.count) == (spell(model, "blib"), 5)
    found = placeholder_word(model)
    assert found and found.spelling == spell(model, "zorp")


def test_prompts_are_read_as_usual_without_the_word(model: DiffusionModel) -> None:
    plain = tokenize(model, ["a zorp"])[0]
    word = put_word(model, "zorp", vectors_for(model, 2))
    with without_word(model):
        assert torch.equal(tokenize(model, ["a zorp"])[0], plain)
    assert word.is_on and not torch.equal(tokenize(model, ["a zorp"])[0], plain)
