"""The memory estimate as a whole: its parts, from settings, plan and the checkpoint's header."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lib_lora_train.adapters.inject import inject
from lib_lora_train.adapters.registry import spec_from_config
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.dataset.plan import BucketSummary, Plan
from lib_lora_train.models.architecture import Architecture, ModelSpec
from lib_lora_train.runs.estimates.activation_trace import Trace
from lib_lora_train.runs.estimates.forward_trace import trace_text_encoder
from lib_lora_train.runs.estimates.memory import (
    ENCODING,
    WORKING,
    CheckpointSizes,
    MemoryEstimate,
    estimate_memory,
    read_checkpoint_sizes,
    unet_pass,
)
from lib_lora_train.runs.estimates.trained_parameters import saved_by_layer, text_ranks
from tests.stand_ins.tiny_models import tiny_model, tiny_tensors, write_tiny_checkpoint
from tests.stand_ins.training_parts import small_config, small_plan


def model_file(spec: ModelSpec, *, dtype_bytes: int = 4) -> CheckpointSizes:
    """A checkpoint of a million numbers in each part."""
    part = (1_000_000, 1_000_000 * dtype_bytes)
    return CheckpointSizes(spec, part, part, part)


def estimated(spec: ModelSpec, config: TrainConfig, plan: Plan | None = None, **values: Any) -> Any:
    """The estimate for a small plan."""
    return estimate_memory(model_file(spec), config, plan or small_plan(config), **values)


@pytest.mark.parametrize("architecture", ["sd1", "sd2", "sdxl"])
def test_text_encoders_are_counted_with_the_unet(architecture: Architecture) -> None:
    model = tiny_model(architecture)
    config = TrainConfig(rank=4)
    adapter = inject(model, spec_from_config(config), seed=0)
    real = sum(parameter.numel() for group in adapter.groups.values() for parameter in group)
    # fp32 weights, gradients and copy (12 bytes) and AdamW's two moments (8)
    assert estimated(model.spec, config).adapter == real * 20


def test_16_bit_lora_saves_memory_until_the_fp32_optimiser_step() -> None:
    spec = tiny_model("sd1").spec
    exact = TrainConfig(resolution=64, min_bucket=64, rank=4)
    half = exact.replace(lora_precision="bf16")
    # 3 × 4, 16-bit copies of weights and gradients, 8 of AdamW
    numbers = estimated(spec, exact, dtype_bytes=2).adapter // 24
    assert estimated(spec, half, dtype_bytes=2).adapter == numbers * (3 * 2 + 8)
    assert estimated(spec, half, dtype_bytes=4).adapter == numbers * (3 * 2 + 2 * 4 + 8), "copies for a model in fp32"
    assert estimated(spec, half).activations == estimated(spec, exact).activations
    large = half.replace(family="full", batch_size=1)
    numbers = estimated(spec, large, dtype_bytes=2).adapter // 14
    assert estimated(spec, large, dtype_bytes=2).activations == numbers * 8


def test_base_model_counts_only_if_not_loaded() -> None:
    spec = tiny_model("sd1").spec
    config = TrainConfig(resolution=64, min_bucket=64)
    copied, shared = estimated(spec, config), estimated(spec, config, is_loaded=True)
    assert copied.total == shared.total
    assert copied.extra - shared.extra == copied.base == 12_000_000


def test_fp8_and_half_precision_reduce_the_base() -> None:
    spec = tiny_model("sd1").spec
    config = TrainConfig(resolution=64, min_bucket=64, precision="fp16")
    assert estimated(spec, config).base == 6_000_000
    assert estimated(spec, config.replace(fp8_base=True)).base == 5_000_000
    assert estimated(spec, config.replace(precision="bf16")).base == 8_000_000, "the VAE stays in fp32 then"


def test_activations_grow_with_batch_and_area() -> None:
    spec = tiny_model("sd1").spec
    config = TrainConfig(resolution=64, min_bucket=64, batch_size=1, train_text_encoder=False)
    one = estimated(spec, config)
    four = estimated(spec, config, replace(small_plan(config), batch_size=4))
    assert four.activations == pytest.approx(4 * one.activations, rel=1e-6)
    assert estimated(spec, config.replace(gradient_checkpointing=True)).activations < one.activations / 2


# --- images and files ---------------------------------------------------------------------------


def plan_of(config: TrainConfig, *buckets: tuple[int, int, int]) -> Plan:
    """A plan with buckets of (width, height, images), each image shown twice."""
    found = [BucketSummary(width, height, images, 2 * images, 1) for width, height, images in buckets]
    return replace(small_plan(config), buckets=tuple(found))


def test_encoding_is_estimated_for_the_batch_with_the_most_pixels() -> None:
    """At most eight images, a million pixels and what the bucket has; but one image, however large."""
    spec, config = tiny_model("sd1").spec, small_config(precision="fp16")

    def encoded_px(*buckets: tuple[int, int, int]) -> float:
        """Pixels at a time, of which each needs ENCODING values of 16 bit for each of the VAE's first channels."""
        width = spec.vae["block_out_channels"][0]
        return float(estimated(spec, config, plan_of(config, *buckets)).encoding / (ENCODING * width * 2))

    assert encoded_px((64, 64, 9), (64, 128, 1)) == pytest.approx(8 * 64 * 64, rel=1e-6)
    assert encoded_px((64, 64, 3), (64, 128, 2)) == pytest.approx(2 * 64 * 128, rel=1e-6)
    assert encoded_px((512, 640, 9)) == pytest.approx(3 * 512 * 640, rel=1e-6)
    assert encoded_px((2048, 1024, 9)) == pytest.approx(2048 * 1024, rel=1e-6)
    half, single = (estimated(spec, config.replace(precision=name)) for name in ("fp16", "bf16"))
    assert single.encoding == pytest.approx(2 * half.encoding, abs=1), "the VAE stays in fp32 beside a UNet in bf16"


