"""Compares the effect of a file in LyCORIS and here: the largest relative differences, family by family.

    pip install lycoris-lora
    python benchmarks/lycoris_agreement.py

For each family and kind of layer a LyCORIS module gets random weights, which our layer loads from a file. Compared are
the layer's output in training, our ΔW with the one that LyCORIS merges into the model, and whether we save the same
tensors as LyCORIS. ‖a − b‖ / ‖b‖ in fp32, the largest over the layers: 1e-6 is rounding. Prints the table of
docs/methods.md.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from lib_lora_train.adapters.adapted_layer import AdaptedLayer, AdapterSwitch
from lib_lora_train.adapters.families.base import base_weight
from lib_lora_train.adapters.files.decode import parse_file, reshape_for_layer
from lib_lora_train.adapters.files.lora_file import AdapterFile, read_adapter, write_adapter
from lib_lora_train.adapters.flat_parameters import FlatBuffer, Slices

NAME = "lora_unet_mid_block_attentions_0_proj_in"
RANK, ALPHA = 4, 3.0
LAYERS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Linear": (lambda: nn.Linear(24, 48), (5, 24)),
    "1×1": (lambda: nn.Conv2d(24, 48, 1), (2, 24, 5, 5)),
    "3×3": (lambda: nn.Conv2d(24, 48, 3, padding=1), (2, 24, 5, 5)),
}


@dataclass(frozen=True)
class Case:
    """A LyCORIS module's class name and arguments, and the layers it is compared on."""

    module: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[str, ...] = tuple(LAYERS)


CASES: Mapping[str, Case] = {
    "LoCon": Case("LoConModule"),
    "LoCon, Tucker": Case("LoConModule", {"use_tucker": True}, ("3×3",)),
    "LoHa": Case("LohaModule"),
    "LoHa, Tucker": Case("LohaModule", {"use_tucker": True}, ("3×3",)),
    "LoKr, factor 2": Case("LokrModule", {"factor": 2}),
    "LoKr, both split": Case("LokrModule", {"factor": 12, "decompose_both": True}),
    "LoKr, full matrix": Case("LokrModule", {"factor": 4, "full_matrix": True}),
    "LoKr, Tucker": Case("LokrModule", {"factor": 1, "use_tucker": True}, ("3×3",)),
    "DyLoRA": Case("DyLoraModule", {"block_size": 2}, ("Linear",)),  # LyCORIS cannot read its own convolutions back
    "GLoRA": Case("GLoRAModule", {}, ("Linear",)),
    "(IA)³": Case("IA3Module", {}, ("Linear",)),
    "(IA)³, on inputs": Case("IA3Module", {"train_on_input": True}, ("Linear",)),
    "Diag-OFT": Case("DiagOFTModule"),
    "Diag-OFT, bounded, rescaled": Case("DiagOFTModule", {"constraint": 0.01, "rescaled": True}),
    "BOFT": Case("ButterflyOFTModule", {"lora_dim": 6}),  # the outputs must be a block times a power of two
    "BOFT, bounded, rescaled": Case("ButterflyOFTModule", {"lora_dim": 6, "constraint": 0.01, "rescaled": True}),
    "DoRA (LoCon), inputs": Case("LoConModule", {"weight_decompose": True, "wd_on_out": False}),
    "DoRA (LoHa), inputs": Case("LohaModule", {"weight_decompose": True, "wd_on_out": False}),
    "DoRA (LoKr), inputs": Case("LokrModule", {"factor": 2, "weight_decompose": True, "wd_on_out": False}),
    "DoRA (LoCon), outputs": Case("LoConModule", {"weight_decompose": True}),
    "Native": Case("FullModule"),
}


@dataclass
class Found:
    """The largest relative differences so far, and whether we save the same tensors as LyCORIS."""

    output: float = 0.0
    merge: float | None = None
    is_same_file: bool = True


