"""An adapter written in another form: its layers, and what each loses of its ΔW."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from lib_lora_train.adapters.files.lora_file import cast_for_file


@dataclass(frozen=True)
class Converted:
    """A converted or merged adapter.

    Attributes:
        state: kohya keys → tensors in `precision`, as they are written
        error: ‖ΔW' − ΔW‖ / ‖ΔW‖ over all layers, rounding included
        worst: the layer with the largest share of the error
        left_out: what the new form cannot hold, or what fits no layer; it is reported, not dropped silently
        layer_errors: ‖ΔW' − ΔW‖ / ‖ΔW‖ of each layer that was measured
        change: of a merge by another way than a sum, ‖ΔW − Σ‖ / ‖Σ‖ with the plain sum Σ; else 0
    """

    state: Mapping[str, Tensor]
    error: float
    worst: str
    left_out: tuple[str, ...]
    precision: str
    layer_errors: Mapping[str, float] = field(default_factory=dict)
    change: float = 0.0


class ConversionBuilder:
    """Collects the new file's layers and measures what each loses of its ΔW."""

    def __init__(self, precision: str) -> None:
        self._precision = precision
        self._state: dict[str, Tensor] = {}
        self._squared_errors: dict[str, float] = {}
        self._squared_norms: dict[str, float] = {}

    def add_layer(
        self,
        key: str,
        tensors: Mapping[str, Tensor],
        diff: Tensor | None = None,
        *,
        update_of: Callable[[Mapping[str, Tensor]], Tensor] | None = None,
    ) -> None:
        """Add a layer's tensors by kohya ending; `diff` is the exact ΔW, None for layers that are not converted.

        `update_of` computes the ΔW of stored tensors, None for that of a LoRA or `diff`.
        """
        stored = self.store(key, tensors)
        if diff is not None:
            update = update_of(stored).flatten(1).double() if update_of else _product(stored)
            error = (update - diff.flatten(1).double()).square().sum()
            self.count_loss(key, float(error), float(diff.double().square().sum()))

    def store(self, key: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Add a layer's tensors without measuring a loss; they are returned as they will be written."""
        stored = {
            ending: cast_for_file(f"{key}.{ending}", tensor, self._precision) for ending, tensor in tensors.items()
        }
        self._state |= {f"{key}.{ending}": tensor for ending, tensor in stored.items()}
        return stored

    def count_loss(self, key: str, squared_error: float, squared_norm: float) -> None:
        """Count ‖ΔW' − ΔW‖² and ‖ΔW‖² of a layer."""
        self._squared_errors[key] = squared_error
        self._squared_norms[key] = squared_norm

    def build(self, left_out: Sequence[str]) -> Converted:
        """All layers added, with the error over all of them."""
        error = _relative(sum(self._squared_errors.values()), sum(self._squared_norms.values()))
        worst = max(self._squared_errors, key=lambda key: self._squared_errors[key], default="")
        errors = {key: _relative(error, self._squared_norms[key]) for key, error in self._squared_errors.items()}
        return Converted(self._state, error, worst, tuple(left_out), self._precision, errors)


def _relative(squared_error: float, squared_norm: float) -> float:
    return (squared_error / squared_norm) ** 0.5 if squared_norm else 0.0


def add_bias(key: str, tensors: dict[str, Tensor], bias: Tensor | None, to: str) -> list[str]:
    """Add a layer's bias update to `tensors`; the keys left out, since only `diff` holds bias updates."""
    if bias is None:
        return []
    if to == "diff":
        tensors["diff_b"] = bias.cpu()
        return []
    return [f"{key}.diff_b"] if float(bias.abs().max()) > 0 else []


def network_metadata(to: str, rank: int = 0) -> dict[str, str]:
    """kohya's entries for a file of full differences, or for a plain LoRA of this rank."""
    module, arguments = ("networks.lora", {}) if to == "lora" else ("lycoris.kohya", {"algo": "full"})
    return {
        "ss_network_module": module,
        "ss_network_args": json.dumps(arguments),
        "ss_network_dim": str(rank) if to == "lora" else "None",
        "ss_network_alpha": str(float(rank)) if to == "lora" else "None",
    }


def _product(tensors: Mapping[str, Tensor]) -> Tensor:
    """The ΔW of a layer's tensors, (out, in · kernel), float64; alpha is the rank."""
    if "diff" in tensors:
        return tensors["diff"].flatten(1).double()
    return (tensors["lora_up.weight"].flatten(1).float() @ tensors["lora_down.weight"].flatten(1).float()).double()
