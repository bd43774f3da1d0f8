"""Learning-rate schedules, against diffusers, transformers and closed forms."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import optimization as diffusers_schedules
from transformers import optimization as transformers_schedules

from lib_lora_train.cli import main as cli
from lib_lora_train.cli import settings as cli_settings
from lib_lora_train.config.settings.optimizer import LR_SCHEDULES
from lib_lora_train.config.train_config import TrainConfig, duration_in_steps, read_config
from lib_lora_train.core.events import StepDone
from lib_lora_train.formats.kohya.read_files import read_settings
from lib_lora_train.formats.toml import read_toml_config
from lib_lora_train.training.lr_schedule import LrSchedule, lr_factor, lr_schedule
from lib_lora_train.web.form import fill_form, read_form
from tests.stand_ins.training_parts import run_to_end, shared_model, small_config, started

TOTAL, RATE, LEAST = 40, 1e-3, 0.1
ROUNDING = 1e-15  # float64; the same few operations in another order

Make = Callable[[Any, int], Any]


def newer(name: str, parameter: str) -> Any:
    """A schedule of transformers that 4.30 does not have, or has without this parameter: with another warm-up then."""
    found = getattr(transformers_schedules, name, None)
    if found is None or parameter not in inspect.signature(found).parameters:
        pytest.skip(f"this transformers has no {name} with {parameter}")
    return found


DIFFUSERS: dict[str, tuple[dict[str, Any], Make]] = {
    "constant": ({}, lambda o, w: diffusers_schedules.get_constant_schedule_with_warmup(o, w)),
    "constant_with_warmup": ({}, lambda o, w: diffusers_schedules.get_constant_schedule_with_warmup(o, w)),
    "linear": ({}, lambda o, w: diffusers_schedules.get_linear_schedule_with_warmup(o, w, TOTAL)),
    "cosine": ({}, lambda o, w: diffusers_schedules.get_cosine_schedule_with_warmup(o, w, TOTAL)),
    "cosine_with_restarts": (
        {"cycles": 3},
        lambda o, w: diffusers_schedules.get_cosine_with_hard_restarts_schedule_with_warmup(o, w, TOTAL, 3),
    ),
    "polynomial": (
        {"power": 2.5, "min_ratio": LEAST},
        lambda o, w: diffusers_schedules.get_polynomial_decay_schedule_with_warmup(o, w, TOTAL, LEAST * RATE, 2.5),
    ),
}
TRANSFORMERS: dict[str, tuple[dict[str, Any], Make]] = {
    # Without a warm-up transformers takes 10,000 steps for the timescale; up to 4.30 it divides by zero.
    "inverse_sqrt": ({}, lambda o, w: transformers_schedules.get_inverse_sqrt_schedule(o, w, w or 10_000)),
    "inverse_sqrt, timescale": (
        {"timescale": 13},
        lambda o, w: transformers_schedules.get_inverse_sqrt_schedule(o, w, 13),
    ),
    "cosine_with_min_lr": (
        {"min_ratio": LEAST},
        lambda o, w: newer("get_cosine_with_min_lr_schedule_with_warmup", "min_lr_rate")(
            o, w, TOTAL, min_lr_rate=LEAST
        ),
    ),
    "warmup_stable_decay": (
        {"decay": 9, "min_ratio": LEAST},
        lambda o, w: newer("get_wsd_schedule", "warmup_type")(o, w, 9, TOTAL, min_lr_ratio=LEAST),
    ),
}


def factors_of(make: Make, warmup: int) -> list[float]:
    """The other library's factors of the learning rate, from the first step to the end."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    scheduler = make(optimizer, warmup)
    found = []
    for _ in range(TOTAL + 1):
        found.append(optimizer.param_groups[0]["lr"] / RATE)
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("name", [*DIFFUSERS, *TRANSFORMERS])
def test_factors_equal_those_of_diffusers_and_transformers(name: str, warmup: int) -> None:
    values, make = {**DIFFUSERS, **TRANSFORMERS}[name]
    schedule = LrSchedule(name.partition(",")[0], TOTAL, warmup=warmup, **values)
    expected = factors_of(make, warmup)
    assert [lr_factor(schedule, step) for step in range(TOTAL + 1)] == pytest.approx(expected, abs=ROUNDING)


