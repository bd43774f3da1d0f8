"""Batch sizes of the text encoders and the VAE, which settings and the memory estimate need too."""

from __future__ import annotations

CHUNK_TOKENS = 75
"""Caption tokens per pass of a text encoder, which adds a begin and an end token."""

BATCH_PX, BATCH_IMAGES = 4 * 512 * 512, 8
"""The most pixels and images that the VAE encodes at a time; a single larger image is still encoded."""
