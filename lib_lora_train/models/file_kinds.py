"""Names what a model file is from the names of its tensors: an SD checkpoint, or which of the many other kinds.

A whole SD checkpoint stays one with a few stray tensors in it; it counts as another kind only if at least 5 % of its
tensors belong to that kind, or if it has a marker that changes what the UNet computes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from lib_lora_train.core.errors import ModelError

_SD_UNET = ("model.diffusion_model.input_blocks.", "model.diffusion_model.output_blocks.")
_NEEDS_SD = "Only SD 1.x, SD 2.x and SDXL can be trained."
_NEEDS_CHECKPOINT = "Choose a checkpoint."
_NEEDS_BASE = "Choose the checkpoint that it is used with."
_LEAST_SHARE = 0.05

_Kinds = tuple[tuple[str, str], ...]  # a pattern for tensor names, and what the file is

_MARKERS: _Kinds = (
    (r"^(edm_mean|edm_vpred)", f"an EDM model (Playground, CosXL), whose noise schedule is not supported. {_NEEDS_SD}"),
    (r"encoder_hid_proj", f"a Kolors or Kandinsky model. {_NEEDS_SD}"),
)

# In the following tables, the first match counts: several kinds have all the names of another one, and more.
_ADDITIONS: _Kinds = (
    (
        r"^(control_model|controlnet\w*|control_add_embedding)[._]|input_hint_block|zero_convs|lora_controlnet|"
        r"lllite_|controlnet_(cond_embedding|down_blocks|mid_block|blocks|x_embedder)",
        f"a ControlNet, not a checkpoint. {_NEEDS_BASE}",
    ),
    (r"^(ip_adapter|image_proj)(\.|$)|\.to_[kv]_ip\.", f"an IP-Adapter, not a checkpoint. {_NEEDS_BASE}"),
    (r"^(adapter\.)?body\.\d+\.(in_conv|block\d|resnets)", f"a T2I-Adapter, not a checkpoint. {_NEEDS_BASE}"),
    (
        r"lora[._](up|down|mid|A|B|linear_layer|magnitude_vector)\b|lora_(unet|te\d?|prior|transformer)_|^lycoris_|"
        r"\.hada_w|\.lokr_w|\.oft_|\.dora_scale|\.processor\.to_",
        "a LoRA, not a checkpoint. Choose the model it was made for.",
    ),
    (
        r"motion_modules?\.|temporal_transformer\.",
        f"an AnimateDiff motion module, not a checkpoint. {_NEEDS_BASE}",
    ),
    (r"time_stack|time_mix(er|_blocks)", f"a Stable Video Diffusion model. {_NEEDS_SD}"),
)
_EMBEDDINGS: _Kinds = (
    (
        r"^(emb_params|string_to_param|clip_[lg]$|<.*>$)",
        f"a textual-inversion embedding, not a checkpoint. {_NEEDS_BASE}",
    ),
)
_OTHER_MODELS: _Kinds = (
    (r"distilled_guidance_layer", f"a Chroma model. {_NEEDS_SD}"),
    (r"(double|single)_stream_modulation", f"a Flux.2 model. {_NEEDS_SD}"),
    (r"individual_token_refiner|token_refiner_blocks|byt5_in\.", f"a Hunyuan video or image model. {_NEEDS_SD}"),
    (r"mlp_t5\.|text_embedding_padding|extra_embedder", f"a Hunyuan-DiT model. {_NEEDS_SD}"),
    (r"ref_image_refiner", f"an OmniGen2 model. {_NEEDS_SD}"),
    (r"joint_transformer_blocks\.|double_layers\.\d+\.attn\.w", f"an AuraFlow model. {_NEEDS_SD}"),
    (r"(double|single)_stream_blocks\.", f"a HiDream model. {_NEEDS_SD}"),
    (r"(double_blocks|single_blocks|single_transformer_blocks)\.\d", f"a Flux model. {_NEEDS_SD}"),
    (r"transformer_blocks\.\d+\.(img|txt)_(mlp|mod)|txt_norm\.", f"a Qwen-Image model. {_NEEDS_SD}"),
    (r"joint_blocks\.\d|\.add_[qkv]_proj\.", f"an SD3 model. {_NEEDS_SD}"),
    (r"(x|cap)_pad_token", f"a Z-Image model. {_NEEDS_SD}"),
    (r"(noise|context)_refiner\.|cap_embedder\.", f"a Z-Image or Lumina model. {_NEEDS_SD}"),
    (r"llm_adapter\.", f"an Anima model. {_NEEDS_SD}"),
    (
        r"adaln_modulation_|(^|\.)blocks\.\d+\.self_attn\.q_proj|\bt_embedder\.1\.",
        f"a Cosmos or Anima model. {_NEEDS_SD}",
    ),
    (r"(^|\.)blocks\.\d+\.(self_attn|cross_attn)\.[qkvo]\.", f"a Wan model. {_NEEDS_SD}"),
    (r"patchify_proj", f"an LTX-Video model. {_NEEDS_SD}"),
    (r"conv_inverted|glumb_conv", f"a Sana model. {_NEEDS_SD}"),
    (
        r"(^|\.)t_block\.1|y_embedder\.y|adaln_single\.|^caption_projection\.|blocks\.\d+\.scale_shift_table",
        f"a PixArt or Sana model. {_NEEDS_SD}",
    ),
    (r"effnet_mapper|clip_(txt|img)(_pooled)?_mapper", f"a Stable Cascade model. {_NEEDS_SD}"),
    (r"layers\.\d+\.attention\.(qkv|to_q|wq)\b", f"a Z-Image or Lumina model. {_NEEDS_SD}"),
)
_QUANTISED: _Kinds = (
    (
        r"(^|\.)scaled_fp8$|\.(scale_weight|weight_scale(_2|_inv)?|scale_input|input_scale|comfy_quant)$",
        "a checkpoint in scaled fp8, whose weights mean nothing without their scales. "
        "Choose the version in fp16, bf16 or plain fp8.",
    ),
    (
        r"\.(absmax|quant_map|qweight|wscales|qzeros)$|quant_state\.bitsandbytes",
        "a checkpoint quantised to 4 bit (nf4, SVDQuant, GPTQ). Choose the version in fp16 or bf16.",
    ),
)
_PARTS: _Kinds = (
    (
        r"^(taesd_)?(encoder|decoder)\.(layers\.)?\d+\.(weight|bias|conv\.)|^taesd_|^\d+\.conv\.\d+\.weight",
        f"TAESD, which draws previews, not a checkpoint. {_NEEDS_CHECKPOINT}",
    ),
    (
        r"^(unet\.)?(down_blocks|up_blocks|mid_block)\.",
        "a UNet in diffusers' layout. Choose the folder of the whole model, which contains model_index.json, "
        "or a single-file checkpoint.",
    ),
    (
        r"^(diffusion_model\.)?(input_blocks|middle_block|output_blocks)\.\d",
        "only a UNet, without text encoder and VAE. Choose a complete checkpoint.",
    ),
    (
        r"^((vae|first_stage_model)\.)?(encoder|decoder)\.(conv_in|conv1|down|up|mid|downsamples|middle)",
        "a VAE, not a checkpoint. Select it as the VAE, and choose a checkpoint.",
    ),
    (r"^(vision_model|visual)\.", f"a CLIP image encoder, not a checkpoint. {_NEEDS_CHECKPOINT}"),
    (
        r"text_model\.|transformer\.resblocks\.|encoder\.layers\.\d+\.self_attn|"
        r"block\.\d+\.layer\.\d+\.|^model\.layers\.\d+\.(self_attn|mlp)",
        f"a text encoder, not a checkpoint. {_NEEDS_CHECKPOINT}",
    ),
    (
        r"^(conv_first|conv_body|RRDB_trunk|upsample|body\.\d+\.(rdb|weight)|model\.\d+\.(sub\.|weight))",
        f"an upscaler, not a checkpoint. {_NEEDS_CHECKPOINT}",
    ),
)


def refuse_other_kinds(tensors: Iterable[str]) -> None:
    """ModelError, saying what the file is, if these are not the names of an SD checkpoint's tensors."""
    names = list(tensors)
    what = _find_other_kind(names)
    if what:
        raise ModelError(f"This is {what}")
    if not _has_sd_unet(names):
        raise ModelError(
            "This is not a Stable Diffusion checkpoint: it has no UNet in the single-file (ldm) layout. "
            "Choose a checkpoint for SD 1.x, SD 2.x or SDXL."
        )


