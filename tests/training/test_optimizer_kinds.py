"""The optimisers besides AdamW and Prodigy, each against its own package or its formula."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.optimization import Adafactor

from lib_lora_train.adapters.inject import Adapter
from lib_lora_train.config.optimizer_catalog import OPTIMIZER_CATALOG
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import ConfigError
from lib_lora_train.core.events import StepDone
from lib_lora_train.training.ema import Ema, eval_weights
from lib_lora_train.training.lion import Lion
from lib_lora_train.training.master_weights import MasterWeights
from lib_lora_train.training.optimizers import PlainOptimizer, make_optimizer
from lib_lora_train.training.parameter_groups import MatrixOptimizer, matrix_views, split_loraplus_groups
from lib_lora_train.training.training_run import Training
from tests.stand_ins.training_parts import adapted, run_to_end, small_config, started
from tests.stand_ins.training_parts import shared_model as model

STEPS = 12


@pytest.fixture
def adapter() -> Iterator[Adapter]:
    """A fresh LoRA, its up matrices no longer 0, so that all formulas have something to do."""
    made = adapted(model(), small_config())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for group in made.groups.values():
            for flat in group:
                flat.add_(0.05 * torch.randn(flat.shape, generator=generator))
    yield made
    made.remove()


def gradients(step: int, like: Sequence[Tensor]) -> list[Tensor]:
    """Random gradients of a step, some parts much larger than others."""
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(tensor.shape, generator=generator) * (1 + n % 3) for n, tensor in enumerate(like)]


def matrices(adapter: Adapter) -> list[Tensor]:
    """Copies of all matrices, in model order."""
    return [view.clone() for layer in adapter.layers.values() for view in layer.slices.fp32().values()]


def give_gradients(adapter: Adapter, step: int) -> None:
    """The step's gradients, written as layers do it: into their slices of the flat gradient."""
    slices = [(layer.slices, name) for layer in adapter.layers.values() for name in layer.slices.fp32()]
    for group in adapter.groups.values():
        for flat in group:
            flat.grad = torch.zeros_like(flat)
    for (piece, name), gradient in zip(slices, gradients(step, matrices(adapter)), strict=True):
        piece.add_gradient(name, gradient)


def ours(adapter: Adapter, config: TrainConfig, rates: dict[str, float]) -> list[Tensor]:
    """All matrices after STEPS steps of the optimiser that the settings name, on matrix views."""
    views = matrix_views(adapter, adapter.groups, MasterWeights(adapter.groups))
    ratios = {"unet": config.loraplus_unet_ratio, "text_encoder": config.loraplus_text_encoder_ratio}
    groups, own = split_loraplus_groups(views, rates, ratios)
    stepper = MatrixOptimizer(
        make_optimizer(groups, own, config=config), [piece for name in views for piece in views[name]]
    )
    for step in range(STEPS):
        give_gradients(adapter, step)
        stepper.step(1 - step / STEPS)
    return matrices(adapter)


def theirs(
    start: Sequence[Tensor], make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], rate: float
) -> list[Tensor]:
    """The same by the optimiser itself on separate parameters."""
    parameters = [nn.Parameter(tensor.clone()) for tensor in start]
    optimizer = make(parameters)
    for step in range(STEPS):
        for parameter, gradient in zip(parameters, gradients(step, parameters), strict=True):
            parameter.grad = gradient
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / STEPS)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Equal up to the order of rounding in fused kernels."""
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-8) for a, b in zip(found, expected, strict=True))


BOTH = {"unet": 1e-3, "text_encoder": 1e-3}


@pytest.mark.parametrize("values", [{}, {"optimizer": "Adafactor"}, {"lora_precision": "bf16"}], ids=str)
def test_a_part_with_a_rate_of_zero_gets_no_gradient(values: dict[str, Any]) -> None:
    """Of whatever the optimiser sees, flat, as matrices or as fp32 copies, the layers' own parameters are frozen."""
    training = started(model(), small_config(text_encoder_lr=0.0, **values))
    training.adapter.remove()
    frozen = {name: {p.requires_grad for p in group} for name, group in training.adapter.groups.items()}
    assert frozen == {"unet": {True}, "text_encoder": {False}}


