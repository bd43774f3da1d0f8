"""The host interface: a host owns the model's weights and the device, and leases them to one user at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lib_lora_train.core.user_paths import user_path
from lib_lora_train.models.embedded import EMBEDDED_CHECKPOINT

if TYPE_CHECKING:
    from PIL import Image

    from lib_lora_train.config.train_config import TrainConfig
    from lib_lora_train.dataset_tools.tagger import Tagger
    from lib_lora_train.models.architecture import ModelSpec
    from lib_lora_train.models.diffusion_model import DiffusionModel
    from lib_lora_train.sampling.sampler_options import SamplerOptions


@dataclass(frozen=True)
class Gpu:
    """A graphics card and its memory in bytes; `free` includes what PyTorch has cached but is not using."""

    name: str
    total: int
    free: int


@dataclass(frozen=True)
class HeldWeights:
    """A loaded model of which a run copies the quantised weights, for the estimate of memory.

    `held`: bytes of all weights in the host, packed as they are; `copied`: bytes of the unpacked copies beside them.
    """

    spec: ModelSpec
    held: int
    copied: int


@dataclass(frozen=True)
class RunTarget:
    """Which checkpoint a run would train on and on what device, as far as is known without loading anything.

    `checkpoint` is None if unknown, `vae` None for the checkpoint's own VAE. `is_loaded`: its weights are already in
    memory and would be used there.
    `dtype_bytes` is the size of one weight during training, 0 for the file's own precision. `device` is the card's
    name or "cpu"; `gpu` is None if there is none. `vae` is a separate VAE file, None for the checkpoint's own.
    `precision` is what loaded weights are trained in, such as fp16; "" if that is not known. `problem` is why the
    loaded model cannot be trained, "" if it can. `weights`: the loaded weights if they are quantised, None if they are
    not: a run unpacks copies of them. `is_selected`: the checkpoint is selected in the host, which has not loaded it
    yet. `clip_skip` is the setting with which the host generates, 0 if it has none; `applies_clip_skip_to_sdxl` says
    for which models.
    `webui` is the webui's name, with its release if it has one; "" stand-alone.
    """

    checkpoint: Path | None
    is_loaded: bool
    dtype_bytes: int
    device: str
    gpu: Gpu | None
    vae: Path | None = None
    precision: str = ""
    problem: str = ""
    weights: HeldWeights | None = None
    is_selected: bool = False
    clip_skip: int = 0
    applies_clip_skip_to_sdxl: bool = False
    webui: str = ""


def checkpoint_target(config: TrainConfig, *, on_cpu: bool = False) -> RunTarget:
    """The stand-alone host's target before PyTorch is imported; whether there is a GPU is unknown unless `on_cpu`.

    The CPU computes in fp32 unless the settings say otherwise.
    """
    checkpoint = user_path(config.checkpoint) if config.checkpoint else EMBEDDED_CHECKPOINT
    vae = user_path(config.vae) if config.vae else None
    dtype_bytes = 4 if on_cpu and config.precision == "auto" else 0
    return RunTarget(checkpoint, False, dtype_bytes, device="cpu" if on_cpu else "", gpu=None, vae=vae)


@dataclass(frozen=True)
class GenerationRequest:
    """One image for the host to generate; sizes in px.

    `lora` is a file name without extension, or "", `strength` the number after it in `<lora:name:strength>`.
    `lora_file` is the file that is meant: a host that would read another one of that name must not draw the image.
    `embedding` is an embedding file whose name is in the prompt already.
    """

    prompt: str
    negative: str
    width: int
    height: int
    seed: int
    steps: int
    cfg: float
    clip_skip: int = 1
    lora: str = ""
    strength: float = 1.0
    lora_file: Path | None = None
    embedding: Path | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class GeneratedImage:
    """What came of an request: the RGB image, and the host's own text about it."""

    image: Image.Image
    infotext: str


@dataclass(frozen=True)
class GenerationWatch:
    """Whoever waits for an image: `on_step(step)` is called with the step in progress, from 1, and once
    `is_cancelled()` the generation ends after that step. Both are called from another thread.
    """

    on_step: Callable[[int], None]
    is_cancelled: Callable[[], bool]


