"""Heat maps: where in an image a word of its prompt acts (DAAM, Tang et al. 2022, "What the DAAM").

Each layer of cross-attention says for every location how much it attends to every token. Added up over layers, heads
and passes, enlarged to the finest layer and averaged over the tokens of a word, that is the word's map. There are two
kinds: `all` layers, as the authors of DAAM take them, and only those that show `objects`, which is sharper.

A drawn image is recorded in every step of its sampling. For an image that exists, a little noise is added to its
latent and the UNet runs once.

Limits: a map is scaled by itself, so that a word that does nothing has a bright spot too; `peak` says how much
attention is behind it. Begin, end and padding take most of the attention, and words stand in for their neighbours: the
map of "wooden" in "wooden chair" is the chair. A map shows where a word acts, not what it changes there.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from lib_lora_train.config.heat_map_layers import HeatMapLayers
from lib_lora_train.config.sample_prompts import SamplePrompt
from lib_lora_train.core.encoding_limits import MAX_CHUNKS
from lib_lora_train.core.errors import DataError
from lib_lora_train.core.image_sizes import LATENT_CELL_PX, UNET_STEP_PX
from lib_lora_train.core.seeding import seed_for
from lib_lora_train.evaluation.cross_attention import AttentionRecorder, Level, LevelKey, attention_layers
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.latents import encode_images
from lib_lora_train.models.noise_schedule import add_noise
from lib_lora_train.models.prompt_words import PromptTokens, find_prompt_tokens
from lib_lora_train.models.prompts import encode_prompts
from lib_lora_train.models.text_encoding import (
    TextCondition,
    size_condition,
)
from lib_lora_train.sampling.sample import SamplingStep, sample_in_steps
from lib_lora_train.sampling.sampler_options import SamplerOptions
from lib_lora_train.training.step import predict

TIMESTEP = 100
"""Little noise: the map shows this image. 1 to 700 are alike."""

_NOISES = 2


@dataclass(frozen=True, eq=False)
class HeatMap:
    """Where `word` acts: `values` (height, width) of the image, float32 on the processor, from 0 to 1.

    `peak`: the attention at its brightest location, as a share of all that the location pays to the prompt's tokens.
    """

    word: str
    values: Tensor
    peak: float


@dataclass(frozen=True, eq=False)
class PromptAttention:
    """The recorded attention of an image of `size` (width, height) px to a prompt; the maps of its words."""

    tokens: PromptTokens
    size: tuple[int, int]
    levels: Mapping[LevelKey, Level]

    @property
    def words(self) -> tuple[str, ...]:
        """What to ask for: the prompt's tags, and the words of longer parts."""
        return self.tokens.words

    def heat_map(self, word: str, layers: HeatMapLayers = "all") -> HeatMap:
        """The map of a word or phrase of the prompt; DataError if the prompt lacks it."""
        return self.joint_map([word], layers)

    def joint_map(self, words: Sequence[str], layers: HeatMapLayers = "all") -> HeatMap:
        """One map of several words or phrases, averaged over the tokens of all; DataError if the prompt lacks one."""
        if not words:
            raise DataError("Choose a word of the prompt.")
        positions = sorted({place for word in words for place in self.tokens.positions(word)})
        levels = [level for key, level in self.levels.items() if layers == "all" or key.shows_objects]
        mean = _mean_map(levels, positions)
        width, height = self.size
        return HeatMap(", ".join(words), _from_0_to_1(_resized(mean[None], (height, width))[0]), float(mean.max()))


