"""All differences between versions of diffusers (0.31 …), transformers (4.30 …) and peft."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib_lora_train.core.errors import ModelError
from lib_lora_train.models.lean_modules import use_lean_modules


def build_unet(config: Mapping[str, Any]) -> nn.Module:
    """A diffusers UNet on the meta device, which takes no memory."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = _module(UNet2DConditionModel(**config))
    use_lean_modules(unet)
    return unet


def build_vae(config: Mapping[str, Any], scale_factor: float) -> nn.Module:
    """A diffusers VAE on the meta device."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        return _module(AutoencoderKL(**config, scaling_factor=scale_factor))


def build_cosmos_transformer(config: Mapping[str, Any]) -> nn.Module:
    """A diffusers Cosmos transformer on the meta device; ModelError where diffusers does not have it (before 0.33)."""
    try:
        from diffusers import CosmosTransformer3DModel
    except ImportError as reason:
        raise ModelError("Anima needs diffusers 0.33 or newer, which this program does not have installed.") from reason
    with torch.device("meta"):
        return _module(CosmosTransformer3DModel(**config))


def build_text_encoder(config: Mapping[str, Any], has_projection: bool) -> nn.Module:
    """A transformers CLIP text model on the meta device, with a text projection if `has_projection`."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if has_projection else CLIPTextModel
    with torch.device("meta"):
        return _module(kind(CLIPTextConfig(**config)))


def _module(built: Any) -> nn.Module:
    module: nn.Module = built
    return module.eval().requires_grad_(False)


def text_transformer(text_encoder: nn.Module) -> Any:
    """The module with `embeddings`, `encoder` and `final_layer_norm`; transformers 5.6 removed the level above it."""
    return getattr(text_encoder, "text_model", text_encoder)


def without_text_model_prefix(name: str) -> str:
    """A text encoder's parameter name as in transformers 5.6 and later: without `text_model.`."""
    return name.removeprefix("text_model.")


def text_hidden_states(text_encoder: nn.Module, token_ids: Tensor) -> tuple[Tensor, ...]:
    """The embeddings and every layer's output, (B, 77, D) each, before the final layer norm."""
    states: tuple[Tensor, ...] = text_encoder(token_ids, output_hidden_states=True, return_dict=True).hidden_states
    return states


def create_position_ids(text_encoder: nn.Module, device: torch.device) -> int:
    """Replace the position ids that were built on the meta device; returns their size in bytes.

    They are a persistent buffer up to transformers 4.30, and not in the state dict afterwards.
    """
    embeddings = text_transformer(text_encoder).embeddings
    if "position_ids" not in embeddings._buffers:
        return 0
    count = embeddings.position_embedding.weight.shape[0]
    embeddings._buffers["position_ids"] = torch.arange(count, device=device).expand(1, -1)
    return int(count) * 8


def load_clip_tokenizer(folder: Path) -> Any:
    """The CLIP tokenizer with the vocab.json and merges.txt in `folder`; never uses the network."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)


def token_ids_without_ends(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, not truncated, without begin and end tokens."""
    ids: list[list[int]] = tokenizer(texts, truncation=False, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def __getattr__(name: str) -> Any:
    """`Adafactor`: transformers' optimiser, imported on first use, since most runs do not need it."""
    if name == "Adafactor":
        from transformers.optimization import Adafactor

        return Adafactor
    raise AttributeError(name)
