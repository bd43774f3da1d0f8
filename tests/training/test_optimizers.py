"""AdamW, Prodigy and gradient clipping, against torch's and prodigyopt's own."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence

import pytest
import torch
from prodigyopt import Prodigy
from torch import Tensor, nn

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import ConfigError
from lib_lora_train.training.grad_scaling import GradScaler, clip_gradients
from lib_lora_train.training.optimizers import Optimizer, group_rates, make_optimizer

TARGETS = (torch.linspace(-1, 1, 12), torch.linspace(2, 0.5, 5))


def parameters() -> tuple[nn.Parameter, nn.Parameter]:
    """Two groups' flat parameters, away from zero."""
    generator = torch.Generator().manual_seed(0)
    return tuple(nn.Parameter(torch.randn(len(t), generator=generator)) for t in TARGETS)  # type: ignore[return-value]


def quadratic(values: Sequence[Tensor]) -> Tensor:
    """A loss with its minimum at TARGETS."""
    terms = [(value - target).square().sum() for value, target in zip(values, TARGETS, strict=True)]
    return torch.stack(terms).sum()


def chosen(kind: str, **arguments: object) -> TrainConfig:
    """Settings with an optimiser, or `package.Class`, and its arguments."""
    written = (f"{n}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for n, v in arguments.items())
    optimizer, custom = ("Custom", kind) if "." in kind else (kind, "")
    return TrainConfig(optimizer=optimizer, custom_optimizer=custom, optimizer_args=" ".join(written))


def descend(
    values: Sequence[nn.Parameter], kind: str, rates: dict[str, float], steps: int, **arguments: object
) -> list[dict[str, float]]:
    """Effective learning rates of `steps` steps on the quadratic."""
    groups = {"unet": [values[0]], "text_encoder": [values[1]]}
    stepper = make_optimizer(groups, rates, config=chosen(kind, **arguments))
    seen = []
    for step in range(steps):
        quadratic(values).backward()  # type: ignore[no-untyped-call]
        stepper.step(1.0 - step / steps)
        seen.append(stepper.effective_rates())
    return seen


def test_adamw_gives_each_group_its_own_rate() -> None:
    ours, theirs = parameters(), parameters()
    seen = descend(ours, "AdamW", {"unet": 0.1, "text_encoder": 0.02}, 10, weight_decay=0.1, betas=(0.8, 0.9))
    optimizer = torch.optim.AdamW(
        [{"params": [theirs[0]]}, {"params": [theirs[1]]}], lr=0.1, weight_decay=0.1, betas=(0.8, 0.9)
    )
    for step in range(10):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 10)
        optimizer.param_groups[1]["lr"] = 0.02 * (1 - step / 10)
        optimizer.zero_grad()
        quadratic(theirs).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))
    assert seen[5] == pytest.approx({"unet": 0.05, "text_encoder": 0.01})


def test_prodigy_with_equal_rates_is_prodigy_over_all_parameters() -> None:
    ours, theirs = parameters(), parameters()
    seen = descend(ours, "Prodigy", {"unet": 1.0, "text_encoder": 1.0}, 30, decouple=True, safeguard_warmup=True)
    optimizer = Prodigy(theirs, lr=1.0, decouple=True, safeguard_warmup=True)
    for step in range(30):
        optimizer.param_groups[0]["lr"] = 1 - step / 30
        optimizer.zero_grad()
        quadratic(theirs).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))
    group = optimizer.param_groups[0]
    assert seen[-1]["unet"] == seen[-1]["text_encoder"] == group["d"] * group["lr"]


