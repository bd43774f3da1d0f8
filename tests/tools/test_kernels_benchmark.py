"""The number of kernels that a step launches, which bounds small batches on a GPU, does not grow unnoticed."""

from __future__ import annotations

import pytest

from benchmarks.kernels import SIDES, adapted_unet, count_kernels
from benchmarks.memory import flash_on_meta

KERNELS = {("sd1", False): 2179, ("sd1", True): 2881, ("sdxl", False): 6514, ("sdxl", True): 8938}
"""As counted by `benchmarks/kernels.py` for LoRA of rank 16 in bf16. Versions of diffusers differ by a few."""


@pytest.mark.parametrize(("architecture", "checkpointing"), list(KERNELS))
def test_a_step_launches_no_more_kernels_than_recorded(architecture: str, checkpointing: bool) -> None:
    unet, spec, adapter = adapted_unet(architecture, "lora")
    with flash_on_meta():
        found = count_kernels(unet, spec, adapter, side=SIDES[architecture], checkpointing=checkpointing)
    recorded = KERNELS[architecture, checkpointing]
    assert 0.97 * recorded < found.total < 1.03 * recorded, "fewer? Then record the new number"
    assert found.casts <= 10
    assert found.products < found.total
