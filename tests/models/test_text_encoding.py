"""Captions to tokens to text conditions, as in the webuis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lib_lora_train.core.errors import ModelError
from lib_lora_train.models import library_compat as compat
from lib_lora_train.models.architecture import Architecture
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.text_encoding import (
    count_chunks,
    encode_text,
    load_tokenizer,
    size_condition,
    split_chunks,
    tokenize,
    tokenize_weighted,
)
from tests.paths import ROOT
from tests.stand_ins import ldm_reference
from tests.stand_ins.tiny_models import HEADS, STABLE_DIFFUSION, tiny_model, tiny_tensors

BEGIN, END, COMMA = 49406, 49407, 267
CAPTION = "a red cat, sitting on a mat"


@pytest.fixture(scope="module")
def models() -> dict[Architecture, DiffusionModel]:
    return {architecture: tiny_model(architecture, shallow=False) for architecture in STABLE_DIFFUSION}


def test_tokenizer_matches_clip() -> None:
    """Ids of OpenAI's own tokenizer."""
    ids = load_tokenizer(ROOT / "assets" / "tiny-sd" / "tokenizer")
    assert ids("a photo of a cat")["input_ids"] == [BEGIN, 320, 1125, 539, 320, 2368, END]


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"missing tokenizer files: vocab\.json, merges\.txt"):
        load_tokenizer(tmp_path)


def test_one_chunk_is_begin_words_end_padding(models: dict[Architecture, DiffusionModel]) -> None:
    words = models["sd1"].tokenizers[0](CAPTION, add_special_tokens=False)["input_ids"]
    rest = 75 - len(words)
    (sd1,) = tokenize(models["sd1"], [CAPTION])
    (sd2,) = tokenize(models["sd2"], [CAPTION])
    assert sd1.tolist() == [[BEGIN, *words, END, *[END] * rest]]
    assert sd2.tolist() == [[BEGIN, *words, END, *[0] * rest]]
    first, second = tokenize(models["sdxl"], [CAPTION])
    assert torch.equal(first, sd1) and torch.equal(second, sd2)


def test_each_chunk_has_its_own_begin_and_end(models: dict[Architecture, DiffusionModel]) -> None:
    (ids,) = tokenize(models["sd1"], ["cat " * 80, "dog"], 2)
    assert ids.shape == (2, 154)
    assert torch.all(ids[:, [0, 77]] == BEGIN) and torch.all(ids[:, [76, 153]] == END)
    cat = 2368
    assert torch.all(ids[0, 1:76] == cat) and torch.all(ids[0, 78:83] == cat) and ids[0, 83] == END
    assert ids[1, 77:].tolist() == [BEGIN, *[END] * 76]


def test_a_caption_that_is_too_long_is_truncated(models: dict[Architecture, DiffusionModel]) -> None:
    (ids,) = tokenize(models["sd1"], ["cat " * 200], 1)
    assert ids.shape == (1, 77) and ids[0, -1] == END


def test_chunk_count_is_that_of_the_longest_caption(models: dict[Architecture, DiffusionModel]) -> None:
    model = models["sd1"]
    assert count_chunks(model, []) == 1
    assert count_chunks(model, ["", CAPTION]) == 1
    assert count_chunks(model, [CAPTION, "cat " * 76]) == 2
    assert count_chunks(model, ["cat " * 500]) == 3


def test_a_chunk_ends_at_a_comma_rather_than_within_a_tag() -> None:
    ids = [1] * 70 + [COMMA] + [2] * 20
    assert [len(chunk) for chunk in split_chunks(ids, 2, COMMA)] == [71, 20]
    assert [len(chunk) for chunk in split_chunks(ids, 1, COMMA)] == [75]  # nothing more is lost than must be
    far = [1] * 40 + [COMMA] + [2] * 50
    assert [len(chunk) for chunk in split_chunks(far, 2, COMMA)] == [75, 16]


def test_break_begins_a_new_chunk(models: dict[Architecture, DiffusionModel]) -> None:
    model = models["sd1"]
    assert count_chunks(model, ["a BREAK cat"]) == 2
    (whole,) = tokenize(model, ["a BREAK cat"], 2)
    (alone,) = tokenize(model, ["a", "cat"])
    assert torch.equal(whole.view(2, 77), alone)
    assert count_chunks(model, ["BREAK cat"]) == 2  # an empty chunk, as in the webuis
    assert count_chunks(model, ["cat BREAK "]) == 1
    assert count_chunks(model, ["a BREAK b BREAK c BREAK d"]) == 3
    assert tokenize(model, ["a BREAK b"], 1)[0].shape == (1, 77)


