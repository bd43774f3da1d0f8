"""Every button of every warning: the code says which there are, each has a case, and each leads to better settings."""

from __future__ import annotations

import ast
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from lib_lora_train.config.optimizer_catalog import CUSTOM
from lib_lora_train.config.parameters import parameters_of
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.config.validation.validate import has_errors, validate
from lib_lora_train.core.errors import LoraTrainError, Problem
from lib_lora_train.dataset.images import ImageFile
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.dataset.planner import make_plan
from lib_lora_train.dataset.scan import Dataset, Item, ScannedConcept
from lib_lora_train.hosts.host import Gpu, RunTarget, checkpoint_target
from lib_lora_train.models.architecture import ModelSpec
from lib_lora_train.models.embedded import EMBEDDED_CHECKPOINT
from lib_lora_train.runs.checks.checkpoint_check import check_checkpoint, checkpoint_problems
from lib_lora_train.runs.estimates.model_checks import check_model
from lib_lora_train.runs.estimates.requirements import check_precision, estimate_requirements
from lib_lora_train.web.quick_fixes import find_fixes
from tests.paths import ROOT
from tests.stand_ins.tiny_anima import adapter_tensors, transformer_tensors
from tests.stand_ins.tiny_models import write_tiny_checkpoint

_PACKAGE = ROOT / "lib_lora_train"
_CHECKED = (
    *sorted((_PACKAGE / "config" / "validation").glob("*.py")),
    _PACKAGE / "dataset" / "guide_checks.py",
    _PACKAGE / "dataset" / "plan_warnings.py",
    _PACKAGE / "runs" / "checks" / "checkpoint_check.py",
    _PACKAGE / "runs" / "checks" / "kind_checks.py",
    _PACKAGE / "runs" / "estimates" / "model_checks.py",
    _PACKAGE / "runs" / "estimates" / "requirements.py",
)
"""The modules whose problems the page shows with buttons."""
_MAKERS = ("error_at", "warning_at", "hint_at", "unused", "Problem", "problem")
_LEVELS = ("hint", "warning", "error")


@dataclass(frozen=True)
class World:
    """What the settings meet: images and captions, the model, the GPU's memory (0: no estimate), device and webui.

    `webui` are fields of the RunTarget of a webui; {} stand-alone.
    """

    images: tuple[int, ...] = (20, 2)  # of each concept
    size: tuple[int, int] = (512, 512)
    captions: tuple[str, ...] = ("a red cat", "a blue dog", "two birds", "grass", "an old house", "rain")
    spec: ModelSpec = field(default_factory=lambda: ModelSpec("sd1", "epsilon", False, 0.18215, {}, {}, ()))
    checkpoint: str = "model.ckpt"
    gpu: tuple[int, int] = (0, 0)
    device: str = "GPU"
    webui: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """Settings in a world."""

    values: Mapping[str, Any]
    world: World = World()

    @property
    def config(self) -> TrainConfig:
        return _GOOD.replace(**self.values)


_GOOD = TrainConfig(
    concepts=(Concept("/set/5_zok cat", trigger="zok"),), epochs=20, output_name="zok", sample_prompts=("zok",)
)


def make_world_plan(config: TrainConfig, world: World) -> Plan | None:
    """A plan of images that exist only by name; None if the settings allow none."""
    items, scanned = [], []
    for number, concept in enumerate(config.concepts):
        folder = Path(concept.folder or "/set/none")
        head = folder.name.split("_")[0]
        repeats = concept.repeats or (int(head) if head.isdigit() else 1)
        count = world.images[min(number, len(world.images) - 1)]
        for n in range(count):
            width, height = (world.size[::-1], world.size, (world.size[0], world.size[0]))[n % 3]
            image = ImageFile(folder / f"{n}.png", width, height, f"{number * 1000 + n:064x}")
            trigger = "" if concept.is_regularisation else concept.trigger
            items.append(Item(image, f"{trigger}, {world.captions[n % len(world.captions)]}".strip(", "), number))
        name, is_regularisation = folder.name, concept.is_regularisation
        scanned.append(ScannedConcept(name, folder, repeats, concept.trigger, is_regularisation, count, concept))
    try:
        return make_plan(Dataset(tuple(items), tuple(scanned), ()), config)
    except LoraTrainError:
        return None


