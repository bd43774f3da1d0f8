"""Textual inversion (Gal et al. 2022): only the token embedding of a word is trained, the model stays as it is.

The trigger word of the captions is read as N vectors v (N, D) of each text encoder, in place of its usual tokens. The
loss is that of any training, and its gradient reaches v through the whole UNet and text encoder:

    v* = argmin_v E ‖ε − ε_θ(x_t, t, c_v)‖²,  c_v: the text condition of a caption with v

The word's file is all that is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from lib_lora_train.adapters.adapted_layer import AdaptedLayer
from lib_lora_train.adapters.dropout import DropoutRates
from lib_lora_train.adapters.inject import has_adapter
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import AdapterError, DataError
from lib_lora_train.methods.embedding_file import embedding_keys, parse_embedding, read_embedding, require_widths
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.placeholder_words import (
    initial_vectors,
    median_norms,
    placeholder_word,
    put_word,
    remove_word,
    spell,
    word_in_place,
)
from lib_lora_train.models.text_encoding import tokenize_sections

_NO_WORD = "*"
"""What the vectors start from without an init text and a class word, as in A1111."""


class TextualInversion:
    """Implements `TrainedPart`: the vectors of a word that is on the model.

    `groups`: `embedding` with a parameter (N, D) in fp32; for SDXL `embedding_1` and `embedding_2`.
    """

    def __init__(self, model: DiffusionModel, word: str, vectors: Sequence[Tensor], *, file_format: str) -> None:
        self._model = model
        self._medians = median_norms(model)
        self._keys = embedding_keys(len(vectors), word, file_format)
        for root in (model.unet, *model.text_encoders):
            root.requires_grad_(False)
        devices = [next(encoder.parameters()).device for encoder in model.text_encoders]
        self._parameters = [
            nn.Parameter(one.detach().to(device, torch.float32, copy=True))
            for one, device in zip(vectors, devices, strict=True)
        ]
        names = ["embedding"] if len(vectors) == 1 else [f"embedding_{n + 1}" for n in range(len(vectors))]
        self.groups = {name: [parameter] for name, parameter in zip(names, self._parameters, strict=True)}
        self.layers: dict[str, AdaptedLayer] = {}
        self.skipped: tuple[str, ...] = ()
        self._word = put_word(model, word, self._parameters)

    @property
    def dtype(self) -> torch.dtype:
        """fp32: a few thousand numbers are not worth rounding."""
        return torch.float32

    def parameter_groups(
        self, rates: Mapping[str, float], master_weights: Mapping[str, Sequence[nn.Parameter]] | None = None
    ) -> tuple[dict[str, list[nn.Parameter]], dict[str, float]]:
        """One optimiser group for each text encoder."""
        groups = self.groups if master_weights is None else master_weights
        return {name: list(group) for name, group in groups.items()}, {name: rates[name] for name in groups}

    def norm_control(self, config: TrainConfig) -> MedianNorm | None:
        """The median norm of the model's own embeddings, if the settings keep it."""
        return MedianNorm(self._parameters, self._medians) if config.preserve_embedding_norm else None

    def training(self, _rates: DropoutRates, _seed: int, *_counters: int) -> AbstractContextManager[None]:
        """Nothing to prepare: embeddings have no dropout."""
        return nullcontext()

    @contextmanager
    def enabled(self, on: bool) -> Iterator[None]:
        """Inside, the word is read as its vectors, or as the tokens that it is spelled in."""
        before, self._word.is_on = self._word.is_on, on
        try:
            yield
        finally:
            self._word.is_on = before

    def state(self) -> dict[str, Tensor]:
        """The vectors by their names in the file, copies in fp32 on the CPU."""
        return {key: one.detach().to("cpu", copy=True) for key, one in zip(self._keys, self._parameters, strict=True)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load what `state` returned; AdapterError, changing nothing, if numbers or widths of the vectors differ."""
        self._load(parse_embedding(state, len(self._parameters), "The state"), "The state")

    def load_file(self, path: Path) -> None:
        """Load the vectors of an embedding file; AdapterError if it is missing or does not fit."""
        self._load(read_embedding(path, len(self._parameters)), path.name)

    def remove(self) -> None:
        """Leave the text encoders as they were. The vectors are kept."""
        remove_word(self._model)

    def _load(self, vectors: Sequence[Tensor], name: str) -> None:
        require_widths(vectors, [one.shape[-1] for one in self._parameters], name)
        if any(len(new) != self._word.count for new in vectors):
            raise AdapterError(f"{name} has {len(vectors[0])} vectors, and the run trains {self._word.count}.")
        with torch.no_grad():
            for parameter, new in zip(self._parameters, vectors, strict=True):
                parameter.copy_(new)


class MedianNorm:
    """Gives each vector the median length of the token embeddings that its text encoder has."""

    def __init__(self, parameters: Sequence[nn.Parameter], medians: Sequence[float]) -> None:
        self._parameters = tuple(parameters)
        self._medians = tuple(medians)

    @torch.no_grad()
    def apply(self) -> Tensor:
        """(3,) on the first parameter's device: how many vectors were longer, average and largest norm afterwards."""
        longer, norms = [], []
        for parameter, median in zip(self._parameters, self._medians, strict=True):
            before = parameter.norm(dim=-1, keepdim=True)  # (N, 1)
            parameter.mul_(median / before.clamp_min(torch.finfo(before.dtype).tiny))
            longer.append((before > median).sum())
            norms.append(parameter.norm(dim=-1))
        device = norms[0].device
        after = torch.cat([one.to(device) for one in norms])
        return torch.stack([sum(one.to(device) for one in longer).float(), after.mean(), after.max()])


def attach_textual_inversion(model: DiffusionModel, config: TrainConfig) -> TextualInversion:
    """The word of the settings on the model, its vectors as they start.

    DataError for a word without letters; AdapterError if the model has an adapter or another word.
    """
    if has_adapter(model) or placeholder_word(model):
        raise AdapterError("The model already has an adapter. Remove it before adding another one.")
    text = config.embedding_init_text.strip() or _class_word(config) or _NO_WORD
    vectors = initial_vectors(model, text, config.embedding_vectors)
    return TextualInversion(model, config.triggers[0].strip(), vectors, file_format=config.embedding_format)


def require_word(model: DiffusionModel, config: TrainConfig, captions: Iterable[str]) -> None:
    """DataError if no caption has the word's tokens, so that nothing would be trained; reads up to the first that has.

    The model has no word on it.
    """
    word = config.triggers[0].strip()
    spelling = spell(model, word)
    for caption in captions:
        for section in tokenize_sections(model, [caption], weighted=config.weighted_captions)[0]:
            ids = [token for token, _ in section]
            if any(ids[place : place + len(spelling)] == spelling for place in range(len(ids))):
                return
    raise DataError(f"The text encoder reads “{word}” in none of the captions. Choose another trigger word.")


@contextmanager
def embedding_on_model(model: DiffusionModel, path: Path, word: str) -> Iterator[None]:
    """Inside, prompts with `word` are read with the vectors of an embedding file; AdapterError if it does not fit."""
    vectors = read_embedding(path, len(model.text_encoders))
    encoders = [encoder.config["hidden_size"] for encoder in model.spec.text_encoders]
    require_widths(vectors, encoders, path.name)
    devices = [next(encoder.parameters()).device for encoder in model.text_encoders]
    with word_in_place(model, word, [one.float().to(device) for one, device in zip(vectors, devices, strict=True)]):
        yield


def _class_word(config: TrainConfig) -> str:
    """That of the first folder to learn from that has one."""
    words = (one.class_word.strip() for one in config.concepts if not one.is_regularisation)
    return next(filter(None, words), "")
