"""Micro-batches, their text conditions, and their loss."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.dataset.plan import MicroBatch, Plan
from lib_lora_train.dataset.planner import make_plan
from lib_lora_train.dataset.sample_captions import caption_for_draw
from lib_lora_train.models.architecture import Architecture
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.latent_cache import LatentCache, Posterior
from lib_lora_train.models.noise_schedule import add_noise, rescale_zero_terminal_snr, scaled_linear_schedule, snr
from lib_lora_train.models.text_encoding import encode_text, tokenize, tokenize_weighted
from lib_lora_train.training.grad_scaling import clip_gradients
from lib_lora_train.training.loss import LossOptions, loss_options
from lib_lora_train.training.oom_fallback import gradient_checkpointing
from lib_lora_train.training.step import Batch, batch_loss, draw_batch, predict, size_conditions
from lib_lora_train.training.text_conditions import LruCache, TextConditions, text_conditions
from tests.stand_ins.half_precision import FP16
from tests.stand_ins.training_parts import adapted, random_latents, small_config, small_plan
from tests.stand_ins.training_parts import shared_model as model


def drawn(config: TrainConfig, micro_batch: MicroBatch, architecture: Architecture = "sd1", **plan: Any) -> Batch:
    """A micro-batch of the small plan."""
    small = small_plan(config, **plan)
    batch = draw_batch(micro_batch, small, random_latents(small), config=config, model=model(architecture))
    assert batch is not None
    return batch


WHOLE = MicroBatch(64, 64, (0, 1, 2, 3), (10, 11, 12, 13))
EVERY_NOISE: dict[str, Any] = {
    "noise_offset": 0.1,
    "noise_offset_random_strength": True,
    "adaptive_noise_scale": 0.05,
    "multires_noise_iterations": 6,
    "ip_noise_gamma": 0.1,
    "ip_noise_gamma_random_strength": True,
    "timestep_sampling": "sigmoid",
}


# --- drawing ------------------------------------------------------------------------------------


def test_a_sample_is_the_same_in_every_batch() -> None:
    config = small_config(shuffle_captions=True, caption_dropout=0.3, **EVERY_NOISE)
    whole = drawn(config, WHOLE)
    alone = drawn(config, MicroBatch(64, 64, (2,), (12,)))
    for name in ("latents", "noise", "input_noise", "timesteps", "prior_weights", "sizes"):
        assert torch.equal(getattr(whole, name)[2:3], getattr(alone, name)), name
    assert whole.captions[2] == alone.captions[0]


def test_an_image_shown_again_gets_new_randomness() -> None:
    config = small_config()
    twice = drawn(config, MicroBatch(64, 64, (1, 1), (5, 6)))
    for values in (twice.latents, twice.noise):
        assert not torch.equal(values[0], values[1])


@pytest.mark.parametrize(
    ("values", "changed"),
    [
        ({"noise_offset": 0.1}, {"noise", "input_noise"}),
        ({"noise_offset": 0.1, "noise_offset_random_strength": True}, {"noise", "input_noise"}),
        ({"adaptive_noise_scale": 0.1}, {"noise", "input_noise"}),
        ({"multires_noise_iterations": 4}, {"noise", "input_noise"}),
        ({"multires_noise_iterations": 4, "multires_noise_discount": 0.8}, {"noise", "input_noise"}),
        ({"ip_noise_gamma": 0.1}, {"input_noise"}),
        ({"ip_noise_gamma": 0.1, "ip_noise_gamma_random_strength": True}, {"input_noise"}),
        ({"min_timestep": 500}, {"timesteps"}),
        ({"max_timestep": 500}, {"timesteps"}),
        ({"timestep_sampling": "sigmoid"}, {"timesteps"}),
        ({"timestep_sampling": "sigmoid", "sigmoid_scale": 0.2}, {"timesteps"}),
        ({"timestep_sampling": "sigmoid", "sigmoid_mean": 2.0}, {"timesteps"}),
        ({"timestep_shift": 3.0}, {"timesteps"}),
        ({"resolution_shift": "flux"}, {"timesteps"}),
    ],
)
def test_a_noise_setting_changes_only_its_own_draws(values: dict[str, Any], changed: set[str]) -> None:
    """Against the same settings without the last one, so that no setting is without effect."""
    *others, _ = values.items()
    before, after = drawn(small_config(**dict(others)), WHOLE), drawn(small_config(**values), WHOLE)
    names = ("latents", "noise", "input_noise", "timesteps", "prior_weights", "sizes")
    unlike = {name for name in names if not torch.equal(getattr(before, name), getattr(after, name))}
    assert unlike == changed
    assert before.captions == after.captions


def test_timesteps_stay_in_the_set_range() -> None:
    config = small_config(min_timestep=300, max_timestep=320)
    many = drawn(config, MicroBatch(64, 64, (0,) * 64, tuple(range(64))))
    assert int(many.timesteps.min()) >= 300 and int(many.timesteps.max()) < 320


def test_without_perturbation_latents_are_mixed_with_the_noise_itself() -> None:
    """One tensor on the device, not two."""
    batch = drawn(small_config(), WHOLE)
    assert batch.input_noise is batch.noise


def test_images_that_could_not_be_encoded_are_skipped() -> None:
    config = small_config()
    plan = small_plan(config)
    full = random_latents(plan)
    partial = LatentCache({0: full[0], 2: full[2]}, frozenset({1, 3}))
    batch = draw_batch(WHOLE, plan, partial, config=config, model=model())
    assert batch is not None
    assert batch.timesteps.tolist() == drawn(config, WHOLE).timesteps[[0, 2]].tolist()
    assert draw_batch(MicroBatch(64, 64, (1, 3), (0, 1)), plan, partial, config=config, model=model()) is None


def test_regularisation_images_get_the_prior_weight() -> None:
    batch = drawn(small_config(prior_loss_weight=0.25), WHOLE, regularisation=1)
    assert batch.prior_weights.tolist() == [1.0, 1.0, 1.0, 0.25]


def test_size_conditions_describe_the_actual_crop() -> None:
    """A 200×100 image in a 64×64 bucket: resized to 128×64, then 32 px cut from each side."""
    plan = small_plan(small_config(enable_buckets=False), sizes=[(200, 100), (64, 64)])
    assert size_conditions(plan, [0, 1]).tolist() == [[100, 200, 0, 32, 64, 64], [64, 64, 0, 0, 64, 64]]


# --- the loss -----------------------------------------------------------------------------------


def gradients(
    config: TrainConfig, parts: list[MicroBatch], architecture: Architecture = "sd1", **plan: Any
) -> tuple[float, Tensor]:
    """Loss and all gradients of one optimiser step over these micro-batches, LoRA on UNet and text encoder."""
    adapter = adapted(model(architecture), config)
    with torch.no_grad():  # away from the start, where half of the gradients are zero
        for name, (parameter,) in adapter.groups.items():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    conditions = TextConditions(trained=True, clip_skip=1)
    total, count = 0.0, sum(len(part.items) for part in parts)
    for part in parts:
        batch = drawn(config, part, architecture, **plan)
        condition = conditions.encode(model(architecture), batch.captions)
        loss = batch_loss(model(architecture), batch, condition, loss_options(config, "epsilon")) / count
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    found = torch.cat([p.grad for (p,) in adapter.groups.values() if p.grad is not None])
    adapter.remove()
    return total, found


@pytest.mark.parametrize("architecture", ["sd1", "sdxl"])
def test_accumulated_micro_batches_equal_one_large_batch(architecture: Architecture) -> None:
    """Micro-batches of 3 and 1: each sample must weigh the same, not each micro-batch."""
    config = small_config(min_snr_gamma=5.0, prior_loss_weight=0.5)
    small = [MicroBatch(64, 64, (0, 1, 2), (10, 11, 12)), MicroBatch(64, 64, (3,), (13,))]
    large, many = (gradients(config, parts, architecture, regularisation=1) for parts in ([WHOLE], small))
    assert many[0] == pytest.approx(large[0], rel=1e-5)
    # float32 sums in another order
    assert float((many[1] - large[1]).norm() / large[1].norm()) < 1e-4


def test_min_snr_and_prior_weight_change_the_loss() -> None:
    plain, _ = gradients(small_config(), [WHOLE], regularisation=2)
    weighted, _ = gradients(small_config(min_snr_gamma=1.0), [WHOLE], regularisation=2)
    less_prior, _ = gradients(small_config(prior_loss_weight=0.1), [WHOLE], regularisation=2)
    assert weighted < plain
    assert less_prior < plain


def as_v(architecture: Architecture = "sd1", *, zero_terminal: bool = False) -> DiffusionModel:
    """The tiny model, treated as one that predicts v."""
    schedule = scaled_linear_schedule("v_prediction")
    if zero_terminal:
        schedule = replace(schedule, alphas_cumprod=rescale_zero_terminal_snr(schedule.alphas_cumprod))
    return replace(model(architecture), schedule=schedule)


def loss_of(rule: LossOptions, leased: DiffusionModel, batch: Batch) -> float:
    with torch.no_grad():
        condition = TextConditions(trained=False, clip_skip=1).encode(leased, batch.captions)
        return float(batch_loss(leased, batch, condition, rule))


def test_the_default_loss_never_changes() -> None:
    """Bit for bit: mean squared errors, summed with prior weights."""
    batch = drawn(small_config(prior_loss_weight=0.5), WHOLE, regularisation=1)
    with torch.no_grad():
        condition = TextConditions(trained=False, clip_skip=1).encode(model(), batch.captions)
        noisy = add_noise(model().schedule, batch.latents, batch.noise, batch.timesteps)
        answer = predict(model(), noisy, batch.timesteps, condition)
        errors = (answer - batch.noise).square().flatten(1).mean(dim=1)
        expected = float((errors * batch.prior_weights.to(errors.dtype)).sum())
    assert loss_of(LossOptions(), model(), batch) == expected


def test_hubers_exponential_bound_falls_with_the_share_of_the_schedule() -> None:
    """c = 0.1^(t / 1000) of each sample, and the error 2c (√(d² + c²) − c); float32 in the UNet, float64 here."""
    batch = drawn(small_config(), WHOLE)
    with torch.no_grad():
        condition = TextConditions(trained=False, clip_skip=1).encode(model(), batch.captions)
        noisy = add_noise(model().schedule, batch.latents, batch.noise, batch.timesteps)
        difference = (predict(model(), noisy, batch.timesteps, condition) - batch.noise).double()
    c = (0.1 ** (batch.timesteps.double() / 1000)).view(-1, 1, 1, 1)
    errors = 2 * c * ((difference**2 + c**2).sqrt() - c)
    expected = float(errors.flatten(1).mean(dim=1).sum())
    assert loss_of(LossOptions("huber", "exponential", 0.1), model(), batch) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("zero_terminal", [False, True])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (LossOptions(), LossOptions("l1")),
        (LossOptions(), LossOptions("huber")),
        (LossOptions("huber"), LossOptions("smooth_l1")),
        (LossOptions("huber"), LossOptions("huber", "exponential")),
        (LossOptions("huber"), LossOptions("huber", "constant")),
        (LossOptions("huber"), LossOptions("huber", "snr", 0.3)),
        (LossOptions(), LossOptions(min_snr_gamma=5.0)),
        (LossOptions(), LossOptions(is_debiased=True)),
        (LossOptions(), LossOptions(scale_v_like_noise=True)),
    ],
)
def test_every_loss_setting_changes_the_loss(before: LossOptions, after: LossOptions, zero_terminal: bool) -> None:
    """Pure noise, timestep 999, is among the samples: the weights have to be finite there."""
    leased = as_v(zero_terminal=zero_terminal)
    batch = replace(drawn(small_config(), WHOLE), timesteps=torch.tensor([0, 300, 700, 999]))
    losses = [loss_of(rule, leased, batch) for rule in (before, after)]
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_v_pred_like_loss_adds_the_weighted_v_error() -> None:
    """One sample: the loss grows by λ (SNR + 1) / SNR."""
    batch = drawn(small_config(), MicroBatch(64, 64, (0,), (3,)))
    ratio = float(snr(model().schedule, batch.timesteps))
    plain, more = (loss_of(rule, model(), batch) for rule in (LossOptions(), LossOptions(v_pred_like=0.5)))
    assert more == pytest.approx(plain * (1 + 0.5 * (ratio + 1) / ratio), rel=1e-6)


def test_weights_belong_to_the_rescaled_schedule() -> None:
    """sd-scripts takes them from the schedule before the rescale."""
    leased, batch = as_v(zero_terminal=True), drawn(small_config(), MicroBatch(64, 64, (0,), (3,)))
    ratio = float(snr(leased.schedule, batch.timesteps))
    assert ratio != pytest.approx(float(snr(as_v().schedule, batch.timesteps)), rel=0.01)
    plain, debiased = (loss_of(rule, leased, batch) for rule in (LossOptions(), LossOptions(is_debiased=True)))
    assert debiased == pytest.approx(plain * ratio**0.5 / (ratio + 1), rel=1e-6)


def test_input_perturbation_does_not_change_the_target() -> None:
    batch = drawn(small_config(ip_noise_gamma=0.3), WHOLE)
    with torch.no_grad():
        condition = TextConditions(trained=False, clip_skip=1).encode(model(), batch.captions)
        noisy = add_noise(model().schedule, batch.latents, batch.input_noise, batch.timesteps)
        answer = predict(model(), noisy, batch.timesteps, condition)
        expected = float((answer - batch.noise).square().flatten(1).mean(dim=1).sum())
    assert loss_of(LossOptions(), model(), batch) == pytest.approx(expected, rel=1e-6)


def test_gradient_checkpointing_changes_nothing_but_memory() -> None:
    plain_loss, plain = gradients(small_config(), [WHOLE])
    with gradient_checkpointing(model().unet, True):
        assert model().unet.is_gradient_checkpointing
        loss, found = gradients(small_config(), [WHOLE])
    assert not model().unet.is_gradient_checkpointing and not model().unet.training
    assert loss == plain_loss
    assert float((found - plain).norm() / plain.norm()) < 1e-5


@pytest.mark.parametrize("dtype", [FP16, torch.bfloat16])
def test_half_precision_gradients_match_float32(dtype: torch.dtype) -> None:
    """At 128 px: at 64 px the tiny model's middle is one pixel, whose group norm over two values cancels in 16 bit."""
    config = small_config(resolution=128, train_text_encoder=False)
    plan = small_plan(config, sizes=[(128, 128)])
    unet = copy.deepcopy(model().unet)
    norms = []
    for precision in (torch.float32, dtype):
        half = replace(model(), unet=unet.to(precision))
        adapter = adapted(half, config)
        batch = draw_batch(MicroBatch(128, 128, (0,), (1,)), plan, random_latents(plan), config=config, model=half)
        assert batch is not None
        scale = 4096.0 if precision == torch.float16 else 1.0
        condition = TextConditions(trained=False, clip_skip=1).encode(half, batch.captions)
        (batch_loss(half, batch, condition, LossOptions()) * scale).backward()  # type: ignore[no-untyped-call]
        norms.append(float(clip_gradients(adapter.groups["unet"], 0.0, scale=torch.tensor(scale))))
        adapter.remove()
    assert norms[1] == pytest.approx(norms[0], rel=0.02)  # bfloat16 has 8 bits


