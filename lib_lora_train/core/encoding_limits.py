"""Batch sizes of the text encoders and the VAE, which settings and the memory estimate need too."""

from __future__ import annotations

CHUNK_TOKENS = 75
"""Caption tokens per pass of a text encoder, which adds a begin and an end token."""

MAX_CHUNKS = 3
TOKEN_LIMITS = tuple(CHUNK_TOKENS * chunks for chunks in range(1, MAX_CHUNKS + 1))
"""The lengths that a caption may have: 75, 150 and 225 tokens, as in kohya's scripts."""
TOKEN_LIMITS_TEXT = f"{', '.join(map(str, TOKEN_LIMITS[:-1]))} or {TOKEN_LIMITS[-1]}"

BATCH_PX, BATCH_IMAGES = 4 * 512 * 512, 8
"""The most pixels and images that the VAE encodes at a time; a single larger image is still encoded."""
