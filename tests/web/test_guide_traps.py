"""The traps that guides name are found before the start, and every button leads to settings that guides accept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.config.optimizer_catalog import OPTIMIZER_CATALOG
from lib_lora_train.config.sample_prompts import sample_prompts
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.config.validation.validate import validate
from lib_lora_train.core.errors import Problem
from lib_lora_train.dataset.guide_checks import MAX_SHOWINGS, MIN_SHOWINGS
from lib_lora_train.dataset.images import ImageFile
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.dataset.planner import make_plan
from lib_lora_train.dataset.prompt_suggestions import suggest_prompts
from lib_lora_train.dataset.scan import Dataset, Item, ScannedConcept
from lib_lora_train.hosts.host import RunTarget
from lib_lora_train.models.architecture import ModelSpec
from lib_lora_train.runs.estimates.model_checks import check_model
from lib_lora_train.web.form import fill_form, read_form, with_values
from lib_lora_train.web.quick_fixes import Fix, find_fixes

CAPTIONS = ("a red cat", "a blue dog", "two birds", "grass", "an old house", "rain")
GOOD = TrainConfig(concepts=(Concept("/set/10_zok cat"),), epochs=10, output_name="zok")


def _plan(config: TrainConfig, captions: tuple[str, ...] = CAPTIONS, *, images: int = 20) -> Plan:
    """A plan of images that exist only by name, in the folders of the config's concepts."""
    items, scanned = [], []
    for number, concept in enumerate(config.concepts):
        folder = Path(concept.folder)
        head = folder.name.split("_")[0]
        repeats = concept.repeats or (int(head) if head.isdigit() else 1)
        for n in range(images):
            file = ImageFile(folder / f"{n}.png", 512, 512, f"{number * 1000 + n:064x}")
            text = captions[n % len(captions)]
            trigger = "" if concept.is_regularisation else concept.trigger
            items.append(Item(file, f"{trigger}, {text}" if trigger else text, number))
        scanned.append(
            ScannedConcept(folder.name, folder, repeats, concept.trigger, concept.is_regularisation, images, concept)
        )
    return make_plan(Dataset(tuple(items), tuple(scanned), ()), config)


def _found(config: TrainConfig, captions: tuple[str, ...] = CAPTIONS, *, images: int = 20) -> dict[str, Problem]:
    return {problem.where: problem for problem in _plan(config, captions, images=images).warnings}


def _fixes(config: TrainConfig, captions: tuple[str, ...] = CAPTIONS, *, images: int = 20) -> list[Fix]:
    def problems_with(changed: TrainConfig) -> tuple[Problem, ...]:
        return (*validate(changed), *_plan(changed, captions, images=images).warnings)

    plan = _plan(config, captions, images=images)
    return list(find_fixes(config, problems_with(config), problems_with, plan))


def _fix_at(config: TrainConfig, where: str, captions: tuple[str, ...] = CAPTIONS, *, images: int = 20) -> Fix:
    (fix,) = [fix for fix in _fixes(config, captions, images=images) if fix.problem.where == where]
    return fix


# --- words ------------------------------------------------------------------------------------------


def test_a_folder_word_in_no_caption_is_warned_of_and_one_click_makes_it_the_trigger() -> None:
    fix = _fix_at(GOOD, "concepts[1].trigger")
    assert fix.problem.level == "warning"
    assert "'zok' is in none of its 20 captions" in fix.problem.message
    assert fix.label == "Set concept 1: trigger to zok"
    config, problems = read_form(with_values(fill_form(GOOD), fix.values))
    assert config.concepts[0].trigger == "zok"
    assert not [problem for problem in problems if problem.level == "error"]
    assert "concepts[1].trigger" not in _found(config)


@pytest.mark.parametrize(
    ("concept", "captions"),
    [
        (Concept("/set/10_zok cat"), ("zok, red", "blue")),
        (Concept("/set/10_zok cat", trigger="other"), CAPTIONS),
        (Concept("/set/10_zok cat", own_prefix="zok, "), CAPTIONS),
        (Concept("/set/cats"), ("olis, red", "olis, blue")),
        (Concept("/set/cats"), ("a photo of olis in red", "olis by night")),
    ],
)
def test_captions_with_a_word_for_the_concept_are_not_warned_of(concept: Concept, captions: tuple[str, ...]) -> None:
    assert "concepts[1].trigger" not in _found(GOOD.replace(concepts=(concept,)), captions)


def test_regularisation_needs_no_trigger() -> None:
    concepts = (Concept("/set/10_zok cat", trigger="zok"), Concept("/set/1_cat", is_regularisation=True))
    assert "concepts[2].trigger" not in _found(GOOD.replace(concepts=concepts))


