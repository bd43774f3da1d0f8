"""16-bit LoRAs learn from every small step, resume exactly, and hold no fp32 memory between steps."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_lora_train.adapters.files.lora_file import read_adapter, write_adapter
from lib_lora_train.adapters.inject import Adapter
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.control import Control
from lib_lora_train.core.events import StepDone
from lib_lora_train.training.grad_scaling import clip_gradients
from lib_lora_train.training.loop import train
from lib_lora_train.training.master_weights import MasterWeights, stochastically_rounded
from lib_lora_train.training.training_run import Training
from lib_lora_train.training.training_state import TrainState, load_state, write_state
from tests.stand_ins.training_parts import OneModelHost, losses, run_to_end, small_config, started
from tests.stand_ins.training_parts import shared_model as model

HALVES = [torch.bfloat16, torch.float16]
_live: list[Training] = []


@pytest.fixture(autouse=True)
def _remove_adapters() -> Iterator[None]:
    yield
    while _live:
        _live.pop().adapter.remove()


def start_run(config: TrainConfig, *, state: TrainState | None = None) -> Training:
    """A run whose adapter is removed before the next one starts, and after the test."""
    while _live:
        _live.pop().adapter.remove()
    _live.append(started(model(), config, state=state))
    return _live[0]


def numbers(training: Training) -> Tensor:
    """All weights of the adapter, as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in training.parameters])


# --- rounding -----------------------------------------------------------------------------------


def table(dtype: torch.dtype) -> Tensor:
    """Every finite number of a 16-bit format in order, from all bit patterns: (n,) float64."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).double()
    finite: Tensor = torch.unique(every[every.isfinite()])
    return finite


def neighbours(value: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The format's numbers on both sides of float64 `value`, which it cannot represent."""
    numbers = table(dtype)
    place = torch.searchsorted(numbers, value)
    return numbers[place - 1], numbers[place]


def some_values() -> Tensor:
    """fp32 numbers of both signs from 1e-9 (below fp16's smallest) to 1e4, none of them a 16-bit one."""
    generator = torch.Generator().manual_seed(1)
    sizes = 10 ** (13 * torch.rand(64, generator=generator, dtype=torch.float64) - 9)
    return (sizes * torch.where(torch.rand(64, generator=generator) < 0.5, -1.0, 1.0)).float()


@pytest.mark.parametrize("dtype", HALVES)
def test_stochastic_rounding_is_exact_on_average(dtype: torch.dtype) -> None:
    """Against the float64 expectation: the mean of n draws is x within 5 standard errors of a two-valued draw."""
    draws, values = 20_000, some_values()
    generator = torch.Generator().manual_seed(7)
    found = stochastically_rounded(values.expand(draws, -1), dtype, generator).double()
    exact = values.double()
    below, above = neighbours(exact, dtype)
    chance = (exact - below) / (above - below)
    error = 5 * (above - below) * (chance * (1 - chance) / draws).sqrt()
    assert ((found.mean(0) - exact).abs() <= error + 1e-12 * exact.abs()).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_stochastic_rounding_yields_one_of_the_two_neighbours(dtype: torch.dtype) -> None:
    values = some_values()
    found = stochastically_rounded(values.expand(500, -1), dtype, torch.Generator().manual_seed(3)).double()
    below, above = neighbours(values.double(), dtype)
    assert ((found == below) | (found == above)).all()
    assert (found == below).any() and (found == above).any()


@pytest.mark.parametrize("dtype", HALVES)
def test_representable_numbers_stay_and_larger_ones_saturate(dtype: torch.dtype) -> None:
    held = table(dtype).float()
    assert torch.equal(stochastically_rounded(held, dtype, torch.Generator()).float(), held)
    most = torch.finfo(dtype).max
    beyond = stochastically_rounded(torch.tensor([3.4e38, -3.4e38, torch.nan]), dtype, torch.Generator()).float()
    assert beyond[:2].tolist() == [most, -most] and beyond[2].isnan()