# --- views and masks ------------------------------------------------------------------------------


def flipping_plan(config: TrainConfig) -> Plan:
    """The small plan with mirrored views."""
    plan = small_plan(config)
    concepts = tuple(replace(c, settings=replace(c.settings, flip=True)) for c in plan.dataset.concepts)
    return make_plan(replace(plan.dataset, concepts=concepts), config)


def store_of(plan: Plan, masks: dict[int, Tensor] | None = None, missing: tuple[int, ...] = ()) -> LatentCache:
    """A posterior without spread per view, of the view's number."""
    entries = {
        number: Posterior(torch.full((4, 8, 8), float(number)), torch.zeros(4, 8, 8), (masks or {}).get(number))
        for number in range(len(plan.all_views))
        if number not in missing
    }
    return LatentCache(entries, frozenset(missing))


def test_a_sample_shows_the_view_drawn_by_its_number() -> None:
    config = small_config()
    plan = flipping_plan(config)
    part = MicroBatch(64, 64, (0, 1, 2, 3), (10, 11, 12, 13))
    batch = draw_batch(part, plan, store_of(plan), config=config, model=model())
    assert batch is not None
    wanted = [plan.draw_view(config.seed, item, draw) for item, draw in zip(part.items, part.draws, strict=True)]
    assert (batch.latents[:, 0, 0, 0] / model().spec.scale_factor).round().tolist() == wanted
    assert set(wanted) & {4, 5, 6, 7}  # a mirrored one among them


