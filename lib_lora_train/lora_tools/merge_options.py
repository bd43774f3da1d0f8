"""How LoRAs are merged. Does not import PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from lib_lora_train.config.merge_methods import METHODS
from lib_lora_train.core.errors import AdapterError


@dataclass(frozen=True)
class MergeOptions:
    """How updates are combined.

    Attributes:
        method: one of `METHODS`
        density: the share of each update's values that is kept, above 0 and at most 1; `sum` keeps all
        seed: of the random choices; the same seed gives the same file
        blocks: block weights of each file as text, "" for none; see `adapters.layer_block_weights`
    """

    method: str = "sum"
    density: float = 0.5
    seed: int = 0
    blocks: tuple[str, ...] = ()

    def check(self) -> None:
        """AdapterError for an unknown method or a density out of range."""
        if self.method not in METHODS:
            raise AdapterError(f"{self.method!r} is not a merge method. Choose one of {', '.join(METHODS)}.")
        if not 0 < self.density <= 1:
            raise AdapterError(f"density must be above 0 and at most 1, not {self.density:g}; 0.3 to 0.7 is usual.")

    def require_sum(self) -> None:
        """AdapterError for any other method, since only a sum of updates can be added to a checkpoint's weights."""
        if self.method != "sum":
            raise AdapterError("Only a sum can be merged into a checkpoint. Merge the files into one LoRA first.")
