"""The number formats that a LoRA file can be written in."""

from __future__ import annotations

from collections.abc import Mapping

import torch

PRECISIONS: Mapping[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