@pytest.mark.parametrize("highest", [1.0, 2.0])
def test_prodigy_with_different_rates_is_prodigy_in_scaled_coordinates(highest: float) -> None:
    """θ = ratio · φ: the same trajectory as Prodigy on φ with the chain rule done by autograd."""
    ours, starts = parameters(), parameters()
    seen = descend(ours, "Prodigy", {"unet": highest, "text_encoder": 0.25 * highest}, 30)
    scaled = nn.Parameter(starts[1].detach() / 0.25)
    optimizer = Prodigy([starts[0], scaled], lr=highest)
    for step in range(30):
        optimizer.param_groups[0]["lr"] = highest * (1 - step / 30)
        optimizer.zero_grad()
        quadratic([starts[0], scaled * 0.25]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    # a quarter is exact in binary; what is left is the order of rounding inside the loss
    assert torch.allclose(ours[0], starts[0], rtol=1e-6)
    assert torch.allclose(ours[1], scaled * 0.25, rtol=1e-6)
    assert seen[-1]["text_encoder"] == pytest.approx(seen[-1]["unet"] / 4)


def test_a_custom_class_with_d0_shares_one_distance() -> None:
    """Prodigy variants, recognised by the argument d0, would estimate wrongly over different groups or refuse them."""
    listed, custom = parameters(), parameters()
    rates = {"unet": 1.0, "text_encoder": 0.5}
    reported = descend(listed, "Prodigy", rates, 20)
    assert reported == descend(custom, "prodigyopt.Prodigy", rates, 20)
    assert all(torch.equal(mine, other) for mine, other in zip(listed, custom, strict=True))


def prodigy(values: Sequence[nn.Parameter]) -> Optimizer:
    """With a smaller rate for the second group, so that it has a scaled copy of that group's parameters."""
    groups = {"unet": [values[0]], "text_encoder": [values[1]]}
    return make_optimizer(groups, {"unet": 1.0, "text_encoder": 0.3}, config=chosen("Prodigy", d0=1e-3))


def take_steps(values: Sequence[nn.Parameter], stepper: Optimizer, count: int) -> list[float]:
    """The parameters after so many steps."""
    for _ in range(count):
        quadratic(values).backward()  # type: ignore[no-untyped-call]
        stepper.step(1.0)
    return torch.cat([value.detach() for value in values]).tolist()


@pytest.mark.parametrize("is_old", [False, True])
def test_prodigy_goes_on_from_its_state_also_from_one_with_the_values_of_all_groups(is_old: bool) -> None:
    """States of older versions hold them all; newer ones only those of the groups that have a scaled copy."""
    values, again = parameters(), parameters()
    stepper = prodigy(values)
    take_steps(values, stepper, 5)
    state = copy.deepcopy(stepper.state())
    if is_old:
        state["scaled"] = [values[0].detach().clone(), *state["scaled"]]
    with torch.no_grad():
        for new, value in zip(again, values, strict=True):
            new.copy_(value)
    resumed = prodigy(again)
    resumed.load_state(state)
    assert take_steps(again, resumed, 5) == take_steps(values, stepper, 5)


def test_prodigy_steps_from_where_max_norm_has_left_the_parameters() -> None:
    """A step is short beside what is halved here."""
    values = parameters()
    stepper = prodigy(values)
    take_steps(values, stepper, 2)
    with torch.no_grad():
        for value in values:
            value.mul_(0.5)
    changed = torch.cat([value.detach() for value in values]).tolist()
    stepper.reload_parameters()
    assert take_steps(values, stepper, 1) == pytest.approx(changed, abs=0.05)


def test_prodigy_learns_with_different_rates() -> None:
    values = parameters()
    before = float(quadratic(values).detach())
    descend(values, "Prodigy", {"unet": 1.0, "text_encoder": 0.5}, 300)
    assert float(quadratic(values).detach()) < 0.01 * before


@pytest.mark.parametrize("kind", ["AdamW", "Prodigy"])
def test_a_group_of_rate_zero_is_frozen(kind: str) -> None:
    values = parameters()
    before = values[1].detach().clone()
    groups = {"unet": [values[0]], "text_encoder": [values[1]]}
    stepper = make_optimizer(groups, {"unet": 1.0, "text_encoder": 0.0}, config=chosen(kind))
    assert [values[0].requires_grad, values[1].requires_grad] == [True, False]
    quadratic(values).backward()  # type: ignore[no-untyped-call]
    stepper.step(1.0)
    assert torch.equal(values[1], before)
    assert list(stepper.effective_rates()) == ["unet"]


def test_rates_fall_back_to_the_general_one() -> None:
    names = ["unet", "text_encoder_1", "text_encoder_2"]
    config = TrainConfig(learning_rate=1e-4, text_encoder_lr=5e-5)
    assert group_rates(config, names) == {"unet": 1e-4, "text_encoder_1": 5e-5, "text_encoder_2": 5e-5}
    assert group_rates(TrainConfig(learning_rate=1e-4, unet_lr=0.0), names)["unet"] == 0.0


def test_invalid_optimizer_settings_are_explained() -> None:
    groups = {"unet": [parameters()[0]]}
    with pytest.raises(ConfigError, match=r"AdamW has no argument d_coef\. It has betas"):
        make_optimizer(groups, {"unet": 1.0}, config=chosen("AdamW", d_coef=1))
    with pytest.raises(ConfigError, match="rejects these arguments: Invalid beta"):
        make_optimizer(groups, {"unet": 1.0}, config=chosen("AdamW", betas=(2.0, 0.9)))
    with pytest.raises(ConfigError, match="is 0 for every part of the model"):
        make_optimizer(groups, {"unet": 0.0}, config=chosen("AdamW"))


def test_missing_prodigy_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    with pytest.raises(ConfigError, match="pip install prodigyopt"):
        make_optimizer({"unet": [parameters()[0]]}, {"unet": 1.0}, config=chosen("Prodigy"))


# --- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("max_norm", "size"), [(0.5, 1.0), (100.0, 1.0), (1e-7, 1e-7)])
def test_clipping_equals_torch(max_norm: float, size: float) -> None:
    """Gradients as small as torch's 1e-6, which keeps the division sound, included."""
    ours, theirs = parameters(), parameters()
    for values in (ours, theirs):
        (quadratic(values) * size).backward()  # type: ignore[no-untyped-call]
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    assert torch.allclose(clip_gradients(ours, max_norm), expected, rtol=1e-6)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.grad is not None and other.grad is not None
        assert torch.allclose(mine.grad, other.grad, rtol=1e-6)


def test_clipping_undoes_the_loss_scale() -> None:
    plain, scaled = parameters(), parameters()
    quadratic(plain).backward()  # type: ignore[no-untyped-call]
    (quadratic(scaled) * 4096).backward()  # type: ignore[no-untyped-call]
    norms = clip_gradients(plain, 1.0), clip_gradients(scaled, 1.0, scale=torch.tensor(4096.0))
    assert torch.equal(norms[0], norms[1])  # powers of two are exact
    assert plain[0].grad is not None and scaled[0].grad is not None
    assert torch.allclose(plain[0].grad, scaled[0].grad, rtol=1e-6)


@pytest.mark.parametrize("max_norm", [0.0, 1.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_gradients_become_zero_and_the_norm_shows_it(bad: float, max_norm: float) -> None:
    values = parameters()
    for value in values:
        value.grad = torch.ones_like(value)
    assert values[0].grad is not None
    values[0].grad[3] = bad
    assert not clip_gradients(values, max_norm).isfinite()
    assert all(value.grad is not None and not value.grad.any() for value in values)


def test_loss_scale_falls_on_overflow_and_recovers() -> None:
    scale = GradScaler(torch.device("cpu"))
    start = float(scale.value)
    scale.update(torch.tensor(float("inf")))
    assert float(scale.value) == start / 2
    for _ in range(999):
        scale.update(torch.tensor(1.0))
    assert float(scale.value) == start / 2
    scale.update(torch.tensor(1.0))
    assert float(scale.value) == start


def test_loss_scale_moves_as_torchs_does() -> None:
    """Step by step against `torch._amp_update_scale_`, GradScaler's rule, through 3,500 steps with three overflows."""
    ours = GradScaler(torch.device("cpu"))
    theirs, tracker = torch.tensor(2.0**12), torch.zeros((), dtype=torch.int32)
    for step in range(3500):
        overflows = step in (100, 101, 1600)
        ours.update(torch.tensor(float("inf") if overflows else 1.0))
        torch._amp_update_scale_(theirs, tracker, torch.tensor(float(overflows)), 2.0, 0.5, 1000)
        assert float(ours.value) == float(theirs), step
    assert float(ours.value) == 2.0**11  # three halvings and two doublings


def test_loss_scale_stays_between_1_and_65536() -> None:
    """Above, float16 gradients of normal size overflow; below 1 the loss itself would lose digits."""
    scale = GradScaler(torch.device("cpu"))
    for _ in range(5000):
        scale.update(torch.tensor(1.0))
    assert float(scale.value) == 65536.0
    for _ in range(20):
        scale.update(torch.tensor(float("nan")))
    assert float(scale.value) == 1.0