@pytest.mark.parametrize("weighted", [False, True])
def test_brackets_are_parsed_only_if_weighted(models: dict[Architecture, DiffusionModel], weighted: bool) -> None:
    model = models["sd1"]
    caption = r"(cat:1.5), saber \(fate\)"
    read = "cat, saber (fate)" if weighted else "(cat:1.5), saber (fate)"
    words = [token for word in (["cat", ", saber (fate)"] if weighted else [read]) for token in _ids_of(model, word)]
    (ids,) = tokenize(model, [caption], weighted=weighted)
    assert ids[0, 1 : 1 + len(words)].tolist() == words
    assert ids[0, 1 + len(words)] == END


def _ids_of(model: DiffusionModel, text: str) -> list[int]:
    ids: list[int] = model.tokenizers[0](text, add_special_tokens=False)["input_ids"]
    return ids


def test_weights_are_aligned_with_tokens_in_every_chunk(models: dict[Architecture, DiffusionModel]) -> None:
    model = models["sd1"]
    caption = "a (cat:1.5) BREAK [dog]"
    (ids,), weights = tokenize_weighted(model, [caption, ""], 2)
    assert weights.shape == ids.shape
    expected = torch.ones(2, 154)
    expected[0, 2], expected[0, 78] = 1.5, 1 / 1.1
    torch.testing.assert_close(weights, expected)


