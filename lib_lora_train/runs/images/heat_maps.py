"""Heat maps made with the host's model: of an image that exists, or of one that is drawn for them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from PIL import Image

from lib_lora_train.adapters.file_on_model import FileOnModel, without_adapter
from lib_lora_train.adapters.files.lora_file import read_adapter
from lib_lora_train.config.sample_prompts import SamplePrompt
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.control import Control
from lib_lora_train.core.encoding_limits import MAX_CHUNKS
from lib_lora_train.core.errors import HostError
from lib_lora_train.core.events import Event
from lib_lora_train.dataset.images import read_upright_image
from lib_lora_train.evaluation.heat_maps import PromptAttention, draw_with_attention, image_attention
from lib_lora_train.hosts.host import Host
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.prompt_words import find_prompt_tokens
from lib_lora_train.sampling.sample import SamplingStep
from lib_lora_train.sampling.sampler_options import SamplerOptions
from lib_lora_train.training.lease import TURN_SECONDS, ModelHost, run_in_turns, run_leased


class HeatMapHost(ModelHost, Protocol):
    """The part of `hosts.host.Host` that heat maps need."""

    @property
    def sampler_options(self) -> SamplerOptions: ...

    def load_model(self, config: TrainConfig) -> DiffusionModel: ...


@dataclass(frozen=True)
class HeatMapRequest:
    """What to look at: the image at `image` with the caption `text`, or what `prompt` draws.

    `config` says which model, clip skip and sampler, and whether captions have weights; `lora` is a LoRA file at
    `strength`, None for the model alone. `has_weights`: brackets of `text` set weights. `words` are those that must be
    in the prompt.
    """

    config: TrainConfig
    text: str = ""
    image: Path | None = None
    prompt: SamplePrompt | None = None
    lora: Path | None = None
    strength: float = 1.0
    has_weights: bool = False
    words: tuple[str, ...] = ()

    @property
    def prompt_text(self) -> str:
        """The prompt or caption."""
        return self.prompt.prompt if self.prompt else self.text

    @property
    def is_weighted(self) -> bool:
        """Whether brackets in it set weights."""
        return self.prompt is not None or self.has_weights or self.config.weighted_captions


@dataclass(frozen=True, eq=False)
class HeatMapResult:
    """The image, upright RGB, and its attention."""

    image: Image.Image
    attention: PromptAttention


def record_heat_maps(
    request: HeatMapRequest, host: HeatMapHost, control: Control
) -> Generator[Event | SamplingStep, None, HeatMapResult]:
    """The request's image and attention, made under short leases; yields sampling steps, and events while it waits.

    What is wrong with the image, the words or the LoRA file is an error before anything is computed. RunStoppedError
    when it is stopped, ModelUnavailableError when it is stopped while another model is loaded, else as
    `host.load_model`, `image_attention` and `FileOnModel`.
    """
    image = read_upright_image(request.image) if request.image else None
    file = read_adapter(request.lora) if request.lora else None
    model = host.load_model(request.config)
    tokens = find_prompt_tokens(model, request.prompt_text, chunks=MAX_CHUNKS, weighted=request.is_weighted)
    for word in request.words:
        tokens.positions(word)
    model.require_unet("Heat maps")
    lora = (yield from run_leased(host, model, control, partial(FileOnModel, file=file))) if file else None
    if image is not None:
        return (yield from _analyse_image(request, image, model, lora, host=host, control=control))
    return (yield from _draw(request, model, lora, host=host, control=control))


def require_one_model(host: Host, config: TrainConfig, active_run: str) -> None:
    """HostError if another model would be loaded beside that of the active run."""
    if active_run and not host.run_target(config).is_loaded:
        raise HostError(
            f"{active_run} is training, and heat maps of this image need another model. Make them when it has ended."
        )


def _analyse_image(
    request: HeatMapRequest,
    image: Image.Image,
    model: DiffusionModel,
    lora: FileOnModel | None,
    *,
    host: HeatMapHost,
    control: Control,
) -> Generator[Event, None, HeatMapResult]:
    config = request.config

    def measure_attention(leased: DiffusionModel) -> PromptAttention:
        with _weights(leased, lora, request.strength):
            return image_attention(
                leased, image, request.text, clip_skip=config.clip_skip, weighted=request.is_weighted
            )

    return HeatMapResult(image, (yield from run_leased(host, model, control, measure_attention)))


def _draw(
    request: HeatMapRequest, model: DiffusionModel, lora: FileOnModel | None, *, host: HeatMapHost, control: Control
) -> Generator[Event | SamplingStep, None, HeatMapResult]:
    assert request.prompt is not None, "a request has an image or a prompt"
    work = draw_with_attention(
        model,
        request.prompt,
        sampler=request.config.sample_sampler,
        clip_skip=request.config.clip_skip,
        sampler_options=host.sampler_options,
    )
    image, attention = yield from run_in_turns(
        host, model, control, work, within=lambda: _weights(model, lora, request.strength), turn_seconds=TURN_SECONDS
    )
    return HeatMapResult(image, attention)


def _weights(model: DiffusionModel, lora: FileOnModel | None, strength: float) -> AbstractContextManager[None]:
    """Inside, the model has this LoRA only, or none; not that of a run."""
    return lora.in_place(strength) if lora else without_adapter(model)
