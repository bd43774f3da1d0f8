"""Anima's LoRA files: written in the one spelling that every program reads, read in every spelling there is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lib_lora_train.adapters.files.decode import parse_state
from lib_lora_train.adapters.files.lora_file import AdapterFile
from lib_lora_train.adapters.files.spelling import lora_paths, spelled, with_own_alphas
from lib_lora_train.adapters.inject import Adapter, inject, inject_parsed
from lib_lora_train.adapters.registry import AdapterSpec
from lib_lora_train.config.train_config import CONFIG_KEY
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.models.checkpoint import shapes_of
from lib_lora_train.models.graft import graft
from lib_lora_train.models.infer_spec import infer_spec
from lib_lora_train.models.kinds.registry import kind_of
from lib_lora_train.models.text_encoding import TextCondition
from tests.stand_ins.adapters_model import tiny_model
from tests.stand_ins.tiny_anima import TEXT_WIDTH, transformer_tensors


def anima() -> Any:
    tensors = transformer_tensors()
    spec = infer_spec(shapes_of(tensors))
    unet = graft(tensors, spec).unet
    return SimpleNamespace(unet=unet, text_encoders=(), spec=spec, kind=kind_of("anima"))


def trained(model: Any, **values: Any) -> Adapter:
    """An adapter with random weights."""
    adapter = inject(model, AdapterSpec(rank=4, alpha=2.0, text_encoder=False, **values), seed=0)
    generator = torch.Generator().manual_seed(1)
    adapter.load_state(
        {
            key: tensor if key.endswith("alpha") else torch.randn(tensor.shape, generator=generator) * 0.1
            for key, tensor in adapter.state().items()
        }
    )
    return adapter


def test_the_names_are_comfyuis_with_the_scale_multiplied_in() -> None:
    model = anima()
    adapter = trained(model)
    state = spelled(adapter.state(), lora_paths(model))
    key, layer = "diffusion_model.blocks.1.cross_attn.output_proj", "lora_unet_blocks_1_cross_attn_output_proj"
    assert {name.rpartition(".lora_")[2] for name in state} == {"A.weight", "B.weight"}
    assert torch.equal(state[f"{key}.lora_A.weight"], adapter.state()[f"{layer}.lora_down.weight"] * 0.5)
    assert torch.equal(state[f"{key}.lora_B.weight"], adapter.state()[f"{layer}.lora_up.weight"])


def deltas(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {name: layer.diff_weight() for name, layer in adapter.layers.items()}


@pytest.mark.parametrize("spelling", ["kohya", "comfyui", "diffusers"])
def test_every_spelling_gives_the_same_weights(spelling: str) -> None:
    model = anima()
    adapter = trained(model)
    expected, kohya, comfyui = deltas(adapter), adapter.state(), spelled(adapter.state(), lora_paths(model))
    adapter.remove()
    names = kind_of("anima").lora_paths(kind_names(model))
    ours = {path: name for name, path in kind_of("anima").lora_keys(kind_names(model)).items()}
    back = {path: ours[key] for key, path in names.items()}
    diffusers = {
        f"transformer.{back[key.rpartition('.lora_')[0]]}.lora_{key.rpartition('.lora_')[2]}": tensor
        for key, tensor in comfyui.items()
    }
    state = {"kohya": kohya, "comfyui": comfyui, "diffusers": diffusers}[spelling]
    again, unmatched = inject_parsed(model, parse_state(state))
    assert not unmatched and again.layers.keys() == expected.keys()
    for name, delta in deltas(again).items():
        assert torch.allclose(delta, expected[name], rtol=0, atol=1e-7)  # the scale is rounded once, in fp32


def kind_names(model: Any) -> list[str]:
    return [name for name, module in model.unet.named_modules() if isinstance(module, torch.nn.Linear)]


@pytest.mark.parametrize("family", ["loha", "lokr"])
def test_other_families_keep_kohyas_names(family: str) -> None:
    model = anima()
    adapter = trained(model, family=family)
    assert spelled(adapter.state(), lora_paths(model)).keys() == adapter.state().keys()


def test_dora_keeps_kohyas_names() -> None:
    model = anima()
    adapter = trained(model, is_dora=True)
    assert spelled(adapter.state(), lora_paths(model)).keys() == adapter.state().keys()


def test_a_lora_of_anima_is_named_where_stable_diffusion_is_trained() -> None:
    model = anima()
    state = spelled(trained(model).state(), lora_paths(model))
    with pytest.raises(AdapterError, match="for Anima"):
        inject_parsed(tiny_model(), parse_state(state))


def test_a_lora_of_stable_diffusion_does_not_fit_anima() -> None:
    other = tiny_model()
    adapter = inject(other, AdapterSpec(rank=2), seed=0)
    with pytest.raises(AdapterError, match=r"No layer of this file fits"):
        inject_parsed(anima(), parse_state(adapter.state()))


def test_our_own_file_is_continued_with_the_alpha_of_its_run() -> None:
    """Without it, the same learning rate would change ΔW by rank / alpha as much."""
    model = anima()
    adapter = trained(model)
    state, metadata = spelled(adapter.state(), lora_paths(model)), {"ss_network_alpha": "2.0", CONFIG_KEY: "{}"}
    ours = with_own_alphas(AdapterFile(Path("a.safetensors"), state, metadata))
    adapter.remove()
    again, _ = inject_parsed(model, parse_state(ours.state))
    assert all(float(t) == 2.0 for key, t in again.state().items() if key.endswith("alpha"))
    for key, tensor in again.state().items():
        assert torch.allclose(tensor, adapter.state()[key], rtol=1e-6)  # scaled and unscaled, each rounded to fp32
    other = AdapterFile(Path("b.safetensors"), state, {"ss_network_alpha": "2.0"})
    assert with_own_alphas(other) is other
    for alpha in ("", "None", "0", "nan", "inf"):  # edited by another program
        edited = AdapterFile(Path("c.safetensors"), state, {**metadata, "ss_network_alpha": alpha})
        assert with_own_alphas(edited) is edited


def test_half_precision_loses_no_more_than_rounding() -> None:
    """A small alpha must not push the trained matrix below what fp16 holds."""
    model = anima()
    adapter = trained(model)
    small = {
        key: torch.tensor(1.0 / 16) if key.endswith("alpha") else t * (1e-3 if "up" in key else 1)
        for key, t in adapter.state().items()
    }
    adapter.load_state(small)
    state = spelled(adapter.state(), lora_paths(model))
    key, layer = "diffusion_model.blocks.0.mlp.layer1", "lora_unet_blocks_0_mlp_layer1"
    half = state[f"{key}.lora_B.weight"].half().float() @ state[f"{key}.lora_A.weight"].half().float()
    exact = adapter.layers[layer].diff_weight()
    # Two fp16 factors of 11 bits each, summed over rank 4.
    assert float((half - exact).norm() / exact.norm()) < 2e-3


def test_diffusers_draws_with_our_file_what_we_draw() -> None:
    """diffusers' own loader for Anima, on the same transformer. 1e-5: it adds the update in another order."""
    loaders = pytest.importorskip("diffusers.loaders.lora_pipeline")
    loader = getattr(loaders, "AnimaLoraLoaderMixin", None)
    if loader is None:
        pytest.skip("diffusers has no loader for Anima before 0.42")
    model = anima()
    generator = torch.Generator().manual_seed(2)
    condition = TextCondition(torch.randn(1, 512, TEXT_WIDTH, generator=generator), None)
    latents, time = torch.randn(1, 16, 8, 6, generator=generator), torch.tensor([400.0])
    model.dtype, model.device = torch.float32, torch.device("cpu")

    def draw() -> torch.Tensor:
        with torch.no_grad():
            return model.kind.predict(model, latents, time, condition, None)  # type: ignore[no-any-return]

    base = draw()
    adapter = trained(model)
    ours, state = draw(), spelled(adapter.state(), lora_paths(model))
    adapter.remove()
    loader.load_lora_into_transformer(loader.lora_state_dict(state), transformer=model.unet, adapter_name="theirs")
    theirs = draw()
    assert float((ours - base).abs().max()) > 1e-2
    assert torch.allclose(theirs, ours, atol=1e-5 * float(ours.abs().max()))
