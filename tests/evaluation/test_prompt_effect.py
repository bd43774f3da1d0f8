"""What a LoRA does to prompts: against a model whose predictions are known, and on the embedded model."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_lora_train.core.measures import BLEED, DRIFT, DRIFT_SHARE, OBEDIENCE, TRIGGER_BLEED
from lib_lora_train.evaluation import prompt_effect
from lib_lora_train.evaluation.prompt_effect import PromptEffect, TriggerPrompt
from lib_lora_train.models.text_encoding import TextCondition
from tests.stand_ins.training_parts import shared_model

DIRECTIONS = {name: torch.eye(16)[number].view(1, 4, 4) for number, name in enumerate(("words", "concept", "noise"))}
ZORP = TriggerPrompt("zorp, red sky", "zorp", "mascot")


def no_yield() -> None:
    pass


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], Tensor]], None]:
    """Lets the UNet predict what a function of the prompt says, whatever the latents."""

    def set_answer(answer: Callable[[str], Tensor]) -> None:
        def encode(_model: Any, texts: Any, _clip_skip: int) -> TextCondition:
            return TextCondition(torch.stack([answer(text).flatten() for text in texts]), None)

        def predict(_model: Any, noisy: Tensor, _t: Any, condition: TextCondition, _sizes: Any) -> Tensor:
            return condition.hidden.view(-1, 1, 4, 4).expand_as(noisy)

        monkeypatch.setattr(prompt_effect, "encode_prompts", encode)
        monkeypatch.setattr(prompt_effect, "predict", predict)
        monkeypatch.setattr(prompt_effect, "prompt_chunks", lambda *_, **__: 1)

    return set_answer


def measured(answers: Any, before: Callable[[str], Tensor], after: Callable[[str], Tensor], *prompts: Any) -> Any:
    """The measures of a LoRA that turns the predictions `before` into `after`."""
    model: Any = SimpleNamespace(
        schedule=shared_model("sd1").schedule,
        device=torch.device("cpu"),
        latent_format=shared_model("sd1").latent_format,
    )
    effect = PromptEffect(*prompts, size=(32, 32), clip_skip=1)
    answers(before)
    effect.prepare(model, no_yield)
    answers(after)
    return effect.measure(model, no_yield)


def of_words(text: str) -> Tensor:
    """A prediction of length 2 for every prompt, 0 for the empty one."""
    return 2.0 * bool(text) * DIRECTIONS["words"]


def test_an_untrained_lora_does_nothing(answers: Any) -> None:
    values = measured(answers, of_words, of_words, [ZORP], ["a fox"])
    assert values == {DRIFT: 0}


def test_a_lora_that_needs_its_trigger_obeys_and_does_not_bleed(answers: Any) -> None:
    values = measured(
        answers, of_words, lambda text: of_words(text) + ("zorp" in text) * DIRECTIONS["concept"], [ZORP], ["a fox"]
    )
    assert values == {DRIFT: 0, DRIFT_SHARE: 0, OBEDIENCE: 1, BLEED: 0}


def test_a_lora_that_does_the_same_everywhere_obeys_nothing(answers: Any) -> None:
    """Effect 1 on every prompt, each worth 2."""
    values = measured(answers, of_words, lambda text: of_words(text) + DIRECTIONS["concept"], [ZORP], ["a fox"])
    assert values == pytest.approx({DRIFT: 0.5, DRIFT_SHARE: 1, OBEDIENCE: 0, BLEED: 1})


def test_half_of_the_effect_without_the_trigger(answers: Any) -> None:
    def after(text: str) -> Tensor:
        return of_words(text) + (1.0 if "zorp" in text else 0.5 if "sky" in text else 0.25) * DIRECTIONS["concept"]

    values = measured(answers, of_words, after, [ZORP], ["a fox"])
    assert values == pytest.approx({DRIFT: 0.125, DRIFT_SHARE: 0.25, OBEDIENCE: 0.5, BLEED: 0.5})


def test_a_change_of_another_kind_without_the_trigger_is_no_bleed_but_costs_obedience(answers: Any) -> None:
    def after(text: str) -> Tensor:
        return of_words(text) + DIRECTIONS["concept" if "zorp" in text else "noise"]

    values = measured(answers, of_words, after, [ZORP], [])
    assert values == pytest.approx({OBEDIENCE: 0, BLEED: 0})


def test_the_class_word_stands_in_for_the_trigger(answers: Any) -> None:
    def after(text: str) -> Tensor:
        return of_words(text) + (("zorp" in text) + 0.3 * ("mascot" in text)) * DIRECTIONS["concept"]

    assert measured(answers, of_words, after, [ZORP], []) == pytest.approx({OBEDIENCE: 1, BLEED: 0.3})


def test_two_triggers_that_draw_the_same_bleed_into_each_other(answers: Any) -> None:
    triggers = [TriggerPrompt("jinxdef, city", "jinxdef"), TriggerPrompt("jinxarcane, city", "jinxarcane")]

    def same(text: str) -> Tensor:
        return of_words(text) + ("jinx" in text) * DIRECTIONS["concept"]

    def apart(text: str) -> Tensor:
        return of_words(text) + DIRECTIONS["concept" if "jinxdef" in text else "noise"] * ("jinx" in text)

    assert measured(answers, of_words, same, triggers, [])[TRIGGER_BLEED] == pytest.approx(1)
    assert measured(answers, of_words, apart, triggers, [])[TRIGGER_BLEED] == pytest.approx(0)


@pytest.mark.parametrize(
    ("prompt", "without", "by_class"),
    [
        (TriggerPrompt("zorp, red sky", "zorp", "mascot"), "red sky", "mascot, red sky"),
        (
            TriggerPrompt("a photo of Zorp mascot, sky", "zorp", "mascot"),
            "a photo of mascot, sky",
            "a photo of mascot, sky",
        ),
        (TriggerPrompt("zorp", "zorp"), "", ""),
        (TriggerPrompt("zorpish zorp (zorp:1.2)", "zorp", "cat"), "zorpish (:1.2)", "zorpish cat (cat:1.2)"),
    ],
)
def test_prompts_without_their_trigger(prompt: TriggerPrompt, without: str, by_class: str) -> None:
    assert (prompt.without, prompt.with_class_word) == (without, by_class)


@pytest.mark.parametrize("architecture", ["sd1", "sd2", "sdxl"])
def test_every_architecture_is_measured_and_a_change_of_weights_is_seen(architecture: Any) -> None:
    """One weight changed, and put back."""
    model = shared_model(architecture)
    effect = PromptEffect([ZORP], ["a fox"], size=(64, 64), clip_skip=1)
    yields: list[None] = []
    effect.prepare(model, lambda: yields.append(None))
    assert effect.is_prepared and yields
    assert effect.measure(model, no_yield) == {DRIFT: 0}
    weight = next(model.unet.parameters())
    with torch.no_grad():
        before = weight.clone()
        weight.mul_(1.1)
        values = effect.measure(model, no_yield)
        weight.copy_(before)
    assert values[DRIFT] > 0 and all(math.isfinite(value) for value in values.values())
    assert effect.measure(model, no_yield) == {DRIFT: 0}