def image_attention(
    model: DiffusionModel,
    image: Image.Image,
    prompt: str,
    *,
    side: int | None = None,
    clip_skip: int = 1,
    weighted: bool = False,
) -> PromptAttention:
    """The attention of an image that exists, with a prompt or caption; one pass of the UNet with two noises.

    The image is looked at in its own shape with the area of a square of `side` px, None for what the model was trained
    at. `weighted`: brackets set weights. The same image has the same maps: noise depends on the size alone. DataError
    if the VAE cannot encode the image.
    """
    tokens = find_prompt_tokens(model, prompt, chunks=MAX_CHUNKS, weighted=weighted)
    size = _fitting_size(image.size, side or model.spec.own_resolution)
    with torch.no_grad():
        latent = _latent(model, image.convert("RGB").resize(size, Image.Resampling.LANCZOS))
        generator = torch.Generator().manual_seed(seed_for(0, "heat map", *latent.shape))
        noise = torch.randn((_NOISES, *latent.shape), generator=generator).to(model.device)
        timesteps = torch.full((_NOISES,), model.schedule.as_noisy_as(TIMESTEP))
        noisy = add_noise(model.schedule, latent.expand_as(noise), noise, timesteps)
        sizes = [(image.height, image.width)] * _NOISES
        condition = _condition(model, prompt, clip_skip, weighted=weighted)
        recorder = AttentionRecorder(attention_layers(model), (latent.shape[1], latent.shape[2]))
        with recorder.recording(_NOISES):
            predict(
                model, noisy, timesteps, condition, size_condition(sizes, [(0, 0)] * _NOISES, [size[::-1]] * _NOISES)
            )
    return PromptAttention(tokens, image.size, recorder.result())


def draw_with_attention(
    model: DiffusionModel,
    prompt: SamplePrompt,
    *,
    sampler: str,
    clip_skip: int,
    sampler_options: SamplerOptions,
) -> Generator[SamplingStep, None, tuple[Image.Image, PromptAttention]]:
    """The image of a prompt, the same as without recording, and its attention over all steps.

    Yields after every sampling step; the model is not in use then. `sampler` as for `sample_images`.
    """
    tokens = find_prompt_tokens(model, prompt.prompt, chunks=MAX_CHUNKS, weighted=True)
    size = (prompt.height // LATENT_CELL_PX, prompt.width // LATENT_CELL_PX)
    recorder = AttentionRecorder(attention_layers(model), size)
    images = yield from sample_in_steps(
        model,
        [prompt],
        sampler=sampler,
        clip_skip=clip_skip,
        sampler_options=sampler_options,
        within_pass=partial(recorder.recording, 1),
    )
    return images[0], PromptAttention(tokens, (prompt.width, prompt.height), recorder.result())


# --- one pass -----------------------------------------------------------------------------------


def _fitting_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height in multiples of 64 px, as near as possible to the image's shape and to `side`² px."""
    factor = side / (size[0] * size[1]) ** 0.5
    width, height = (max(1, round(length * factor / UNET_STEP_PX)) * UNET_STEP_PX for length in size)
    return width, height


def _latent(model: DiffusionModel, image: Image.Image) -> Tensor:
    """(C, h, w) float32 on the model's device, scaled as the UNet expects it."""
    (posterior,) = encode_images(model, [image])
    if posterior is None:
        raise DataError("This image has no heat maps: the VAE returns NaN for it, even in fp32.")
    latent: Tensor = model.latent_format.scaled(posterior.mean)
    return latent.to(model.device)


def _condition(model: DiffusionModel, prompt: str, clip_skip: int, *, weighted: bool) -> TextCondition:
    """The prompt's condition, once for each noise."""
    model.require_unet("Heat maps")
    return encode_prompts(model, [prompt] * _NOISES, clip_skip, is_weighted=weighted)


# --- maps ---------------------------------------------------------------------------------------


def _mean_map(levels: list[Level], positions: list[int]) -> Tensor:
    """(h, w) of the finest level, on the processor: the mean probability of the tokens at `positions`.

    Every head of every layer has the same weight, as in DAAM.
    """
    finest = max((level.probabilities.shape[1:] for level in levels), key=lambda shape: shape[0] * shape[1])
    total = torch.zeros(finest)
    for level in levels:
        total += _resized(level.probabilities[positions], (finest[0], finest[1])).mean(0)
    return total / sum(level.count for level in levels)


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(T, h, w) → (T, *size), bicubic, within each map's range: what overshoots would lift the rest of the map."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    resized: Tensor = torch.nn.functional.interpolate(maps[None], size=size, mode="bicubic")[0]
    return resized.clamp(low, high)


def _from_0_to_1(values: Tensor) -> Tensor:
    """The values scaled to 0…1; zeros where they are all the same."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)