def test_a_view_that_could_not_be_encoded_is_replaced_by_the_first() -> None:
    config = small_config()
    plan = flipping_plan(config)
    part = MicroBatch(64, 64, (0, 1, 2, 3), (10, 11, 12, 13))
    batch = draw_batch(part, plan, store_of(plan, missing=(4, 5, 6, 7)), config=config, model=model())
    assert batch is not None
    assert (batch.latents[:, 0, 0, 0] / model().spec.scale_factor).round().tolist() == [0, 1, 2, 3]


def test_only_the_masked_area_is_learnt() -> None:
    """Next to a sample without a mask; the area outside changes neither loss nor gradient."""
    config = small_config()
    plan = small_plan(config)
    mask = torch.zeros(8, 8)
    mask[:, :3] = 1.0
    part = MicroBatch(64, 64, (0, 1), (3, 4))
    batch = draw_batch(part, plan, store_of(plan, {1: mask}), config=config, model=model())
    assert batch is not None and batch.masks is not None
    assert torch.equal(batch.masks, torch.stack([torch.ones(1, 8, 8), mask[None]]))
    with torch.no_grad():
        condition = TextConditions(trained=False, clip_skip=1).encode(model(), batch.captions)
        noisy = add_noise(model().schedule, batch.latents, batch.noise, batch.timesteps)
        answer = predict(model(), noisy, batch.timesteps, condition)
        errors = (answer - batch.noise).square()
        expected = float(errors[0].mean() + errors[1, :, :, :3].mean())
        assert loss_of(LossOptions(), model(), batch) == pytest.approx(expected, rel=1e-6)