@pytest.mark.parametrize(
    ("folder", "output", "word"),
    [("/set/zorpy", "x1", "zorpy"), ("/set/images", "zorpy", "zorpy"), ("/set/img", "", "ohwx")],
)
def test_without_any_common_word_a_trigger_is_offered(folder: str, output: str, word: str) -> None:
    config = GOOD.replace(concepts=(Concept(folder),), output_name=output or TrainConfig().output_name)
    assert dict(_found(config)["concepts[1].trigger"].remedy) == {"concepts[1].trigger": word}


def test_a_class_word_in_no_caption_is_put_there_by_one_click() -> None:
    config = GOOD.replace(concepts=(Concept("/set/10_zok", trigger="zok", class_word="fox", own_suffix=", night"),))
    fix = _fix_at(config, "concepts[1].class_word")
    assert fix.values == {"concepts[1].own_suffix": ", night, fox"}
    assert "concepts[1].class_word" not in _found(config.replace_at(fix.values))


def test_a_class_word_that_prior_preservation_uses_may_be_in_no_caption() -> None:
    config = GOOD.replace(concepts=(Concept("/set/10_zok", trigger="zok", class_word="fox"),))
    assert "concepts[1].class_word" in _found(config)
    assert "concepts[1].class_word" not in _found(config.replace(prior_preservation="class"))


def test_mirroring_text_or_left_and_right_is_switched_off_by_one_click() -> None:
    config = GOOD.replace(concepts=(Concept("/set/10_zok", trigger="zok", flip=True),))
    fix = _fix_at(config, "concepts[1].flip", ("left arm up", "red"))
    assert fix.values == {"concepts[1].flip": False}


# --- how often, how many ----------------------------------------------------------------------------


@pytest.mark.parametrize("images", [10, 20, 120])
@pytest.mark.parametrize("folder", ["/set/zok", "/set/1_zok", "/set/10_zok", "/set/100_zok"])
@pytest.mark.parametrize(
    "values", [{"epochs": 1}, {"epochs": 10}, {"epochs": 300}, {"epochs": 300, "max_steps": 90_000}]
)
def test_one_click_brings_the_showings_per_image_into_the_guides_range(
    values: dict[str, Any], folder: str, images: int
) -> None:
    config = GOOD.replace(concepts=(Concept(folder, trigger="zok"),), **values)
    plan = _plan(config, images=images)
    showings = plan.repeats[0] * plan.total_steps / plan.steps_per_epoch
    found = [fix for fix in _fixes(config, images=images) if "shows each image" in fix.problem.message]
    assert bool(found) == (showings > MAX_SHOWINGS or (showings < MIN_SHOWINGS and "max_steps" not in values))
    for fix in found:
        after = _plan(config.replace_at(fix.values), images=images)
        assert MIN_SHOWINGS <= after.repeats[0] * after.total_steps / after.steps_per_epoch <= MAX_SHOWINGS


def test_too_few_and_identical_images_are_named() -> None:
    config = GOOD.replace(concepts=(Concept("/set/10_zok", trigger="zok"),))
    assert "only 3 images" in _found(config, images=3)["concepts[1].folder"].message
    assert "the same caption" in _found(config, ("a cat",))["concepts[1].folder"].message
    assert "concepts[1].folder" not in _found(config)


# --- prompts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "images", "is_hinted"),
    [
        ({}, 50, True),
        ({}, 49, False),
        ({"validation_share": 0.1}, 50, False),
        ({"resolution": 128}, 50, False),
    ],
)
def test_fifty_images_are_enough_to_set_some_aside(values: dict[str, Any], images: int, is_hinted: bool) -> None:
    problems = _plan(GOOD.replace(**values), images=images).warnings
    assert any("are enough to set a tenth aside" in problem.message for problem in problems) == is_hinted


def test_regularisation_images_do_not_count_as_images_to_set_aside() -> None:
    concepts = (*GOOD.concepts, Concept("/set/1_cat", is_regularisation=True))
    assert "validation_share" not in _found(GOOD.replace(concepts=concepts), images=30)


def test_empty_sample_prompts_are_made_from_trigger_class_word_and_captions_in_one_click() -> None:
    config = GOOD.replace(concepts=(Concept("/set/10_zok", trigger="zok", class_word="cat"),))
    fix = _fix_at(config, "sample_prompts")
    concept, control = (
        ("zok, cat", "zok, a red cat", "zok, cat, on a beach"),
        ("cat", "dog", "fox", "mountain landscape"),
    )
    assert fix.values["sample_prompts"] == ("# concept", *concept, "# control", *control)
    drawn = sample_prompts(config.replace_at(fix.values))
    assert [prompt.is_control for prompt in drawn] == [False] * 3 + [True] * 4