def compare(case: Case, kind: str, found: Found) -> None:
    """Update `found` with the comparison on one kind of layer."""
    torch.manual_seed(3)
    build, shape = LAYERS[kind]
    base, x = build().requires_grad_(False), torch.randn(shape)
    module = random_module(case, copy.deepcopy(base))
    merged = None if case.module in ("DyLoraModule", "FullModule") else merged_by_lycoris(module, base)
    state = {key: tensor.detach().clone() for key, tensor in saved_by_lycoris(module).items()}
    if case.module == "DyLoraModule":  # its forward draws a rank: read back as LyCORIS does it, as a LoCon
        module = read_by_lycoris(state, copy.deepcopy(base))
    expected = output_of(module, x)
    layer = read_by_us(state, base)
    found.output = max(found.output, relative(layer(x), expected))
    if merged is not None:
        found.merge = max(found.merge or 0.0, relative(layer.diff_weight(), merged - base_weight(base)))
    found.is_same_file &= is_same(layer.state(), state)


def is_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    """Whether both hold the same keys, shapes and values; the dtype of scalars may differ."""
    kept = {key: tensor for key, tensor in theirs.items() if key != "scalar"}
    if ours.keys() != kept.keys() or any(ours[key].shape != kept[key].shape for key in ours):
        return False
    return all(torch.equal(ours[key].float(), kept[key].float()) for key in ours)


def random_module(case: Case, base: nn.Module) -> Any:
    """A LyCORIS module with random weights; factors are near their initial values."""
    import lycoris.modules as lycoris

    module = getattr(lycoris, case.module)(NAME, base, 1.0, **{"lora_dim": RANK, "alpha": ALPHA, **case.arguments})
    with torch.no_grad():
        for name, parameter in [*module.named_parameters(), ("dora_scale", getattr(module, "dora_scale", None))]:
            if parameter is None:
                continue
            if name in ("dora_scale", "rescale"):
                parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
            else:
                parameter.normal_(0, 0.3)
    return module


def saved_by_lycoris(module: Any) -> dict[str, Tensor]:
    """The module's tensors as in the file; native fine-tuning is a difference only until it is applied."""
    if type(module).__name__ == "FullModule":
        return {"diff": module.weight, "diff_b": module.bias}
    return dict(module.state_dict())


def merged_by_lycoris(module: Any, base: nn.Module) -> Tensor:
    """W + ΔW as LyCORIS merges it into the model."""
    merged: Tensor = module.get_merged_weight(shape=base_weight(base).shape)[0]
    return merged.detach()


def output_of(module: Any, x: Tensor) -> Tensor:
    """The layer's output in LyCORIS' training, without dropout."""
    module.apply_to()
    module.eval()
    output: Tensor = module.org_module[0](x)
    return output.detach()


def read_by_lycoris(state: Mapping[str, Tensor], base: nn.Module) -> Any:
    """The module that LyCORIS loads from a file's tensors."""
    import lycoris.modules as lycoris

    kept = through_file(state).state
    kind, parts = lycoris.get_module(kept, NAME)
    return lycoris.make_module(kind, parts, NAME, base)


def read_by_us(state: Mapping[str, Tensor], base: nn.Module) -> AdaptedLayer:
    """The layer that we load from a file's tensors."""
    (layer,) = parse_file(through_file(state)).layers.values()
    weights = reshape_for_layer(layer.weights, base_weight(base))
    assert weights is not None
    buffer = FlatBuffer(list(weights.values()), torch.device("cpu"))
    slices = Slices(buffer, {name: position for position, name in enumerate(weights)})
    return AdaptedLayer(base, layer.family, slices, options=layer.options, switch=AdapterSwitch(), key=NAME)


def through_file(state: Mapping[str, Tensor]) -> AdapterFile:
    """The tensors after writing and reading a file in fp32."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        write_adapter(path, {f"{NAME}.{key}": t for key, t in state.items()}, metadata={}, precision="fp32")
        return read_adapter(path)


def relative(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / ‖b‖."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


def main() -> None:
    from importlib.metadata import version

    print(f"LyCORIS {version('lycoris-lora')}, rank {RANK}, alpha {ALPHA:g}, fp32\n")
    print("| family | layers | output | merged ΔW | same file |\n| --- | --- | ---: | ---: | --- |")
    for name, case in CASES.items():
        found = Found()
        for kind in case.layers:
            compare(case, kind, found)
        merge = "–" if found.merge is None else f"{found.merge:.0e}"
        same = "yes" if found.is_same_file else "no"
        print(f"| {name} | {', '.join(case.layers)} | {found.output:.0e} | {merge} | {same} |")


if __name__ == "__main__":
    main()
