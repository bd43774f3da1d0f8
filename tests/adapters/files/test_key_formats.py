"""Key formats of other programs: diffusers old and new, PEFT, ComfyUI, ldm, kohya's first OFT."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from lib_lora_train.adapters.files.decode import aliases, parse_file, parse_state
from lib_lora_train.adapters.files.key_formats import OUTPUT_MAGNITUDE, split_key
from lib_lora_train.adapters.files.lora_file import AdapterFile
from lib_lora_train.adapters.inject import inject_parsed
from lib_lora_train.adapters.registry import AdapterSpec
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.lora_tools.check import check
from lib_lora_train.lora_tools.convert import convert
from lib_lora_train.lora_tools.merge import merge
from lib_lora_train.models.infer_spec import infer_spec
from lib_lora_train.models.kinds.registry import kind_of
from lib_lora_train.models.other_models import find_by_layers
from tests.stand_ins.adapters_model import TinyModel, tiny_model, trained
from tests.stand_ins.tiny_models import full_shapes

Q = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
DOTTED = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
TEXT = "text_model_encoder_layers_0_self_attn_q_proj"
OWN = ("lora_down.weight", "lora_up.weight", "oft_blocks", "hada_w1_a", "dora_scale")

SPELLINGS = {
    f"lora_unet_{Q}.lora_down.weight": (f"lora_unet_{Q}", "lora_down.weight"),
    f"oft_unet_{Q}.oft_blocks": (f"lora_unet_{Q}", "oft_blocks"),
    f"lycoris_{Q}.hada_w1_a": (f"lora_unet_{Q}", "hada_w1_a"),
    f"lycoris_{TEXT}.hada_w1_a": (f"lora_te_{TEXT}", "hada_w1_a"),
    f"lora_te_{TEXT.removeprefix('text_model_')}.hada_w1_a": (f"lora_te_{TEXT}", "hada_w1_a"),
    f"lora_te2_{TEXT.removeprefix('text_model_')}.hada_w1_a": (f"lora_te2_{TEXT}", "hada_w1_a"),
    "lycoris_conv_norm_out.alpha": ("lora_unet_conv_norm_out", "alpha"),
    "lycoris_conv_in.alpha": ("lora_unet_conv_in", "alpha"),
    f"unet.{DOTTED}.to_q.lora_A.weight": (f"lora_unet_{Q}", "lora_down.weight"),
    f"unet.{DOTTED}.to_q.lora_A.default_0.weight": (f"lora_unet_{Q}", "lora_down.weight"),
    f"unet.{DOTTED}.to_q.lora.up.weight": (f"lora_unet_{Q}", "lora_up.weight"),
    f"unet.{DOTTED}.processor.to_q_lora.down.weight": (f"lora_unet_{Q}", "lora_down.weight"),
    f"{DOTTED}.processor.to_out_lora.up.weight": (f"lora_unet_{Q[:-4]}to_out_0", "lora_up.weight"),
    f"base_model.model.{DOTTED}.to_q.lora_B.weight": (f"lora_unet_{Q}", "lora_up.weight"),
    f"base_model.model.unet.{DOTTED}.to_q.hada_w1_a": (f"lora_unet_{Q}", "hada_w1_a"),
    f"base_model.model.{DOTTED}.to_q.lora_magnitude_vector": (f"lora_unet_{Q}", OUTPUT_MAGNITUDE),
    f"unet.{DOTTED}.to_q.lora_magnitude_vector.weight": (f"lora_unet_{Q}", OUTPUT_MAGNITUDE),
    f"lora_unet_{Q}.magnitude": (f"lora_unet_{Q}", OUTPUT_MAGNITUDE),
    "diffusion_model.input_blocks.1.1.proj_in.lora_up.weight": ("lora_unet_input_blocks_1_1_proj_in", "lora_up.weight"),
    "model.diffusion_model.out.2.alpha": ("lora_unet_out_2", "alpha"),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight": (
        f"lora_te_{TEXT}",
        "lora_up.weight",
    ),
    "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.up.weight": (f"lora_te_{TEXT}", "lora_up.weight"),
    "text_encoder_2.encoder.layers.0.self_attn.q_proj.lora_A.weight": (f"lora_te2_{TEXT}", "lora_down.weight"),
    "text_encoders.clip_g.transformer.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight": (
        f"lora_te2_{TEXT}",
        "lora_down.weight",
    ),
    "clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight": (
        f"lora_te_{TEXT}",
        "lora_up.weight",
    ),
    "base_model.model.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight": (
        f"lora_te_{TEXT}",
        "lora_down.weight",
    ),
}


@pytest.mark.parametrize("key", SPELLINGS)
def test_every_key_format_is_converted_to_kohyas(key: str) -> None:
    assert split_key(key, OWN) == SPELLINGS[key]


@pytest.mark.parametrize("key", ["lora_unet_x.oft_diag", "emb_params", f"unet.{DOTTED}.to_q.lora_B.bias", ".alpha"])
def test_unknown_keys_are_not_changed(key: str) -> None:
    assert split_key(key, OWN) == (key, "")


def test_the_first_of_two_text_encoders_is_found_without_its_number() -> None:
    """diffusers' SDXL files may hold only the first encoder, and then do not show that there is a second."""
    name = "text_model.encoder.layers.0.self_attn.q_proj"
    alias = aliases({}, [[name], [name]])
    assert alias[f"lora_te_{TEXT}"] == alias[f"lora_te1_{TEXT}"] == f"lora_te1_{TEXT}"


