"""Which model a run trains on, as a value that is saved with the run. Does not import PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class ModelIdentity:
    """The checkpoint's name and sha256, and the sha256 of a separate VAE, "" for the checkpoint's own.

    A checkpoint hash of "" means unknown; it is then equal to every model. `prediction_type` and `zero_terminal_snr`
    ("on", "off") are those it was trained with, which the file alone may not say; "" if unknown.
    """

    name: str = ""
    checkpoint: str = ""
    vae: str = ""
    prediction_type: str = ""
    zero_terminal_snr: str = ""

    def difference(self, other: ModelIdentity) -> str:
        """A sentence about how `other` differs from this model; "" if it does not, or if one is unknown."""
        if not (self.checkpoint and other.checkpoint):
            return ""
        if self.checkpoint != other.checkpoint:
            same = " (another file of that name)" if self.name == other.name else ""
            return f"The run was started on {self.name}, but {other.name}{same} is loaded."
        if self.vae != other.vae:
            return f"The run was started on {self.name} with another VAE than is loaded."
        return ""

    def values(self) -> dict[str, str]:
        """As JSON-ready values."""
        return asdict(self)


def identity_from_values(values: Mapping[str, Any]) -> ModelIdentity:
    """The inverse of `ModelIdentity.values`; what is missing is unknown."""
    return ModelIdentity(*(str(values.get(field.name, "")) for field in fields(ModelIdentity)))
