"""How a checkpoint is written again. Does not import PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lib_lora_train.core.errors import LoraTrainError

PRECISIONS = ("fp16", "bf16", "fp32")
EMA_CHOICES: Mapping[str, str] = {
    "drop": "leave the EMA weights out, which only trainers need",
    "use": "use the EMA weights as the UNet",
    "keep": "copy them too",
}


@dataclass(frozen=True)
class CheckpointChanges:
    """What is changed.

    Attributes:
        precision: `fp16`, `bf16` or `fp32` for the weights of the UNet, the text encoders and the VAE; "": as they are
        vae: a VAE file or folder that replaces the checkpoint's own
        ema: one of `EMA_CHOICES`
    """

    precision: str = ""
    vae: Path | None = None
    ema: str = "drop"

    def check(self) -> None:
        """LoraTrainError for an unknown choice."""
        if self.precision and self.precision not in PRECISIONS:
            raise LoraTrainError(f"{self.precision!r} is not a precision. Choose {', '.join(PRECISIONS)}.")
        if self.ema not in EMA_CHOICES:
            raise LoraTrainError(f"{self.ema!r} is not a choice for EMA weights. Choose {', '.join(EMA_CHOICES)}.")

    @property
    def name(self) -> str:
        """What distinguishes the new file's name: `fp16-vae`; "" if only the format is another."""
        parts = (self.precision, self.vae and self.vae.name.partition(".")[0], self.ema if self.ema == "use" else "")
        return "-".join("ema" if part == "use" else part for part in parts if part)
