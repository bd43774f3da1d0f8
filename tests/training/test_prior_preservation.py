"""Prior preservation: its prompts, its gradient, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from lib_lora_train.adapters.inject import inject
from lib_lora_train.adapters.registry import spec_from_config
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.dataset.plan import MicroBatch, Plan
from lib_lora_train.dataset.preserved_captions import preserved_caption, preserved_captions
from lib_lora_train.dataset.sample_captions import captions_to_cache
from lib_lora_train.methods.trained_part import TrainedPart
from lib_lora_train.models.architecture import Architecture
from lib_lora_train.models.diffusion_model import DiffusionModel, ModelOverrides, assemble, with_overrides
from lib_lora_train.models.latent_cache import LatentCache, Posterior
from lib_lora_train.models.text_encoding import TextCondition, load_tokenizer
from lib_lora_train.training.loop import accumulate_gradients
from lib_lora_train.training.step import Batch, draw_batch, predict
from lib_lora_train.training.text_conditions import TextConditions
from lib_lora_train.training.training_run import Training, start_training
from tests.stand_ins.tiny_models import TOKENIZER, alphas_of, tiny_spec, tiny_tensors
from tests.stand_ins.training_parts import losses, random_latents, run_to_end, small_config, small_plan, started
from tests.stand_ins.training_parts import shared_model as model

CLASS: dict[str, Any] = {"prior_preservation": "class"}
HELD: dict[str, Any] = {**CLASS, "prior_preservation_weight": 0.7, "masked_prior_preservation_weight": 0.3}
STEP = [MicroBatch(64, 64, (0, 1, 2), (10, 11, 12)), MicroBatch(64, 64, (3,), (13,))]
_live: list[TrainedPart] = []


@pytest.fixture(autouse=True)
def _remove_adapters() -> Iterator[None]:
    yield
    while _live:
        _live.pop().remove()


def cat_plan(config: TrainConfig, **parts: Any) -> Plan:
    """The small plan, whose concept has the class word `cat`."""
    plan = small_plan(config, **parts)
    concepts = tuple(replace(one, settings=Concept(class_word="cat")) for one in plan.dataset.concepts)
    return replace(plan, dataset=replace(plan.dataset, concepts=concepts))


def masked(latents: LatentCache) -> LatentCache:
    """The first two images with a mask, of which one covers everything."""
    masks = {0: torch.zeros(8, 8), 1: torch.ones(8, 8)}
    masks[0][:, :3] = 1.0
    items = range(4)
    return LatentCache(
        {item: Posterior(latents[item].mean, latents[item].std, masks.get(item)) for item in items}, frozenset()
    )


# --- the prompts ----------------------------------------------------------------------------------


def kept(**values: Any) -> list[str]:
    config = small_config(**values)
    batch = draw_batch(STEP[0], cat_plan(config), random_latents(cat_plan(config)), config=config, model=model())
    assert batch is not None
    return list(batch.preserved_captions)


def test_class_puts_the_class_word_in_the_triggers_place() -> None:
    assert kept(**CLASS) == ["cat, red, small, on grass", "cat, blue, tall", "cat"]


def test_every_trigger_of_the_run_is_replaced_and_a_class_word_is_not_doubled() -> None:
    """An image of two characters would otherwise hold the other one at what the model draws now."""
    config = small_config(**CLASS)
    plan = cat_plan(config)
    other = replace(plan.dataset.concepts[0], trigger="vel, blue hat", settings=Concept(class_word="dog"))
    plan = replace(plan, dataset=replace(plan.dataset, concepts=(*plan.dataset.concepts, other)))
    assert preserved_caption(plan, "zok and vel, on grass, blue hat", 0, config) == "cat and dog, on grass"
    assert preserved_caption(plan, "zok, a cat", 0, config) == "a cat"
    assert preserved_caption(plan, "a velvet zoko", 0, config) == "a velvet zoko"


def test_without_a_class_word_the_trigger_is_left_out() -> None:
    config = small_config(**CLASS)
    assert preserved_caption(small_plan(config), "zok, blue, tall", 0, config) == "blue, tall"


def test_empty_keeps_the_empty_prompt_and_off_none() -> None:
    assert kept(prior_preservation="empty") == ["", "", ""]
    assert kept() == []
    assert kept(**CLASS, prior_preservation_weight=0.0) == []


def test_listed_prompts_are_drawn_alike_in_every_batch_and_all_are_used() -> None:
    prompts = ("a cat", "a dog", "a house")
    config = small_config(prior_preservation="prompts", prior_preservation_prompts=prompts)
    plan = small_plan(config)
    assert kept(prior_preservation="prompts", prior_preservation_prompts=prompts) == [
        preserved_caption(plan, "zok", draw, config) for draw in STEP[0].draws
    ]
    assert {preserved_caption(plan, "zok", draw, config) for draw in range(50)} == set(prompts)


def test_kept_prompts_are_encoded_before_the_run_like_captions() -> None:
    config = small_config(epochs=4, **CLASS)
    plan = cat_plan(config)
    expected = ["cat, red, small, on grass", "cat, blue, tall", "cat", "a cat, in the rain, at night, green"]
    assert preserved_captions(plan, [item.caption for item in plan.dataset.items], config) == expected
    own = captions_to_cache(plan, config.replace(prior_preservation="off"))
    assert captions_to_cache(plan, config) == [*own, *expected]


# --- the gradient ---------------------------------------------------------------------------------


def precise_model(architecture: Architecture) -> DiffusionModel:
    """The tiny model in float64."""
    tensors = {name: tensor.double() for name, tensor in tiny_tensors(architecture, shallow=True).items()}
    spec = tiny_spec(tensors, prediction_type="epsilon", zero_terminal_snr=False)
    tokenizers = [load_tokenizer(TOKENIZER)] * len(spec.text_encoders)
    return assemble(tensors, spec=spec, tokenizers=tokenizers, name="precise", file_hash="0" * 64)


def precise_training(leased: DiffusionModel, config: TrainConfig) -> Training:
    """A run in float64, away from its start, where up is zero and so is half of the gradient."""
    plan = cat_plan(config)
    adapter = inject(leased, replace(spec_from_config(config), dtype=torch.float64), seed=1)
    _live.append(adapter)
    with torch.no_grad():
        for name, (parameter,) in adapter.groups.items():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
            parameter.add_(0.05 * noise.double())
    return start_training(leased, adapter, plan=plan, latents=masked(random_latents(plan)), config=config)


class PlainModel:
    """The same LoRA without our layers: plain modules, called with W + (alpha / rank)·up @ down. In float64."""

    def __init__(self, training: Training, plain: DiffusionModel) -> None:
        self.plain = plain
        self.leaves: dict[str, Tensor] = {}
        self.weights: list[dict[str, Tensor]] = []  # of the UNet, then of each text encoder
        for root, adapted in zip(roots(plain), roots(training.model), strict=True):
            own = {}
            for name, layer in adapted.named_modules():
                if not hasattr(layer, "slices"):
                    continue
                down, up = (value.clone().requires_grad_() for value in layer.slices.tensors().values())
                self.leaves |= {f"{layer.key}.down": down, f"{layer.key}.up": up}
                weight = root.get_submodule(name).weight
                product = up.flatten(1) @ down.flatten(1)
                own[f"{name}.weight"] = weight + layer.options.scale * product.view_as(weight)
            self.weights.append(own)

    def answer(self, batch: Batch, noisy: Tensor, captions: tuple[str, ...], *, with_lora: bool) -> Tensor:
        """The prediction for captions, with LoRA in the UNet and the text encoders or in neither."""
        unet, *texts = self.weights if with_lora else [{} for _ in self.weights]
        encoders: list[Any] = [_Called(one, own) for one, own in zip(self.plain.text_encoders, texts, strict=True)]
        called = replace(self.plain, text_encoders=tuple(encoders))
        condition: TextCondition = TextConditions(trained=True, clip_skip=1).encode(called, captions)
        called = replace(self.plain, unet=_Called(self.plain.unet, unet))
        return predict(called, noisy, batch.timesteps, condition, batch.sizes)


class _Called:
    """A module that is called with some of its weights exchanged."""

    def __init__(self, module: Any, weights: Mapping[str, Tensor]) -> None:
        self._module, self._weights = module, weights

    def __call__(self, *values: Any, **named: Any) -> Any:
        return functional_call(self._module, dict(self._weights), values, named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def roots(leased: DiffusionModel) -> tuple[Any, ...]:
    return (leased.unet, *leased.text_encoders)


@pytest.mark.parametrize(
    "values", [HELD, {**CLASS}, {**HELD, "prior_preservation": "empty"}], ids=["both", "one", "empty"]
)
@pytest.mark.parametrize("architecture", ["sd1", "sdxl"])
def test_gradient_equals_that_of_plain_torch(architecture: Architecture, values: dict[str, Any]) -> None:
    """Both additions written out, with plain modules, for a step of micro-batches of 3 and 1.

    In float64 but for the noisy latents, float32 and mixed in another order: 1e-6 of the gradient, hence 1e-5.
    """
    config = small_config(text_encoder_lr=1e-4, **values)
    training = precise_training(precise_model(architecture), config)
    loss = float(accumulate_gradients(training, training.model, step=STEP, usable=4))
    found = {
        f"{key}.{name}": layer.slices.buffer.gradient(layer.slices.positions[name])
        for key, layer in training.adapter.layers.items()
        for name in ("down", "up")
    }

    plain = PlainModel(training, precise_model(architecture))
    alphas = alphas_of(plain.plain)
    total = torch.zeros((), dtype=torch.float64)
    for part in STEP:
        batch = draw_batch(part, training.plan, training.latents, config=config, model=training.model)
        assert batch is not None
        alpha = alphas[batch.timesteps].view(-1, 1, 1, 1)
        noisy = (alpha.sqrt() * batch.latents + (1 - alpha).sqrt() * batch.noise).float()
        mask = (
            torch.ones(len(part.items), 1, 8, 8, dtype=torch.float64) if batch.masks is None else batch.masks.double()
        )
        answer = plain.answer(batch, noisy, batch.captions, with_lora=True)
        total = total + _masked_mean((answer - batch.noise).square(), mask).sum()
        with torch.no_grad():
            before = plain.answer(batch, noisy, batch.captions, with_lora=False)
            kept_before = plain.answer(batch, noisy, batch.preserved_captions, with_lora=False)
        outside = _masked_mean((answer - before).square(), 1 - mask)
        total = total + values.get("masked_prior_preservation_weight", 0.0) * outside.sum()
        after = plain.answer(batch, noisy, batch.preserved_captions, with_lora=True)
        total = (
            total + values.get("prior_preservation_weight", 1.0) * (after - kept_before).square().mean((1, 2, 3)).sum()
        )
    (total / 4).backward()  # type: ignore[no-untyped-call]

    assert loss == pytest.approx(float(total.detach()) / 4, rel=1e-6)
    ours = {name: gradient.flatten() for name, gradient in found.items()}
    theirs = {
        name: (torch.zeros_like(leaf) if leaf.grad is None else leaf.grad).flatten()
        for name, leaf in plain.leaves.items()
    }
    assert ours.keys() == theirs.keys()
    difference = torch.cat([ours[name] - theirs[name] for name in ours])
    assert float(difference.norm() / torch.cat(list(theirs.values())).norm()) < 1e-5


def _masked_mean(errors: Tensor, mask: Tensor) -> Tensor:
    """Σ m·e / (C·Σ m) of each sample, 0 for an empty mask."""
    area = errors.shape[1] * mask.sum((1, 2, 3))
    return torch.where(area > 0, (errors * mask).sum((1, 2, 3)) / area.clamp_min(1e-9), 0.0)


# --- nothing else changes -------------------------------------------------------------------------


def finished(config: TrainConfig, **parts: Any) -> tuple[Training, list[float]]:
    """A run to its end on the tiny model."""
    while _live:
        _live.pop().remove()
    plan = cat_plan(config, **parts)
    training = started(model(), config, plan=plan)
    _live.append(training.adapter)
    training.latents = masked(training.latents)
    return training, losses(run_to_end(training, model()))


def weights_of(training: Training) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in training.parameters])


@pytest.mark.parametrize("weights", [{}, {"prior_preservation_weight": 0.0, "masked_prior_preservation_weight": 0.0}])
def test_the_weight_zero_equals_off_bit_for_bit(weights: dict[str, float]) -> None:
    plain, expected = finished(small_config(epochs=1))
    after = weights_of(plain)
    zero, found = finished(small_config(epochs=1, prior_preservation="class" if weights else "off", **weights))
    assert found == expected
    assert torch.equal(weights_of(zero), after)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"text_encoder_lr": 1e-3, "gradient_accumulation": 2},
        {"train_text_encoder": False},
        {"dora": True},
        {"gradient_checkpointing": True, "network_dropout": 0.3, "rank_dropout": 0.2, "module_dropout": 0.3},
        {"family": "dylora", "dylora_unit": 1},
        {"stop_text_encoder": 1.0, "text_encoder_lr": 1e-3},
        {"lora_precision": "fp16"},
    ],
    ids=lambda values: "-".join(values) or "plain",
)
def test_the_model_is_unchanged_and_the_lora_learns_something_else(values: dict[str, Any]) -> None:
    before = {name: value.clone() for root in roots(model()) for name, value in root.state_dict().items()}
    plain, _ = finished(small_config(epochs=1, **values))
    learnt = weights_of(plain)
    held, found = finished(small_config(epochs=1, **values, **HELD))
    assert not torch.equal(weights_of(held), learnt)
    assert all(loss == loss for loss in found)
    _live.pop().remove()
    after = {name: value for root in roots(model()) for name, value in root.state_dict().items()}
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("prediction", ["auto", "v_prediction", "rectified_flow"])
@pytest.mark.parametrize("architecture", ["sd1", "sd2", "sdxl"])
def test_before_the_first_step_nothing_is_lost_for_any_kind_of_model(
    architecture: Architecture, prediction: str
) -> None:
    """A LoRA without effect gives the answers that are held, so that the loss is that of the images: in all bits."""
    leased = with_overrides(model(architecture), ModelOverrides(prediction))
    found = []
    for values in ({}, HELD):
        training = started(leased, small_config(**values), plan=cat_plan(small_config()))
        training.latents = masked(training.latents)
        found.append(float(accumulate_gradients(training, leased, step=STEP, usable=4)))
        training.adapter.remove()
    assert found[0] == found[1] > 0


def test_the_target_is_that_of_the_model_without_lora_also_in_its_text_encoders() -> None:
    """An adapter that changes everything, then a target that equals the plain model's answer. float32 both times."""
    config = small_config(text_encoder_lr=1e-3, **CLASS)
    plan = cat_plan(config)
    plain = TextConditions(trained=False, clip_skip=1).encode(model(), ["cat"])
    training = started(model(), config, plan=plan)
    _live.append(training.adapter)
    with torch.no_grad():
        for parameter in training.parameters:
            parameter.add_(0.3)
    with training.adapter.enabled(False):
        held = training.prior.base_conditions.encode(model(), ["cat"]).hidden
    changed = training.text_conditions.encode(model(), ["cat"]).hidden
    assert torch.equal(held, plain.hidden)
    assert not training.prior.base_conditions.trained, "the same in every step, and so encoded once"
    assert not torch.allclose(changed, plain.hidden, atol=1e-2)