def explain_other_vae(names: Sequence[str]) -> str:
    """What a file is that was chosen as the VAE and is none that fits."""
    if "encoder.down_blocks.0.resnets.0.conv1.weight" in names:
        return "is a VAE in diffusers' layout: choose the single-file (ldm) one."
    what = _find_other_kind(names).partition(".")[0].partition(", not a checkpoint")[0]
    if what.startswith("a VAE"):
        return "is the VAE of another kind of model (such as Wan or Qwen-Image). Choose one for SD or SDXL."
    if what:
        return f"is {what}, not a Stable Diffusion VAE. Choose a VAE file, or leave the VAE empty."
    return "is not a Stable Diffusion VAE. Choose a VAE file, or leave the VAE empty."


def _find_other_kind(names: Sequence[str]) -> str:
    """What a file with these tensors is, and what to do, if it is known to be no SD checkpoint; else ""."""
    found = _first_kind(names, _MARKERS)
    if found or not _has_sd_unet(names):
        return found or _first_kind(names, (*_ADDITIONS, *_EMBEDDINGS, *_OTHER_MODELS, *_QUANTISED, *_PARTS))
    return _first_kind(names, (*_ADDITIONS, *_QUANTISED), least=max(2, round(_LEAST_SHARE * len(names))))


def _first_kind(names: Sequence[str], kinds: _Kinds, least: int = 1) -> str:
    """The first kind to which at least `least` of the names belong, "" if there is none."""
    found = (what for pattern, what in kinds if sum(re.search(pattern, name) is not None for name in names) >= least)
    return next(found, "")


def _has_sd_unet(names: Sequence[str]) -> bool:
    return any(name.startswith(_SD_UNET) for name in names)