def problems_with(config: TrainConfig, world: World) -> tuple[Problem, ...]:
    """All problems that the page would show."""
    found = [*validate(config), *checkpoint_problems(world.spec, config)]
    if config.checkpoint:
        found += check_checkpoint(config, checkpoint_target(config)).problems
    if world.webui:
        in_memory = RunTarget(EMBEDDED_CHECKPOINT, True, 4, "GPU", None)
        found += check_checkpoint(config, replace(in_memory, **world.webui)).problems
    plan = None if has_errors(found) else make_world_plan(config, world)
    total, free = world.gpu
    target = RunTarget(Path(world.checkpoint), False, 4, "GPU", Gpu("GPU", total, free) if total else None)
    found += [*(plan.warnings if plan else ()), *check_model(config, world.spec, target)]
    found += check_precision(config.precision, world.device)
    if plan and total:
        found += estimate_requirements(config, plan, replace(target, checkpoint=EMBEDDED_CHECKPOINT), ROOT).problems
    return tuple(found)


# --- the cases --------------------------------------------------------------------------------------

_ZOK = Concept("/set/5_zok cat", trigger="zok")
_V2 = ModelSpec("sd2", "v_prediction", False, 0.18215, {}, {}, (), notes=("predicts velocity, by a guess.",))
_XL = ModelSpec("sdxl", "epsilon", True, 0.13025, {}, {}, ())
_ANIMA = World(spec=ModelSpec("anima", "rectified_flow", False, 1.0, {}, {}, ()))
_MIB = 2**20


def _concept(**values: Any) -> dict[str, Any]:
    return {"concepts": (replace(_ZOK, **values),)}


def _inversion(**values: Any) -> dict[str, Any]:
    return {"method": "textual_inversion", "learning_rate": 5e-3, **_concept(class_word="cat"), **values}


def _two(**values: Any) -> dict[str, Any]:
    return {"concepts": (_ZOK, Concept("/set/1_cat", **values))}