def test_every_schedule_is_compared() -> None:
    compared = {name.partition(",")[0] for name in (*DIFFUSERS, *TRANSFORMERS)}
    assert compared == set(LR_SCHEDULES) - {"adafactor"}  # the optimiser's own steps, compared with its tests


@pytest.mark.parametrize("kind", LR_SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 5, TOTAL, 2 * TOTAL])
def test_factors_stay_between_zero_and_one(kind: str, warmup: int) -> None:
    """Also where warm-up and decay are longer than the run, and after its end."""
    schedule = LrSchedule(kind, TOTAL, warmup=warmup, decay=30, cycles=4, power=0.3, min_ratio=0.2)
    assert all(0.0 <= lr_factor(schedule, step) <= 1.0 for step in range(3 * TOTAL))


# --- closed forms -------------------------------------------------------------------------------


def test_cosine_is_half_a_period() -> None:
    schedule = LrSchedule("cosine", TOTAL)
    assert lr_factor(schedule, 0) == 1.0
    assert lr_factor(schedule, 10) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert lr_factor(schedule, TOTAL) == pytest.approx(0.0, abs=ROUNDING)


@pytest.mark.parametrize(("total", "cycles"), [(49, 49), (300, 3), (98, 7), (2000, 10)])
def test_every_restart_is_at_the_full_rate(total: int, cycles: int) -> None:
    """In floating point 49 · (1/49) is less than 1: a restart would come a step late, after a step at 0."""
    schedule = LrSchedule("cosine_with_restarts", total, cycles=cycles)
    starts = range(0, total, total // cycles)
    assert [lr_factor(schedule, step) for step in starts] == [1.0] * cycles


@pytest.mark.parametrize(
    "kind", ["linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr", "polynomial", "warmup_stable_decay"]
)
def test_a_warmup_that_leaves_one_step_leaves_it_at_the_full_rate_and_ends_at_zero(kind: str) -> None:
    schedule = LrSchedule(kind, 5, warmup=4, decay=1)
    assert [lr_factor(schedule, step) for step in (4, 5)] == pytest.approx([1.0, 0.0], abs=ROUNDING)


def test_inverse_sqrt_is_halved_after_three_timescales() -> None:
    schedule = LrSchedule("inverse_sqrt", TOTAL, warmup=4, timescale=10)
    assert lr_factor(schedule, 4) == 1.0
    assert lr_factor(schedule, 34) == 0.5


def test_polynomial_decays_to_min_ratio() -> None:
    schedule = LrSchedule("polynomial", 10, power=2.0, min_ratio=0.2)
    assert lr_factor(schedule, 5) == pytest.approx(0.2 + 0.8 * 0.25)
    assert lr_factor(schedule, 10) == pytest.approx(0.2)


def test_warmup_stable_decay_holds_then_decays() -> None:
    schedule = LrSchedule("warmup_stable_decay", 20, warmup=4, decay=6)
    reported = [lr_factor(schedule, step) for step in range(21)]
    assert reported[4:15] == [1.0] * 11
    assert reported[17] == pytest.approx(0.5)
    assert reported[20] == pytest.approx(0.0, abs=ROUNDING)


@pytest.mark.parametrize(
    ("kind", "like"),
    [("cosine_with_restarts", "cosine"), ("polynomial", "linear"), ("warmup_stable_decay", "constant")],
)
def test_options_that_are_left_out_change_nothing(kind: str, like: str) -> None:
    """One cycle is a cosine, power 1 a straight line, and without a decay the full rate lasts to the end."""
    found, expected = ([lr_factor(LrSchedule(name, TOTAL), step) for step in range(TOTAL + 1)] for name in (kind, like))
    assert found == pytest.approx(expected, abs=ROUNDING)


@pytest.mark.parametrize(
    "kind", ["linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr", "polynomial", "warmup_stable_decay"]
)
def test_after_the_end_the_rate_stays_where_it_fell_to(kind: str) -> None:
    schedule = LrSchedule(kind, TOTAL, warmup=3, decay=9, cycles=2, power=2.0, min_ratio=0.1)
    last = lr_factor(schedule, TOTAL)
    assert [lr_factor(schedule, TOTAL + more) for more in (1, 7, 2 * TOTAL)] == pytest.approx([last] * 3, abs=ROUNDING)
    assert last == pytest.approx(0.0 if kind in ("linear", "cosine", "cosine_with_restarts") else 0.1, abs=ROUNDING)


# --- lengths and settings -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "steps"), [(0.0, 0), (0.05, 5), (0.29, 29), (0.999, 99), (1.0, 1), (30.0, 30), (7.9, 7)]
)
def test_a_duration_below_one_is_a_fraction_of_the_run_and_else_steps(value: float, steps: int) -> None:
    assert duration_in_steps(value, 100) == steps


