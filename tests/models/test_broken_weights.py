"""Broken checkpoints are found at load and reported as the checkpoint's fault; plain fp8 files can be trained on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lib_lora_train.core.errors import ModelError
from lib_lora_train.models.broken_weights import refuse_broken_weights
from lib_lora_train.models.diffusion_model import DiffusionModel, assemble
from lib_lora_train.models.embedded import EMBEDDED_CHECKPOINT
from lib_lora_train.models.fp8 import store_in_fp8
from lib_lora_train.models.loading import ModelChoice, load_model
from lib_lora_train.models.text_encoding import load_tokenizer
from tests.stand_ins.tiny_models import TOKENIZER, tiny_spec, tiny_tensors


def build(tensors: dict[str, torch.Tensor], dtype: torch.dtype | None = None) -> DiffusionModel:
    tokenizers = [load_tokenizer(TOKENIZER)]
    return assemble(tensors, spec=tiny_spec(tensors), tokenizers=tokenizers, name="model", file_hash="", dtype=dtype)


def with_value(name: str, value: float, *, whole: bool = False) -> DiffusionModel:
    """A model with one weight, or one whole tensor, of this value."""
    tensors = tiny_tensors("sd1")
    tensors[name].view(-1)[: None if whole else 1] = value
    return build(tensors)


QUERY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
TEXT = "cond_stage_model.transformer.text_model.encoder.layers.3.mlp.fc1.weight"
VAE = "first_stage_model.encoder.conv_in.weight"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("name", "part"), [(QUERY, "unet"), (TEXT, "text_encoder_1"), (VAE, "vae")])
def test_nan_in_the_checkpoint_is_the_checkpoints_fault(name: str, part: str, value: float) -> None:
    with pytest.raises(ModelError, match=rf"^model: 1 of its .* tensors \({part}\..*NaN or infinite") as refusal:
        refuse_broken_weights(with_value(name, value))
    assert ("Choose another VAE" in str(refusal.value)) == (part == "vae")


@pytest.mark.parametrize("name", [QUERY, TEXT, VAE])
def test_a_half_written_file_is_found_by_its_zeros(name: str) -> None:
    with pytest.raises(ModelError, match="only zeros: the file was not written or downloaded completely"):
        refuse_broken_weights(with_value(name, 0.0, whole=True))


def test_sound_weights_in_any_precision_pass() -> None:
    """Biases may be zero throughout, and single weights too."""
    tensors = tiny_tensors("sd1")
    tensors["model.diffusion_model.out.2.bias"].zero_()
    tensors[QUERY][0] = 0.0
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        refuse_broken_weights(build(tensors, dtype))
    stored = build(tensors)
    store_in_fp8(stored.unet)
    refuse_broken_weights(replace(stored, slots=()))
    refuse_broken_weights(load_model(ModelChoice(EMBEDDED_CHECKPOINT), torch.device("cpu")))


@pytest.mark.parametrize("fp8", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_plain_fp8_file_is_computed_in_fp16_on_a_gpu(fp8: torch.dtype) -> None:
    """There the file's own precision is kept, unless nothing can be computed in it; fp16 holds all fp8 values."""
    plain = tiny_tensors("sd1")
    rounded = {name: tensor.to(fp8) for name, tensor in plain.items()}
    model = build(rounded, dtype=None)
    assert {parameter.dtype for parameter in model.unet.parameters()} == {torch.float16}
    assert torch.equal(model.unet.conv_in.weight, rounded["model.diffusion_model.input_blocks.0.0.weight"].half())