@pytest.mark.parametrize("prompts", [["a (cat:1.5)"], ["cat " * 80, ""], ["a BREAK b", "dog, " * 200], [""]])
def test_prompts_are_tokenized_once_for_chunks_ids_and_weights(
    models: dict[Architecture, DiffusionModel], prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same ids as when the chunks are counted first, with one tokenizer call per prompt."""
    model = models["sdxl"]
    chunks = count_chunks(model, prompts, weighted=True)
    expected = tokenize(model, prompts, chunks, weighted=True)
    asked: list[str] = []
    read = compat.token_ids_without_ends

    def counted(tokenizer: Any, texts: list[str]) -> Any:
        asked.extend(text for text in texts if text != ",")
        return read(tokenizer, texts)

    monkeypatch.setattr("lib_lora_train.models.library_compat.token_ids_without_ends", counted)
    ids, weights = tokenize_weighted(model, prompts)
    assert all(torch.equal(one, other) for one, other in zip(ids, expected, strict=True))
    assert weights.shape == ids[0].shape == (len(prompts), 77 * chunks)
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize("architecture", STABLE_DIFFUSION)
def test_token_weights_preserve_the_mean(
    models: dict[Architecture, DiffusionModel], architecture: Architecture
) -> None:
    """Chunk by chunk and encoder by encoder, in float64: z·w, then times mean(z) / mean(z·w)."""
    model, caption = models[architecture], "a (red cat:1.4), [sitting] BREAK (((night)))"
    ids, weights = tokenize_weighted(model, [caption], 2)
    with torch.no_grad():
        plain = encode_text(model, ids, 1)
        ours = encode_text(model, ids, 1, weights)
    widths = [encoder.config["hidden_size"] for encoder in model.spec.text_encoders]
    parts = []
    for states in torch.split(plain.hidden.double(), widths, dim=-1):
        chunks = []
        for number in range(2):
            z = states[0, 77 * number : 77 * (number + 1)]
            weighted = torch.stack([row * w for row, w in zip(z, weights[0, 77 * number :].double(), strict=False)])
            chunks.append(weighted * (z.sum() / weighted.sum()))
        parts.append(torch.cat(chunks))
    expected = torch.cat(parts, dim=-1)
    # float32 means over a chunk whose values nearly cancel
    torch.testing.assert_close(ours.hidden[0].double(), expected, rtol=1e-3, atol=1e-4)
    if ours.pooled is not None:
        assert plain.pooled is not None and torch.equal(ours.pooled, plain.pooled)


def test_weights_of_one_are_bit_identical(models: dict[Architecture, DiffusionModel]) -> None:
    model = models["sd1"]
    ids = tokenize(model, [CAPTION, "a cat"])
    with torch.no_grad():
        plain = encode_text(model, ids, 2)
        ours = encode_text(model, ids, 2, torch.ones(2, 77))
    assert torch.equal(ours.hidden, plain.hidden)


@pytest.mark.parametrize("clip_skip", [1, 2])
@pytest.mark.parametrize("architecture", ["sd1", "sd2"])
def test_clip_skip_counts_layers_from_the_end(
    models: dict[Architecture, DiffusionModel], architecture: Architecture, clip_skip: int
) -> None:
    """SD2 never runs its last layer, so counting starts one layer earlier, as in the webuis."""
    tensors = tiny_tensors(architecture)
    (ids,) = tokenize(models[architecture], [CAPTION, ""])
    with torch.no_grad():
        ours = encode_text(models[architecture], [ids], clip_skip)
    if architecture == "sd1":
        prefix = "cond_stage_model.transformer.text_model."
        states = ldm_reference.clip_states(tensors, prefix, ids, HEADS[architecture][0])
        norm = ldm_reference.Weights(tensors, f"{prefix}final_layer_norm.")
    else:
        states = ldm_reference.open_clip_states(tensors, "cond_stage_model.model.", ids, HEADS[architecture][0])[:-1]
        norm = ldm_reference.Weights(tensors, "cond_stage_model.model.ln_final.")
    assert ours.pooled is None
    # float32 through up to 23 layers in another order of sums
    torch.testing.assert_close(ours.hidden, norm.layer_norm(states[-clip_skip]), rtol=1e-4, atol=2e-5)


def test_sdxl_joins_two_encoders_and_pools_the_first_chunk(models: dict[Architecture, DiffusionModel]) -> None:
    model, tensors = models["sdxl"], tiny_tensors("sdxl")
    ids = tokenize(model, [CAPTION, "dog " * 90], 2)
    with torch.no_grad():
        ours = encode_text(model, ids, 1)
        assert torch.equal(ours.hidden, encode_text(model, ids, 7).hidden)  # clip skip is not for SDXL
    assert ours.hidden.shape == (2, 154, 96) and ours.pooled is not None
    first, second = (part.view(4, 77) for part in ids)
    small = ldm_reference.clip_states(tensors, "conditioner.embedders.0.transformer.text_model.", first, 4)
    big = ldm_reference.open_clip_states(tensors, "conditioner.embedders.1.model.", second, 4)
    expected = torch.cat([small[-2], big[-2]], dim=-1).reshape(2, 154, 96)
    # float32 through 31 layers without a norm at the end
    torch.testing.assert_close(ours.hidden, expected, rtol=1e-4, atol=1e-4)
    weights = ldm_reference.Weights(tensors, "conditioner.embedders.1.model.")
    normed = (weights / "ln_final").layer_norm(big[-1])
    ends = second.argmax(dim=-1)  # open_clip: the end token has the highest number
    pooled = normed[torch.arange(4), ends] @ weights["text_projection"]
    torch.testing.assert_close(ours.pooled, pooled[::2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", STABLE_DIFFUSION)
def test_gradients_reach_adapters_on_the_text_encoders(
    models: dict[Architecture, DiffusionModel], architecture: Architecture
) -> None:
    model = models[architecture]
    nudges = [torch.zeros((), requires_grad=True) for _ in model.text_encoders]
    hooks = []
    for encoder, nudge in zip(model.text_encoders, nudges, strict=True):
        layer = next(module for name, module in encoder.named_modules() if name.endswith("layers.0.mlp.fc1"))
        hooks.append(layer.register_forward_hook(lambda _m, _i, output, nudge=nudge: output + nudge))
    condition = encode_text(model, tokenize(model, [CAPTION]), 2)
    torch.autograd.backward(condition.hidden.square().mean())
    for hook in hooks:
        hook.remove()
    assert all(nudge.grad is not None and nudge.grad != 0 for nudge in nudges)


def test_size_condition_is_height_first() -> None:
    sizes = size_condition([(512, 768), (1, 2)], [(0, 16), (3, 4)], [(512, 512), (5, 6)])
    assert sizes.tolist() == [[512, 768, 0, 16, 512, 512], [1, 2, 3, 4, 5, 6]]
