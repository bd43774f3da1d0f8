"""Prompts to conditions at once, for all that is not trained on: samples, control prompts, features.

Training encodes its captions with `training.text_conditions`, which caches them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.prompt_encoder import pad_conditions
from lib_lora_train.models.text_encoding import TextCondition, count_chunks, encode_text, tokenize, tokenize_weighted


def prompt_chunks(model: DiffusionModel, prompts: Sequence[str], *, is_weighted: bool = True) -> int:
    """How many chunks of tokens the longest prompt needs: prompts with the same number can share a batch."""
    return 1 if model.prompt_encoder else count_chunks(model, prompts, weighted=is_weighted)


def encode_prompts(
    model: DiffusionModel,
    prompts: Sequence[str],
    clip_skip: int,
    *,
    is_weighted: bool = True,
    chunks: int | None = None,
) -> TextCondition:
    """The prompts' conditions, on the UNet's device and in its dtype; `is_weighted`: brackets set weights.

    `chunks`: how many CLIP chunks all get, None for as many as the longest needs.
    """
    encoder = model.prompt_encoder
    if encoder is not None:
        with torch.no_grad():
            found = encoder.encode(prompts, is_weighted=is_weighted)
        condition = TextCondition(pad_conditions(found, encoder.padded_tokens), None)
    elif is_weighted:
        ids, weights = tokenize_weighted(model, prompts, chunks)
        condition = encode_text(model, ids, clip_skip, weights)
    else:
        condition = encode_text(model, tokenize(model, prompts, chunks or count_chunks(model, prompts)), clip_skip)
    return condition.to(model.device, model.dtype)
