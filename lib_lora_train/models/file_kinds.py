"""Names what a model file is from the names of its tensors: an SD checkpoint, or which of the many other kinds.

A whole SD checkpoint stays one with a few stray tensors in it; it counts as another kind only if at least 5% of its
tensors belong to that kind, or if it has a marker that changes what the UNet computes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from lib_lora_train.core.errors import ModelError
from lib_lora_train.models.other_models import NEEDS_SD, OTHER_MODELS, with_article

_SD_UNET = ("model.diffusion_model.input_blocks.", "model.diffusion_model.output_blocks.")
_NEEDS_CHECKPOINT = "Choose a checkpoint."
_NEEDS_BASE = "Choose the checkpoint that it is used with."
_LEAST_SHARE = 0.05

_LORA = (
    r"lora[._](up|down|mid|A|B|linear_layer|magnitude_vector)\b|lora_(unet|te\d?|prior|transformer)_|^lycoris_|"
    r"\.hada_w|\.lokr_w|\.oft_|\.dora_scale|\.processor\.to_"
)
_WHOLE_WEIGHT = r"\.(weight|bias)$|^[^.]+$"
"""What the names of a LoRA's own tensors (`….diff`, `….alpha`) do not look like."""

_Kinds = tuple[tuple[str, str], ...]  # a pattern for tensor names, and what the file is

_MARKERS: _Kinds = (
    (r"^(edm_mean|edm_vpred)", f"an EDM model (Playground, CosXL), whose noise schedule is not supported. {NEEDS_SD}"),
    (r"encoder_hid_proj", f"a Kolors or Kandinsky model. {NEEDS_SD}"),
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
        _LORA,
        "a LoRA, not a checkpoint. Choose the model it was made for.",
    ),
    (
        r"motion_modules?\.|temporal_transformer\.",
        f"an AnimateDiff motion module, not a checkpoint. {_NEEDS_BASE}",
    ),
)
_EMBEDDINGS: _Kinds = (
    (
        r"^(emb_params|string_to_param|clip_[lg]$|<.*>$)",
        f"a textual-inversion embedding, not a checkpoint. {_NEEDS_BASE}",
    ),
)
_OTHER_MODELS: _Kinds = tuple(
    (model.tensors, f"{with_article(model.name)} model. {NEEDS_SD}") for model in OTHER_MODELS if model.tensors
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
        r"^(unet\.)?(down_blocks|up_blocks|mid_block|conv_in|conv_out)\.",
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
    what = _kind_only(_find_other_kind(names))
    if what.startswith("a VAE"):
        return "is the VAE of another kind of model (such as Wan or Qwen-Image). Choose one for SD or SDXL."
    if what:
        return f"is {what}, not a Stable Diffusion VAE. Choose a VAE file, or leave the VAE empty."
    return "is not a Stable Diffusion VAE. Choose a VAE file, or leave the VAE empty."


def describe_other_than_lora(names: Sequence[str]) -> str:
    """What a file is that has no layer of a LoRA; "" if it may be a LoRA."""
    if any(re.search(_LORA, name) for name in names):
        return ""
    if _has_sd_unet(names):
        return "a Stable Diffusion checkpoint"
    kinds = (*_ADDITIONS, *_EMBEDDINGS, *_OTHER_MODELS, *_PARTS)
    return _kind_only(_first_kind([name for name in names if re.search(_WHOLE_WEIGHT, name)], kinds))


def _kind_only(sentence: str) -> str:
    """What the file is, without the advice."""
    return re.split(r", not a checkpoint|[.:](?: |$)", sentence, maxsplit=1)[0]


def _find_other_kind(names: Sequence[str]) -> str:
    """What a file with these tensors is, and what to do, if it is known to be no SD checkpoint; else ""."""
    found = _first_kind(names, _MARKERS)
    if found or not _has_sd_unet(names):
        return found or _first_kind(names, (*_ADDITIONS, *_EMBEDDINGS, *_OTHER_MODELS, *_QUANTISED, *_PARTS))
    return _first_kind(
        names, (*_ADDITIONS, *_OTHER_MODELS, *_QUANTISED), least=max(2, round(_LEAST_SHARE * len(names)))
    )


def _first_kind(names: Sequence[str], kinds: _Kinds, least: int = 1) -> str:
    """The first kind to which at least `least` of the names belong, "" if there is none."""
    found = (what for pattern, what in kinds if sum(re.search(pattern, name) is not None for name in names) >= least)
    return next(found, "")


def _has_sd_unet(names: Sequence[str]) -> bool:
    return any(name.startswith(_SD_UNET) for name in names)
