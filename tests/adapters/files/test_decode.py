"""Files of any origin are read: four key formats, every family, and nothing is dropped silently."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_lora_train.adapters.create import create_adapter
from lib_lora_train.adapters.files.decode import parse_state
from lib_lora_train.adapters.files.lora_file import write_adapter
from lib_lora_train.adapters.inject import inject_parsed
from lib_lora_train.adapters.registry import AdapterSpec
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.models.unet_layers import ldm_layer_names
from tests.stand_ins.adapter_cases import CASES, RANK
from tests.stand_ins.adapters_model import SPEC, TinyModel, tiny_model, trained
from tests.stand_ins.webui_formulas import a1111_delta

FAMILY_SPECS = {
    name: AdapterSpec(
        case.family,
        RANK,
        3.0,
        "all",
        is_dora=case.is_dora,
        has_scalar=case.has_scalar,
        options=case.options,
        train_norm=True,
    )
    for name, case in CASES.items()
    if name != "norm"
}


@pytest.mark.parametrize("name", FAMILY_SPECS)
def test_a_file_of_every_family_can_be_continued_from(name: str) -> None:
    model = tiny_model()
    adapter = trained(model, FAMILY_SPECS[name])
    expected, state = model.predict(), adapter.state()
    adapter.remove()
    opened = parse_state(state)
    assert opened.unknown == ()
    again, left = inject_parsed(model, opened)
    assert left == ()
    if name in ("lora_scalar", "lora_tucker_scalar"):
        # The file holds the product with the factor, which a plain LoRA adds to the base layer's sums as it goes, where
        # the scaled one adds a finished product: fp32 roundings (6e-8) of outputs about 1, through some forty layers.
        torch.testing.assert_close(model.predict(), expected, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(model.predict(), expected)
    assert all(torch.equal(tensor, state[key]) for key, tensor in again.state().items())
    assert set(again.state()) == set(state)


@pytest.mark.parametrize(
    "shapes",
    [
        {"hada_w1_a": (8, 4), "hada_w1_b": (4, 6), "hada_w2_a": (8, 1), "hada_w2_b": (1, 6)},
        {"hada_w1_a": (8, 1), "hada_w1_b": (1, 6), "hada_w2_a": (8, 4), "hada_w2_b": (4, 6)},
        {"lokr_w1_a": (2, 1), "lokr_w1_b": (1, 2), "lokr_w2_a": (4, 3), "lokr_w2_b": (3, 3)},
        {"lokr_w1_a": (2, 3), "lokr_w1_b": (3, 2), "lokr_w2_a": (4, 1), "lokr_w2_b": (1, 3)},
        {"lokr_w1_a": (2, 3), "lokr_w1_b": (3, 2), "lokr_w2": (4, 3)},
    ],
    ids=lambda shapes: " ".join("×".join(map(str, shape)) for shape in shapes.values()),
)
def test_of_two_ranks_alpha_is_divided_by_the_one_that_the_webuis_take(shapes: dict[str, tuple[int, ...]]) -> None:
    """Against A1111's formulas; tolerance: fp32 roundings of products about 1."""
    generator = torch.Generator().manual_seed(0)
    state = {ending: torch.randn(shape, generator=generator) for ending, shape in shapes.items()}
    state["alpha"] = torch.tensor(2.0)
    parsed = parse_state({f"lora_unet_a.{ending}": tensor for ending, tensor in state.items()})
    (layer,) = parsed.layers.values()
    base = torch.zeros(8, 6)
    update = layer.family.diff_weight(layer.weights, layer.options, base)
    torch.testing.assert_close(update, a1111_delta(state, base), rtol=1e-5, atol=1e-5)


def peft(state: dict[str, Tensor], model: TinyModel) -> dict[str, Tensor]:
    """The same LoRA as PEFT saves it: dots, lora_A and lora_B, no alpha (alpha = rank)."""
    dotted = {}
    for part, prefix, root in (
        ("unet", "lora_unet_", model.unet),
        ("text_encoder", "lora_te_", model.text_encoders[0]),
    ):
        for name, _ in root.named_modules():
            for body in (name, f"text_model.{name}"):
                dotted[f"{prefix}{body}".replace(".", "_")] = f"base_model.model.{part}.{body}"
    endings = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
    return {f"{dotted[_module(key)]}.{endings[_ending(key)]}": t for key, t in state.items() if _ending(key) in endings}


def diffusers(state: dict[str, Tensor], model: TinyModel) -> dict[str, Tensor]:
    """With diffusers' keys: `unet.….to_q.lora.down.weight`."""
    return {
        key.removeprefix("base_model.model.").replace("lora_A", "lora.down").replace("lora_B", "lora.up"): tensor
        for key, tensor in peft(state, model).items()
    }


