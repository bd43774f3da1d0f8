"""How a kind of model scales its VAE's latents. Does not import PyTorch.

C: latent channels; h, w: height and width of the latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LatentFormat:
    """Either one `factor` for all channels, or a mean and a deviation for each channel."""

    channels: int
    factor: float = 1.0
    means: tuple[float, ...] = ()
    deviations: tuple[float, ...] = ()

    def scaled(self, latent: Tensor) -> Tensor:
        """A VAE's latent (…, C, h, w) as the UNet expects it."""
        if not self.means:
            return latent * self.factor
        return (latent - _per_channel(self.means, latent)) / _per_channel(self.deviations, latent)

    def unscaled(self, latent: Tensor) -> Tensor:
        """The reverse: what the VAE decodes, (…, C, h, w)."""
        if not self.means:
            return latent / self.factor
        return latent * _per_channel(self.deviations, latent) + _per_channel(self.means, latent)


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    return like.new_tensor(values).view(-1, 1, 1)
