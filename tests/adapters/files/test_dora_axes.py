"""DoRA's magnitude is read on the axis on which its program trained it: here, in `check`, in training and in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor

from lib_lora_train.adapters.create import create_adapter
from lib_lora_train.adapters.files.decode import parse_state
from lib_lora_train.adapters.files.lora_file import AdapterFile, read_adapter, write_adapter
from lib_lora_train.adapters.inject import inject_parsed
from lib_lora_train.adapters.readable import form_of_layer
from lib_lora_train.adapters.registry import AdapterSpec
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.lora_tools.check import check, check_file
from lib_lora_train.lora_tools.convert import convert
from lib_lora_train.lora_tools.merge import add_to_layers, merge
from lib_lora_train.lora_tools.rank_rule import RankRule
from lib_lora_train.lora_tools.resize import resize
from lib_lora_train.runs.checks.form_check import trained_forms
from tests.stand_ins.adapters_model import TinyModel, tiny_model, trained

TARGETS = ["to_q", "to_k", "ff.net.2", "proj_in", "conv1", "conv2", "conv_shortcut", "conv_out"]
"""Linear layers, 1×1 and 3×3 convolutions; of each, square ones and others."""


def as_trained(base: Tensor, diff: Tensor, magnitude: Tensor) -> Tensor:
    """ΔW in float64 by DoRA's definition on the output axis: row n of W + ΔW gets the length magnitude[n]."""
    rows = (base.double() + diff.double()).flatten(1)
    lengthened = torch.stack(
        [row / row.square().sum().sqrt() * size for row, size in zip(rows, magnitude.flatten().double(), strict=True)]
    )
    return lengthened.reshape(base.shape) - base.double()


