"""The host without a webui: it reads a checkpoint file itself and leases the model to the app's threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lib_lora_train.core.errors import HostError
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.hosts.fair_lock import FairLock
from lib_lora_train.hosts.gpu import device_name, find_gpu
from lib_lora_train.hosts.host import RunTarget
from lib_lora_train.models.checkpoint_files import scan_checkpoints
from lib_lora_train.models.diffusion_model import DiffusionModel, ModelOverrides, with_overrides
from lib_lora_train.models.embedded import EMBEDDED_CHECKPOINT
from lib_lora_train.models.loading import ModelChoice, load_model, overrides_from_config, require_trainable
from lib_lora_train.sampling.sampler_options import SamplerOptions

if TYPE_CHECKING:
    from PIL import Image

    from lib_lora_train.config.train_config import TrainConfig
    from lib_lora_train.dataset_tools.tagger import Tagger
    from lib_lora_train.hosts.host import Txt2Img

_CHECKPOINT_FOLDERS = ("Stable-diffusion", "checkpoints")


def default_device() -> torch.device:
    """CUDA if there is one, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


class StandaloneHost:
    """Implements `hosts.host.Host` with a model read from a file on first use."""

    name = "stand-alone"
    follows_selection = False

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
    def embedding_dir(self) -> Path:
        """`embeddings` beside the LoRA folder, where ComfyUI has it."""
        return self.lora_dir.parent / "embeddings"

    @property
    def lora_dirs(self) -> tuple[Path, ...]:
        """The one folder."""
        return (self.lora_dir,)

    def lora_file(self, _name: str) -> Path | None:
        """None: files are named by their path here."""
        return None

    @property
    def sampler_options(self) -> SamplerOptions:
        """The defaults, with noise generated on the CPU, so that images are the same on every machine."""
        return SamplerOptions()

    @contextmanager
    def lease(self, model: DiffusionModel | None = None) -> Iterator[DiffusionModel]:
        """Exclusive use of `model`, else of the loaded model, else of the default one, which is loaded first."""
        self._lock.acquire()
        try:
            yield model or self._load(self._choice or self._default)
        finally:
            self._lock.release()

    def has_waiters(self) -> bool:
        """Whether another thread is waiting for the lease."""
        return self._lock.has_waiters()

    def run_target(self, config: TrainConfig) -> RunTarget:
        """The file that would be read, and whether it is already loaded."""
        choice, gpu = self._choose_model(config), find_gpu(self.device)
        return RunTarget(
            checkpoint=choice.checkpoint or EMBEDDED_CHECKPOINT,
            is_loaded=self._has_loaded(choice),
            dtype_bytes=4
            if choice.precision == "fp32" or (choice.precision, self.device.type) == ("auto", "cpu")
            else 0,
            device=device_name(self.device, gpu),
            gpu=gpu,
            vae=choice.vae,
        )

    def checkpoint_files(self) -> tuple[Path, ...]:
        """The files in `models/` beside the LoRA folder, in the webuis' sub-folders for checkpoints too."""
        models = self.lora_dir.parent
        folders = (models, *(models / name for name in _CHECKPOINT_FOLDERS))
        return tuple(path for folder in folders for path in scan_checkpoints(folder))

    def load_model(self, config: TrainConfig) -> DiffusionModel:
        """The config's model, or the one this host was started with if the config names none.

        Waits for the lease, so that no lease loses its model. ModelError also for one that only a webui can train.
        """
        return require_trainable(self.load_layers(config))

    def load_layers(self, config: TrainConfig) -> DiffusionModel:
        """`load_model`, also of a model that lacks a VAE and a text encoder: what work on LoRA files needs."""
        self._lock.acquire()
        try:
            return self._load(self._choose_model(config))
        finally:
            self._lock.release()

    def refresh_loras(self) -> None:
        """Nothing to do: there is no list of LoRAs here."""

    def prompt_tokens(self, _texts: Sequence[str]) -> list[list[str]] | None:
        """None: only models with CLIP are loaded here."""
        return None

    def sampler_names(self) -> tuple[str, ...]:
        """None: the trainer generates all images itself."""
        return ()

    def upscaler_names(self) -> tuple[str, ...]:
        """None: upscalers belong to webuis."""
        return ()

    def upscale(self, image: Image.Image, size: tuple[int, int], upscaler: str) -> Image.Image:
        """HostError: there is no webui."""
        sizes = f"{image.width}×{image.height} px to {size[0]}×{size[1]}"
        raise HostError(f"Cannot enlarge {sizes}: {upscaler} needs a webui. Use Lanczos instead.")

    def txt2img(self, sampler: str, model: DiffusionModel | None = None) -> Txt2Img:
        """HostError: there is no webui."""
        name = model.name if model else "the model"
        raise HostError(f"{sampler} needs a webui to generate images with {name}. Leave webui_sampler empty.")

    def tagger_names(self) -> tuple[str, ...]:
        """None: DeepBooru and BLIP belong to webuis."""
        return ()

    def tagger(self, name: str) -> AbstractContextManager[Tagger]:
        """HostError: there is no webui."""
        raise HostError(f"{name} needs a webui. Use a WD14 model instead.")

    def _choose_model(self, config: TrainConfig) -> ModelChoice:
        default = self._default
        checkpoint = user_path(config.checkpoint) if config.checkpoint else default.checkpoint
        vae = user_path(config.vae) if config.vae else None
        if vae is None and checkpoint == default.checkpoint:
            vae = default.vae
        precision = default.precision if config.precision == "auto" else config.precision
        return ModelChoice(checkpoint, vae, precision, config.fp8_base, overrides_from_config(config))

    def _has_loaded(self, choice: ModelChoice) -> bool:
        """Whether the loaded model is this choice, also if the choice states what was found in the file before."""
        if self._model is None or self._choice is None:
            return False
        is_same_file = replace(choice, overrides=self._choice.overrides) == self._choice
        return choice == self._choice or (is_same_file and self._changes_nothing(self._model, choice.overrides))

    @staticmethod
    def _changes_nothing(model: DiffusionModel, overrides: ModelOverrides) -> bool:
        is_stated = "auto" not in (overrides.prediction_type, overrides.zero_terminal_snr)
        return is_stated and with_overrides(model, overrides) is model

    def _load(self, choice: ModelChoice) -> DiffusionModel:
        if self._model is None or not self._has_loaded(choice):
            self._model = None  # free the old weights before reading the new ones
            self._model = load_model(choice, self.device)
            self._choice = choice
        return self._model