def test_without_masks_a_batch_has_none() -> None:
    assert drawn(small_config(), WHOLE).masks is None


# --- text conditions ----------------------------------------------------------------------------


def encoded(captions: list[str], architecture: Architecture = "sd1", chunks: int = 1) -> Tensor:
    """Without any cache."""
    with torch.no_grad():
        return encode_text(model(architecture), tokenize(model(architecture), captions, chunks), 2).hidden


@pytest.mark.parametrize("architecture", ["sd1", "sdxl"])
@pytest.mark.parametrize("trained", [False, True])
def test_conditions_are_the_encoders_output(trained: bool, architecture: Architecture) -> None:
    """An empty caption (dropped) is encoded too; a repeated one comes at all its places."""
    captions = ["a cat", "", "a dog", "a cat"]
    conditions = TextConditions(trained=trained, clip_skip=2)
    for _ in range(2):  # fresh and kept
        found = conditions.encode(model(architecture), captions)
        assert torch.allclose(found.hidden, encoded(captions, architecture), atol=1e-5)
        assert (found.pooled is not None) == (architecture == "sdxl")


def test_a_cached_condition_does_not_depend_on_its_neighbours() -> None:
    alone = TextConditions(trained=False, clip_skip=1).encode(model(), ["a dog"])
    among = TextConditions(trained=False, clip_skip=1).encode(model(), ["", "a cat, sitting", "a dog"])
    assert torch.equal(alone.hidden[0], among.hidden[2])