_SETTINGS: tuple[Mapping[str, Any], ...] = (
    {"concepts": ()},
    {"concepts": (Concept("/set/a", is_regularisation=True),)},
    {"concepts": (_ZOK, _ZOK)},
    _two(is_regularisation=True, trigger="zok"),
    _two(is_regularisation=True, use_masks=True),
    _two(trigger="cat"),
    _inversion(rank=4),
    _inversion(continue_from="a.safetensors"),
    _inversion(embedding_vectors=32),
    _inversion(prior_preservation="empty"),
    _inversion(learning_rate=1e-4),
    _inversion(learning_rate=0.5),
    _inversion(**_concept(trigger="")),
    _inversion(**_concept(trigger="zok, red")),
    _inversion(**_concept(trigger="<zok>", class_word="cat")),
    _inversion(**_concept(trigger="a", class_word="cat")),
    _inversion(learning_rate=0.0),
    _inversion(**_concept(class_word="")),
    _inversion(**_two(trigger="zap")),
    _concept(folder=""),
    _concept(trigger="", only_class_word=True),
    _concept(own_caption_dropout=0.9),
    _concept(own_tag_dropout=0.9),
    _concept(own_prefix="zok, "),
    _concept(augment_variants=3),
    _concept(colour_jitter=0.4),
    _concept(random_crop=True),
    _concept(flip=True),
    _concept(alpha_background="nothing real 7"),
    _concept(alpha_background="#808080", tag_background=True),
    _concept(resolutions="512, 7"),
    _concept(resolutions="500"),
    _concept(class_word="fox"),
    _concept(trigger=""),
    _concept(folder="/set/img", trigger=""),
    {"caption_extension": "*"},
    {"keep_tokens_separator": ","},
    {"caption_prefix": "zok"},
    {"shuffle_captions": True, "keep_tokens": 0, **_concept(trigger="")},
    {"drop_trigger": True, "caption_dropout": 0.1},
    {"leave_out_tags": ("zok",)},
    {"caption_dropout": 0.5},
    {"caption_dropout_every_n_epochs": 2},
    {"checkpoint": "/nowhere/model.safetensors"},
    {"caption_dropout_every_n_epochs": 50},
    {"family": "lokr", "targets": "full", "tucker": True},
    {"family": "loha", "rank": 100},
    {"family": "glora", "rank": 100, "targets": "all"},
    {"dora": True, "family": "ia3"},
    {"targets": "full", "rank": 100},
    {"targets": "full", "rank": 16, "conv_rank": 100},
    {"family": "dylora", "batch_size": 4},
    {"family": "dylora", "rank": 16, "dylora_unit": 3},
    {"family": "glora", "alpha": 4.0},
    {"family": "lokr", "full_matrix": True, "alpha": 4.0},
    {"rank": 16, "alpha": 64.0},
    {"rank": 16, "alpha": 16.0, "rank_stabilized": True},
    {"rank": 128, "alpha": 1.0},
    {"family": "ia3", "learning_rate": 1e-4},
    {"family": "ia3", "learning_rate": 5e-3, "train_text_encoder": True, "text_encoder_lr": 1e-5},
    {"family": "full", "learning_rate": 1e-3},
    {"family": "full", "unet_lr": 1e-3},
    {"block_ranks": "1,2,3"},
    {"block_alphas": "x"},
    {"mid_lr_weight": "1,2,3,4,5"},
    {"block_ranks": "0", "train_unet": False, "train_text_encoder": True},
    {"family": "ia3", "block_ranks": ",".join(["4"] * 25), "learning_rate": 5e-3},
    {"family": "ia3", "learning_rate": 5e-3, "network_dropout": 0.1},
    {"family": "ia3", "learning_rate": 5e-3, "rank_dropout": 0.1},
    {"module_dropout": 0.8},
    {"scale_weight_norms": 1.0, "optimizer": "AdamWScheduleFree"},
    {"scale_weight_norms": 1.0, "dora": True},
    {"scale_weight_norms": 1.0, "family": "oft"},
    {"family": "ia3", "learning_rate": 5e-3, "conv_rank": 4},
    {"targets": "attention", "conv_rank": 4, "tucker": True},
    {"targets": "attention", "train_norm": True},
    {"train_unet": False, "train_text_encoder": False},
    {"train_unet": False, "train_text_encoder": True, "unet_lr": 1e-4, "stop_text_encoder": 0.5},
    {"learning_rate": 0.0},
    {"train_text_encoder": True, "text_encoder_lr": 0.0},
    {"train_text_encoder": True, "unet_lr": 0.0},
    {"train_text_encoder": False, "text_encoder_lr": 1e-5},
    {"train_text_encoder": True, "max_steps": 100, "stop_text_encoder": 200.0},
    {"optimizer": CUSTOM},
    {"custom_optimizer": "torch.optim.RAdam"},
    {"optimizer_args": "lr=1"},
    {"optimizer_args": "wrong=1"},
    {"optimizer_args": "betas=0.9"},
    {"optimizer_args": "eps=1,2"},
    {"optimizer": "Prodigy", "learning_rate": 1e-4},
    {"optimizer": "Prodigy", "learning_rate": 1.0, "train_text_encoder": True, "text_encoder_lr": 0.5},
    {"optimizer": "Prodigy", "learning_rate": 1.0, "warmup": 0.1},
    {"optimizer": "DAdaptAdam", "learning_rate": 1.0, "warmup": 0.1},
    {"optimizer": "Prodigy", "learning_rate": 1.0, "lr_schedule": "cosine_with_restarts"},
    {"optimizer": "Prodigy", "learning_rate": 1.0, "loraplus_unet_ratio": 16.0},
    {"learning_rate": 0.1},
    {"learning_rate": 1.0},
    {"learning_rate": 5e-4, "loraplus_unet_ratio": 16.0},
    {"train_text_encoder": True, "unet_lr": 1e-5, "text_encoder_lr": 1e-4},
    {"batch_size": 4, "gradient_accumulation": 2},
    {"lr_schedule": "adafactor"},
    {"optimizer": "Adafactor", "optimizer_args": "relative_step=True"},
    {"optimizer": "Adafactor", "optimizer_args": "warmup_init=True"},
    {"optimizer": "Adafactor", "optimizer_args": "scale_parameter=True"},
    {"optimizer": "Adafactor", "lr_schedule": "adafactor", "warmup": 0.1},
    {"optimizer": "AdamWScheduleFree", "lr_schedule": "cosine"},
    {"optimizer": "AdamWScheduleFree", "lr_schedule": "constant", "ema_decay": 0.9},
    {"ema_decay": 1.0},
    {"ema_decay": 0.9999, "max_steps": 100},
    {"lr_schedule": "constant", "warmup": 0.1},
    {"lr_schedule": "constant_with_warmup", "warmup": 0.0},
    {"lr_schedule": "cosine_with_restarts", "lr_cycles": 1},
    {"lr_schedule": "polynomial", "lr_power": 1.0},
    {"lr_schedule": "cosine_with_min_lr", "lr_min_ratio": 0.0},
    {"lr_schedule": "cosine_with_min_lr", "lr_min_ratio": 1.0},
    {"lr_schedule": "warmup_stable_decay", "lr_decay": 0.0},
    {"lr_schedule": "warmup_stable_decay", "lr_decay": 0.9, "warmup": 0.5},
    {"lr_schedule": "warmup_stable_decay", "lr_decay": 4000.0, "warmup": 400.0},
    {"caption_separator": ""},
    {"caption_separator": ";", "secondary_separator": ";"},
    {"layer_ranks": ("no rank",)},
    {"noise_offset": 0.5},
    {"adaptive_noise_scale": -0.5},
    {"adaptive_noise_scale": 0.5},
    {"multires_noise_iterations": 6, "noise_offset": 0.05},
    {"multires_noise_iterations": 6, "multires_noise_discount": 0.95},
    {"ip_noise_gamma": 0.5},
    {"min_timestep": 500, "max_timestep": 400},
    {"min_timestep": 500, "max_timestep": 520},
    {"loss_type": "huber", "huber_schedule": "snr", "huber_scale": 0.5},
    {"min_snr_gamma": 0.5},
    {"prior_preservation": "class", **_concept(trigger="")},
    {"prior_preservation": "class"},
    {"prior_preservation": "prompts"},
    {"prior_preservation": "prompts", "prior_preservation_prompts": ("a zok",)},
    {"prior_preservation": "empty", "prior_preservation_weight": 0.0},
    {"prior_preservation_prompts": ("a fox",)},
    {"zero_terminal_snr": "on", "prediction_type": "epsilon"},
    {"min_snr_gamma": 5.0, "debiased_estimation": True},
    {"scale_v_pred_loss_like_noise_pred": True, "v_pred_like_loss": 0.5},
    {"scale_v_pred_loss_like_noise_pred": True, "min_snr_gamma": 5.0},
    {"v_pred_like_loss": 0.5, "min_snr_gamma": 5.0},
    {"prediction_type": "rectified_flow", "v_pred_like_loss": 0.5},
    {"prediction_type": "rectified_flow", "noise_offset": 0.05},
    {"prediction_type": "rectified_flow", "min_snr_gamma": 5.0},
    {"prediction_type": "rectified_flow", "debiased_estimation": True},
    {"prediction_type": "rectified_flow", "zero_terminal_snr": "on"},
    {"prediction_type": "rectified_flow", "sample_sampler": "DDIM"},
    {"lora_precision": "bf16", "rank": 8},
    {"fp8_base": True, "gradient_checkpointing": False},
    {"enable_buckets": False, "resolution": 500},
    {"enable_buckets": False, "bucket_no_upscale": True},
    {"bucket_step": 64, "resolution": 64, "min_bucket": 256},
    {"resolution": 32, "bucket_step": 64},
    {"min_bucket": 1024, "max_bucket": 512},
    {"min_bucket": 100},
    {"max_bucket": 256},
    {"warmup": 500.0, "max_steps": 100},
    {"warmup": 5000.0},
    {"max_steps": 150},
    {"save_every_n_epochs": 50},
    {"save_from_epoch": 50},
    {"keep_last_step_files": 2},
    {"keep_last_epochs": 2},
    {"save_state": False, "save_state_every_n_steps": 10},
    {"output_name": "a/b"},
    {"sample_prompts": ()},
    {"sample_prompts": (), "sample_every_n_epochs": 0},
    {"sample_prompts": ("zok --w nothing",)},
    {"sample_prompts": ("a cat",)},
    {"webui_sampler": "Euler", "sample_every_n_epochs": 3, "save_every_n_epochs": 2},
    {"epochs": 1},
    {"epochs": 900},
    {"batch_size": 7},
    {"gradient_accumulation": 7},
)
_WORLDS: tuple[Case, ...] = (
    Case({"precision": "fp16"}, World(device="cpu")),
    Case({}, World(images=(3,))),
    Case({}, World(captions=("a cat",))),
    Case(_two(is_regularisation=True), World(images=(10, 1))),
    Case(
        {"concepts": (Concept("/set/1_zok", trigger="zok"), Concept("/set/1_cat", is_regularisation=True))},
        World((1, 9), size=(1024, 300)),
    ),
    Case({"balance_repeats": True, **_two(trigger="cat")}),
    Case(_two(is_regularisation=True), World(images=(60, 6), size=(1024, 300))),
    Case({}, World(size=(100, 100))),
    Case({"max_bucket": 512}, World(size=(2048, 256))),
    Case({"enable_buckets": False}, World(size=(1024, 300))),
    Case(_concept(flip=True), World(captions=("left arm up",))),
    Case({"clip_skip": 2, "resolution": 1024, "max_bucket": 2048}, World(size=(1024, 1024), spec=_XL)),
    Case({}, World(spec=_XL)),
    Case({}, World(spec=_V2)),
    Case({"family": "ia3"}, _ANIMA),
    Case({"bucket_step": 8}, _ANIMA),
    Case(_inversion(), _ANIMA),
    Case({"prediction_type": "epsilon"}, _ANIMA),
    Case({"train_unet": False, "train_text_encoder": True}, _ANIMA),
    Case({"sample_prompts": ("zok --w 520",)}, _ANIMA),
    Case({"block_ranks": "4"}, _ANIMA),
    Case({"train_text_encoder": True, "train_norm": True, "clip_skip": 2}, _ANIMA),
    Case({}, World(checkpoint="bestMix.safetensors")),
    Case({"batch_size": 8}, World(gpu=(90 * _MIB, 90 * _MIB))),
    Case({"batch_size": 8, "train_text_encoder": True}, World(gpu=(_MIB, _MIB))),
    Case({}, World(gpu=(2**40, _MIB))),
)


