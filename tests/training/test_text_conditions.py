"""Captions are cached only where that is exact: bit-equal to encoding each one by itself."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.events import Progress
from lib_lora_train.dataset.plan import epoch_steps
from lib_lora_train.dataset.sample_captions import caption_for_draw, captions_to_cache
from lib_lora_train.models import tensor_cache as cache_file
from lib_lora_train.models import text_cache as text_store
from lib_lora_train.models.architecture import Architecture
from lib_lora_train.models.text_cache import TextCache, load_condition
from lib_lora_train.models.text_encoding import TextCondition, encode_text, tokenize, tokenize_weighted
from lib_lora_train.training import text_conditions as conditions_module
from lib_lora_train.training.text_conditions import LruCache, text_conditions
from lib_lora_train.training.training_run import start_training
from tests.stand_ins.tiny_models import tiny_model
from tests.stand_ins.training_parts import adapted, random_latents, small_config, small_plan
from tests.stand_ins.training_parts import shared_model as model

LONG = ", ".join(f"word {n}" for n in range(40))
CAPTIONS = ["a (cat:1.3)", "", "a [dog] BREAK at night", LONG]


def encode_afresh(caption: str, config: TrainConfig, architecture: Architecture = "sd1") -> TextCondition:
    """One caption, chunk by chunk, without a cache."""
    weighted = config.weighted_captions
    ids = tokenize(model(architecture), [caption], 2, weighted=weighted)
    _, weights = tokenize_weighted(model(architecture), [caption], 2)
    found = []
    with torch.no_grad():
        for start in (0, 77):
            part = [one[:, start : start + 77] for one in ids]
            own = weights[:, start : start + 77] if weighted else None
            found.append(encode_text(model(architecture), part, config.clip_skip, own))
    return TextCondition(torch.cat([one.hidden for one in found], dim=1), found[0].pooled)


def equal(one: TextCondition, other: TextCondition) -> bool:
    same_pooled = (one.pooled is None) == (other.pooled is None)
    if one.pooled is not None and other.pooled is not None:
        same_pooled = torch.equal(one.pooled, other.pooled)
    return torch.equal(one.hidden, other.hidden) and same_pooled


@pytest.mark.parametrize("architecture", ["sd1", "sdxl"])
@pytest.mark.parametrize("weighted", [False, True])
def test_cached_conditions_are_bit_equal_to_fresh_ones(
    architecture: Architecture, weighted: bool, tmp_path: Path
) -> None:
    config = small_config(weighted_captions=weighted, clip_skip=2)
    expected = [encode_afresh(caption, config, architecture) for caption in CAPTIONS]
    together = TextCondition(
        torch.cat([one.hidden for one in expected]),
        None if expected[0].pooled is None else torch.cat([one.pooled for one in expected if one.pooled is not None]),
    )
    first = text_conditions(config, trained=False, folder=tmp_path)
    list(first.encode_captions(model(architecture), CAPTIONS))
    for conditions in (
        text_conditions(config, trained=False),  # encoded when asked for
        first,  # in memory
        text_conditions(config, trained=False, folder=tmp_path),  # from disk
    ):
        assert equal(conditions.encode(model(architecture), CAPTIONS), together)


def test_from_disk_nothing_is_encoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    list(text_conditions(small_config(), trained=False, folder=tmp_path).encode_captions(model(), CAPTIONS))
    monkeypatch.setattr(conditions_module, "encode_text", None)
    text_conditions(small_config(), trained=False, folder=tmp_path).encode(model(), CAPTIONS)


@pytest.mark.parametrize("change", ["clip skip", "encoders", "dtype", "tokens", "weights"])
def test_any_other_input_is_encoded_again(change: str, tmp_path: Path) -> None:
    captions, config, leased = ["a (cat:1.3)"], small_config(weighted_captions=True), model()
    list(text_conditions(config, trained=False, folder=tmp_path).encode_captions(leased, captions))
    before = set(tmp_path.rglob("*.safetensors"))
    if change == "clip skip":
        config = config.replace(clip_skip=2)
    elif change == "encoders":
        leased = tiny_model("sd1", seed=1)
    elif change == "dtype":
        leased = dataclasses.replace(leased, unet=tiny_model("sd1").unet.to(torch.bfloat16))
    else:
        captions = ["a (dog:1.3)"] if change == "tokens" else ["a (cat:1.4)"]
    list(text_conditions(config, trained=False, folder=tmp_path).encode_captions(leased, captions))
    assert len(set(tmp_path.rglob("*.safetensors")) - before) == 1


def test_the_least_recently_used_values_are_dropped_beyond_the_cost() -> None:
    cache: LruCache[str] = LruCache(10)
    for key, cost in (("a", 4), ("b", 3), ("c", 3)):
        assert cache.put(key, key.upper(), cost) == key.upper()
    assert [cache.get(key) for key in "abc"] == ["A", "B", "C"], "10 of 10 fit"
    cache.get("a")
    cache.put("d", "D")
    assert [cache.get(key) for key in "abcd"] == ["A", None, "C", "D"], "b was used longest ago; d costs 1"
    cache.put("large", "L", 99)
    assert [cache.get(key) for key in ("a", "c", "d", "large")] == [None, None, None, "L"], "the newest always stays"
    cache.put("e", "E", 10)
    assert (cache.get("large"), cache.get("e")) == (None, "E"), "dropped values cost nothing any more"
    pair: LruCache[int] = LruCache(2)
    assert [pair.put(key, key) for key in (1, 2)] == [pair.get(key) for key in (1, 2)], "without a cost, 1 each"


@pytest.mark.parametrize("architecture", ["sd1", "sdxl"])
def test_conditions_stay_in_memory_up_to_their_bytes(
    architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the hidden states and SDXL's pooled ones; at the limit both captions stay, and a byte below only one."""
    sizes = [encode_afresh(caption, small_config(), architecture) for caption in ("a", "b")]
    total = sum(one.hidden.nbytes // 2 + (0 if one.pooled is None else one.pooled.nbytes) for one in sizes)
    encoded: list[int] = []

    def counting(*arguments: Any) -> TextCondition:
        encoded.append(1)
        return encode_text(*arguments)

    monkeypatch.setattr(conditions_module, "encode_text", counting)
    monkeypatch.setattr(text_store, "_MEMORY_LIMIT", 0)  # the store behind it keeps some too
    for limit, calls in ((total, 2), (total - 1, 4)):
        monkeypatch.setattr(conditions_module, "_CACHE_BYTES", limit)
        conditions, encoded[:] = text_conditions(small_config(), trained=False), []
        for caption in ("a", "b", "a", "b"):
            conditions.encode(model(architecture), [caption])
        assert len(encoded) == calls


@pytest.mark.parametrize("trained", [False, True])
def test_a_caption_that_a_batch_has_twice_is_encoded_once_and_stands_in_both_rows(
    trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {caption: encode_afresh(caption, small_config()).hidden[:, :77] for caption in ("a", "b")}
    rows: list[int] = []

    def counting(leased: Any, ids: Any, *arguments: Any) -> TextCondition:
        rows.append(len(ids[0]))
        return encode_text(leased, ids, *arguments)

    monkeypatch.setattr(conditions_module, "encode_text", counting)
    found = text_conditions(small_config(), trained=trained).encode(model(), ["b", "a", "b"])
    assert torch.allclose(found.hidden, torch.cat([expected[c] for c in "bab"]), atol=1e-6)  # in a batch: fp32 rounding
    assert sum(rows) == 2


@pytest.mark.parametrize(("length", "tokens"), [(75, 77), (150, 154), (225, 231)])
def test_a_long_caption_has_as_many_chunks_as_are_set(length: int, tokens: int) -> None:
    endless = ", ".join(f"word {n}" for n in range(200))
    conditions = text_conditions(small_config(max_token_length=length), trained=False)
    assert conditions.encode(model(), [endless, "a"]).hidden.shape[:2] == (2, tokens)
    assert conditions.encode(model(), ["a"]).hidden.shape[:2] == (1, 77), "padded only to the longest of the batch"


def test_a_damaged_cache_file_is_replaced(tmp_path: Path) -> None:
    list(text_conditions(small_config(), trained=False, folder=tmp_path).encode_captions(model(), ["a"]))
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    assert equal(
        text_conditions(small_config(), trained=False, folder=tmp_path).encode(model(), ["a"]),
        text_conditions(small_config(), trained=False).encode(model(), ["a"]),
    )
    assert load_condition(path) is not None


def test_beyond_the_memory_limit_conditions_come_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_store, "_MEMORY_LIMIT", 0)
    store, condition = TextCache(tmp_path), TextCondition(torch.rand(1, 77, 4), None)
    store.put("abc", condition)
    found = store.get("abc")
    assert found is not None and equal(found, condition)
    assert TextCache().get("abc") is None


def test_a_full_disk_keeps_conditions_in_memory_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_file, "save_file", full)
    store, condition = TextCache(tmp_path), TextCondition(torch.rand(1, 77, 4), None)
    store.put("abc", condition)
    found = store.get("abc")
    assert found is not None and equal(found, condition)
    assert "No space left" in store.files.problem and "cache_to_disk" in store.files.problem


