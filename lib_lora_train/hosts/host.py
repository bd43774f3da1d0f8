"""What a host is: whoever owns the model's weights and the device, and lends them in turns."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lib_lora_train.core.user_paths import typed_path
from lib_lora_train.models.embedded import EMBEDDED_CHECKPOINT

if TYPE_CHECKING:
    from PIL import Image

    from lib_lora_train.config.train_config import TrainConfig
    from lib_lora_train.dataset_tools.tagger import Tagger
    from lib_lora_train.models.diffusion_model import DiffusionModel
    from lib_lora_train.sampling.sampler_options import SamplerOptions


@dataclass(frozen=True)
class Card:
    """A graphics card's memory in bytes; `free` counts what this process holds without using it."""

    name: str
    total: int
    free: int


@dataclass(frozen=True)
class RunTarget:
    """What a run would stand on, as far as it can be told without loading anything.

    `checkpoint` is the file whose weights would be trained on, None where nobody knows; `is_loaded`: they are in memory
    already and would be used there. `number_bytes` of the format they compute in, 0: as the file has them. `device` is
    the card's name or "cpu"; `card` None where there is none.
    """

    checkpoint: Path | None
    is_loaded: bool
    number_bytes: int
    device: str
    card: Card | None


def file_footing(config: TrainConfig, *, on_processor: bool = False) -> RunTarget:
    """That of the stand-alone host before PyTorch is loaded: whether there is a card is known only where none is used.

    A processor computes in fp32 unless it is told otherwise.
    """
    checkpoint = typed_path(config.checkpoint) if config.checkpoint else EMBEDDED_CHECKPOINT
    number_bytes = 4 if on_processor and config.precision == "auto" else 0
    return RunTarget(checkpoint, False, number_bytes, device="cpu" if on_processor else "", card=None)


@dataclass(frozen=True)
class GenerationRequest:
    """One image that the host shall draw by itself; sizes in px. `lora`: a file's name without ending, or ""."""

    prompt: str
    negative: str
    width: int
    height: int
    seed: int
    steps: int
    cfg: float
    clip_skip: int = 1
    lora: str = ""


@dataclass(frozen=True, eq=False)
class GeneratedImage:
    """What came of an order: the RGB image, and the host's own text about it."""

    image: Image.Image
    infotext: str


class Txt2Img(Protocol):
    """The host's own sampler, on one checkpoint."""

    @property
    def model_name(self) -> str: ...

    @property
    def sampler(self) -> str: ...

    def draw(self, order: GenerationRequest) -> GeneratedImage:
        """The image, as a generation of the host's own, under its queue lock and not inside a lease.

        Raises ModelAwayError when another checkpoint is loaded or chosen by now, InterruptedDrawing when the user
        interrupts it, HostError when the host fails.
        """
        ...


class Host(Protocol):
    """A webui or the stand-alone program.

    A turn is `with host.lease(model):` around whole optimiser steps: at least one, and more only while
    `is_wanted()` is false. Between turns the model is the same value, with its adapters, but its weights may be
    moved or empty: they are not to be used then. The lease is not re-entrant, in one thread.
    """

    name: str

    @property
    def lora_dir(self) -> Path:
        """Where the host looks for LoRA files."""
        ...

    @property
    def sampler_habits(self) -> SamplerOptions:
        """How this host draws, so that a sample is the image it would draw; as its settings are now."""
        ...

    def lease(self, model: DiffusionModel | None = None) -> AbstractContextManager[DiffusionModel]:
        """The model, pristine and on its device, for this thread alone; waits until nobody else uses it.

        Without `model`: whichever is loaded. With it: this one, or ModelAwayError if another is loaded by now.
        """
        ...

    def is_wanted(self) -> bool:
        """Whether somebody waits for the lease; it does not say who."""
        ...

    def footing(self, config: TrainConfig) -> RunTarget:
        """What a run with these settings would stand on; cheap, takes no lock, loads nothing."""
        ...

    def load_model(self, config: TrainConfig) -> DiffusionModel:
        """The model the config asks for, loaded if it is not the present one; raises ModelError, HostError."""
        ...

    def show_loras(self) -> None:
        """Let the host's list of LoRAs show files that were written since."""
        ...

    def sampler_names(self) -> tuple[str, ...]:
        """The host's own samplers, in its order; () where it has none."""
        ...

    def painter(self, sampler: str, model: DiffusionModel | None = None) -> Txt2Img:
        """The host's own sampler on the checkpoint of `model`, or on the one that is loaded.

        HostError where there is none of this name, or where the host has another checkpoint loaded.
        """
        ...

    def upscaler_names(self) -> tuple[str, ...]:
        """The host's own upscalers that can be used at once; () where it has none."""
        ...

    def upscale(self, image: Image.Image, size: tuple[int, int], upscaler: str) -> Image.Image:
        """The RGB image enlarged to `size` by one of them, in a turn of its own; not inside a lease.

        HostError where there is none of this name or where it fails, InterruptedDrawing at the host's Interrupt.
        """
        ...

    def tagger_names(self) -> tuple[str, ...]:
        """The host's own describers of images; () where it has none."""
        ...

    def tagger(self, name: str) -> AbstractContextManager[Tagger]:
        """A turn with one of them, for this thread alone, as the host's own use of it; not inside a lease.

        To be left after an image when `is_wanted`. HostError where there is none of this name or where it fails.
        """
        ...
