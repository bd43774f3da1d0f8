"""What a run puts on the model and trains, whichever method it uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from lib_lora_train.adapters.adapted_layer import AdaptedLayer
from lib_lora_train.adapters.dropout import DropoutRates
from lib_lora_train.config.train_config import TrainConfig


class NormControl(Protocol):
    """Changes what the optimiser's step has left too long or too short."""

    def apply(self) -> Tensor:
        """To be called after each step; (3,) on the device: how many were changed, average and largest norm after."""
        ...


class TrainedPart(Protocol):
    """A LoRA's `Adapter`, or what another method trains; it is on the model until `remove`.

    The trainer sees parameters in groups, the model with them and without them, and the tensors of a file.

    Attributes:
        groups: group name → its parameters. A group other than `unet` changes the text conditions, which are then
            encoded in every step.
        layers: the layers of the model that it replaces, by their names in the file; {} if it replaces none
        skipped: module names that the settings include but that cannot be trained
    """

    groups: dict[str, list[nn.Parameter]]
    layers: dict[str, AdaptedLayer]
    skipped: tuple[str, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        ...

    def parameter_groups(
        self, rates: Mapping[str, float], master_weights: Mapping[str, Sequence[nn.Parameter]] | None = None
    ) -> tuple[dict[str, list[nn.Parameter]], dict[str, float]]:
        """Optimiser groups and their learning rates, from the `rates` of `groups`.

        They hold the parameters or, if given, the `master_weights`, laid out like `groups`.
        """
        ...

    def norm_control(self, config: TrainConfig) -> NormControl | None:
        """What keeps the norms as the settings say; None if they leave them free."""
        ...

    def training(self, rates: DropoutRates, seed: int, *counters: int) -> AbstractContextManager[None]:
        """Inside are the forward and backward passes of one micro-batch, which `counters` identify."""
        ...

    def enabled(self, on: bool) -> AbstractContextManager[None]:
        """Inside, the model is with or without what is trained."""
        ...

    def state(self) -> dict[str, Tensor]:
        """The tensors of a file, fp32 copies on the CPU."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load what `state` returned, in any float dtype; AdapterError, changing nothing, if it does not fit."""
        ...

    def load_file(self, path: Path) -> None:
        """Load the weights of a file of this run; AdapterError, changing nothing, if it is missing or does not fit."""
        ...

    def remove(self) -> None:
        """Leave the model as it was; the weights are kept."""
        ...
