"""What single operations of the trace save, by hand."""

from __future__ import annotations

from typing import Any

from lib_lora_train.runs.estimates.activation_trace import Activation, SavedForBackward, Trace
from lib_lora_train.runs.estimates.forward_trace import trace_text_encoder


def test_a_norm_saves_its_input_only_if_something_before_it_or_itself_is_trained() -> None:
    frozen, trained = Trace(lambda _: None), Trace(lambda _: SavedForBackward())
    assert not frozen.norm("norm", Activation(8, 4)).requires_grad and frozen.saved == 0
    assert trained.norm("norm", Activation(8, 4)).requires_grad and trained.saved == 8 * 4
    assert frozen.norm("norm", Activation(8, 4, True)).requires_grad and frozen.saved == 8 * 4


def test_a_text_encoder_with_quick_gelu_saves_its_sigmoid_too() -> None:
    """OpenAI's CLIP computes x · sigmoid(1.702 x), OpenCLIP GELU in one operation: 40 values of each of 77 tokens."""

    def saved(activation: str) -> int:
        config: dict[str, Any] = {"hidden_size": 10, "intermediate_size": 40, "num_attention_heads": 2}
        trace = Trace(lambda _: SavedForBackward())
        trace_text_encoder(trace, {**config, "num_hidden_layers": 3, "hidden_act": activation}, tokens=77)
        return trace.saved

    assert saved("quick_gelu") - saved("gelu") == 3 * 40 * 77
