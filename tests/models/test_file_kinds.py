"""Files that are not SD checkpoints are named as what they are, and stray tensors change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lib_lora_train.core.errors import ModelError
from lib_lora_train.models.checkpoint import load_checkpoint, load_vae
from lib_lora_train.models.infer_spec import infer_spec
from tests.stand_ins.tiny_models import full_shapes, tiny_tensors

U = "model.diffusion_model."
BLOCK = "transformer_blocks.0."
KINDS = {
    "Anima": (f"{U}blocks.0.self_attn.q_proj.weight", f"{U}llm_adapter.blocks.0.x.weight"),
    "Cosmos": ("blocks.0.self_attn.q_proj.weight", "blocks.0.adaln_modulation_mlp.1.weight"),
    "Z-Image": (f"{U}layers.0.attention.qkv.weight", f"{U}cap_embedder.0.weight", f"{U}x_pad_token"),
    "Lumina": ("layers.0.attention.qkv.weight", "context_refiner.0.attention.qkv.weight"),
    "Qwen-Image": (f"{BLOCK}attn.add_k_proj.weight", f"{BLOCK}img_mlp.net.0.proj.weight", "txt_norm.weight"),
    "Flux": (f"{U}double_blocks.0.img_attn.qkv.weight", f"{U}single_blocks.0.linear1.weight"),
    "Flux ": ("single_transformer_blocks.0.attn.to_k.weight", f"{BLOCK}attn.add_k_proj.weight", "x_embedder.weight"),
    "Chroma": ("double_blocks.0.img_attn.qkv.weight", "distilled_guidance_layer.in_proj.weight"),
    "Flux.2": ("double_blocks.0.img_attn.qkv.weight", "double_stream_modulation_img.lin.weight"),
    "Hunyuan": ("double_blocks.0.img_attn_qkv.weight", "txt_in.individual_token_refiner.blocks.0.norm1.weight"),
    "SD3": (f"{U}joint_blocks.0.x_block.attn.qkv.weight",),
    "PixArt": ("t_block.1.weight", "blocks.0.scale_shift_table", "y_embedder.y_embedding"),
    "PixArt ": (f"{BLOCK}attn1.to_q.weight", "adaln_single.linear.weight"),
    "Wan": ("blocks.0.self_attn.q.weight", "blocks.0.cross_attn.k.weight", "head.modulation"),
    "AuraFlow": ("joint_transformer_blocks.0.attn.to_q.weight",),
    "Kolors": (f"{U}input_blocks.0.0.weight", "encoder_hid_proj.weight"),
    "EDM": (f"{U}input_blocks.0.0.weight", "edm_mean"),
    "TAESD": ("encoder.layers.0.weight", "decoder.layers.1.weight"),
    "TAESD ": ("taesd_encoder.0.weight",),
    "motion module": ("down_blocks.0.motion_modules.0.temporal_transformer.proj_in.weight",),
    "ControlNet": ("control_model.input_blocks.0.0.weight",),
    "ControlNet ": ("controlnet_cond_embedding.conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"),
    "ControlNet  ": ("lllite_unet_input_blocks_4_1_attn1_to_q.down.0.weight",),
    "ControlNet   ": ("input_hint_block.0.weight", "input_blocks.0.0.weight"),
    "IP-Adapter": ("ip_adapter.1.to_k_ip.weight", "image_proj.proj.weight"),
    "LoRA": ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_k_lora.up.weight",),
    "LoRA ": ("unet.down_blocks.0.attn1.to_k.lora_linear_layer.up.weight",),
    "LoRA  ": ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k.lora.up.weight",),
    "LoRA   ": ("lora_unet_down_blocks_0_attentions_0_proj_in.diff",),
    "LoRA    ": ("base_model.model.down_blocks.0.attn1.to_q.lora_A.default.weight",),
    "embedding": ("emb_params",),
    "only a UNet": ("input_blocks.0.0.weight", "output_blocks.0.0.in_layers.0.weight"),
    "only a UNet ": ("diffusion_model.input_blocks.0.0.weight",),
    "a VAE": ("vae.encoder.conv_in.weight",),
    "text encoder": ("text_model.encoder.layers.0.self_attn.q_proj.weight",),
    "text encoder ": ("encoder.block.0.layer.0.SelfAttention.q.weight",),
    "upscaler": ("conv_first.weight", "body.0.rdb1.conv1.weight"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_files_are_named_without_useless_advice(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({name: torch.zeros(4, 4) for name in KINDS[kind]}, path)
    with pytest.raises(ModelError) as refusal:
        infer_spec(load_checkpoint(path).shapes)
    sentence = str(refusal.value)
    assert kind.strip() in sentence
    assert not any(words in sentence for words in ("damaged", "ownload it again", "Choose a VAE file for it"))


@pytest.mark.parametrize("ending", ["scale_weight", "weight_scale", "comfy_quant"])
def test_scaled_fp8_checkpoints_are_named(ending: str) -> None:
    shapes = full_shapes("sdxl")
    scales = {name.removesuffix("weight") + ending: () for name in shapes if name.endswith("to_q.weight")}
    with pytest.raises(ModelError, match=r"scaled fp8.*plain fp8"):
        infer_spec({**shapes, **scales, "scaled_fp8": (0,)})


@pytest.mark.parametrize(
    "name",
    [
        "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha",
        "control_model.input_blocks.0.0.weight",
        "cond_stage_model.transformer.vision_model.embeddings.class_embedding",
        "double_blocks.0.img_attn.qkv.weight",
        "text_encoders.t5.block.0.layer.0.x",
        "clip_l",
        "emb_params",
        "motion_modules.0.x",
    ],
)
def test_one_stray_tensor_does_not_make_a_checkpoint_something_else(name: str) -> None:
    shapes = full_shapes("sd1")
    assert infer_spec({**shapes, name: (4, 4)}) == infer_spec(shapes)


def _sdxl_with_depths(depths: dict[int, int], *, has_middle: bool) -> dict[str, tuple[int, ...]]:
    """SDXL's shapes with fewer transformer blocks in some input blocks."""

    def is_kept(name: str) -> bool:
        parts = name.removeprefix(U).split(".")
        if parts[0] == "middle_block" and parts[1] != "0":
            return has_middle
        limit = depths.get(int(parts[1])) if parts[0] == "input_blocks" else None
        return limit is None or "transformer_blocks" not in parts or int(parts[4]) < limit

    shapes = full_shapes("sdxl")
    return {name: shape for name, shape in shapes.items() if not name.startswith(U) or is_kept(name)}