# --- alphas that stand elsewhere ----------------------------------------------------------------


def peft_state(rank: int = 4) -> dict[str, Tensor]:
    return {
        f"unet.{DOTTED}.to_q.lora_A.weight": torch.ones(rank, 8),
        f"unet.{DOTTED}.to_q.lora_B.weight": torch.ones(8, rank),
    }


@pytest.mark.parametrize(
    ("settings", "alpha"),
    [
        ({}, 4.0),
        ({"unet.lora_alpha": 2, "unet.r": 4}, 2.0),
        ({"unet.lora_alpha": 2, "unet.use_rslora": True}, 4.0),  # 2 / √4 is 4 / 4
        ({"unet.lora_alpha": 2, "unet.alpha_pattern": {"attn1.to_q": 8}}, 8.0),
        ({"unet.lora_alpha": 2, "unet.alpha_pattern": {"attn1.to_k": 8}}, 2.0),
        ({"text_encoder.lora_alpha": 2}, 4.0),
    ],
)
def test_alphas_in_diffusers_metadata_are_used(settings: dict[str, object], alpha: float) -> None:
    file = AdapterFile(Path("a.safetensors"), peft_state(), {"lora_adapter_metadata": json.dumps(settings)})
    assert parse_file(file).layers[f"lora_unet_{Q}"].options.alpha == alpha


def test_alphas_beside_a_peft_file_are_used_unless_it_has_its_own(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 32, "r": 4}), encoding="utf-8")
    state = {key.replace("unet.", "base_model.model."): tensor for key, tensor in peft_state().items()}
    path = tmp_path / "adapter_model.safetensors"
    assert parse_file(AdapterFile(path, state, {})).layers[f"lora_unet_{Q}"].options.alpha == 32.0
    own = {**state, f"base_model.model.{DOTTED}.to_q.alpha": torch.tensor(1.0)}
    assert parse_file(AdapterFile(path, own, {})).layers[f"lora_unet_{Q}"].options.alpha == 1.0
    elsewhere = AdapterFile(tmp_path / "other.safetensors", state, {})
    assert parse_file(elsewhere).layers[f"lora_unet_{Q}"].options.alpha == 4.0