@pytest.mark.parametrize("caption", ["# a cat", "a cat --w 7", "a\ncat", "a ||| cat", "{a|b} cat"])
def test_suggested_prompts_are_valid_whatever_the_captions_are(caption: str) -> None:
    config = GOOD.replace(concepts=(Concept("/set/10_zok", trigger="zok"),))
    prompts = suggest_prompts(config, _plan(config, (caption,)).dataset)
    assert prompts and all(prompts)
    assert len(sample_prompts(config.replace(sample_prompts=prompts))) == len(prompts) - 2  # without the headings


# --- the model --------------------------------------------------------------------------------------


def _model_problems(config: TrainConfig, architecture: Any, checkpoint: str = "model.ckpt") -> list[Problem]:
    spec = ModelSpec(architecture, "epsilon", False, 0.18215, {}, {}, ())
    return list(check_model(config, spec, RunTarget(Path(checkpoint), False, 2, "cpu", None)))


@pytest.mark.parametrize(
    ("architecture", "resolution", "is_far"),
    [
        *(("sd1", side, is_far) for side, is_far in ((256, True), (512, False), (768, False), (1024, True))),
        *(("sdxl", side, is_far) for side, is_far in ((512, True), (768, False), (1024, False), (2048, True))),
    ],
)
def test_a_resolution_far_from_the_models_own_is_warned_of(architecture: str, resolution: int, is_far: bool) -> None:
    config = GOOD.replace(resolution=resolution, min_bucket=min(256, resolution), max_bucket=max(1024, resolution))
    found = _model_problems(config, architecture)
    assert [problem.where for problem in found] == ["resolution"] * is_far
    for problem in found:
        after = config.replace_at(dict(problem.remedy))
        assert _model_problems(after, architecture) == []
        assert not [p for p in validate(after) if p.level == "error"]


@pytest.mark.parametrize(
    ("name", "is_merge"),
    [("dreamMix_v2", True), ("my-merge", True), ("v1-5-pruned", False), ("mixture_of_experts", False)],
)
def test_merges_are_hinted_at_by_name(name: str, is_merge: bool) -> None:
    assert bool(_model_problems(GOOD, "sd1", f"{name}.ckpt")) == is_merge


# --- every button -----------------------------------------------------------------------------------

_LEARNING_RATES = ("learning_rate", "unet_lr", "text_encoder_lr", "text_encoder_2_lr")


@pytest.mark.parametrize("rate", [1e-6, 1e-4, 1e-3, 0.02, 1.0])
@pytest.mark.parametrize("family", ["lora", "ia3", "full", "lokr"])
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZER_CATALOG))
@pytest.mark.parametrize("resolution", [128, 512])
def test_a_learning_rate_of_1_is_offered_only_for_optimisers_that_find_the_rate(
    optimizer: str, family: str, rate: float, resolution: int
) -> None:
    config = TrainConfig(
        concepts=GOOD.concepts, optimizer=optimizer, family=family, learning_rate=rate, resolution=resolution,
        min_bucket=64, batch_size=4, text_encoder_lr=2 * rate,
    )  # fmt: skip
    kind = OPTIMIZER_CATALOG[optimizer]
    for fix in find_fixes(config, validate(config), validate):
        for name in set(fix.values) & set(_LEARNING_RATES):
            value = fix.values[name]
            if kind.estimates_lr:
                assert value in (1.0, None)
            elif value is not None:
                low, high = {"ia3": (1e-3, 1e-2), "full": (0, 5e-5)}.get(family, (0, kind.high_lr))
                assert low <= value <= high or math.isclose(value, config.effective_unet_lr / 2)


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer": "Prodigy"},
        {"optimizer": "Prodigy", "learning_rate": 1.0, "warmup": 0.1},
        {"optimizer": "AdamWScheduleFree", "ema_decay": 0.9},
        {"batch_size": 7},
        {"gradient_accumulation": 7},
        {"family": "dylora", "batch_size": 4},
        {"rank": 200, "family": "loha"},
        {"noise_offset": 0.5, "multires_noise_iterations": 6},
        {"epochs": 3000},
        {"resolution": 500},
        {"keep_last_epochs": 1, "save_every_n_epochs": 20},
        {"caption_dropout": 0.9},
    ],
)
def test_every_button_solves_its_problem_without_a_new_warning(values: dict[str, Any]) -> None:
    config = GOOD.replace(**values)
    before = {p.where for p in (*validate(config), *_plan(config).warnings) if p.level != "hint"}
    fixes = _fixes(config)
    assert fixes
    for fix in fixes:
        after = config.replace_at(fix.values)
        problems = (*validate(after), *_plan(after).warnings)
        assert (fix.problem.where, fix.problem.message) not in [(p.where, p.message) for p in problems]
        assert {p.where for p in problems if p.level != "hint"} <= before