@cache
def _xl_checkpoint() -> Path:
    """A tiny SDXL checkpoint, made once."""
    return write_tiny_checkpoint(Path(tempfile.mkdtemp()) / "xl.safetensors", "sdxl")


@cache
def _anima_checkpoint() -> Path:
    """A tiny Anima, made once."""
    path = Path(tempfile.mkdtemp()) / "anima.safetensors"
    save_file({**transformer_tensors(), **adapter_tensors()}, path)
    return path


def _in_webuis() -> Iterator[Case]:
    """A model that is not trained here, one that is only selected, and another *Clip skip* in the webui's settings."""
    yield Case({}, World(webui={"problem": "Flux is not trained here. Load an SD1, SD2 or SDXL model."}))
    yield Case({}, World(webui={"checkpoint": Path("/set/none.ckpt"), "is_loaded": False, "is_selected": True}))
    yield Case({}, World(webui={"checkpoint": _anima_checkpoint(), "is_loaded": False}))
    yield Case({}, World(webui={"clip_skip": 2}))
    yield Case({}, World(webui={"checkpoint": _xl_checkpoint(), "clip_skip": 3, "applies_clip_skip_to_sdxl": True}))


def _values_of(kind: type, choices: tuple[str, ...], low: float | None, high: float | None) -> tuple[Any, ...]:
    """Some values of a setting, its limits among them."""
    if kind is bool:
        return True, False
    if choices or kind not in (int, float):
        return choices
    numbers = [kind(number) for number in (low, high, 0.3, 2, 100) if number is not None]
    return tuple(number for number in numbers if (low is None or number >= low) and (high is None or number <= high))