@pytest.mark.parametrize("text", ["{", "[1]", '{"lora_alpha": true}'])
def test_damaged_settings_beside_a_file_are_not_used(text: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(text, encoding="utf-8")
    file = AdapterFile(tmp_path / "adapter_model.safetensors", peft_state(), {})
    assert parse_file(file).layers[f"lora_unet_{Q}"].options.alpha == 4.0


# --- GLoRA's newer layout -----------------------------------------------------------------------


def newer(rank: int, out: int, width: int, alpha: float) -> dict[str, Tensor]:
    """A layer as LyCORIS 2 and later save it: a1 (in, r), a2 (r, in), b1 (out, r), b2 (r, in)."""
    shapes = {"a1": (width, rank), "a2": (rank, width), "b1": (out, rank), "b2": (rank, width)}
    tensors = {f"lora_unet_{Q}.{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    return {**tensors, f"lora_unet_{Q}.alpha": torch.tensor(alpha)}


@pytest.mark.parametrize(("out", "width"), [(12, 10), (10, 12), (12, 12)])
def test_newer_glora_has_the_update_lycoris_trained(out: int, width: int) -> None:
    """Square layers are most of a model's attention."""
    torch.manual_seed(0)
    state = newer(3, out, width, 1.5)
    base = torch.randn(out, width)
    a1, a2, b1, b2 = (state[f"lora_unet_{Q}.{name}.weight"].double() for name in ("a1", "a2", "b1", "b2"))
    expected = (b1 @ b2 + base.double() @ a1 @ a2) * 1.5 / 3
    layer = parse_state(state).layers[f"lora_unet_{Q}"]
    found = layer.family.diff_weight(layer.weights, layer.options, base)
    assert layer.options.rank == 3
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)  # fp32 sums of ten terms


def test_a_glora_whose_rank_is_its_width_is_read_as_we_write_it() -> None:
    """All four matrices are square then, which both layouts could be."""
    tensors = {name: torch.randn(6, 6) for name in ("a1", "a2", "b1", "b2")}
    state = {f"lora_unet_{Q}.{name}.weight": tensor for name, tensor in tensors.items()}
    layer = parse_state(state).layers[f"lora_unet_{Q}"]
    assert all(torch.equal(layer.weights[name], tensor) for name, tensor in tensors.items())


def test_glora_layouts_are_reported() -> None:
    file = AdapterFile(Path("a.safetensors"), newer(3, 12, 10, 1.5), {})
    assert any("newer layout" in problem for problem in check(file).problems)
    model = tiny_model()
    adapter = trained(model, AdapterSpec("glora", 2, 2.0))
    state = adapter.state()
    adapter.remove()
    assert check(AdapterFile(Path("a.safetensors"), state, {})).remarks == {}
    other = {key: torch.tensor(1.0) if key.endswith(".alpha") else tensor for key, tensor in state.items()}
    assert any("Forge scales by it" in problem for problem in check(AdapterFile(Path("a"), other, {})).problems)


# --- other layers, other models -----------------------------------------------------------------


def test_full_lokr_of_a_convolution_works_on_a_linear_layer() -> None:
    """SD1 has 1×1 convolutions where SD2 and SDXL have linear layers with the same weights."""
    model = tiny_model()
    adapter = trained(model, AdapterSpec("lokr", 64, 64.0, text_encoder=False))
    state, expected = adapter.state(), model.predict()
    adapter.remove()
    as_conv = {k: t[:, :, None, None] if k.endswith("lokr_w2") and t.dim() == 2 else t for k, t in state.items()}
    assert any(as_conv[key].dim() != tensor.dim() for key, tensor in state.items())
    inject_parsed(model, parse_state(as_conv))
    assert torch.equal(model.predict(), expected)


OTHERS = {
    "lora_unet_double_blocks_0_img_attn_proj": "Flux",
    "lora_unet_single_blocks_0_linear1": "Flux",
    "transformer.single_transformer_blocks.0.attn.to_q": "Flux",
    "diffusion_model.double_blocks.3.img_attn.qkv": "Flux",
    "lora_unet_joint_blocks_0_x_block_attn_qkv": "SD3",
    "transformer.transformer_blocks.0.attn.add_q_proj": "SD3",
    "transformer.transformer_blocks.0.img_mlp.net.2": "Qwen-Image",
    "lora_te3_encoder_block_0_layer_0_SelfAttention_q": "SD3 or Flux",
    "diffusion_model.blocks.0.cross_attn.k": "Wan or Cosmos",
    "diffusion_model.noise_refiner.0.attention.qkv": "Lumina or Z-Image",
    "lora_prior_unet_down_blocks_0_0_channelwise_0": "Stable Cascade",
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_for_other_models_are_named_and_refused(name: str) -> None:
    """Though their CLIP-L has SDXL's names and sizes."""
    clip = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    state = {}
    for layer in (name, clip):
        dotted = "." in layer
        state[f"{layer}.{'lora_A' if dotted else 'lora_down'}.weight"] = torch.ones(2, 16)
        state[f"{layer}.{'lora_B' if dotted else 'lora_up'}.weight"] = torch.ones(16, 2)
    file = AdapterFile(Path("a.safetensors"), state, {"modelspec.architecture": "some/lora"})
    checked = check(file)
    assert checked.base_model == OTHERS[name]
    assert any(f"for {OTHERS[name]}" in problem for problem in checked.problems)
    two = tiny_model()
    model = TinyModel(
        two.unet, (two.text_encoders[0], tiny_model().text_encoders[0]), SimpleNamespace(architecture="sdxl")
    )
    with pytest.raises(AdapterError, match=f"for {OTHERS[name]}"):
        convert(file, model, to="diff")
    with pytest.raises(AdapterError, match=f"for {OTHERS[name]}"):
        merge([(file, 1.0), (file, 1.0)], model)


def test_stable_diffusion_layers_are_not_mistaken_for_other_models() -> None:
    assert find_by_layers(dict.fromkeys(own_names())) == ""


def own_names() -> list[str]:
    """Every name of SD1, SD2 and SDXL at their published sizes, in both spellings of UNets."""
    found: list[str] = []
    for architecture in ("sd1", "sd2", "sdxl"):
        with torch.device("meta"):
            unet = UNet2DConditionModel(**infer_spec(full_shapes(architecture)).unet)
        names = [
            name for name, module in unet.named_modules() if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))
        ]
        found += aliases(kind_of(architecture).lora_aliases(names), [["text_model.encoder.layers.0.mlp.fc1"]])
    return found


@pytest.mark.parametrize(
    ("layer", "width", "base"),
    [
        ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 768, "SD1"),
        ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 1024, "SD2"),
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", 768, "SDXL"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q", 640, "SDXL"),
        ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", 320, "SD1 or SD2"),
    ],
)
def test_the_base_model_is_guessed_without_cross_attention_too(layer: str, width: int, base: str) -> None:
    state = {f"{layer}.lora_down.weight": torch.ones(2, width), f"{layer}.lora_up.weight": torch.ones(8, 2)}
    assert check(AdapterFile(Path("a"), state, {})).base_model == base