def test_adafactor_factors_every_matrix(adapter: Adapter) -> None:
    start = matrices(adapter)
    config = TrainConfig(optimizer="Adafactor", optimizer_args="weight_decay=0.01")
    expected = theirs(
        start, lambda p: Adafactor(p, lr=1e-3, relative_step=False, scale_parameter=False, weight_decay=0.01), 1e-3
    )
    assert_same(ours(adapter, config, BOTH), expected)


def test_adafactor_with_relative_steps_equals_transformers(adapter: Adapter) -> None:
    start = matrices(adapter)
    config = TrainConfig(optimizer="Adafactor", lr_schedule="adafactor")
    parameters = [nn.Parameter(tensor.clone()) for tensor in start]
    optimizer = Adafactor(parameters, lr=None, relative_step=True, scale_parameter=True)
    for step in range(STEPS):
        for parameter, gradient in zip(parameters, gradients(step, parameters), strict=True):
            parameter.grad = gradient
        optimizer.step()
    assert_same(ours(adapter, config, BOTH), [parameter.detach() for parameter in parameters])


def test_adafactor_reports_its_relative_step_size() -> None:
    """Shazeer & Stern 2018, algorithm 5: min(10⁻², 1/√t)."""
    parameter = nn.Parameter(torch.ones(3, 2))
    config = TrainConfig(optimizer="Adafactor", lr_schedule="adafactor")
    stepper = make_optimizer({"unet": [parameter]}, {"unet": 1.0}, config=config)
    reported = []
    for _ in range(2):
        parameter.grad = torch.ones_like(parameter)
        stepper.step(1.0)
        reported.append(stepper.effective_rates()["unet"])
    assert reported == [1e-2, 1e-2]
    config = config.replace(optimizer_args="warmup_init=True")
    stepper = make_optimizer({"unet": [parameter]}, {"unet": 1.0}, config=config)
    for _ in range(3):
        parameter.grad = torch.ones_like(parameter)
        stepper.step(1.0)
    assert stepper.effective_rates()["unet"] == pytest.approx(3e-6)


def test_adafactor_reports_the_first_steps_size_for_a_part_without_gradients_so_far() -> None:
    config = TrainConfig(optimizer="Adafactor", lr_schedule="adafactor", optimizer_args="warmup_init=True")
    stepper = make_optimizer({"unet": [nn.Parameter(torch.ones(3, 2))]}, {"unet": 1.0}, config=config)
    assert stepper.effective_rates()["unet"] == pytest.approx(1e-6)


@pytest.mark.parametrize("step", [1, 9_999, 10_001, 40_000])
@pytest.mark.parametrize("arguments", ["", "warmup_init=True"])
def test_adafactors_reported_rate_is_the_one_it_uses(step: int, arguments: str) -> None:
    """Late in a run too, where 1/√t is below the limit: against transformers' own function."""
    parameter = nn.Parameter(torch.ones(3, 2))
    config = TrainConfig(optimizer="Adafactor", lr_schedule="adafactor", optimizer_args=arguments)
    stepper: Any = make_optimizer({"unet": [parameter]}, {"unet": 1.0}, config=config)
    parameter.grad = torch.ones_like(parameter)
    stepper.step(1.0)
    inner: Adafactor = stepper._optimizer
    inner.state[parameter]["step"] = step
    theirs = inner._get_lr({**inner.param_groups[0], "scale_parameter": False}, inner.state[parameter])
    assert stepper.effective_rates()["unet"] == pytest.approx(float(theirs), rel=1e-12)


