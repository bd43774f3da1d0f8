"""What a host is: whoever owns the model's weights and the device, and lends them in turns."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from lib_lora_train.config import TrainConfig
    from lib_lora_train.models.model import DiffusionModel


class Host(Protocol):
    """A webui or the stand-alone program.

    A turn is `with host.lease() as model:` around whole optimiser steps: at least one, and more only while
    `is_wanted()` is false. The model of one turn is not to be used after it, and the next turn may give
    another value for the same weights, moved or re-grafted meanwhile. The lease is not re-entrant.
    """

    name: str
    lora_dir: Path

    def lease(self) -> AbstractContextManager[DiffusionModel]:
        """The model, pristine and on its device, for this thread alone; waits until it is free."""
        ...

    def is_wanted(self) -> bool:
        """Whether somebody waits for the lease; it does not say who."""
        ...

    def load_model(self, config: TrainConfig) -> DiffusionModel:
        """The model the config asks for, loaded if it is not the present one; raises ModelError, HostError."""
        ...