def test_peak_is_the_larger_of_training_and_encoding() -> None:
    training, encoding = MemoryEstimate(100, 20, 3, 22, False), MemoryEstimate(100, 20, 3, 24, True)
    assert (training.total, training.extra) == (123, 123)
    assert (encoding.total, encoding.extra) == (124, 24)


def test_activations_are_those_of_the_largest_micro_batch() -> None:
    """Of its images together; a bucket's batch has no more than its samples, nor than the batch size."""
    spec = tiny_model("sd1").spec
    config = small_config(train_text_encoder=False, batch_size=3)

    def activations(*buckets: tuple[int, int, int]) -> int:
        return int(estimated(spec, config, plan_of(config, *buckets)).activations)

    small, wide = activations((64, 64, 9)), activations((64, 128, 1))
    assert small == activations((64, 64, 2)), "3 of 18 samples, and 3 of 4"
    assert small < wide < activations((64, 128, 2))
    assert activations((64, 64, 9), (64, 128, 1)) == activations((64, 128, 1), (64, 64, 9)) == wide
    assert activations((64, 64, 9), (64, 72, 1)) == small, "3 samples of 64 positions, not 2 of 72"


def test_activations_are_the_unets_the_text_encoders_and_the_working_memory() -> None:
    """With a caption of 225 tokens, which is three chunks of 77."""
    spec = tiny_model("sdxl").spec
    config = small_config(max_token_length=225)
    unet, _ = unet_pass(spec, config, positions=64, tokens=231)
    texts = 0
    for encoder in spec.text_encoders:
        plain = Trace(lambda _: None)
        trace_text_encoder(plain, encoder.config, tokens=231)
        layers = {layer.name: layer for layer in plain.layers}
        ranks = text_ranks(layers.values(), config, architecture="sdxl", is_packed=encoder.layout == "open_clip")
        saved = {name: saved_by_layer(layers[name], config, rank) for name, rank in ranks.items()}
        trace = Trace(saved.get)
        trace_text_encoder(trace, encoder.config, tokens=231)
        texts += trace.saved
    working = WORKING * spec.unet["block_out_channels"][0] * 64
    found = estimated(spec, config, small_plan(config), dtype_bytes=4)
    assert found.activations == round(2 * 4 * (unet.peak + working + texts))
    frozen = config.replace(text_encoder_lr=0.0)
    unet, _ = unet_pass(spec, frozen, positions=64, tokens=231)
    assert estimated(spec, frozen, dtype_bytes=4).activations == round(2 * 4 * (unet.peak + working))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_sizes_of_a_checkpoint_are_those_of_its_parts(dtype: torch.dtype, tmp_path: Path) -> None:
    found = read_checkpoint_sizes(write_tiny_checkpoint(tmp_path / "tiny.safetensors", "sd1", dtype=dtype))
    assert found is not None and found.dtype_bytes == dtype.itemsize
    tensors = tiny_tensors("sd1")
    for part, prefix in ((found.unet, "model.diffusion"), (found.text, "cond_stage"), (found.vae, "first_stage")):
        count = sum(tensor.numel() for name, tensor in tensors.items() if name.startswith(prefix))
        assert part == (count, count * dtype.itemsize)


def test_precision_of_an_unknown_model_is_that_of_its_file() -> None:
    spec = tiny_model("sd1").spec
    assert CheckpointSizes(spec, (3, 8), (0, 0), (0, 0)).dtype_bytes == 3, "rounded"
    assert CheckpointSizes(spec, (8, 4), (0, 0), (0, 0)).dtype_bytes == 1
    assert CheckpointSizes(spec, (0, 0), (0, 0), (0, 0)).dtype_bytes == 1


def test_a_continued_lora_has_the_parameters_of_its_file(tmp_path: Path) -> None:
    """Whatever the rank in the settings; a file that cannot be read counts as none."""
    spec, config = tiny_model("sd1").spec, small_config()
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7)}, tmp_path / "own.safetensors")
    continued = config.replace(continue_from=str(tmp_path / "own.safetensors"))
    assert estimated(spec, continued, dtype_bytes=4).adapter == 22 * 20
    missing = config.replace(continue_from=str(tmp_path / "gone.safetensors"))
    assert estimated(spec, missing).adapter == estimated(spec, config).adapter


def test_adapter_has_a_copy_in_fp32_for_the_ema_only() -> None:
    spec, config = tiny_model("sd1").spec, small_config()
    plain, averaged = (estimated(spec, config.replace(ema_decay=decay)).adapter for decay in (0.0, 0.9))
    assert averaged * 20 == plain * 24