def test_lion_is_the_papers_algorithm() -> None:
    """Chen et al. 2023, algorithm 2, written out in float64."""
    values = torch.linspace(-1, 1, 7)
    parameter = nn.Parameter(values.clone())
    optimizer = Lion([parameter], lr=0.01, betas=(0.8, 0.95), weight_decay=0.1)
    theta, momentum = values.double(), torch.zeros(7, dtype=torch.float64)
    for step in range(STEPS):
        gradient = gradients(step, [values])[0]
        parameter.grad = gradient.clone()
        optimizer.step()
        update = torch.sign(0.8 * momentum + 0.2 * gradient.double())
        theta = theta - 0.01 * (update + 0.1 * theta)
        momentum = 0.95 * momentum + 0.05 * gradient.double()
    assert torch.allclose(parameter.detach().double(), theta, atol=1e-6)  # fp32 rounding of 12 steps


@pytest.mark.parametrize("betas", [(1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, -0.1), (0.9,), (0.9, 0.9, 0.9)])
def test_lion_rejects_betas_outside_their_range(betas: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="two numbers from 0 to below 1"):
        Lion([nn.Parameter(torch.ones(1))], 0.1, betas=betas)  # type: ignore[arg-type]


def test_lions_defaults_are_the_papers_betas_and_no_weight_decay() -> None:
    """Chen et al. 2023, algorithm 2: β₁ = 0.9 and β₂ = 0.99."""
    results = []
    for arguments in ({}, {"betas": (0.9, 0.99), "weight_decay": 0.0}):
        parameter = nn.Parameter(torch.tensor([3.0, -2.0, 0.5, 1.0]))
        optimizer = Lion([parameter], 0.1, **arguments)  # type: ignore[arg-type]
        for gradient in ([1.0, -1.0, 0.1, 8.0], [-0.05, 0.2, 0.3, -0.8], [-0.01, 0.1, -1.0, -0.6]):
            parameter.grad = torch.tensor(gradient)
            optimizer.step()
        momentum = optimizer.state[parameter]["momentum"]
        results.append([*parameter.tolist(), *momentum.tolist()])
    assert results[0] == results[1]


def test_lion_with_betas_of_zero_is_the_sign_of_the_gradient() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = Lion([parameter], lr=0.5, betas=(0.0, 0.0))
    for gradient in ([1.0, -2.0, 0.0], [-3.0, -4.0, 5.0]):
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
    assert parameter.tolist() == [0.0, 1.0, -0.5]


def test_sgd_is_nesterovs(adapter: Adapter) -> None:
    start = matrices(adapter)
    expected = theirs(start, lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, nesterov=True), 1e-3)
    assert_same(ours(adapter, TrainConfig(optimizer="SGDNesterov"), BOTH), expected)


@pytest.mark.parametrize(
    ("kind", "arguments"), [("CAME", {"weight_decay": 0.01}), ("AdamWScheduleFree", {"weight_decay": 0.01})]
)
def test_extra_optimisers_equal_their_packages(kind: str, arguments: dict[str, float], adapter: Adapter) -> None:
    module, _, name = OPTIMIZER_CATALOG[kind].origin.partition(":")
    wanted = getattr(pytest.importorskip(module), name)
    start = matrices(adapter)

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = wanted(parameters, lr=1e-3, **arguments)
        if hasattr(made, "train"):
            made.train()
        return made

    config = TrainConfig(optimizer=kind, optimizer_args="weight_decay=0.01")
    assert_same(ours(adapter, config, BOTH), theirs(start, make, 1e-3))


