"""Files of other programs are read as these define them, or named: never a traceback, never silently less."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import IA3Config, LoraConfig, OFTConfig, get_peft_model
from torch import Tensor, nn

from lib_lora_train.adapters.create import create_adapter
from lib_lora_train.adapters.files.decode import parse_state
from lib_lora_train.adapters.files.lora_file import AdapterFile, read_adapter, write_adapter
from lib_lora_train.adapters.readable import form_of_layer
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.lora_tools.check import check, check_file
from lib_lora_train.lora_tools.convert import convert
from lib_lora_train.runs.checks.form_check import trained_forms
from tests.stand_ins.adapters_model import TinyModel, tiny_model

RANK = 3
block_diagonal: Any = torch.block_diag  # torch leaves it untyped


def layers_of(model: TinyModel) -> dict[str, Any]:
    """kohya's name → layer, for every linear layer and convolution inside the UNet's blocks."""
    return {
        f"lora_unet_{name}".replace(".", "_"): module
        for name, module in model.unet.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and name.startswith(("down_blocks", "mid_block", "up_blocks"))
    }


def draw(*shape: int, seed: int, scale: float = 0.1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def file_of(state: dict[str, Tensor]) -> AdapterFile:
    return AdapterFile(Path("a.safetensors"), state, {})


def assert_read(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Every layer is read, with this ΔW (float64)."""
    assert check(file_of(state)).unknown == ()
    converted = convert(file_of(state), tiny_model(), to="diff")
    assert converted.left_out == () and set(converted.state) == {f"{key}.diff" for key in expected}
    for key, diff in expected.items():
        # fp32 sums against float64, of up to 576 products about 0.01.
        torch.testing.assert_close(converted.state[f"{key}.diff"].double(), diff, rtol=1e-5, atol=1e-6)


# --- OneTrainer ---------------------------------------------------------------------------------


def test_loha_of_onetrainer_is_read_on_convolutions() -> None:
    """Its factors are the weights of two layers one after the other: a k×k convolution to the rank and a 1×1 one."""
    state: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}
    for seed, (key, layer) in enumerate(layers_of(tiny_model()).items()):
        out, wide, *kernel = layer.weight.shape
        ones = [1] * len(kernel)
        factors = []
        for part in (1, 2):
            down, up = draw(RANK, wide, *kernel, seed=seed + 10 * part), draw(out, RANK, *ones, seed=seed + 99 * part)
            state |= {f"{key}.hada_w{part}_b": down, f"{key}.hada_w{part}_a": up}
            factors.append(torch.einsum("or...,ri...->oi...", up.double(), down.double()))
        state[f"{key}.alpha"] = torch.tensor(2.0)
        expected[key] = factors[0] * factors[1] * 2 / RANK
    assert any(tensor.dim() == 4 for tensor in state.values())
    assert_read(state, expected)


def rotation(row: Tensor, size: int) -> Tensor:
    """I + 2Q + 2Q² + 2Q³ + Q⁴ with Q's upper triangle in `row`, float64, as OneTrainer counts it."""
    skew, numbers = torch.zeros(size, size, dtype=torch.float64), iter(row.tolist())
    for i in range(size):
        for j in range(i + 1, size):
            skew[i, j] = next(numbers)
            skew[j, i] = -skew[i, j]
    powers = [torch.linalg.matrix_power(skew, n) for n in range(5)]
    total: Tensor = powers[0] + 2 * powers[1] + 2 * powers[2] + 2 * powers[3] + powers[4]
    return total


