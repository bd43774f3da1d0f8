"""The host without a webui: it reads a checkpoint file itself and lends the model to the app's threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lib_lora_train.core.errors import HostError
from lib_lora_train.core.user_paths import typed_path
from lib_lora_train.hosts.fair_lock import FairLock
from lib_lora_train.hosts.gpu import card_of, device_name
from lib_lora_train.hosts.host import RunTarget
from lib_lora_train.models.diffusion_model import (
    DiffusionModel,
)
from lib_lora_train.models.embedded import EMBEDDED_CHECKPOINT
from lib_lora_train.models.loading import ModelChoice, load_model, model_overrides
from lib_lora_train.sampling.sampler_options import SamplerOptions

if TYPE_CHECKING:
    from PIL import Image

    from lib_lora_train.config.train_config import TrainConfig
    from lib_lora_train.dataset_tools.tagger import Tagger
    from lib_lora_train.hosts.host import Txt2Img


def default_device() -> torch.device:
    """CUDA if there is one, else Apple's MPS, else the processor."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


class StandaloneHost:
    """Lends a model it has read from a file; see `hosts.base.Host`. Nothing is read before the first use."""

    name = "stand-alone"

    def __init__(
        self,
        checkpoint: Path | None,
        vae: Path | None,
        lora_dir: Path,
        device: torch.device | str | None = None,
        precision: str = "auto",
    ) -> None:
        self.lora_dir = lora_dir
        self.device = default_device() if device is None else torch.device(device)
        self._default = ModelChoice(checkpoint, vae, precision)
        self._choice: ModelChoice | None = None
        self._model: DiffusionModel | None = None
        self._lock = FairLock()

    @property
    def sampler_habits(self) -> SamplerOptions:
        """The usual ones, with noise from the processor: the same images on every machine."""
        return SamplerOptions()

    @contextmanager
    def lease(self, model: DiffusionModel | None = None) -> Iterator[DiffusionModel]:
        """`model` itself, else the loaded one, for this thread alone; the default one if none was loaded yet."""
        self._lock.acquire()
        try:
            yield model or self._loaded(self._choice or self._default)
        finally:
            self._lock.release()

    def is_wanted(self) -> bool:
        """Whether another thread waits for the lease."""
        return self._lock.is_wanted()

    def footing(self, config: TrainConfig) -> RunTarget:
        """The file that would be read, and whether it was read before."""
        choice, card = self._chosen(config), card_of(self.device)
        return RunTarget(
            checkpoint=choice.checkpoint or EMBEDDED_CHECKPOINT,
            is_loaded=self._model is not None and choice == self._choice,
            number_bytes=4
            if choice.precision == "fp32" or (choice.precision, self.device.type) == ("auto", "cpu")
            else 0,
            device=device_name(self.device, card),
            card=card,
        )

    def load_model(self, config: TrainConfig) -> DiffusionModel:
        """The config's model; where the config names none, the one this host was started with.

        Waits for the lease, so that no turn loses its model in the middle.
        """
        self._lock.acquire()
        try:
            return self._loaded(self._chosen(config))
        finally:
            self._lock.release()

    def show_loras(self) -> None:
        """Nothing to do: no list of LoRAs is kept here."""

    def sampler_names(self) -> tuple[str, ...]:
        """None: everything is drawn by the trainer here."""
        return ()

    def upscaler_names(self) -> tuple[str, ...]:
        """None."""
        return ()

    def upscale(self, image: Image.Image, size: tuple[int, int], upscaler: str) -> Image.Image:
        """HostError."""
        wanted = f"{image.width}×{image.height} px to {size[0]}×{size[1]}"
        raise HostError(
            f"{upscaler} is an upscaler of a webui, and there is none here to bring {wanted}. Take Lanczos."
        )

    def painter(self, sampler: str, model: DiffusionModel | None = None) -> Txt2Img:
        """HostError: there is no webui to draw for `model`."""
        name = model.name if model else "the model"
        raise HostError(f"{sampler} is a sampler of a webui, and there is none here to draw with {name}.")

    def tagger_names(self) -> tuple[str, ...]:
        """None: DeepBooru and BLIP belong to webuis."""
        return ()

    def tagger(self, name: str) -> AbstractContextManager[Tagger]:
        """HostError: there is no webui to ask."""
        raise HostError(f"{name} belongs to a webui, and there is none here. Use a WD14 model instead.")

    def _chosen(self, config: TrainConfig) -> ModelChoice:
        own = self._default
        checkpoint = typed_path(config.checkpoint) if config.checkpoint else own.checkpoint
        vae = typed_path(config.vae) if config.vae else None
        if vae is None and checkpoint == own.checkpoint:
            vae = own.vae
        precision = own.precision if config.precision == "auto" else config.precision
        return ModelChoice(checkpoint, vae, precision, config.fp8_base, model_overrides(config))

    def _loaded(self, choice: ModelChoice) -> DiffusionModel:
        if self._model is None or choice != self._choice:
            self._model = None  # frees the old weights before the new ones are read
            self._model = load_model(choice, self.device)
            self._choice = choice
        return self._model