@pytest.mark.parametrize("kind", [name for name, kind in OPTIMIZER_CATALOG.items() if kind.package == "dadaptation"])
def test_dadaptation_has_one_distance_for_all_groups(kind: str) -> None:
    """Equal rates: the package's own result on all parameters. A quarter: the same in coordinates φ = 4θ."""
    wanted = getattr(pytest.importorskip("dadaptation"), kind)
    for ratio in (1.0, 0.25):
        first, second = nn.Parameter(torch.linspace(-1, 1, 6)), nn.Parameter(torch.linspace(2, 1, 5))
        plain, scaled = nn.Parameter(first.detach().clone()), nn.Parameter(second.detach() / ratio)
        rates = {"unet": 1.0, "text_encoder": ratio}
        config = TrainConfig(optimizer=kind)
        stepper = make_optimizer({"unet": [first], "text_encoder": [second]}, rates, config=config)
        optimizer = wanted([plain, scaled], lr=1.0)
        for _ in range(STEPS):
            (first.square().sum() + second.square().sum()).backward()  # type: ignore[no-untyped-call]
            stepper.step(1.0)
            optimizer.zero_grad()
            (plain.square().sum() + (scaled * ratio).square().sum()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        assert torch.allclose(first, plain, rtol=1e-5) and torch.allclose(second, scaled * ratio, rtol=1e-5)
        reported, group = stepper.effective_rates(), optimizer.param_groups[0]
        assert reported["unet"] == pytest.approx(float(group["d"]) * group["lr"], rel=1e-5)
        assert reported["text_encoder"] == pytest.approx(ratio * reported["unet"])


def test_8_bit_adamw_stays_close_to_adamw() -> None:
    """Quantised moments change a step by a few per cent; the direction is the same (Dettmers et al. 2022)."""
    pytest.importorskip(
        "bitsandbytes", minversion=None if torch.cuda.is_available() else "0.50"
    )  # 0.50: processors too
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ends = []
    for kind in ("AdamW", "AdamW8bit"):
        parameter = nn.Parameter(torch.linspace(-1, 1, 8192, device=device))
        stepper = make_optimizer({"unet": [parameter]}, {"unet": 1e-2}, config=TrainConfig(optimizer=kind))
        for _ in range(50):
            parameter.square().sum().backward()  # type: ignore[no-untyped-call]
            stepper.step(1.0)
        ends.append(parameter.detach())
        state = stepper.state()["optimizer"]["state"][0]
        moments = state.get("__bnb_optimizer_quant_state__", state)  # wrapped since bitsandbytes 0.45
        assert kind == "AdamW" or moments["state1"].dtype == torch.uint8
    assert torch.nn.functional.cosine_similarity(ends[0], ends[1], dim=0) > 0.999


# --- LoRA+ ----------------------------------------------------------------------------------------


def test_loraplus_gives_the_up_matrices_their_own_rate(adapter: Adapter) -> None:
    start = matrices(adapter)
    keys = [(key, name) for key, layer in adapter.layers.items() for name in layer.slices.fp32()]
    is_up = [
        key.startswith("lora_unet") and adapter.layers[key].family.STATE_KEYS[n] == "lora_up.weight" for key, n in keys
    ]
    assert 0 < sum(is_up) < len(is_up)
    found = ours(adapter, TrainConfig(loraplus_unet_ratio=16.0), BOTH)
    slow = theirs(start, lambda p: torch.optim.AdamW(p, lr=1e-3), 1e-3)
    fast = theirs(start, lambda p: torch.optim.AdamW(p, lr=16e-3), 16e-3)
    assert_same(found, [quick if up else plain for up, quick, plain in zip(is_up, fast, slow, strict=True)])


def test_matrix_views_cover_every_weight_once(adapter: Adapter) -> None:
    for name, views in matrix_views(adapter, adapter.groups, MasterWeights(adapter.groups)).items():
        (flat,) = adapter.groups[name]
        covered = sorted((piece.start, piece.parameter.numel()) for piece in views)
        ends = [0, *(start + size for start, size in covered)]
        assert [start for start, _ in covered] == ends[:-1] and ends[-1] == flat.numel()
        assert all(piece.parameter.data_ptr() == flat[piece.start :].data_ptr() for piece in views)


# --- any class -------------------------------------------------------------------------------------


def custom(name: str, **values: Any) -> TrainConfig:
    return TrainConfig(optimizer="Custom", custom_optimizer=name, **values)


def test_any_optimizer_class_can_be_used(adapter: Adapter) -> None:
    start = matrices(adapter)
    found = ours(adapter, custom("torch.optim.RAdam", optimizer_args="betas=0.8,0.9"), BOTH)
    assert_same(found, theirs(start, lambda p: torch.optim.RAdam(p, lr=1e-3, betas=(0.8, 0.9)), 1e-3))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("subprocess.Popen", "not a subclass of torch.optim.Optimizer"),
        ("os.system", "not a subclass of torch.optim.Optimizer"),
        ("nowhere.Class", "was not found"),
        ("torch.optim.Nothing", "was not found"),
        ("AdamW", "not have the form"),
        ("__import__('os').system", "not have the form"),
    ],
)
def test_only_subclasses_of_torch_optimizer_are_created(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make_optimizer({"unet": [nn.Parameter(torch.ones(2))]}, {"unet": 1.0}, config=custom(name))


@pytest.mark.parametrize("kind", [name for name, kind in OPTIMIZER_CATALOG.items() if kind.package])
def test_a_missing_package_says_what_to_install(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, OPTIMIZER_CATALOG[kind].origin.partition(":")[0].partition(".")[0], None)
    monkeypatch.setitem(sys.modules, OPTIMIZER_CATALOG[kind].origin.partition(":")[0], None)
    with pytest.raises(ConfigError, match=f"pip install {OPTIMIZER_CATALOG[kind].package}"):
        parameters = {"unet": [nn.Parameter(torch.ones(2))]}
        make_optimizer(parameters, {"unet": 1.0}, config=TrainConfig(optimizer=kind))


def test_the_known_arguments_are_those_of_the_class() -> None:
    """Arguments that validation allows are those of the class; only for installed packages."""
    import inspect

    for kind in OPTIMIZER_CATALOG.values():
        module, _, name = kind.origin.partition(":")
        if not module or importlib.util.find_spec(module.partition(".")[0]) is None:
            continue
        takes = set(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
        assert set(kind.arguments) <= takes, name


# --- weights for use ---------------------------------------------------------------------------------


def test_ema_is_the_weighted_sum_of_all_steps() -> None:
    """mean_T = Σ w_t θ_t with w_t = (1−d_t) Π_{s>t} d_s, in float64; d_t = min(0.9, (1+t)/(10+t))."""
    parameter = nn.Parameter(torch.zeros(3))
    average = Ema([parameter], 0.9)
    seen = [torch.zeros(3, dtype=torch.float64)]
    for step in range(1, 40):
        with torch.no_grad():
            parameter.copy_(torch.randn(3, generator=torch.Generator().manual_seed(step)))
        seen.append(parameter.detach().double())
        average.update(step)
    decays = [1.0, *(min(0.9, (1 + t) / (10 + t)) for t in range(1, 40))]
    expected = torch.zeros(3, dtype=torch.float64)
    for t, value in enumerate(seen):
        weight = 1.0 if t == 0 else 1 - decays[t]
        for later in decays[t + 1 :]:
            weight *= later
        expected += weight * value
    assert torch.allclose(average.means[0].double(), expected, atol=1e-6)  # fp32 rounding


def test_the_trained_weights_are_restored_bit_for_bit() -> None:
    parameter = nn.Parameter(torch.linspace(0, 1, 5))
    stepper = make_optimizer({"unet": [parameter]}, {"unet": 1e-2}, config=TrainConfig())
    average = Ema([parameter], 0.5)
    with torch.no_grad():
        parameter.mul_(1.1)
    before = parameter.detach().clone()
    with eval_weights(MasterWeights({"unet": [parameter]}), stepper, average):
        assert torch.equal(parameter, average.means[0]) and not torch.equal(parameter, before)
    assert torch.equal(parameter, before)


class SwitchingSgd(torch.optim.SGD):
    """An optimiser with two sets of weights, as schedule-free ones are; it only notes which set is in use."""

    mode = ""

    def train(self) -> None:
        self.mode = "train"

    def eval(self) -> None:
        self.mode = "eval"


def test_an_optimiser_with_eval_weights_has_them_only_inside_and_trains_again_after_an_error() -> None:
    parameter = nn.Parameter(torch.ones(2))
    inner = SwitchingSgd([{"params": [parameter], "lr": 1.0}], lr=1.0)
    stepper = PlainOptimizer({"unet": [parameter]}, {"unet": 1.0}, lambda _: inner)
    assert inner.mode == "train"
    with pytest.raises(KeyError), eval_weights(MasterWeights({"unet": [parameter]}), stepper, None):
        assert inner.mode == "eval"
        raise KeyError
    assert inner.mode == "train"


def test_schedule_free_eval_weights_are_its_average() -> None:
    schedulefree = pytest.importorskip("schedulefree")
    parameter, other = (nn.Parameter(torch.linspace(-1, 1, 6)) for _ in range(2))
    config = TrainConfig(optimizer="AdamWScheduleFree")
    stepper = make_optimizer({"unet": [parameter]}, {"unet": 1e-2}, config=config)
    optimizer = schedulefree.AdamWScheduleFree([other], lr=1e-2)
    optimizer.train()
    for _ in range(STEPS):
        for one in (parameter, other):
            one.grad = None
            one.square().sum().backward()  # type: ignore[no-untyped-call]
        with eval_weights(MasterWeights({"unet": [parameter]}), stepper, None):  # must not change what comes after
            pass
        stepper.step(1.0)
        optimizer.step()
    assert torch.equal(parameter, other)
    optimizer.eval()
    with eval_weights(MasterWeights({"unet": [parameter]}), stepper, None):
        assert torch.equal(parameter, other)


# --- in a run ---------------------------------------------------------------------------------------


@pytest.fixture
def run() -> Iterator[Callable[..., Training]]:
    """Starts runs whose adapters are removed after the test."""
    live: list[Training] = []

    def start(**values: Any) -> Training:
        live.append(started(model(), small_config(**values)))
        return live[-1]

    yield start
    for training in live:
        training.adapter.remove()


def test_the_text_encoder_stops_and_the_unet_goes_on(run: Callable[..., Training]) -> None:
    training = run(epochs=2, stop_text_encoder=0.5, lr_schedule="constant")
    seen: list[tuple[Tensor, Tensor]] = []
    reported = []
    from lib_lora_train.core.control import Control
    from lib_lora_train.training.loop import train
    from tests.stand_ins.training_parts import OneModelHost

    for event in train(training, host=OneModelHost(model(), wanted=True), control=Control()):
        if isinstance(event, StepDone):
            reported.append(event.learning_rates)
            flats = training.adapter.groups["text_encoder"][0], training.adapter.groups["unet"][0]
            seen.append((flats[0].detach().clone(), flats[1].detach().clone()))
    texts, unets = zip(*seen, strict=True)
    assert not torch.equal(texts[2], texts[3]) and all(torch.equal(texts[3], text) for text in texts[4:])
    assert all(not torch.equal(unets[n], unets[n + 1]) for n in range(7))
    assert [rates["text_encoder"] > 0 for rates in reported] == [True] * 4 + [False] * 4
    assert all(rates["unet"] == 1e-3 for rates in reported)


def test_a_run_with_ema_saves_the_average(run: Callable[..., Training]) -> None:
    training = run(epochs=1, ema_decay=0.9)
    run_to_end(training, model())
    assert training.ema is not None
    trained = training.adapter.state()
    with training.eval_weights():
        saved = training.adapter.state()
    assert any(not torch.equal(trained[key], saved[key]) for key in trained)
    flat = torch.cat([mean.flatten() for mean in training.ema.means])
    assert float(flat.square().sum()) == pytest.approx(
        sum(float(t.square().sum()) for key, t in saved.items() if not key.endswith("alpha")), rel=1e-5
    )