@pytest.mark.parametrize("is_scaled", [False, True])
def test_oft_of_onetrainer_rotates_the_inputs_of_linear_layers_and_the_rows_of_kernels(is_scaled: bool) -> None:
    """Linear: y = W (R x) with x as a row, x R; kernels: W R. The directions differ."""
    state: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}
    size = 4
    for seed, (key, layer) in enumerate(layers_of(tiny_model()).items()):
        weight = layer.weight.detach().double().flatten(1)
        blocks = weight.shape[1] // size
        upper = draw(blocks, size * (size - 1) // 2, seed=seed)
        state[f"{key}.oft_R.weight"] = upper
        if is_scaled:
            state[f"{key}.oft_R.scaled_oft"] = torch.tensor(True)
        scaled = upper.double() / (2 * (size - 1) ** 0.5 if is_scaled else 1)
        whole = block_diagonal(*[rotation(row, size) for row in scaled])
        turned = weight @ (whole if layer.weight.dim() == 4 else whole.T)
        expected[key] = (turned - weight).reshape(layer.weight.shape)
    assert_read(state, expected)
    assert set(check(file_of(state)).families) == {"OFT of inputs"}


# --- PEFT ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_cayley_neumann_terms": 3}, {"use_cayley_neumann": False}, {"block_share": True}],
    ids=["default", "three terms", "exact", "one block for all"],
)
def test_oft_of_peft_has_the_effect_that_peft_merges(settings: dict[str, Any], tmp_path: Path) -> None:
    names = ["to_q", "to_k", "ff.net.2", "proj_in", "conv1"]
    model = tiny_model()
    config = OFTConfig(oft_block_size=4, target_modules=names, init_weights=False, **settings)
    adapted = get_peft_model(model.unet, config)
    adapted.save_pretrained(str(tmp_path), safe_serialization=True)
    before, expected = tiny_model().unet.state_dict(), {}
    for name, weight in adapted.merge_and_unload().state_dict().items():
        if name.removesuffix(".weight").endswith(tuple(names)) and name.endswith("weight"):
            key = f"lora_unet_{name.removesuffix('.weight')}".replace(".", "_")
            expected[key] = weight.double() - before[name].double()
    path = tmp_path / "adapter_model.safetensors"
    converted = convert(read_adapter(path), tiny_model(), to="diff")
    assert converted.left_out == () and set(converted.state) == {f"{key}.diff" for key in expected}
    for key, diff in expected.items():
        # PEFT's sums and ours of numbers about 0.2, both in fp32.
        torch.testing.assert_close(converted.state[f"{key}.diff"].double(), diff, rtol=1e-5, atol=2e-6)
    with pytest.raises(AdapterError, match="of OFT of inputs, which cannot be trained here"):
        create_adapter(tiny_model(), TrainConfig(continue_from=str(path)))
    (tmp_path / "adapter_config.json").unlink()
    report = check_file(path)
    assert report.families == {} and any("needs its adapter_config.json" in problem for problem in report.problems)


# --- LyCORIS on convolutions --------------------------------------------------------------------


def lycoris_glora() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """GLoRA in LyCORIS' newer layout on every layer: W applied to the inputs that a2 and a1 change, and b2 and b1."""
    state: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}
    for seed, (key, layer) in enumerate(layers_of(tiny_model()).items()):
        out, wide, *kernel = layer.weight.shape
        ones = [1] * len(kernel)
        shapes = {"a1": (wide, RANK, *ones), "a2": (RANK, wide, *ones), "b1": (out, RANK, *ones)}
        parts = {
            name: draw(*shape, seed=seed + 7 * n)
            for n, (name, shape) in enumerate({**shapes, "b2": (RANK, wide, *kernel)}.items())
        }
        state |= {f"{key}.{name}.weight": tensor for name, tensor in parts.items()}
        state[f"{key}.alpha"] = torch.tensor(1.5)
        a1, a2, b1, b2 = (parts[name].double() for name in ("a1", "a2", "b1", "b2"))
        weight = layer.weight.detach().double()
        mixed = torch.einsum("or...,ri...->oi...", a1, a2).reshape(wide, wide)
        through = torch.stack([torch.tensordot(mixed.T, row, dims=1) for row in weight])
        expected[key] = (torch.einsum("or...,ri...->oi...", b1, b2) + through) * 1.5 / RANK
    return state, expected