def test_cached_conditions_are_not_encoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    conditions = TextConditions(trained=False, clip_skip=1)
    conditions.encode(model(), ["a cat", "a dog"])
    monkeypatch.setattr("lib_lora_train.training.text_conditions.encode_text", None)
    conditions.encode(model(), ["a dog", "a cat", "a dog"])


def test_long_captions_lengthen_only_their_batch() -> None:
    long = ", ".join(["word"] * 60)
    conditions = TextConditions(trained=False, clip_skip=2)
    both = conditions.encode(model(), [long, "a cat"])
    assert both.hidden.shape[1] == 154
    assert torch.allclose(both.hidden, encoded([long, "a cat"], chunks=2), atol=1e-5)
    assert conditions.encode(model(), ["a cat"]).hidden.shape[1] == 77


@pytest.mark.parametrize("trained", [False, True])
def test_weighted_captions_are_weighted_and_cached_separately(trained: bool) -> None:
    conditions = text_conditions(small_config(weighted_captions=True, clip_skip=1), trained=trained)
    captions = ["a (cat:1.5)", "a (cat:1.2)", "a cat"]
    found = conditions.encode(model(), captions).hidden
    with torch.no_grad():
        ids, weights = tokenize_weighted(model(), captions, 1)
        expected = encode_text(model(), ids, 1, weights).hidden
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found[0], found[1], atol=1e-4)


