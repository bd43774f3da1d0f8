"""Facts about image sizes that several rooms need."""

from __future__ import annotations

LATENT_CELL_PX = 8
"""Image pixels per latent cell and side: the VAE of every Stable Diffusion shrinks images by this factor."""

MAX_SHARP_ENLARGEMENT = 1.25
"""Images enlarged by more than this factor look blurred, and the LoRA learns the blur."""