def output_dora(inner: str = "lora") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A file as LyCORIS writes it by default, with random weights, and the ΔW of each layer, float64."""
    model = tiny_model()
    adapter = trained(model, AdapterSpec(inner, 2, 1.0, targets="all"))
    state, expected = adapter.state(), {}
    generator = torch.Generator().manual_seed(7)
    for key, layer in adapter.layers.items():
        base = layer.base_layer.weight.detach()
        lengths = torch.rand(len(base), generator=generator) + 0.5
        state[f"{key}.dora_scale"] = lengths.reshape(-1, *[1] * (base.dim() - 1))
        expected[key] = as_trained(base, layer.diff_weight(), lengths)
    adapter.remove()
    return state, expected


def file_of(state: dict[str, Tensor]) -> AdapterFile:
    return AdapterFile(Path("a.safetensors"), state, {})


def assert_converted(file: AdapterFile, model: TinyModel, expected: dict[str, Tensor]) -> None:
    converted = convert(file, model, to="diff")
    assert converted.left_out == () and set(converted.state) == {f"{key}.diff" for key in expected}
    assert converted.error < 1e-6, "the loss is measured against what the program trained"
    for key, diff in expected.items():
        # fp32 against float64, numbers about 1 lengthened by up to 3.
        torch.testing.assert_close(converted.state[f"{key}.diff"].double(), diff, rtol=1e-5, atol=1e-5)


# --- what other programs write ------------------------------------------------------------------


def saved_by_diffusers(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """A DoRA of the tiny UNet that diffusers saved, and the ΔW that PEFT merges, float64."""
    model = tiny_model()
    model.unet.add_adapter(
        LoraConfig(r=2, lora_alpha=5, target_modules=TARGETS, use_dora=True, init_lora_weights=False)
    )
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.unet.named_parameters():
            if "lora_magnitude_vector" in name:
                parameter.mul_(1 + 0.2 * torch.rand(parameter.shape, generator=generator))
    layers = get_peft_model_state_dict(model.unet)
    model.unet.eval()
    StableDiffusionPipeline.save_lora_weights(
        str(folder), unet_lora_layers=layers, unet_lora_adapter_metadata={"lora_alpha": 5, "r": 2}
    )
    model.unet.fuse_lora()
    before, expected = tiny_model().unet.state_dict(), {}
    for name, tensor in model.unet.state_dict().items():
        plain = name.replace(".base_layer", "")
        if name != plain and name.endswith("weight"):
            key = f"lora_unet_{plain.removesuffix('.weight')}".replace(".", "_")
            expected[key] = tensor.double() - before[plain].double()
    return folder / "pytorch_lora_weights.safetensors", expected


def test_a_dora_of_diffusers_has_the_effect_that_peft_merges(tmp_path: Path) -> None:
    """The magnitude of a convolution has the shape (1, out, 1, 1), as if it were per input."""
    path, expected = saved_by_diffusers(tmp_path)
    shapes = {t.shape for key, t in load_file(path).items() if "magnitude" in key}
    assert any(len(shape) == 4 and shape[0] == 1 for shape in shapes), "the file is of the kind that is meant"
    assert_converted(read_adapter(path), tiny_model(), expected)
    found = check_file(path)
    assert set(found.families) == {"lora + dora per output"} and len(found.output_dora) == len(expected)
    assert trained_forms(TrainConfig(continue_from=str(path))) == ("dora_output",)


def with_magnitudes(state: dict[str, Tensor], name: str, *, is_flat: bool) -> dict[str, Tensor]:
    """The same file with other names for the magnitudes, as vectors or, for convolutions, as PEFT shapes them."""
    found = {}
    for key, tensor in state.items():
        if key.endswith(".dora_scale"):
            shape = (1, -1, 1, 1) if tensor.dim() == 4 and not is_flat else (-1,)
            found[f"{key.removesuffix('dora_scale')}{name}"] = tensor.reshape(shape)
        else:
            found[key] = tensor
    return found


@pytest.mark.parametrize(
    ("name", "is_flat"),
    [("dora_scale", True), ("magnitude", True), ("lora_magnitude_vector", False), ("dora_scale", False)],
    ids=["LyCORIS' name, a vector", "ai-toolkit", "PEFT", "PEFT's under LyCORIS' name"],
)
def test_the_axis_is_that_of_the_name_whatever_the_shape(name: str, is_flat: bool) -> None:
    state, expected = output_dora()
    renamed = with_magnitudes(state, name, is_flat=is_flat)
    assert_converted(file_of(renamed), tiny_model(), expected)
    assert set(check(file_of(renamed)).families) == {"lora + dora per output"}


@pytest.mark.parametrize("inner", ["lora", "loha", "lokr"])
def test_output_dora_converts_to_its_trained_update(inner: str) -> None:
    state, expected = output_dora(inner)
    assert_converted(file_of(state), tiny_model(), expected)


def test_input_dora_stays_input_dora() -> None:
    model = tiny_model()
    adapter = trained(model, AdapterSpec(rank=2, alpha=1.0, targets="all", is_dora=True))
    state = adapter.state()
    adapter.remove()
    assert set(check(file_of(state)).families) == {"lora + dora"} and not check(file_of(state)).output_dora


# --- what is done with it here ------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["lora", "loha", "lokr"])
def test_a_run_continues_output_dora_as_it_was_trained(inner: str, tmp_path: Path) -> None:
    state, expected = output_dora(inner)
    path = tmp_path / "a.safetensors"
    write_adapter(path, state, metadata={}, precision="fp32")
    merged = tiny_model()
    for key, diff in expected.items():
        weight = layer_of(merged, key).weight
        weight.data.add_(diff.float())
    model = tiny_model()
    adapter = create_adapter(model, TrainConfig(continue_from=str(path)))
    assert adapter.left_out == () and set(adapter.layers) == set(expected)
    # fp32 sums in another order through some forty layers.
    torch.testing.assert_close(model.predict(), merged.predict(), rtol=1e-4, atol=1e-4)
    model.predict().square().sum().backward()
    gradient = adapter.groups["unet"][0].grad
    assert gradient is not None and bool(gradient.abs().max() > 0)
    again = adapter.state()
    assert {key: t.shape for key, t in again.items()} == {key: t.shape for key, t in state.items()}
    assert all(torch.equal(tensor, state[key]) for key, tensor in again.items())
    assert {form_of_layer(layer) for layer in adapter.layers.values()} == set(
        trained_forms(TrainConfig(continue_from=str(path)))
    )


def layer_of(model: TinyModel, key: str) -> Any:
    roots = (("lora_unet_", model.unet), ("lora_te_text_model_", model.text_encoders[0]))
    for prefix, root in roots:
        for name, module in root.named_modules():
            if prefix + name.replace(".", "_") == key:
                return module
    raise KeyError(key)


def test_the_magnitude_is_trained_with_its_own_gradient() -> None:
    """∂loss/∂g of the first layer against autograd of the definition in float64."""
    state, _ = output_dora()
    model = tiny_model()
    adapter, _ = inject_parsed(model, parse_state(state))
    layer: Any = next(iter(adapter.layers.values()))
    x = torch.randn(2, layer.base_layer.weight.shape[1], 6, 6, generator=torch.Generator().manual_seed(2))
    if layer.base_layer.weight.dim() == 2:
        x = x.mean(dim=(2, 3))
    layer(x).square().sum().backward()
    weights = {name: tensor.detach().double() for name, tensor in layer.slices.fp32().items()}
    magnitude = weights["magnitude"].requires_grad_()
    plain = {name: tensor for name, tensor in weights.items() if name != "magnitude"}
    base = layer.base_layer.weight.detach()
    inner = layer.family.inner.diff_weight(plain, layer.options, base.double())
    update = as_trained(base, inner, magnitude)
    weight = base.double() + update
    bias = None if layer.base_layer.bias is None else layer.base_layer.bias.double()
    if base.dim() == 4:
        options = (layer.base_layer.stride, layer.base_layer.padding)
        output: Any = torch.nn.functional.conv2d(x.double(), weight, bias, *options)
    else:
        output = torch.nn.functional.linear(x.double(), weight, bias)
    output.square().sum().backward()
    assert magnitude.grad is not None
    found = layer.slices.buffer.gradient(layer.slices.positions["magnitude"])
    torch.testing.assert_close(found.double(), magnitude.grad, rtol=1e-4, atol=1e-4)  # fp32 sums of 72 numbers


def test_merging_adds_the_trained_update() -> None:
    state, expected = output_dora()
    merged = merge([(file_of(state), 1.0), (file_of(state), -0.5)], tiny_model(), to="diff")
    model = tiny_model()
    changed, left_out = add_to_layers([(file_of(state), 0.5)], model)
    before = tiny_model()
    assert changed == len(expected) and left_out == merged.left_out == ()
    for key, diff in expected.items():
        torch.testing.assert_close(merged.state[f"{key}.diff"].double(), diff / 2, rtol=1e-5, atol=1e-5)
        added = layer_of(model, key).weight.double() - layer_of(before, key).weight.double()
        torch.testing.assert_close(added, diff / 2, rtol=1e-5, atol=1e-5)


def test_resizing_says_that_the_checkpoint_is_needed() -> None:
    with pytest.raises(AdapterError, match=r"lora \+ dora per output.*Convert it to a LoRA of a rank, with its check"):
        resize(file_of(output_dora()[0]), RankRule(rank=1))
