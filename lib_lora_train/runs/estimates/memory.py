"""Estimate how much memory a run needs, before anything is loaded. Does not import PyTorch.

    base         weights of UNet, text encoders and VAE in the run's precision; no additional memory if the webui
                 already has them loaded. Quantised ones are counted as the webui holds them, and the unpacked copies
                 that a run makes of them as `copies`
    adapter      trained parameters × (weight + gradient + backup of the weight, in `lora_precision`, + optimiser state)
    activations  batch × what autograd saves of the UNet and of trained text encoders (`forward_trace`), plus temporary
                 tensors of the backward pass; or, if larger, the fp32 weights and gradients of the optimiser step,
                 when the activations are freed and `lora_precision` is 16-bit
    encoding     peak of the VAE encoder, which is over before training starts

Prior preservation adds nothing: its passes come one after another, and an answer has the size of a latent.

The peak is base + max(adapter + activations, encoding). Only tensors are counted: PyTorch and the driver need a few
hundred MiB more, and memory fragments over time. `benchmarks/memory.py` compares the estimate with measurements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lib_lora_train.config.method_catalog import nearest_lora
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.encoding_limits import BATCH_IMAGES, BATCH_PX, CHUNK_TOKENS
from lib_lora_train.core.errors import LoraTrainError
from lib_lora_train.core.image_sizes import LATENT_CELL_PX
from lib_lora_train.core.safetensors_header import TensorEntry, read_header
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.hosts.host import HeldWeights
from lib_lora_train.models.architecture import (
    TEXT_PREFIXES,
    UNET_PREFIX,
    VAE_PREFIX,
    ModelSpec,
    TextEncoderSpec,
)
from lib_lora_train.models.kinds.anima import TEXT_TOKENS
from lib_lora_train.models.kinds.registry import kind_of
from lib_lora_train.models.model_files import read_checkpoint_info
from lib_lora_train.runs.estimates.activation_trace import Activation, Trace
from lib_lora_train.runs.estimates.forward_trace import trace_text_encoder, trace_unet
from lib_lora_train.runs.estimates.trained_parameters import count_parameters, saved_by_layer, text_ranks, unet_ranks
from lib_lora_train.runs.estimates.transformer_trace import trace_transformer

WORKING = 16.1
"""Temporary tensors of the backward pass: the most measured by `benchmarks/memory.py`, in units of `working_size`."""
ENCODING = 5.1
"""Peak of the VAE encoder, measured by the same benchmark, in widths of its first level per pixel."""
VIDEO_ENCODING = 10.1
"""The same for Anima's VAE, which is made for videos: diffusers' AutoencoderKLQwenImage on the meta device."""

_ANY_POSITIONS = 64 * 64
"""Of a trace of which only the layers count."""

OPTIMIZER_BYTES: Mapping[str, float] = {
    "AdamW": 8,
    "AdamW8bit": 2,
    "Prodigy": 16,
    "Adafactor": 0,
    "Lion": 4,
    "SGDNesterov": 4,
    "DAdaptAdam": 12,
    "DAdaptAdan": 20,
    "DAdaptLion": 8,
    "DAdaptSGD": 12,
    "AdamWScheduleFree": 8,
    "CAME": 4,
    "Custom": 8,
}
"""Bytes of optimiser state per trained parameter; factored moments are a thousandth of that and not counted."""

DTYPE_BYTES: Mapping[str, int] = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class CheckpointSizes:
    """A checkpoint's architecture and, per part, the number of parameters and of bytes, from its header."""

    spec: ModelSpec
    unet: tuple[int, int]
    text: tuple[int, int]
    vae: tuple[int, int]

    @property
    def dtype_bytes(self) -> int:
        """Bytes per UNet parameter in the file."""
        return max(1, round(self.unet[1] / max(1, self.unet[0])))


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by part, as in the module's docstring. `is_loaded`: `base` without `copies` is already in memory."""

    base: int
    adapter: int
    activations: int
    encoding: int
    is_loaded: bool
    copies: int = 0

    @property
    def total(self) -> int:
        """The peak."""
        return self.base + max(self.adapter + self.activations, self.encoding)

    @property
    def extra(self) -> int:
        """What must be free when the run starts."""
        return self.total - (self.base - self.copies if self.is_loaded else 0)


