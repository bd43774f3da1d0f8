"""The adapter families by name, and what a run asks of one.

A family is one file. It offers the names of `Family`; everything else (which layers, what they are called in the file,
where the numbers lie, on and off) is the same for all and stands in `layers`, `flat`, `names` and `inject`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from lib_lora_train.adapters import lora
from lib_lora_train.adapters.flat import Slices
from lib_lora_train.config import TrainConfig
from lib_lora_train.errors import AdapterError


class Family(Protocol):
    """What a family file offers. `weights` maps the family's own short names to tensors."""

    @property
    def NAME(self) -> str:
        """How settings call the family."""

    @property
    def STATE_KEYS(self) -> Mapping[str, str]:
        """Short name of a tensor → the ending of its key in a file. The order is the order of the slices."""

    def fits(self, layer: nn.Module) -> bool:
        """Whether the family can adapt this layer."""

    def init_weights(self, layer: nn.Module, rank: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Fresh fp32 tensors on the CPU whose ΔW is exactly zero."""

    def diff_weight(self, weights: Mapping[str, Tensor], scale: float) -> Tensor:
        """ΔW as a pure function, shaped like the base weight."""

    def diff_norm(self, weights: Mapping[str, Tensor], scale: float) -> Tensor:
        """‖ΔW‖ (Frobenius) as a 0-d tensor."""

    def forward_delta(self, layer: nn.Module, x: Tensor, weights: Mapping[str, Tensor], scale: float) -> Tensor:
        """What ΔW adds to the layer's output, by the plain formula."""

    def forward(self, layer: nn.Module, x: Tensor, slices: Slices, scale: float) -> Tensor:
        """The layer's whole output in training."""


FAMILIES: Mapping[str, Family] = {lora.NAME: lora}


@dataclass(frozen=True)
class AdapterSpec:
    """Which adapter on which layers. `targets` is one of config.TARGETS."""

    family: str = "lora"
    rank: int = 16
    alpha: float = 16.0
    targets: str = "standard"
    unet: bool = True
    text_encoder: bool = True


def spec_from_config(config: TrainConfig) -> AdapterSpec:
    """The adapter that the settings describe."""
    return AdapterSpec(
        rank=config.rank,
        alpha=config.effective_alpha,
        targets=config.targets,
        unet=config.train_unet,
        text_encoder=config.train_text_encoder,
    )


def family_of(spec: AdapterSpec) -> Family:
    """The family file of `spec`; AdapterError for an unknown name."""
    if spec.family not in FAMILIES:
        raise AdapterError(f"There is no adapter family {spec.family!r}. Known: {', '.join(FAMILIES)}.")
    return FAMILIES[spec.family]
