"""LyCORIS' modules and ours have the same outputs, and each reads the other's files.

Runs where lycoris-lora is installed (`pip install --no-deps lycoris-lora einops toml`); it is no dependency.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_lora_train.adapters.adapted_layer import AdaptedLayer, AdapterSwitch
from lib_lora_train.adapters.files.decode import parse_file, reshape_for_layer
from lib_lora_train.adapters.files.lora_file import AdapterFile
from lib_lora_train.adapters.flat_parameters import FlatBuffer, Slices
from tests.stand_ins.adapter_cases import CASES, LAYERS, RANK, make, relative

lycoris: Any = pytest.importorskip("lycoris.modules")

NAME = "lora_unet_mid_block_attentions_0_proj_in"
KINDS = ("linear", "packed_heads", "conv1x1", "conv3x3", "conv3x3_strided")
DORA = {"weight_decompose": True, "wd_on_out": False}
OUTPUT_DORA = {"weight_decompose": True, "wd_on_out": True}  # LyCORIS' default
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LoConModule", {}),
    "lora_tucker": ("LoConModule", {"use_tucker": True}),
    "lora_dora": ("LoConModule", DORA),
    "lora_dora_output": ("LoConModule", OUTPUT_DORA),
    "lora_rs": ("LoConModule", {"rs_lora": True}),
    "lora_scalar": ("LoConModule", {"use_scalar": True}),
    "loha": ("LohaModule", {}),
    "loha_tucker": ("LohaModule", {"use_tucker": True}),
    "loha_dora": ("LohaModule", DORA),
    "loha_dora_output": ("LohaModule", OUTPUT_DORA),
    "loha_rs": ("LohaModule", {"rs_lora": True}),
    "loha_scalar": ("LohaModule", {"use_scalar": True}),
    "lokr": ("LokrModule", {"factor": 2}),
    "lokr_both": ("LokrModule", {"factor": 12, "decompose_both": True}),
    "lokr_whole": ("LokrModule", {"factor": 4, "full_matrix": True}),
    "lokr_tucker": ("LokrModule", {"factor": 1, "use_tucker": True}),
    "lokr_dora": ("LokrModule", {"factor": 2, **DORA}),
    "lokr_dora_output": ("LokrModule", {"factor": 2, **OUTPUT_DORA}),
    "lokr_rs": ("LokrModule", {"factor": 2, "rs_lora": True}),
    "lokr_scalar": ("LokrModule", {"factor": 2, "use_scalar": True}),
    "glora": ("GLoRAModule", {}),
    "glora_scalar": ("GLoRAModule", {"use_scalar": True}),
    "ia3": ("IA3Module", {}),
    "ia3_input": ("IA3Module", {"train_on_input": True}),
    "oft": ("DiagOFTModule", {}),
    "oft_bounded_rescaled": ("DiagOFTModule", {"constraint": 0.01, "rescaled": True}),
    "boft": ("ButterflyOFTModule", {}),
    "boft_bounded_rescaled": ("ButterflyOFTModule", {"constraint": 0.01, "rescaled": True}),
    "full": ("FullModule", {}),
}
LINEAR_ONLY = ("glora", "glora_scalar", "ia3", "ia3_input")


def _has(case: str, kind: str) -> bool:
    """LyCORIS has no butterfly for 40 or 24 outputs."""
    return "conv" in kind if case.startswith("boft") else True


PAIRS = [(case, kind) for case in THEIRS for kind in KINDS if _has(case, kind)]
every_pair = pytest.mark.parametrize(("case", "kind"), PAIRS, ids=[f"{case}-{kind}" for case, kind in PAIRS])


def their_layer(case: str, base: nn.Module) -> Any:
    """LyCORIS' module around a copy of `base`, with random weights."""
    kind, settings = THEIRS[case]
    module = getattr(lycoris, kind)(NAME, copy.deepcopy(base), 1.0, RANK, 3.0, **settings)
    if case == "full":
        module.apply_to()  # its file is the difference to what was applied to
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name in ("dora_scale", "rescale"):
                parameter.mul_(1 + 0.1 * noise)
            else:
                parameter.add_(0.3 * noise)
    return module.eval()


def opened_on(base: nn.Module, state: dict[str, Tensor]) -> AdaptedLayer:
    """Our layer with a file's weights."""
    opened = parse_file(AdapterFile(Path("a.safetensors"), state, {}))
    assert opened.unknown == ()
    layer = opened.layers[NAME]
    weights = reshape_for_layer(layer.weights, base.weight)  # type: ignore[arg-type]
    assert weights is not None
    slices = Slices(FlatBuffer(list(weights.values()), torch.device("cpu")), {n: i for i, n in enumerate(weights)})
    return AdaptedLayer(base, layer.family, slices, options=layer.options, switch=AdapterSwitch())


@every_pair
def test_a_lycoris_file_has_the_same_output_here(case: str, kind: str) -> None:
    torch.manual_seed(0)
    build, shape = LAYERS[kind]
    base, x = build().requires_grad_(False), torch.randn(shape)
    theirs = their_layer(case, base)
    expected = theirs(x).detach()
    state = {f"{NAME}.{ending}": tensor.detach() for ending, tensor in theirs.state_dict().items()}
    ours = opened_on(base, state)
    assert relative(expected, base(x)) > 1e-2, "the update must be large enough to be seen"
    # fp32 sums in another order, through a matrix inverse in OFT and BOFT.
    assert relative(ours(x), expected) < 1e-5


BACK = [
    (case, kind)
    for case, kind in PAIRS
    if case in CASES and CASES[case].family not in ("glora", "boft") and ("conv" not in kind or case not in LINEAR_ONLY)
]


@pytest.mark.parametrize(("case", "kind"), BACK, ids=[f"{case}-{kind}" for case, kind in BACK])
def test_our_file_has_the_same_output_in_lycoris(case: str, kind: str) -> None:
    """Not GLoRA: ours has the layout that A1111 reads. Not BOFT: our stages fit where LyCORIS has none."""
    ours, x = make(case, kind)
    name, settings = THEIRS[case]
    base = copy.deepcopy(ours.base_layer)
    theirs = getattr(lycoris, name)(NAME, base, 1.0, RANK, 3.0, **settings)
    state = ours.state()
    if case == "full":
        theirs.apply_to()
        theirs.load_state_dict(state)
    else:
        missing, unexpected = theirs.load_state_dict(state, strict=False)
        assert not unexpected and set(missing) <= {"scalar", "on_input"}
    # The same sums in another order.
    assert relative(theirs.eval()(x), ours(x)) < 1e-5


@pytest.mark.parametrize(("case", "kind"), BACK, ids=[f"{case}-{kind}" for case, kind in BACK])
def test_files_have_lycoris_keys_and_shapes(case: str, kind: str) -> None:
    ours, _ = make(case, kind)
    theirs = their_layer(case, ours.base_layer).state_dict()
    expected = {ending: tensor.shape for ending, tensor in theirs.items()}
    found = ours.state_shapes()
    assert {k: s.numel() for k, s in found.items()} == {k: s.numel() for k, s in expected.items()}
    assert found == expected
