"""The short version of benchmarks/parity/against_diffusers.py."""

from __future__ import annotations

import pytest

from benchmarks.parity.against_diffusers import compare
from lib_lora_train.models.architecture import PredictionType


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_our_step_equals_diffusers_peft_and_torch(kind: PredictionType) -> None:
    found = compare(kind, steps=8)
    assert found.loss_error <= 1e-5
    assert found.cosine >= 0.999
    assert found.size_ratio == pytest.approx(1.0, abs=1e-3)
