"""Every adapter family in every form, on every kind of layer, for the contract tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from lib_lora_train.adapters.adapted_layer import AdaptedLayer, AdapterSwitch
from lib_lora_train.adapters.families.base import Family
from lib_lora_train.adapters.families.options import PLAIN, Options
from lib_lora_train.adapters.flat_parameters import FlatBuffer, Slices
from lib_lora_train.adapters.registry import FAMILIES, NORM, AdapterSpec, family_of
from tests.stand_ins.half_precision import FP16

RANK, ALPHA = 4, 3.0


@dataclass(frozen=True)
class Case:
    """A family with some of its settings."""

    family: str
    options: Options = PLAIN
    is_dora: bool = False
    has_scalar: bool = False

    @property
    def mathematics(self) -> Family:
        return NORM if self.family == "norm" else family_of(self._spec)

    @property
    def _spec(self) -> AdapterSpec:
        return AdapterSpec(family=self.family, is_dora=self.is_dora, has_scalar=self.has_scalar)

    def options_on(self, layer: nn.Module) -> Options:
        options = replace(self.options, rank=RANK, alpha=ALPHA)
        return self.mathematics.adjust_options(layer, options)


CASES: dict[str, Case] = {
    **{family: Case(family) for family in FAMILIES},
    # Families that need other options here, and all further forms.
    "lora_tucker": Case("lora", Options(use_tucker=True)),
    "lora_dora": Case("lora", is_dora=True),
    "loha_tucker": Case("loha", Options(use_tucker=True)),
    "loha_dora": Case("loha", is_dora=True),
    "lokr": Case("lokr", Options(factor=2)),
    "lokr_square": Case("lokr"),
    "lokr_both": Case("lokr", Options(factor=12, decompose_both=True)),
    "lokr_whole": Case("lokr", Options(factor=4, full_matrix=True)),
    "lokr_tucker": Case("lokr", Options(factor=1, use_tucker=True)),
    "lokr_dora": Case("lokr", Options(factor=2), is_dora=True),
    "ia3_input": Case("ia3", Options(on_input=True)),
    "oft_bounded_rescaled": Case("oft", Options(constraint=0.01, rescaled=True)),
    "boft_bounded_rescaled": Case("boft", Options(constraint=0.01, rescaled=True)),
    "norm": Case("norm"),
    "lora_scalar": Case("lora", has_scalar=True),
    "lora_tucker_scalar": Case("lora", Options(use_tucker=True), has_scalar=True),
    "lora_dora_scalar": Case("lora", is_dora=True, has_scalar=True),
    "loha_scalar": Case("loha", has_scalar=True),
    "lokr_scalar": Case("lokr", Options(factor=2), has_scalar=True),
    "lokr_whole_scalar": Case("lokr", Options(factor=4, full_matrix=True), has_scalar=True),
    "glora_scalar": Case("glora", has_scalar=True),
}


def _one_head_group() -> nn.Module:
    """A projection whose weight is the middle third of a packed q, k, v matrix, as in OpenCLIP."""
    packed = torch.randn(3 * 24, 24) * 0.2
    layer = nn.Linear(24, 24)
    layer.weight = nn.Parameter(packed.chunk(3)[1])
    return layer


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(24, 40), (2, 7, 24)),
    "linear_no_bias": (lambda: nn.Linear(24, 40, bias=False), (2, 7, 24)),
    "linear_rows": (lambda: nn.Linear(24, 40), (5, 24)),
    "packed_heads": (_one_head_group, (2, 7, 24)),
    "conv1x1": (lambda: nn.Conv2d(24, 16, 1), (2, 24, 6, 5)),
    "conv3x3": (lambda: nn.Conv2d(24, 16, 3, padding=1), (2, 24, 6, 5)),
    "conv3x3_strided": (lambda: nn.Conv2d(24, 16, 3, stride=2, padding=1), (2, 24, 7, 6)),
    "conv3x3_valid_no_bias": (lambda: nn.Conv2d(24, 16, 3, stride=2, bias=False), (2, 24, 7, 6)),
    "group_norm": (lambda: nn.GroupNorm(4, 24), (2, 24, 6, 5)),
    "layer_norm": (lambda: nn.LayerNorm(24), (2, 7, 24)),
}
DTYPES = [pytest.param(torch.float32, id="fp32"), pytest.param(torch.bfloat16, id="bf16"), FP16]
# Machine epsilons of the formats times a few roundings of sums of about 200 terms.
TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}

PAIRS = [(case, kind) for case in CASES for kind, (build, _) in LAYERS.items() if CASES[case].mathematics.fits(build())]

every_pair = pytest.mark.parametrize(("case", "kind"), PAIRS, ids=[f"{case}-{kind}" for case, kind in PAIRS])
every_layer = pytest.mark.parametrize("kind", [kind for kind in LAYERS if "norm" not in kind])
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def make(
    case: str, kind: str, dtype: torch.dtype = torch.float32, *, trained: bool = True
) -> tuple[AdaptedLayer, Tensor]:
    """An adapted layer (with a non-zero update if `trained`) and an input for it, always the same ones."""
    torch.manual_seed(7)
    build, shape = LAYERS[kind]
    base = build().to(dtype).requires_grad_(False)
    family, options = CASES[case].mathematics, CASES[case].options_on(base)
    weights = family.init_weights(base, options, torch.Generator().manual_seed(1))
    if trained:
        weights = {name: _trained(name, tensor) for name, tensor in weights.items()}
    buffer = FlatBuffer(list(weights.values()), torch.device("cpu"))
    slices = Slices(buffer, {name: position for position, name in enumerate(weights)})
    layer = AdaptedLayer(base, family, slices, options=options, switch=AdapterSwitch(), key=kind)
    return layer, torch.randn(shape).to(dtype)


def _trained(name: str, fresh: Tensor) -> Tensor:
    """Factors of weights stay near where they begin, as in training; all other numbers are random."""
    if name == "scalar":
        return fresh + 0.7
    if name in ("magnitude", "rescale"):
        return fresh * (1 + torch.randn(fresh.shape) * 0.1)
    return torch.randn(fresh.shape) * 0.3


def relative(a: Tensor, b: Tensor) -> float:
    """Difference in units of the reference's norm."""
    return float((a.detach().double() - b.detach().double()).norm() / b.detach().double().norm())