def test_settings_become_the_schedule() -> None:
    config = TrainConfig(
        lr_schedule="polynomial",
        warmup=0.05,
        lr_decay=30,
        lr_cycles=4,
        lr_power=0.5,
        lr_timescale=77,
        lr_min_ratio=0.25,
    )
    assert lr_schedule(config, 200) == LrSchedule("polynomial", 200, 10, 30, 4, 0.5, 77, 0.25)


def test_the_default_schedule_is_bit_equal_to_the_original_cosine() -> None:
    """Runs with the default settings must not change."""
    schedule = lr_schedule(TrainConfig(), TOTAL)
    expected = [0.5 * (1.0 + math.cos(math.pi * min(step / TOTAL, 1.0))) for step in range(TOTAL + 1)]
    assert [lr_factor(schedule, step) for step in range(TOTAL + 1)] == expected


# --- from the settings to the steps -----------------------------------------------------------------


def _from_toml(tmp_path: Path) -> TrainConfig:
    file = tmp_path / "run.toml"
    file.write_text('lr_schedule = "warmup_stable_decay"\nwarmup = "25%"\nlr_decay = "50%"\n', encoding="utf-8")
    return read_config(read_toml_config(file))[0]


def _from_page(tmp_path: Path) -> TrainConfig:
    form = fill_form(TrainConfig()) | {"lr_schedule": "warmup_stable_decay", "warmup": "2", "lr_decay": "0.5"}
    return read_form(form)[0]


def _from_flags(tmp_path: Path) -> TrainConfig:
    words = ["train", "--lr-schedule", "warmup_stable_decay", "--warmup", "25%", "--lr-decay=50%"]
    return cli_settings.read_cli_config(cli.parse([*words, "--folder", str(tmp_path)]))


def _from_kohya(tmp_path: Path) -> TrainConfig:
    file = tmp_path / "kohya.toml"
    lines = ('lr_scheduler = "warmup_stable_decay"', 'lr_warmup_steps = "25%"', "lr_decay_steps = 4")
    file.write_text("\n".join((*lines, 'network_module = "networks.lora"')), encoding="utf-8")
    return read_settings(file).config


@pytest.mark.parametrize("origin", [_from_toml, _from_page, _from_flags, _from_kohya])
def test_warmup_and_decay_apply_from_flags_form_toml_and_kohya_files(
    origin: Callable[[Path], TrainConfig], tmp_path: Path
) -> None:
    """Of 8 steps 2 rise, 2 are at the full rate, and 4 fall by half a cosine."""
    values = origin(tmp_path)
    config = small_config(epochs=2, lr_schedule=values.lr_schedule, warmup=values.warmup, lr_decay=values.lr_decay)
    training = started(shared_model("sd1"), config)
    try:
        events = run_to_end(training, shared_model("sd1"))
    finally:
        training.adapter.remove()
    rates = [event.learning_rates["unet"] for event in events if isinstance(event, StepDone)]
    falling = [0.5 + 0.5 * math.cos(math.pi * part / 4) for part in range(4)]
    assert rates == pytest.approx([1e-3 * factor for factor in [0.0, 0.5, 1.0, 1.0, *falling]], rel=1e-12)