# --- which captions -----------------------------------------------------------------------------


def all_drawn(config: TrainConfig, **plan: Any) -> Counter[str]:
    made = small_plan(config, **plan)
    return Counter(
        caption_for_draw(made, item, draw, config)
        for epoch in range(1, made.epochs + 1)
        for step in epoch_steps(made, config.seed, epoch)
        for batch in step
        for item, draw in zip(batch.items, batch.draws, strict=True)
    )


VARIED: list[dict[str, Any]] = [
    {},
    {"caption_prefix": "a,", "caption_lines": "first"},
    {"caption_dropout": 0.3, "epochs": 20},
    {"caption_dropout": 1.0},
    {"caption_dropout_every_n_epochs": 2, "drop_trigger": True},
    {"shuffle_captions": True, "epochs": 40},
    {"shuffle_captions": True, "caption_variants": 2, "epochs": 20, "tag_dropout": 0.2},
    {"caption_variants": 3, "caption_dropout": 0.1, "caption_wildcards": True, "epochs": 20},
]


@pytest.mark.parametrize("values", VARIED)
def test_all_captions_of_a_run_are_encoded_ahead(values: dict[str, Any]) -> None:
    config = small_config(**values)
    ahead = captions_to_cache(small_plan(config), config)
    assert set(all_drawn(config)) <= set(ahead)
    assert len(set(ahead)) == len(ahead)