def original(state: dict[str, Tensor], model: TinyModel) -> dict[str, Tensor]:
    """The UNet with ldm names (`input_blocks`), the rest unchanged."""
    names = [
        name for name, module in model.unet.named_modules() if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))
    ]
    ldm = {
        f"lora_unet_{n}".replace(".", "_"): f"lora_unet_{ldm_name}".replace(".", "_")
        for n, ldm_name in ldm_layer_names(names).items()
    }
    return {f"{ldm.get(_module(key), _module(key))}.{_ending(key)}": tensor for key, tensor in state.items()}


def _module(key: str) -> str:
    return key.split(".", 1)[0]


def _ending(key: str) -> str:
    return key.split(".", 1)[1]


@pytest.mark.parametrize("spelling", [peft, diffusers, original])
def test_other_key_formats_give_the_same_layers(spelling: Any) -> None:
    model = tiny_model()
    adapter = trained(model, AdapterSpec(rank=2, alpha=2.0, targets="all"))
    expected, state = model.predict(), adapter.state()
    foreign = spelling(state, model)
    adapter.remove()
    assert not set(foreign) & set(state) or spelling is original
    _, left = inject_parsed(model, parse_state(foreign))
    assert left == ()
    assert torch.equal(model.predict(), expected)


def test_two_text_encoders_are_distinguished() -> None:
    tensors = {"lora_A.weight": torch.ones(1, 4), "lora_B.weight": torch.ones(4, 1)}
    name = "text_model.encoder.layers.0.self_attn.q_proj"
    one = {f"text_encoder.{name}.{ending}": tensor for ending, tensor in tensors.items()}
    two = {f"text_encoder_2.{name}.{ending}": tensor for ending, tensor in tensors.items()}
    body = name.replace(".", "_")
    assert set(parse_state(one).layers) == {f"lora_te_{body}"}
    assert set(parse_state({**one, **two}).layers) == {f"lora_te1_{body}", f"lora_te2_{body}"}


def test_linear_and_1x1_convolution_are_interchangeable() -> None:
    model = tiny_model()
    adapter = trained(model)
    expected, state = model.predict(), adapter.state()
    adapter.remove()
    flat = {k: t.flatten(1) if t.dim() == 4 else t for k, t in state.items()}
    assert any(flat[key].dim() != tensor.dim() for key, tensor in state.items())
    inject_parsed(model, parse_state(flat))
    assert torch.equal(model.predict(), expected)


def test_unknown_keys_are_listed() -> None:
    model = tiny_model()
    adapter = trained(model)
    state = adapter.state()
    adapter.remove()
    first = next(iter(adapter.layers))
    state["lora_unet_elsewhere.lora_down.weight"] = torch.ones(1, 4)
    state["lora_unet_elsewhere.lora_up.weight"] = torch.ones(4, 1)
    state["bundle_emb.word.clip_l"] = torch.ones(4)
    state[f"{first}.mystery"] = torch.ones(4)
    opened = parse_state(state)
    assert set(opened.unknown) == {"bundle_emb.word.clip_l", f"{first}.mystery"}
    _, left = inject_parsed(model, opened)
    assert left == ("lora_unet_elsewhere",)


def test_a_file_for_another_model_is_refused() -> None:
    state = {"lora_unet_a.lora_down.weight": torch.ones(1, 4), "lora_unet_a.lora_up.weight": torch.ones(4, 1)}
    with pytest.raises(AdapterError, match="No layer of this file fits the model"):
        inject_parsed(tiny_model(), parse_state(state))


def test_a_run_continues_from_a_file_and_trains_the_selected_part(tmp_path: Path) -> None:
    model = tiny_model()
    adapter = trained(model)
    state = adapter.state()
    adapter.remove()
    path = tmp_path / "a.safetensors"
    write_adapter(path, state, metadata={}, precision="fp32")
    config = TrainConfig(continue_from=str(path), train_text_encoder=False, rank=64)
    going_on = create_adapter(model, config)
    assert list(going_on.groups) == ["unet"]
    assert going_on.layers[next(iter(going_on.layers))].options.rank == SPEC.rank
    model.predict().sum().backward()
    assert going_on.groups["unet"][0].grad is not None
    assert set(going_on.state()) == set(state), "the text encoder's part is kept and saved"
    going_on.remove()
    with pytest.raises(AdapterError, match="has no layers of the parts being trained"):
        create_adapter(TinyModel(model.unet, (), SimpleNamespace(architecture="sd1")), config.replace(train_unet=False))
