"""The VAE and the text encoder of an Anima in Forge Neo, used where they are.

Neo replaces its model when a checkpoint is loaded again, so both are looked up each time. They are used in leases only,
when the right checkpoint is in memory.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lib_lora_train.models.kinds.anima import TEXT_TOKENS
from lib_lora_train.models.latent_cache import hash_weights
from lib_lora_train.models.prompt_weights import BREAK

_LITERAL = "None"
"""The setting with which brackets are plain characters."""
_WORD_START = "▁"  # T5's mark of a token that begins a word
_BRACKETS = re.compile(r"[\\()\[\]]")


class AnimaVae:
    """The webui's VAE, called as one of diffusers is; `find` returns its module.

    It encodes to the mean of the latent's distribution, which is what webuis and sd-scripts train and draw with.
    """

    def __init__(self, find: Callable[[], nn.Module]) -> None:
        self._find = find

    def encode(self, images: Tensor) -> Any:
        """Images (B, 3, H, W) in [-1, 1] → an object with `latent_dist.mean` and `.std`, (B, 16, h, w) each."""
        module: Any = self._find()
        mean = module.encode(images[:, :, None])[:, :, 0]
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=torch.zeros_like(mean)))

    def decode(self, latents: Tensor) -> Any:
        """Latents (B, 16, h, w) → an object with `sample`, the images (B, 3, H, W)."""
        module: Any = self._find()
        return SimpleNamespace(sample=module.decode(latents[:, :, None])[:, :, 0])

    def __getattr__(self, name: str) -> Any:
        """Parameters, buffers and the state dict are those of the webui's module."""
        return getattr(self._find(), name)

    def __deepcopy__(self, memo: dict[int, Any]) -> AnimaVae:
        module = copy.deepcopy(self._find(), memo)
        return AnimaVae(lambda: module)

    def float(self) -> AnimaVae:
        """The same object with its module in float32; for copies only."""
        self._find().float()
        return self


class AnimaPromptEncoder:
    """Implements `models.prompt_encoder.PromptEncoder` with the webui's text engine; `find` returns it.

    `emphasis` returns the webui's setting of how brackets are read; `without_traces` a context in which an encoded
    prompt leaves nothing in the infotext of the webui's next image.
    """

    padded_tokens = TEXT_TOKENS

    def __init__(
        self,
        find: Callable[[], Any],
        emphasis: Callable[[], str],
        without_traces: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self._find = find
        self._emphasis = emphasis
        self._without_traces = without_traces

    @property
    def emphasis(self) -> str:
        """The name of the webui's setting."""
        return self._emphasis()

    def encode(self, prompts: Sequence[str], *, is_weighted: bool) -> list[Tensor]:
        """Each prompt's condition, (tokens, 1024), as the webui makes it for an image, without its padding."""
        if not is_weighted and self.emphasis != _LITERAL:
            # BREAK has a meaning in prompts: Neo would give it the weight −1 here.
            prompts = [_BRACKETS.sub(r"\\\g<0>", BREAK.sub(" ", prompt)) for prompt in prompts]
        with torch.no_grad(), self._without_traces():
            return [_without_padding(condition) for condition in self._find()(list(prompts))]

    def tokens(self, texts: Sequence[str]) -> list[list[str]]:
        """T5's tokens, of which each is one position of the condition; Qwen's are not limited."""
        engine = self._find()
        _, ids = engine.tokenize(list(texts))
        return [
            [str(token).replace(_WORD_START, " ") for token in engine.t5_tokenizer.convert_ids_to_tokens(one)]
            for one in ids
        ]

    def weights_hash(self) -> str:
        """sha256 (hex) of the text encoder's weights."""
        return hash_weights([self._find().text_encoder])


def _without_padding(condition: Tensor) -> Tensor:
    """(1, n, D) → (tokens, D): up to the last row that is not zero, and at least one."""
    rows = condition[0]
    used = rows.ne(0).any(dim=-1).nonzero()
    return rows[: int(used[-1]) + 1 if len(used) else 1].clone()