def test_captions_that_rarely_repeat_are_not_encoded_ahead() -> None:
    many = ", ".join(f"tag {n}" for n in range(12))
    config = small_config(shuffle_captions=True, epochs=10)
    assert captions_to_cache(small_plan(config, captions=[many]), config) == []
    endless = config.replace(epochs=10_000)
    assert captions_to_cache(small_plan(endless, captions=[many]), endless) == []  # and that is known without drawing


def test_caption_variants_have_the_set_number_and_equal_frequency() -> None:
    many = ", ".join(f"tag {n}" for n in range(12))
    config = small_config(shuffle_captions=True, caption_variants=4, epochs=1000)
    counts = all_drawn(config, sizes=[(64, 64)], captions=[many])
    assert len(counts) == 4
    assert all(abs(count - 500) < 97 for count in counts.values())  # 5 standard deviations of 2,000 fair draws
    assert len(captions_to_cache(small_plan(config, sizes=[(64, 64)], captions=[many]), config)) == 4


def captions_of_a_run(**values: Any) -> list[str]:
    config = small_config(**values)
    plan = small_plan(config)
    adapter = adapted(model(), config)
    try:
        training = start_training(model(), adapter, plan=plan, latents=random_latents(plan), config=config)
        return training.captions_to_cache()
    finally:
        adapter.remove()


def test_a_run_encodes_ahead_unless_it_trains_the_text_encoder() -> None:
    assert len(captions_of_a_run(train_text_encoder=False)) == 4
    assert captions_of_a_run(train_text_encoder=True) == []


def test_encoding_ahead_reports_progress() -> None:
    events = list(text_conditions(small_config(), trained=False).encode_captions(model(), ["a", "b", "c"]))
    assert events == [Progress("text", 0, 3), Progress("text", 3, 3)]


def test_encoding_ahead_reports_in_between_that_others_may_use_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions_module, "_CAPTIONS_PER_EVENT", 2)
    conditions = text_conditions(small_config(), trained=False)
    events = list(conditions.encode_captions(model(), ["a", "b", "c", "d", "e"]))
    assert events == [Progress("text", done, 5) for done in (0, 2, 4, 5)]
    monkeypatch.setattr(conditions_module, "encode_text", None)
    conditions.encode(model(), ["a", "b", "c", "d", "e"])  # all of them are cached