def estimate_memory(
    model: CheckpointSizes,
    config: TrainConfig,
    plan: Plan,
    *,
    dtype_bytes: int = 0,
    is_loaded: bool = False,
    weights: HeldWeights | None = None,
) -> MemoryEstimate:
    """The run's memory. `dtype_bytes` per model weight, 0 to use the settings' or the file's precision.

    `weights`: of a loaded model that is quantised. AdapterError if lists of block settings do not fit the model.
    """
    config = nearest_lora(config)
    size = dtype_bytes or DTYPE_BYTES.get(config.precision, model.dtype_bytes)
    batch, positions = _largest_batch(plan)
    unet, texts, count = _passes(model.spec, config, positions, is_half=size == 2)
    trained = _parameters_in_file(config.continue_from) or count
    working = WORKING * working_size(model.spec, positions)
    activations = batch * (unet.peak + working + sum(trace.saved for trace in texts))
    is_ours = kind_of(model.spec.architecture).has_unet_blocks  # a host's own VAE stays in the host's precision
    vae_bytes = 4 if size == 4 or (is_ours and config.precision == "bf16") else 2
    base = _base(model, size, vae_bytes, is_fp8=config.fp8_base and not is_loaded)
    return MemoryEstimate(
        base=weights.held + weights.copied if weights else base,
        copies=weights.copied if weights else 0,
        adapter=round(trained * _adapter_bytes(config, size)),
        activations=round(max(activations * size, trained * _step_bytes(config))),
        encoding=round(_encoding_size(model.spec) * _encoded_px(plan) * vae_bytes),
        is_loaded=is_loaded,
    )


def _encoding_size(spec: ModelSpec) -> float:
    """Values per pixel at the peak of the VAE encoder."""
    width = float(spec.vae["block_out_channels"][0])
    return width * (ENCODING if kind_of(spec.architecture).has_unet_blocks else VIDEO_ENCODING)


def _base(model: CheckpointSizes, size: int, vae_bytes: int, *, is_fp8: bool) -> int:
    unet = model.unet[0] * (1 if is_fp8 else size)
    return unet + model.text[0] * size + model.vae[0] * vae_bytes


def _adapter_bytes(config: TrainConfig, size: int) -> float:
    """Bytes per trained parameter."""
    own = DTYPE_BYTES[config.lora_precision]
    weight, gradient, backup = own, own, own  # the backup restores weights after a NaN loss
    casts = 0 if size == own else 2 * size  # of the weights, and of the gradients until a micro-batch ends
    ema = 4 if config.ema_decay else 0
    return weight + gradient + backup + casts + ema + OPTIMIZER_BYTES[config.optimizer]


def _step_bytes(config: TrainConfig) -> int:
    """Bytes per trained parameter during the optimiser step: fp32 weight and gradient if they are stored in 16 bit."""
    return 0 if config.lora_precision == "fp32" else 4 + 4


