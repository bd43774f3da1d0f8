"""Facts about image sizes that several rooms need."""

from __future__ import annotations

LATENT_CELL_PX = 8
"""Image pixels per latent cell and side: the VAE of every Stable Diffusion shrinks images by this factor."""

UNET_STEP_PX = 8 * LATENT_CELL_PX
"""Image sides that a UNet needs: it halves a latent up to three times."""

SMALLEST_SD_PX = 256
"""Smaller resolutions are for tiny models, to which the usual numbers, such as learning rates, do not apply."""

MAX_SHARP_ENLARGEMENT = 1.25
"""Images enlarged by more than this factor look blurred, and the LoRA learns the blur."""


def whole_unet_steps(side: int) -> int:
    """The largest side in px up to this one, but at least one step, that a UNet can process."""
    return max(UNET_STEP_PX, side - side % UNET_STEP_PX)