def test_captions_are_cut_at_max_token_length() -> None:
    long = ", ".join(["word"] * 60)
    lengths = [
        text_conditions(small_config(max_token_length=most), trained=False).encode(model(), [long]).hidden.shape[1]
        for most in (75, 150, 225)
    ]
    assert lengths == [77, 154, 154]


def test_the_caption_of_a_draw_depends_only_on_its_number() -> None:
    config = small_config(shuffle_captions=True, tag_dropout=0.3, caption_dropout_every_n_epochs=2)
    plan = small_plan(config)
    per_epoch = plan.samples_per_epoch
    assert [caption_for_draw(plan, 0, draw, config) for draw in range(9)] == [
        caption_for_draw(plan, 0, draw, config) for draw in range(9)
    ]
    assert {caption_for_draw(plan, 0, draw, config) for draw in range(per_epoch, 2 * per_epoch)} == {"zok"}
    assert len({caption_for_draw(plan, 0, draw, config) for draw in range(per_epoch)}) > 3


def test_trained_text_encoders_get_gradients_frozen_ones_do_not() -> None:
    adapter = adapted(model(), small_config())
    try:
        assert TextConditions(trained=True, clip_skip=1).encode(model(), ["a"]).hidden.requires_grad
        assert not TextConditions(trained=False, clip_skip=1).encode(model(), ["a"]).hidden.requires_grad
    finally:
        adapter.remove()


def test_lru_cache_drops_the_least_recently_used_value() -> None:
    recent: LruCache[str] = LruCache(2)
    recent.put("a", "A")
    recent.put("b", "B")
    recent.get("a")
    recent.put("c", "C")
    assert [recent.get(key) for key in "abc"] == ["A", None, "C"]
