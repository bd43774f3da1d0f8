"""Which 16-bit arithmetic this PyTorch has on the processor, so that tests ask for no other."""

from __future__ import annotations

import pytest
import torch


def has_fp16() -> bool:
    """PyTorch before 2.3 stores fp16 on the processor but cannot multiply it; the webuis' cards can."""
    matrix = torch.ones(2, 2, dtype=torch.float16)
    image = torch.ones(1, 2, 4, 4, dtype=torch.float16)
    try:
        torch.mm(matrix, matrix)
        torch.nn.functional.conv2d(image, matrix[:, :, None, None])
        torch.nn.functional.group_norm(image, 1)
    except RuntimeError:
        return False
    return True


needs_fp16 = pytest.mark.skipif(not has_fp16(), reason="this PyTorch has no fp16 arithmetic on the processor")
FP16 = pytest.param(torch.float16, id="fp16", marks=needs_fp16)