def test_a_run_on_the_unet_alone_shares_its_cached_text() -> None:
    training = started(model(), small_config(train_text_encoder=False, **CLASS))
    _live.append(training.adapter)
    assert training.prior.base_conditions is training.text_conditions


@pytest.mark.parametrize(
    ("has_masks", "weight", "is_held"), [(True, 0.3, True), (False, 0.3, False), (True, 0.0, False)]
)
def test_a_masked_prior_takes_a_pass_only_with_masks_and_a_weight(
    has_masks: bool, weight: float, is_held: bool
) -> None:
    config = small_config(masked_prior_preservation_weight=weight, **CLASS)
    training = started(model(), config, plan=cat_plan(config))
    _live.append(training.adapter)
    batch: Any = SimpleNamespace(masks=torch.ones(1, 1, 8, 8) if has_masks else None, captions=("a cat",))
    answers: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(training.prior), "_answer", lambda _prior, _model, _batch, texts: answers.append(texts))
        held = training.prior.masked_prior(model(), batch)
    assert (held is not None) == is_held
    assert answers == ([("a cat",)] if is_held else [])


def test_it_reduces_how_far_the_kept_prompt_moves() -> None:
    """The promise itself, on one batch that is shown again and again: without it the class moves with the trigger."""

    def moved(**values: Any) -> float:
        config = small_config(epochs=8, learning_rate=3e-3, **values)
        training, _ = finished(config)
        batch = draw_batch(STEP[0], training.plan, training.latents, config=config.replace(**CLASS), model=model())
        assert batch is not None
        conditions = TextConditions(trained=True, clip_skip=1)
        with torch.no_grad():
            answers = []
            for is_on in (False, True):
                with training.adapter.enabled(is_on):
                    condition = conditions.encode(model(), batch.preserved_captions)
                    answers.append(predict(model(), batch.latents, batch.timesteps, condition))
        return float((answers[1] - answers[0]).square().mean())

    assert moved(**CLASS) < 0.7 * moved()