def _largest_batch(plan: Plan) -> tuple[int, int]:
    """(images, latent positions) of the micro-batch with the most positions."""
    batches = [
        (min(plan.batch_size, bucket.sample_count), bucket.width * bucket.height // LATENT_CELL_PX**2)
        for bucket in plan.buckets
    ]
    return max(batches, key=lambda batch: batch[0] * batch[1])


def _encoded_px(plan: Plan) -> int:
    """The most pixels in one batch of the VAE."""
    counts = ((bucket.width * bucket.height, bucket.image_count) for bucket in plan.buckets)
    return max(size * max(1, min(BATCH_IMAGES, BATCH_PX // size, images)) for size, images in counts)


# --- forward passes -----------------------------------------------------------------------------


def _passes(spec: ModelSpec, config: TrainConfig, positions: int, *, is_half: bool) -> tuple[Trace, list[Trace], int]:
    """Traces of the UNet and the trained text encoders with adapters, and the number of trained parameters."""
    is_unet = kind_of(spec.architecture).has_unet_blocks
    tokens = config.max_token_length // CHUNK_TOKENS * (CHUNK_TOKENS + 2) if is_unet else TEXT_TOKENS
    texts = [_text_pass(spec, encoder, config, tokens) for encoder in spec.text_encoders if config.train_text_encoder]
    unet, count = unet_pass(spec, config, positions=positions, tokens=tokens, is_half=is_half)
    traces = [trace for trace, _ in texts] if _trains_text(config) else []
    return unet, traces, count + sum(parameters for _, parameters in texts)


def unet_pass(
    spec: ModelSpec, config: TrainConfig, *, positions: int, tokens: int, is_half: bool = True
) -> tuple[Trace, int]:
    """Trace of the UNet with its adapter for one sample of `positions` positions, and its trained parameters.

    `is_half`: it computes in 16 bit, where some norms keep fp32 copies.
    """
    plain = Trace(lambda _: None)
    _trace(plain, spec, config, positions=positions, tokens=tokens, is_half=is_half)
    ranks = unet_ranks(plain.layers, config, architecture=spec.architecture) if config.train_unet else {}
    trace, count = _adapted(plain, ranks, config)
    _trace(trace, spec, config, positions=positions, tokens=tokens, is_half=is_half)
    return trace, count


def _trace(trace: Trace, spec: ModelSpec, config: TrainConfig, *, positions: int, tokens: int, is_half: bool) -> None:
    if kind_of(spec.architecture).has_unet_blocks:
        text = Activation(spec.unet["cross_attention_dim"], tokens, requires_grad=_trains_text(config))
        trace_unet(trace, spec.unet, positions=positions, text=text)
    else:
        text = Activation(spec.unet["text_embed_dim"], tokens)
        trace_transformer(trace, spec.unet, positions=positions, text=text, is_half=is_half)


def working_size(spec: ModelSpec, positions: int) -> int:
    """The values of the widest plain activation: the UNet's first level, or a transformer's patches."""
    if kind_of(spec.architecture).has_unet_blocks:
        return int(spec.unet["block_out_channels"][0] * positions)
    config = spec.unet
    width = config["num_attention_heads"] * config["attention_head_dim"]
    return int(width * positions // (config["patch_size"][1] * config["patch_size"][2]))


def _text_pass(spec: ModelSpec, encoder: TextEncoderSpec, config: TrainConfig, tokens: int) -> tuple[Trace, int]:
    plain = Trace(lambda _: None)
    trace_text_encoder(plain, encoder.config, tokens=tokens)
    is_packed = encoder.layout == "open_clip"
    ranks = text_ranks(plain.layers, config, architecture=spec.architecture, is_packed=is_packed)
    trace, count = _adapted(plain, ranks, config)
    trace_text_encoder(trace, encoder.config, tokens=tokens)
    return trace, count


def _adapted(plain: Trace, ranks: Mapping[str, int], config: TrainConfig) -> tuple[Trace, int]:
    """An empty trace for the same pass with adapters, and the number of parameters they train."""
    known = {layer.name: layer for layer in plain.layers}
    saved = {name: saved_by_layer(known[name], config, rank) for name, rank in ranks.items()}
    parameters = sum(count_parameters(known[name], config, rank) for name, rank in ranks.items())
    return Trace(saved.get, checkpointing=config.gradient_checkpointing), parameters


def count_adapted_weights(spec: ModelSpec, config: TrainConfig) -> int:
    """The number of weights in the layers that the settings train: the size of a file of full matrices."""
    is_unet = kind_of(spec.architecture).has_unet_blocks
    tokens = CHUNK_TOKENS + 2 if is_unet else TEXT_TOKENS
    unet = Trace(lambda _: None)
    _trace(unet, spec, config, positions=_ANY_POSITIONS, tokens=tokens, is_half=True)
    ranks = unet_ranks(unet.layers, config, architecture=spec.architecture) if config.train_unet else {}
    total = _weights(unet, ranks)
    for encoder in spec.text_encoders if config.train_text_encoder else ():
        text = Trace(lambda _: None)
        trace_text_encoder(text, encoder.config, tokens=tokens)
        is_packed = encoder.layout == "open_clip"
        total += _weights(text, text_ranks(text.layers, config, architecture=spec.architecture, is_packed=is_packed))
    return total


def _weights(trace: Trace, ranks: Mapping[str, int]) -> int:
    return sum(math.prod(layer.shape) for layer in trace.layers if layer.name in ranks)


def _trains_text(config: TrainConfig) -> bool:
    rate = config.effective_text_encoder_lr
    return config.train_text_encoder and rate > 0


# --- files --------------------------------------------------------------------------------------


def read_checkpoint_sizes(path: Path, vae: Path | None = None) -> CheckpointSizes | None:
    """Architecture and sizes from the checkpoint's header; None if it is missing, unreadable or not supported."""
    try:
        info = read_checkpoint_info(path, vae)
    except LoraTrainError:
        return None
    return CheckpointSizes(
        info.spec,
        unet=_part(info.entries, (UNET_PREFIX,)),
        text=_part(info.entries, TEXT_PREFIXES),
        vae=_part(info.entries, (VAE_PREFIX,)),
    )


def _part(entries: Mapping[str, TensorEntry], prefixes: tuple[str, ...]) -> tuple[int, int]:
    """(parameters, bytes) of the tensors with these prefixes."""
    found = [entry for name, entry in entries.items() if name.startswith(prefixes)]
    return sum(entry.element_count for entry in found), sum(entry.bytes for entry in found)


def _parameters_in_file(continue_from: str) -> int:
    """The number of parameters in the LoRA file to continue from, 0 without one."""
    if not continue_from:
        return 0
    try:
        return sum(entry.element_count for entry in read_header(user_path(continue_from)).entries.values())
    except LoraTrainError:
        return 0
