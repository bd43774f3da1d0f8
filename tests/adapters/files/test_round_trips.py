"""Files go from diffusers and PEFT to this program and back, and every layer keeps its ΔW.

The definition is each paper's, in float64 from the numbers that PEFT trained; tolerance: fp32 roundings of numbers
about 0.1, which files hold in fp32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.utils import set_peft_model_state_dict
from torch import Tensor, nn

from lib_lora_train.adapters.create import create_adapter
from lib_lora_train.adapters.files.lora_file import read_adapter, write_adapter
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.lora_tools.convert import convert
from lib_lora_train.models.kinds.registry import kind_of
from tests.stand_ins.adapters_model import tiny_model as bare_model
from tests.stand_ins.tiny_models import tiny_model

PIPELINES: dict[str, Any] = {"sd1": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
LINEAR = ["to_q", "to_k", "to_out.0", "ff.net.0.proj", "proj_in"]
CONVOLUTIONS = [*LINEAR, "conv1", "conv_shortcut", "downsamplers.0.conv"]
TEXT = ["q_proj", "out_proj", "fc2"]
"""With `out_proj`: without one, diffusers 0.42 leaves out the text encoder's attention layers of kohya's files."""
ALPHA, RANK = 3, 2


def roots_of(model: Any) -> dict[str, nn.Module]:
    """The trained networks by the name that diffusers' files have for them."""
    names = ("text_encoder", "text_encoder_2")
    return {"unet": model.unet, **dict(zip(names, model.text_encoders, strict=False))}


def deltas(root: nn.Module, ending: str = "lora_A") -> dict[str, Tensor]:
    """The ΔW that PEFT computes, by module name, float64."""
    found = {}
    for name, module in root.named_modules():
        if hasattr(module, "get_delta_weight") and getattr(module, ending, None):
            (adapter,) = module.active_adapters
            found[name.removeprefix("base_model.model.")] = module.get_delta_weight(adapter).detach().double()
    return found


def defined(root: nn.Module) -> dict[str, Tensor]:
    """LoRA's ΔW = B A · alpha / r of PEFT's matrices, float64; a kernel belongs to A."""
    found = {}
    for name, module in root.named_modules():
        if getattr(module, "lora_A", None):
            a, b = (side["default"].weight.detach().double() for side in (module.lora_A, module.lora_B))
            found[name] = torch.einsum("or...,ri...->oi...", b, a) * ALPHA / RANK
    return found


def kohya(part: str, name: str, *, is_sdxl: bool, keys: Any) -> str:
    """The name of a layer in our files."""
    if part == "unet":
        return keys[name]  # type: ignore[no-any-return]
    prefix = "lora_te" if not is_sdxl else "lora_te1" if part == "text_encoder" else "lora_te2"
    return f"{prefix}_text_model_{name.removeprefix('text_model.')}".replace(".", "_")


def saved_by_diffusers(architecture: Any, targets: list[str], folder: Path) -> dict[str, dict[str, Tensor]]:
    """A LoRA on all networks, saved by diffusers, and the ΔW by network and module name."""
    model, layers, expected = tiny_model(architecture), {}, {}
    for part, root in roots_of(model).items():
        wanted = targets if part == "unet" else TEXT
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=wanted, init_lora_weights=False)
        root.add_adapter(config)  # type: ignore[operator]
        layers[part], expected[part] = get_peft_model_state_dict(root), defined(root)
    PIPELINES[architecture].save_lora_weights(
        str(folder),
        **{f"{part}_lora_layers": state for part, state in layers.items()},
        **{f"{part}_lora_adapter_metadata": {"r": RANK, "lora_alpha": ALPHA} for part in layers},
    )
    return expected