def test_distilled_models_are_named() -> None:
    """Depths as in the published models: SSD-1B 2, 2, 4, 4; Segmind Vega 1, 1, 2, 2; KOALA has one layer per level."""
    with pytest.raises(ModelError, match="SSD-1B"):
        infer_spec(_sdxl_with_depths({7: 4, 8: 4}, has_middle=False))
    with pytest.raises(ModelError, match="Segmind Vega"):
        infer_spec(_sdxl_with_depths({4: 1, 5: 1, 7: 2, 8: 2}, has_middle=False))
    one_layer = {name: shape for name, shape in full_shapes("sdxl").items() if f"{U}input_blocks.2." not in name}
    with pytest.raises(ModelError, match="KOALA"):
        infer_spec({**one_layer, f"{U}input_blocks.2.0.op.weight": (320, 320, 3, 3)})
    no_middle = {name: shape for name, shape in full_shapes("sd1").items() if f"{U}middle_block.1" not in name}
    with pytest.raises(ModelError, match="BK-SDM"):
        infer_spec(no_middle)


@pytest.mark.parametrize("architecture", ["sd1", "sdxl"])
def test_a_bare_unet_is_reported_once_and_wholly(architecture: str) -> None:
    unet = {name: shape for name, shape in full_shapes(architecture).items() if name.startswith(U)}  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=rf"only the UNet of {architecture.upper()}.*no text encoder and no VAE"):
        infer_spec(unet)


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        (("encoder.conv1.weight", "decoder.middle.0.residual.0.gamma"), "VAE of another kind of model"),
        (("encoder.layers.0.weight",), "TAESD"),
        (("lora_unet_x.lora_up.weight",), "a LoRA"),
    ],
)
def test_a_file_that_is_no_vae_is_named_as_what_it_is(tensors: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    save_file({name: torch.zeros(4, 4) for name in tensors}, path)
    with pytest.raises(ModelError, match=rf"vae\.safetensors is .*{sentence}"):
        load_vae(path)


def test_a_vae_that_does_not_fit_is_named_and_not_the_checkpoint(tmp_path: Path) -> None:
    from lib_lora_train.models.loading import ModelChoice, load_model
    from tests.stand_ins.tiny_models import write_tiny_checkpoint

    checkpoint = write_tiny_checkpoint(tmp_path / "model.safetensors", "sd1")
    front = "first_stage_model."
    vae = {name.removeprefix(front): t for name, t in tiny_tensors("sd1").items() if name.startswith(front)}
    flux = {**vae, "decoder.conv_in.weight": torch.zeros(96, 16, 3, 3)}
    lacking = {name: tensor for name, tensor in vae.items() if name != "decoder.conv_out.bias"}
    for tensors, sentence in ((flux, "16 latent channels"), (lacking, "conv_out.bias is missing")):
        save_file(tensors, tmp_path / "other-vae.safetensors")
        with pytest.raises(ModelError, match=rf"^other-vae\.safetensors: The VAE has .*{sentence}"):
            load_model(ModelChoice(checkpoint, tmp_path / "other-vae.safetensors"), torch.device("cpu"))
