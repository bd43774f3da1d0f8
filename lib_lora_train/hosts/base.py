"""What a host is: whoever owns the model's weights and the device, and lends them in turns."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from lib_lora_train.config import TrainConfig
    from lib_lora_train.models.model import DiffusionModel


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
    def noise_device(self) -> torch.device:
        """Where the noise of samples is drawn, so that a sample is the picture this host would draw."""
        ...

    def lease(self, model: DiffusionModel | None = None) -> AbstractContextManager[DiffusionModel]:
        """The model, pristine and on its device, for this thread alone; waits until nobody else uses it.

        Without `model`: whichever is loaded. With it: this one, or ModelAwayError if another is loaded by now.
        """
        ...

    def is_wanted(self) -> bool:
        """Whether somebody waits for the lease; it does not say who."""
        ...

    def load_model(self, config: TrainConfig) -> DiffusionModel:
        """The model the config asks for, loaded if it is not the present one; raises ModelError, HostError."""
        ...

    def show_loras(self) -> None:
        """Let the host's list of LoRAs show files that were written since."""
        ...
