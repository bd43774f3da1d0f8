"""Identifying a checkpoint from its names and shapes."""

from __future__ import annotations

import dataclasses

import pytest

from lib_lora_train.core.errors import ModelError
from lib_lora_train.models.architecture import CheckpointHints
from lib_lora_train.models.infer_spec import infer_spec
from tests.stand_ins.tiny_models import full_shapes, tiny_spec, tiny_tensors

UNET = "model.diffusion_model."


def test_sd1_is_read_as_published() -> None:
    spec = infer_spec(full_shapes("sd1"))
    assert (spec.architecture, spec.prediction_type, spec.zero_terminal_snr, spec.scale_factor) == (
        "sd1",
        "epsilon",
        False,
        0.18215,
    )
    assert spec.unet["block_out_channels"] == (320, 640, 1280, 1280)
    assert spec.unet["attention_head_dim"] == (8, 8, 8, 8)
    assert spec.unet["cross_attention_dim"] == 768
    assert not spec.unet["use_linear_projection"]
    (text,) = spec.text_encoders
    assert (text.layout, text.config["num_attention_heads"], text.config["hidden_act"]) == ("clip", 12, "quick_gelu")
    assert (text.config["num_hidden_layers"], text.pad_token, text.has_projection) == (12, 49407, False)


def test_sd2_is_read_as_published() -> None:
    spec = infer_spec(full_shapes("sd2"))
    assert (spec.architecture, spec.prediction_type) == ("sd2", "v_prediction")
    assert spec.unet["attention_head_dim"] == (5, 10, 20, 20)
    assert spec.unet["use_linear_projection"]
    (text,) = spec.text_encoders
    assert (text.layout, text.config["num_attention_heads"], text.config["hidden_act"]) == ("open_clip", 16, "gelu")
    assert (text.config["num_hidden_layers"], text.pad_token) == (23, 0)


def test_sdxl_is_read_as_published() -> None:
    spec = infer_spec(full_shapes("sdxl"))
    assert (spec.architecture, spec.prediction_type, spec.scale_factor) == ("sdxl", "epsilon", 0.13025)
    assert spec.unet["down_block_types"] == ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
    assert spec.unet["transformer_layers_per_block"] == (1, 2, 10)
    assert spec.unet["attention_head_dim"] == (5, 10, 20)
    assert spec.unet["addition_time_embed_dim"] == 256
    assert spec.unet["projection_class_embeddings_input_dim"] == 2816
    first, second = spec.text_encoders
    assert (first.config["num_attention_heads"], first.has_projection, first.pad_token) == (12, False, 49407)
    assert (second.config["num_attention_heads"], second.has_projection, second.pad_token) == (20, True, 0)
    assert (second.config["num_hidden_layers"], second.config["projection_dim"]) == (32, 1280)


def test_hints_override_markers() -> None:
    shapes: dict[str, tuple[int, ...]] = {**full_shapes("sdxl"), "v_pred": (), "ztsnr": ()}
    assert (infer_spec(shapes).prediction_type, infer_spec(shapes).zero_terminal_snr) == ("v_prediction", True)
    hints = CheckpointHints(prediction_type="epsilon", zero_terminal_snr=False)
    assert infer_spec(shapes, hints=hints).prediction_type == "epsilon"
    assert not infer_spec(shapes, hints=hints).zero_terminal_snr


def test_hints_give_heads_and_scale() -> None:
    hints = CheckpointHints(unet_heads=4, text_heads=(6,), scale_factor=0.5)
    spec = infer_spec(full_shapes("sd1"), hints=hints)
    assert spec.unet["attention_head_dim"] == (4, 4, 4, 4)
    assert spec.text_encoders[0].config["num_attention_heads"] == 6
    assert spec.scale_factor == 0.5


def test_heads_of_an_unknown_text_encoder_are_not_guessed() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tiny_tensors("sd1").items()}
    with pytest.raises(ModelError, match=r"32 wide.*config\.json"):
        infer_spec(shapes)


def test_tiny_models_differ_from_the_published_in_width_only() -> None:
    for architecture in ("sd1", "sd2", "sdxl"):
        tiny = tiny_spec(tiny_tensors(architecture))
        full = infer_spec(full_shapes(architecture))
        for same in ("down_block_types", "layers_per_block", "transformer_layers_per_block", "use_linear_projection"):
            assert tiny.unet[same] == full.unet[same]
        for mine, theirs in zip(tiny.text_encoders, full.text_encoders, strict=True):
            assert dataclasses.replace(mine, config={}) == dataclasses.replace(theirs, config={})
            assert mine.config["num_hidden_layers"] == theirs.config["num_hidden_layers"]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"], "is a LoRA"),
        (["diffusion_model.input_blocks.1.1.proj_in.lora_A.weight"], "is a LoRA"),
        (["emb_params"], "textual-inversion"),
        (["control_model.input_blocks.0.0.weight"], "ControlNet"),
        (["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"], "a Flux model"),
        (["down_blocks.0.resnets.0.conv1.weight"], "diffusers' layout"),
        (["encoder.conv_in.weight", "decoder.conv_in.weight"], "is a VAE"),
        (["first_stage_model.encoder.conv_in.weight"], "is a VAE"),
        (["wte.weight"], "not a Stable Diffusion checkpoint"),
    ],
)
def test_other_kinds_of_files_are_named(names: list[str], sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        infer_spec(dict.fromkeys(names, (1,)))


@pytest.mark.parametrize(
    ("prefix", "sentence"), [("first_stage_model.", "contains no VAE"), ("cond_stage_model.", "no text encoder")]
)
def test_an_incomplete_checkpoint_says_what_is_missing(prefix: str, sentence: str) -> None:
    shapes = {name: shape for name, shape in full_shapes("sd1").items() if not name.startswith(prefix)}
    with pytest.raises(ModelError, match=sentence):
        infer_spec(shapes)


def test_inpainting_refiner_and_unclip_are_refused() -> None:
    inpainting = full_shapes("sd1") | {f"{UNET}input_blocks.0.0.weight": (320, 9, 3, 3)}
    with pytest.raises(ModelError, match="inpainting"):
        infer_spec(inpainting)
    sdxl = full_shapes("sdxl")
    with pytest.raises(ModelError, match="refiner"):
        infer_spec({name.replace("embedders.1.", "embedders.0."): shape for name, shape in sdxl.items()})
    with pytest.raises(ModelError, match="unclip"):
        infer_spec(full_shapes("sd2") | {f"{UNET}label_emb.0.0.weight": (1280, 2048)})