def other_lora(read: Path | None, meant: Path | None) -> str:
    """A sentence if the host reads another file than is meant under a name that both have; "" if not, or unknown."""
    if read is None or meant is None or read.resolve() == meant.resolve():
        return ""
    return (
        f"There are two LoRA files named {meant.stem}, and in prompts the webui reads {read}, not {meant}. Rename one "
        "of them (Results can rename the files of a run), then refresh the webui's list of LoRAs."
    )


class Txt2Img(Protocol):
    """One of the host's own samplers, tied to one checkpoint."""

    @property
    def model_name(self) -> str: ...

    @property
    def sampler(self) -> str: ...

    def generate(self, request: GenerationRequest, watch: GenerationWatch | None = None) -> GeneratedImage:
        """The image, generated by the host under its queue lock; not to be called inside a lease.

        Raises ModelUnavailableError if another checkpoint is loaded or selected by now, GenerationInterrupted if the
        user or the `watch` ends it, HostError if the host fails.
        """
        ...


class Host(Protocol):
    """A webui or the stand-alone program.

    Training holds `with host.lease(model):` around whole optimiser steps: at least one, and more only while
    `has_waiters()` is false. Between leases the model object and its adapters stay the same, but its weights may be
    moved or emptied and must not be used. Leases are not re-entrant.
    """

    name: str
    follows_selection: bool
    """Whether the user selects the model in the host, so that a run can wait until the right one is loaded."""

    @property
    def lora_dir(self) -> Path:
        """The folder for new LoRA files."""
        ...

    @property
    def embedding_dir(self) -> Path:
        """The folder for new embeddings of textual inversion, in which the host finds them by name."""
        ...

    @property
    def lora_dirs(self) -> tuple[Path, ...]:
        """The folders in which, with their sub-folders, the host finds LoRA files by name."""
        ...

    def lora_file(self, name: str) -> Path | None:
        """The file that `<lora:name:1>` in a prompt reads; None if there is none, or it is not known."""
        ...

    @property
    def sampler_options(self) -> SamplerOptions:
        """How this host samples, from its current settings, so that our samples match its images."""
        ...

    def lease(self, model: DiffusionModel | None = None) -> AbstractContextManager[DiffusionModel]:
        """Exclusive use of the model, on its device and without other LoRAs; waits until nobody else uses it.

        Without `model`: whichever is loaded. With it: this one, or ModelUnavailableError if another is loaded by now.
        """
        ...

    def has_waiters(self) -> bool:
        """Whether anybody is waiting for the lease."""
        ...

    def run_target(self, config: TrainConfig) -> RunTarget:
        """What a run with these settings would train on; cheap, takes no lock, loads nothing."""
        ...

    def checkpoint_files(self) -> tuple[Path, ...]:
        """The checkpoints in the host's models folders, which need not exist any more; cheap, takes no lock."""
        ...

    def load_model(self, config: TrainConfig) -> DiffusionModel:
        """The model named by the config, loaded if necessary; raises ModelError, HostError."""
        ...

    def prompt_tokens(self, texts: Sequence[str]) -> list[list[str]] | None:
        """The tokens of each text by the loaded model's own tokenizer; None if it is CLIP's, or nothing is loaded."""
        ...

    def refresh_loras(self) -> None:
        """Update the host's lists of LoRAs and embeddings so that new files appear."""
        ...

    def sampler_names(self) -> tuple[str, ...]:
        """The host's own samplers, in its order; () if it has none."""
        ...

    def txt2img(self, sampler: str, model: DiffusionModel | None = None) -> Txt2Img:
        """The host's own sampler on the checkpoint of `model`, or on the one that is loaded.

        HostError if there is no such sampler, or if the host has another checkpoint loaded.
        """
        ...

    def upscaler_names(self) -> tuple[str, ...]:
        """The host's upscalers that need no download; () if it has none."""
        ...

    def upscale(self, image: Image.Image, size: tuple[int, int], upscaler: str) -> Image.Image:
        """The RGB image enlarged to `size`; takes the host's lock, so not to be called inside a lease.

        HostError if there is no such upscaler or it fails, GenerationInterrupted at the host's Interrupt.
        """
        ...

    def tagger_names(self) -> tuple[str, ...]:
        """The host's own taggers; () if it has none."""
        ...

    def tagger(self, name: str) -> AbstractContextManager[Tagger]:
        """Exclusive use of a tagger, under the host's lock; not to be opened inside a lease.

        Close it after the current image when `has_waiters()`. HostError if there is no such tagger or it fails.
        """
        ...