def lycoris_ia3(*, on_input: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(IA)³ on every layer: each output, or input, times 1 + w."""
    state: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}
    for seed, (key, layer) in enumerate(layers_of(tiny_model()).items()):
        weight = layer.weight.detach().double()
        size = weight.shape[1 if on_input else 0]
        factors = draw(size, seed=seed)
        state[f"{key}.weight"] = factors.reshape(1, -1, 1, 1) if weight.dim() == 4 else factors
        state[f"{key}.on_input"] = torch.tensor(int(on_input))
        scaled = weight.clone()
        for channel in range(size):
            scaled.select(1 if on_input else 0, channel).mul_(1 + factors[channel].double())
        expected[key] = scaled - weight
    return state, expected


FILES: dict[str, Any] = {
    "glora": lycoris_glora,
    "ia3 of outputs": lambda: lycoris_ia3(on_input=False),
    "ia3 of inputs": lambda: lycoris_ia3(on_input=True),
}


@pytest.mark.parametrize("name", FILES)
def test_lycoris_forms_are_read_on_convolutions(name: str) -> None:
    assert_read(*FILES[name]())


@pytest.mark.parametrize("name", FILES)
def test_lycoris_forms_on_convolutions_are_continued_and_saved_as_they_were(name: str, tmp_path: Path) -> None:
    state, expected = FILES[name]()
    path = tmp_path / "a.safetensors"
    write_adapter(path, state, metadata={}, precision="fp32")
    merged, layers = tiny_model(), layers_of(tiny_model())
    for key, layer in layers_of(merged).items():
        layer.weight.data.add_(expected[key].float())
    model = tiny_model()
    adapter = create_adapter(model, TrainConfig(continue_from=str(path)))
    assert adapter.left_out == ()
    torch.testing.assert_close(model.predict(), merged.predict(), rtol=1e-4, atol=1e-4)  # through some forty layers
    model.predict().square().sum().backward()
    gradient = adapter.groups["unet"][0].grad
    assert gradient is not None and bool(gradient.abs().max() > 0)
    again = adapter.state()
    for key, layer in layers.items():
        if layer.weight.dim() == 4:
            found = {name: tensor for name, tensor in again.items() if name.startswith(f"{key}.")}
            assert all(torch.equal(tensor.float(), state[name].float()) for name, tensor in found.items())
            assert form_of_layer(adapter.layers[key]).endswith("_conv")
    assert "glora_conv" in trained_forms(TrainConfig(continue_from=str(path))) or not name.startswith("glora")
    adapter.remove()
    reopened = parse_state(again)
    assert reopened.unknown == () and {n: f.kind for n, f in reopened.layers.items()} == {
        n: f.kind for n, f in parse_state(state).layers.items()
    }


def test_the_forward_pass_of_kernels_is_that_of_the_definition() -> None:
    """Not only ΔW: the output of a strided 3×3 convolution, in float64."""
    state, expected = lycoris_glora()
    key = next(name for name in expected if "downsamplers" in name)
    model = tiny_model()
    path = {name: t for name, t in state.items() if name.startswith(key)}
    layer = layers_of(model)[key]
    x = draw(2, layer.weight.shape[1], 8, 8, seed=1, scale=1.0)
    parts = {name.removeprefix(f"{key}.").removesuffix(".weight"): t.double() for name, t in path.items()}
    weight = layer.weight.detach().double()
    arguments = {"stride": layer.stride, "padding": layer.padding}
    through = F.conv2d(F.conv2d(F.conv2d(x.double(), parts["a2"]), parts["a1"]), weight, **arguments)
    beside = F.conv2d(F.conv2d(x.double(), parts["b2"], **arguments), parts["b1"])
    found = F.conv2d(x.double(), expected[key], **arguments)
    torch.testing.assert_close(found, (through + beside) * 1.5 / RANK, rtol=1e-9, atol=1e-9)


# --- what is not read is named ------------------------------------------------------------------

PEFT_KINDS: dict[str, tuple[Any, str]] = {
    "ia3": (IA3Config(target_modules=["to_k", "ff.net.2"], feedforward_modules=["ff.net.2"]), "(IA)³ of PEFT"),
}


@pytest.mark.parametrize("kind", PEFT_KINDS)
def test_kinds_of_peft_without_a_formula_here_are_named(kind: str, tmp_path: Path) -> None:
    config, name = PEFT_KINDS[kind]
    get_peft_model(tiny_model().unet, config).save_pretrained(str(tmp_path), safe_serialization=True)
    path = tmp_path / "adapter_model.safetensors"
    report = check_file(path)
    assert report.families == {} and any(name in problem for problem in report.problems)
    with pytest.raises(AdapterError, match="Not read: "):
        create_adapter(tiny_model(), TrainConfig(continue_from=str(path)))


def test_biases_of_peft_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["to_q", "to_out.0"], lora_bias=True, init_lora_weights=False)
    get_peft_model(tiny_model().unet, config).save_pretrained(str(tmp_path), safe_serialization=True)
    report = check_file(tmp_path / "adapter_model.safetensors")
    assert set(report.families) == {"lora"} and any("biases of PEFT's LoRA" in text for text in report.problems)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_bias"]


UNREAD = {
    "base_model.model.mid_block.x.oft_R.weight": "OFT of PEFT",
    "lora_unet_mid_block_x.q_layer.weight": "T-LoRA",
    "lora_unet_mid_block_x.lambda_layer": "T-LoRA",
    "base_model.model.mid_block.x.boft_R": "BOFT of PEFT",
    "base_model.model.mid_block.x.glora_A.Xd": "GLoRA of PEFT",
    "bundle_emb.word.clip_l": "embeddings that OneTrainer bundles",
    "lora_unet_mid_block_x.oft_diag": "OFT of kohya's early networks",
    "lora_unet_mid_block_x.weight": "weights of a model",
    "lora_unet_mid_block_x.mystery": "not recognised",
}


@pytest.mark.parametrize("key", UNREAD)
def test_keys_that_are_not_read_are_named(key: str) -> None:
    report = check(file_of({key: torch.ones(4, 4)}))
    assert report.families == {} and any(UNREAD[key] in text and key in text for text in report.problems)


def test_weights_of_a_model_are_not_factors() -> None:
    """Norms and biases of any checkpoint have the shape of (IA)³'s factors."""
    names = ("norm1", "attn1_to_q", "norm2")
    state = {f"lora_unet_down_blocks_0_{name}.weight": torch.ones(8) for name in names}
    assert check(file_of(state)).families == {}
