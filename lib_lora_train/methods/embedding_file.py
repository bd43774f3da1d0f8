"""Files of textual inversion, as A1111, Forge, ComfyUI and diffusers read them.

A file has one tensor (N, D) for each text encoder, with N vectors of its width D: `emb_params`, for SDXL `clip_l` and
`clip_g`. diffusers calls the only tensor of SD1 and SD2 after the word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from lib_lora_train.adapters.files.lora_file import read_tensors
from lib_lora_train.core.errors import AdapterError

KEYS: Mapping[int, tuple[str, ...]] = {1: ("emb_params",), 2: ("clip_l", "clip_g")}
"""The tensors' names by the number of text encoders, in their order."""


def embedding_keys(encoders: int, word: str, file_format: str) -> tuple[str, ...]:
    """The tensors' names in a file of this `embedding_format`."""
    return (word,) if file_format == "diffusers" and encoders == 1 else KEYS[encoders]


def read_embedding(path: Path, encoders: int) -> tuple[Tensor, ...]:
    """The vectors (N, D) for each of a model's text encoders, on the CPU, in the file's dtype.

    AdapterError if the file is missing, damaged, something else, or for models with another number of text encoders.
    """
    return parse_embedding(read_tensors(path, "an embedding").state, encoders, path.name)


def parse_embedding(state: Mapping[str, Tensor], encoders: int, name: str) -> tuple[Tensor, ...]:
    """The vectors in a file's tensors; `name` is the file's. Errors as `read_embedding`."""
    keys = next((keys for keys in KEYS.values() if set(keys) == set(state)), tuple(state))
    vectors = tuple(state[key] for key in keys)
    if len(keys) > len(KEYS) or any(one.ndim not in (1, 2) or not one.is_floating_point() for one in vectors):
        raise AdapterError(f"{name} is not an embedding of textual inversion. Choose a file that is.")
    if len(vectors) != encoders:
        kind = "SDXL" if len(vectors) == 2 else "SD1 or SD2"
        raise AdapterError(f"{name} is an embedding for {kind}, not for this model. Choose a checkpoint of its kind.")
    return tuple(one.reshape(-1, one.shape[-1]) for one in vectors)


def require_widths(vectors: Sequence[Tensor], widths: Sequence[int], name: str) -> None:
    """AdapterError unless the vectors have the widths of the model's text encoders."""
    found = [one.shape[-1] for one in vectors]
    if found != list(widths):
        theirs, ours = " and ".join(map(str, found)), " and ".join(map(str, widths))
        raise AdapterError(
            f"{name} has vectors of width {theirs}, and this model's text encoder needs {ours}. Choose a checkpoint of "
            "the kind that it was trained on."
        )
