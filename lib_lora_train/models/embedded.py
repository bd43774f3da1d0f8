"""The tiny Stable Diffusion that ships with this project."""

from __future__ import annotations

from lib_lora_train.core.project import PROJECT_ROOT

EMBEDDED_CHECKPOINT = PROJECT_ROOT / "assets" / "tiny-sd" / "tiny-sd.safetensors"