@pytest.mark.parametrize("dtype", HALVES)
def test_representable_numbers_stay_at_the_smallest_draw_too(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.rand returns 0 once in 2²⁴ numbers: a few times per step of a large adapter."""
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.zeros(shape))
    held = table(dtype).float()
    assert torch.equal(stochastically_rounded(held, dtype, torch.Generator()).float(), held)


@pytest.mark.parametrize("dtype", HALVES)
def test_steps_below_the_16_bit_resolution_add_up(dtype: torch.dtype) -> None:
    """400 steps of 1e-4 from 1: plain rounding would stay at 1; the mean over 4096 numbers is 0.96.

    Each step's rounding adds a variance of at most gap · 1e-4, so the mean's error is below 5 · √(400 · 2⁻⁸ · 1e-4 /
    4096) = 1e-3.
    """
    stored = nn.Parameter(torch.ones(4096, dtype=dtype))
    working = MasterWeights({"unet": [stored]})
    optimizer = torch.optim.SGD(working.groups["unet"], lr=1e-4)
    for step in range(400):
        stored.grad = torch.ones_like(stored)
        with working.step(5, step):
            optimizer.step()
    assert float(stored.detach().double().mean()) == pytest.approx(0.96, abs=1e-3)


@pytest.mark.parametrize("dtype", HALVES)
def test_rounding_follows_from_seed_and_step_alone_and_differs_between_them(dtype: torch.dtype) -> None:
    """With the same draws in every step, the same few numbers would move each time and the others never."""

    def rounded(seed: int, step: int) -> list[Tensor]:
        stored = [nn.Parameter(torch.ones(100, dtype=dtype)) for _ in range(2)]
        working = MasterWeights({"unet": stored})
        with working.step(seed, step), torch.no_grad():
            for master in working.parameters:
                master.fill_(1 + torch.finfo(dtype).eps / 2)  # halfway between two numbers
        return [parameter.detach() for parameter in stored]

    first = rounded(5, 1)
    assert all(torch.equal(one, again) for one, again in zip(first, rounded(5, 1), strict=True))
    assert not torch.equal(first[0], first[1]), "every number has its own draw"
    for seed, step in ((5, 2), (6, 1)):
        assert not torch.equal(first[0], rounded(seed, step)[0])


# --- stand-ins ----------------------------------------------------------------------------------


def test_fp32_weights_are_not_copied() -> None:
    stored = nn.Parameter(torch.ones(3))
    working = MasterWeights({"unet": [stored]})
    assert working.groups["unet"][0] is stored and not working.is_rounded


def test_a_new_copy_holds_no_memory_and_learns_what_its_parameter_does() -> None:
    stored = [nn.Parameter(torch.ones(3, dtype=torch.float16), requires_grad=grad) for grad in (True, False)]
    working = MasterWeights({"unet": stored[:1], "text_encoder": stored[1:]})
    assert [own.untyped_storage().size() for own in working.parameters] == [0, 0]
    assert [own.requires_grad for own in working.parameters] == [True, False]
    assert {
        name: group[0] is working.master_of(one)
        for (name, group), one in zip(working.groups.items(), stored, strict=True)
    } == {"unet": True, "text_encoder": True}


def test_changes_to_the_copies_are_written_back_to_every_parameter_rounded_to_nearest() -> None:
    """bf16 has 1 and 1.0078 around 1.003."""
    stored = [nn.Parameter(torch.zeros(size, dtype=torch.bfloat16)) for size in (3, 500)]
    working = MasterWeights({"unet": stored})
    assert working.is_rounded
    with working.loaded(), torch.no_grad():
        for master in working.parameters:
            master.fill_(1.003)
    assert all(torch.equal(parameter, torch.ones_like(parameter)) for parameter in stored)


def test_master_weights_hold_no_memory_between_steps() -> None:
    training = start_run(small_config(max_steps=2, lora_precision="bf16", ema_decay=0.9))
    run_to_end(training, model())
    with training.eval_weights():
        pass
    assert all(own.dtype == torch.float32 for own in training.master_weights.parameters)
    assert all(own.untyped_storage().size() == 0 and own.grad is None for own in training.master_weights.parameters)
    assert all(parameter.dtype == torch.bfloat16 for parameter in training.parameters)


def test_optimiser_states_are_fp32() -> None:
    training = start_run(small_config(max_steps=1, lora_precision="bf16"))
    run_to_end(training, model())
    moments = training.optimizer.state()["optimizer"]["state"][0]
    assert moments["exp_avg_sq"].dtype == torch.float32


def test_a_float16_gradient_is_unscaled_without_underflow() -> None:
    """2⁻¹⁴ at a loss scale of 2¹⁶ is 2⁻³⁰, which float16 would make 0."""
    stored = nn.Parameter(torch.ones(16, dtype=torch.float16))
    stored.grad = torch.full_like(stored, 2.0**-14)
    working = MasterWeights({"unet": [stored]})
    with working.step(0, 0):
        norm = clip_gradients(working.parameters, 0.0, scale=torch.tensor(2.0**16))
        kept = [own.grad.clone() for own in working.parameters if own.grad is not None]
    assert float(norm) == 4 * 2.0**-30
    assert torch.equal(kept[0], torch.full((16,), 2.0**-30))


def test_a_failed_step_leaves_the_adapter_unchanged() -> None:
    stored = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    stored.grad = torch.ones_like(stored)
    working = MasterWeights({"unet": [stored]})
    with pytest.raises(MemoryError), working.step(0, 0):
        working.parameters[0].data.zero_()
        raise MemoryError
    assert torch.equal(stored, torch.ones_like(stored))
    (master,) = working.parameters
    assert master.untyped_storage().size() == 0 and master.grad is None


# --- whole runs ---------------------------------------------------------------------------------

WAYS: list[Any] = [
    pytest.param(
        {"optimizer": "AdamW8bit"},
        marks=pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is an extra"),
    ),
    {},
    {"optimizer": "Prodigy", "learning_rate": 1.0, "text_encoder_lr": 0.5, "scale_weight_norms": 0.05},
    {"optimizer": "Adafactor", "gradient_accumulation": 2},
    {"loraplus_unet_ratio": 4.0, "down_lr_weight": "zeros+0.5"},
    {"ema_decay": 0.9, "network_dropout": 0.2},
    {"stop_text_encoder": 0.5, "family": "lokr"},
]


def test_loss_scale_is_doubled_in_time_despite_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third of eight steps, twice, and two steps are left; the interruption is two steps after the start."""
    monkeypatch.setattr("lib_lora_train.training.grad_scaling._GROWTH_INTERVAL", 3)
    config = small_config(lora_precision="fp16", rank=1)
    control, first = Control(), start_run(config)
    for event in train(first, host=OneModelHost(model(), wanted=True), control=control):
        if isinstance(event, StepDone) and event.step == 2:
            control.stop()
    resumed = start_run(config, state=first.state())
    run_to_end(resumed, model())
    assert resumed.grad_scaler is not None
    assert {name: float(value) for name, value in resumed.grad_scaler.state().items()} == {"value": 2.0**14, "calm": 2}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("values", WAYS)
def test_a_resumed_run_equals_the_uninterrupted_one(values: dict[str, Any], precision: str, tmp_path: Path) -> None:
    """Interrupted within an epoch, through a file; bit for bit, with EMA and losses."""
    config = small_config(lora_precision=precision, **values)
    whole = start_run(config)
    reported = losses(run_to_end(whole, model()))
    expected, means = numbers(whole), [mean.clone() for mean in whole.ema.means] if whole.ema else []
    control, first = Control(), start_run(config)
    for event in train(first, host=OneModelHost(model(), wanted=True), control=control):
        if isinstance(event, StepDone) and event.step == 3:
            control.stop()
    write_state(tmp_path / "state", first.state())
    second = start_run(config, state=load_state(tmp_path / "state"))
    rest = losses(run_to_end(second, model()))
    assert rest == reported[-len(rest) :]
    assert torch.equal(numbers(second), expected)
    found = second.ema.means if second.ema else []
    assert all(torch.equal(one, other) and one.dtype == torch.float32 for one, other in zip(found, means, strict=True))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_16_bit_training_learns_the_direction_of_fp32(precision: str) -> None:
    """Cosine of the whole change after 8 AdamW steps above 0.95; rounding noise is the rest (bf16: 2⁻⁹ of a number)."""
    changes = []
    for kind in ("fp32", precision):
        training = start_run(small_config(lora_precision=kind))
        start = numbers(training).double()
        run_to_end(training, model())
        changes.append(numbers(training).double() - start)
    assert float(torch.cosine_similarity(changes[0], changes[1], dim=0)) > 0.95


def test_norms_are_limited_up_to_rounding() -> None:
    """bf16 moves in steps of 1/256 to 1/128, so a length may stay that much above the limit."""
    training = start_run(small_config(lora_precision="bf16", scale_weight_norms=0.05, learning_rate=1e-2))
    reported = [event.norms for event in run_to_end(training, model()) if isinstance(event, StepDone)]
    assert reported[-1] and reported[-1][0] > 0
    assert isinstance(training.adapter, Adapter)
    assert max(training.adapter.norms().values()) <= 0.05 * (1 + 2**-7)


def test_a_bf16_file_holds_the_exact_weights(tmp_path: Path) -> None:
    training = start_run(small_config(lora_precision="bf16", max_steps=2))
    run_to_end(training, model())
    state = training.adapter.state()
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
    write_adapter(tmp_path / "own.safetensors", state, metadata={}, precision="bf16")
    saved = read_adapter(tmp_path / "own.safetensors").state
    assert all(torch.equal(saved[key].float(), tensor) for key, tensor in state.items())
    before = numbers(training)
    with torch.no_grad():
        for parameter in training.parameters:
            parameter.zero_()
    training.adapter.load_state(saved)
    assert torch.equal(numbers(training), before)