@pytest.mark.parametrize("targets", [LINEAR, CONVOLUTIONS], ids=["linear", "with convolutions"])
@pytest.mark.parametrize("architecture", PIPELINES)
def test_a_lora_keeps_its_update_from_diffusers_to_here_and_back(
    architecture: Any, targets: list[str], tmp_path: Path
) -> None:
    expected = saved_by_diffusers(architecture, targets, tmp_path)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    model = tiny_model(architecture)
    layers = [n for n, m in model.unet.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    keys = kind_of(architecture).lora_keys([n for n in layers if kind_of(architecture).is_target(n, "full")])
    flat = {
        kohya(part, name, is_sdxl=architecture == "sdxl", keys=keys): diff
        for part, diffs in expected.items()
        for name, diff in diffs.items()
    }
    opened = convert(read_adapter(path), model, to="diff")
    assert opened.left_out == () and set(opened.state) == {f"{key}.diff" for key in flat}
    for key, diff in flat.items():
        torch.testing.assert_close(opened.state[f"{key}.diff"].double(), diff, rtol=1e-5, atol=1e-6)

    adapter = create_adapter(model, TrainConfig(continue_from=str(path)))
    ours = tmp_path / "ours.safetensors"
    write_adapter(ours, adapter.state(), metadata={}, precision="fp32")
    fresh, pipeline = tiny_model(architecture), PIPELINES[architecture]
    config = fresh.unet.config if architecture == "sdxl" else None
    state, alphas = pipeline.lora_state_dict(str(ours), unet_config=config)[:2]
    pipeline.load_lora_into_unet(state, network_alphas=alphas, unet=fresh.unet)
    for part, root in roots_of(fresh).items():
        if part != "unet":
            pipeline.load_lora_into_text_encoder(state, network_alphas=alphas, text_encoder=root, prefix=part)
        back = deltas(root)
        assert set(back) == set(expected[part])
        for name, diff in expected[part].items():
            torch.testing.assert_close(back[name], diff, rtol=1e-5, atol=1e-6)


def hada(module: Any) -> Tensor:
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    a1, b1, a2, b2 = (getattr(module, name)["default"].detach().double() for name in names)
    product: Tensor = (a1 @ b1) * (a2 @ b2)
    return product


def kron(module: Any) -> Tensor:
    small = module.lokr_w1["default"].detach().double()
    big = (module.lokr_w2_a["default"] @ module.lokr_w2_b["default"]).detach().double()
    product: Tensor = torch.kron(small, big)
    return product


@pytest.mark.parametrize(
    ("make", "ending", "definition"), [(LoHaConfig, "hada_w1_a", hada), (LoKrConfig, "lokr_w1", kron)]
)
def test_a_loha_or_lokr_keeps_its_update_from_peft_to_here_and_back(
    make: Any, ending: str, definition: Any, tmp_path: Path
) -> None:
    config = make(r=RANK, alpha=ALPHA, target_modules=["to_q", "to_k", "ff.net.2"], init_weights=False)
    adapted = get_peft_model(bare_model().unet, config)
    adapted.save_pretrained(str(tmp_path), safe_serialization=True)
    expected = {
        name.removeprefix("base_model.model."): definition(module) * ALPHA / RANK
        for name, module in adapted.named_modules()
        if getattr(module, ending, None)
    }
    path = tmp_path / "adapter_model.safetensors"
    opened = convert(read_adapter(path), bare_model(), to="diff")
    names = {name: f"lora_unet_{name}".replace(".", "_") for name in expected}
    assert opened.left_out == () and set(opened.state) == {f"{key}.diff" for key in names.values()}
    for name, diff in expected.items():
        torch.testing.assert_close(opened.state[f"{names[name]}.diff"].double(), diff, rtol=1e-5, atol=1e-6)

    model = bare_model()
    state = create_adapter(model, TrainConfig(continue_from=str(path))).state()
    renamed = {
        f"base_model.model.{name}.{kind.removeprefix(key + '.')}": tensor
        for name, key in names.items()
        for kind, tensor in state.items()
        if kind.startswith(f"{key}.") and not kind.endswith(".alpha")
    }
    fresh = get_peft_model(bare_model().unet, config)
    result = set_peft_model_state_dict(fresh, renamed)
    assert not result.unexpected_keys
    back = deltas(fresh, ending)
    for name, diff in expected.items():
        torch.testing.assert_close(back[name], diff, rtol=1e-5, atol=1e-6)