def _cases() -> Iterator[Case]:
    """Those listed here, and every setting alone with some of its values."""
    yield from (Case(values) for values in _SETTINGS)
    yield from _WORLDS
    yield from _in_webuis()
    for p in parameters_of(TrainConfig):
        yield from (
            Case({p.name: value}) for value in _values_of(p.kind, p.choices, p.low, p.high) if value != p.default
        )


# --- the tests --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    """A call in the code that makes a problem."""

    file: Path
    first: int
    last: int


def _is_maker(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and (getattr(node.func, "id", "") or getattr(node.func, "attr", "")) in _MAKERS


def _sites() -> list[Site]:
    """Every such call in the checked modules."""
    return [
        Site(file, node.lineno, node.end_lineno or node.lineno)
        for file in _CHECKED
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.expr) and _is_maker(node)
    ]


def test_every_problem_in_the_code_has_a_case_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new warning without a case in `_SETTINGS` or `_WORLDS` fails here, before its button can mislead anyone."""
    reached: set[tuple[str, int]] = set()
    make = Problem.__init__

    def remember(problem: Problem, *values: Any, **named: Any) -> None:
        frame = sys._getframe(1)
        while frame.f_back is not None:
            reached.add((frame.f_code.co_filename, frame.f_lineno))
            frame = frame.f_back
        make(problem, *values, **named)

    monkeypatch.setattr(Problem, "__init__", remember)
    for case in _cases():
        problems_with(case.config, case.world)
    lines = [(Path(name), number) for name, number in reached]
    missing = [
        f"{site.file.relative_to(ROOT)}:{site.first}"
        for site in _sites()
        if not any(site.file == file and site.first <= number <= site.last for file, number in lines)
    ]
    assert not missing, "\n".join(missing)


def _rank(problem: Problem) -> int:
    return _LEVELS.index(problem.level)


def _is_report(problem: Problem) -> bool:
    """What balancing has done is reported as a hint."""
    return problem.message.startswith("balance_repeats shows every concept")


def test_every_button_removes_its_warning_and_causes_none_of_its_level_or_above() -> None:
    pressed, wrong = 0, []
    for case in _cases():
        before = problems_with(case.config, case.world)
        plan = None if has_errors(before) else make_world_plan(case.config, case.world)
        for fix in find_fixes(case.config, before, partial(problems_with, world=case.world), plan):
            pressed += 1
            after = [p for p in problems_with(case.config.replace_at(fix.values), case.world) if not _is_report(p)]
            texts = {(p.where, p.message) for p in before}
            same = [p for p in after if (p.where, p.message) == (fix.problem.where, fix.problem.message)]
            known = {p.where for p in before if _rank(p) >= _rank(fix.problem)} - {fix.problem.where}
            new = [p for p in after if _rank(p) >= _rank(fix.problem) and (p.where, p.message) not in texts]
            wrong += [f"{fix.problem} → {fix.label} → {p}" for p in (*same, *(p for p in new if p.where not in known))]
    assert wrong == []
    assert pressed > 300, "the buttons that these cases have"
