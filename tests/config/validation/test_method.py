"""What textual inversion needs, and what has no effect with it, is said in one sentence each."""

from __future__ import annotations

from typing import Any

import pytest

from lib_lora_train.config.method_catalog import METHOD_CATALOG, name_in_prompt, named_word, nearest_lora, trains_text
from lib_lora_train.config.parameters import parameters_of
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.config.validation.optimizer import learning_rates, usual_learning_rates
from lib_lora_train.config.validation.validate import validate
from lib_lora_train.core.errors import Problem

ZORP = Concept("a", trigger="zorp", class_word="robot")
GOOD = TrainConfig(concepts=(ZORP,), sample_prompts=("zorp on a hill",), method="textual_inversion", learning_rate=5e-3)


def found(**values: Any) -> set[tuple[str, str]]:
    return {(p.level, p.where) for p in validate(GOOD.replace(**values))}


def test_good_settings_have_no_problems() -> None:
    assert validate(GOOD) == ()
    assert found(optimizer="Prodigy", learning_rate=1.0, optimizer_args="safeguard_warmup=True") == set()


@pytest.mark.parametrize(
    ("values", "finding"),
    [
        ({"concepts": (Concept("a", class_word="robot"),)}, ("error", "concepts[1].trigger")),
        ({"concepts": (ZORP, Concept("b", trigger="blib"))}, ("error", "concepts")),
        ({"concepts": (Concept("a", trigger="zorp, red", class_word="cat"),)}, ("error", "concepts[1].trigger")),
        ({"concepts": (Concept("a", trigger="<zorp>", class_word="cat"),)}, ("error", "concepts[1].trigger")),
        ({"concepts": (Concept("a", trigger="The", class_word="cat"),)}, ("warning", "concepts[1].trigger")),
        ({"concepts": (Concept("a", trigger="zorp"),)}, ("hint", "embedding_init_text")),
        ({"learning_rate": 0.0}, ("error", "learning_rate")),
        ({"learning_rate": 0.0, "text_encoder_lr": 1e-3, "unet_lr": 1e-3}, ("error", "learning_rate")),
        ({"continue_from": "a.safetensors"}, ("error", "continue_from")),
        ({"embedding_vectors": 32}, ("warning", "embedding_vectors")),
        ({"prior_preservation": "empty"}, ("warning", "prior_preservation")),
        ({"learning_rate": 1e-4}, ("warning", "learning_rate")),
        ({"learning_rate": 0.2}, ("warning", "learning_rate")),
        ({"rank": 4}, ("hint", "rank")),
        ({"family": "lokr"}, ("hint", "family")),
        ({"text_encoder_lr": 1e-5}, ("hint", "text_encoder_lr")),
        ({"stop_text_encoder": 0.5}, ("hint", "stop_text_encoder")),
        ({"train_unet": False, "train_text_encoder": False}, ("hint", "train_unet")),
        ({"method": "lora", "learning_rate": 1e-4, "embedding_vectors": 2}, ("hint", "embedding_vectors")),
    ],
)
def test_each_problem_is_found_and_nothing_worse(values: dict[str, Any], finding: tuple[str, str]) -> None:
    problems = found(**values)
    assert finding in problems
    assert {level for level, where in problems if where != finding[1]} <= {"hint"}


def problems_of_word(trigger: str) -> list[Problem]:
    concepts = (Concept("a", trigger=trigger, class_word="robot"),)
    return [problem for problem in validate(GOOD.replace(concepts=concepts)) if problem.where == "concepts[1].trigger"]


@pytest.mark.parametrize(
    "trigger", ["<zorp>", "zorp*", "zorp!", "c++", "zorp🦊", "(zorp:1.2)", "<zorp", "zo(rp", "zo:rp", "zorp-", "_zorp"]
)
def test_word_with_a_symbol_at_an_end_does_not_start(trigger: str) -> None:
    (problem,) = problems_of_word(trigger)
    assert problem.level == "error" and f"“{trigger}”" in problem.message


@pytest.mark.parametrize(
    "trigger", ["zorp", "zorp7", "my-zorp_2", "red zorp", "o'zorp", "zörp", "zo\u0308rp", "ゾープ", "हिन्द", "x²"]
)
def test_word_of_letters_and_digits_starts(trigger: str) -> None:
    assert problems_of_word(trigger) == []


@pytest.mark.parametrize("trigger", ["a", "The", "of", "x"])
def test_everyday_word_is_warned_of(trigger: str) -> None:
    (problem,) = problems_of_word(trigger)
    assert problem.level == "warning" and "everyday word" in problem.message


def test_regularisation_folder_needs_no_trigger() -> None:
    assert found(concepts=(ZORP, Concept("r", is_regularisation=True))) == set()


def test_only_the_embeddings_learning_rate_counts() -> None:
    assert learning_rates(GOOD.replace(unet_lr=1.0, text_encoder_lr=1.0)) == {"learning_rate": 5e-3}
    assert list(usual_learning_rates(GOOD, "learning_rate")) == [5e-3]


def test_nearest_lora_trains_only_text() -> None:
    near = nearest_lora(GOOD.replace(train_text_encoder=False, rank=128, stop_text_encoder=0.5))
    assert (near.method, near.train_unet, near.train_text_encoder, near.rank) == ("lora", False, True, 1)
    assert near.stop_text_encoder == 0 and near.learning_rate == GOOD.learning_rate
    assert trains_text(GOOD) and nearest_lora(TrainConfig(rank=3)) == TrainConfig(rank=3)


def test_every_unused_setting_exists() -> None:
    known = {parameter.name for parameter in parameters_of(TrainConfig)}
    assert all(set(info.unused) <= known for info in METHOD_CATALOG.values())


def test_names_of_files_take_the_place_of_the_word() -> None:
    assert (named_word(GOOD), named_word(GOOD.replace(method="lora"))) == ("zorp", "")
    assert name_in_prompt("a Zorp, zorpy, on grass", "zorp", "zorp-000002") == "a zorp-000002, zorpy, on grass"
    assert name_in_prompt("a zorp", "zorp", "x", 0.8) == "a (x:0.8)"
