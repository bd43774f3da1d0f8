"""How much memory a run needs, before anything is loaded: an estimate by a stated model, no PyTorch needed.

    base         the weights of UNet, text encoders and VAE, as the run computes with them; 0 bytes more where the
                 webui has them in memory already
    adapter      trained numbers × (weight + gradient + copy for the way back, in `lora_precision`, + what the
                 optimiser remembers)
    activations  batch × what autograd keeps of the UNet and of trained text encoders (`models.anatomy`), and what the
                 backward pass works with on top; or the fp32 weights and gradients of the optimiser's step, when these
                 activations are gone, if a 16-bit `lora_precision` makes more of them
    encoding     the VAE's largest moment; it is over before training starts

The most is base + max(adapter + activations, encoding). It counts tensors only: PyTorch and the driver take some
hundred MiB more, and memory falls to pieces with time. `benchmarks/memory.py` prints it beside counted bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import LoraTrainError
from lib_lora_train.core.image_sizes import LATENT_CELL_PX
from lib_lora_train.core.safetensors_header import TensorEntry, read_header
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.models.architecture import (
    TEXT_PREFIXES,
    UNET_PREFIX,
    VAE_PREFIX,
    ModelSpec,
    TextEncoderSpec,
    add_text_model_prefix,
    infer_spec,
)
from lib_lora_train.models.checkpoint_hints import read_hints
from lib_lora_train.runs.estimates.activation_trace import Trace, Activation
from lib_lora_train.runs.estimates.forward_trace import run_text_encoder, run_unet
from lib_lora_train.runs.estimates.trained_parameters import count_parameters, saved_by_layer, text_ranks, unet_ranks

_CHUNK = 75  # tokens of a caption in one run of the text encoder, which adds 2
ENCODED_PX, ENCODED_IMAGES = 4 * 512 * 512, 8
"""The most that is encoded together, but for a single image that has more; as `models.latents` does it."""

WORKING = 10.5
"""The backward pass's own tensors: the most that `benchmarks/memory.py` finds, in UNet widths per latent position."""
ENCODING = 5.1
"""The VAE encoder's most, in its first level's widths per pixel, from the same place."""

_STATE_BYTES: Mapping[str, float] = {
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
"""Bytes that an optimiser remembers per trained number; factored moments are a thousandth of that and left out."""

_NUMBER_BYTES: Mapping[str, int] = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class CheckpointSizes:
    """What a checkpoint's header tells: the kind of model, and the numbers of its three parts with their bytes."""

    spec: ModelSpec
    unet: tuple[int, int]
    text: tuple[int, int]
    vae: tuple[int, int]

    @property
    def dtype_bytes(self) -> int:
        """Of one number of the UNet as it lies in the file."""
        return max(1, round(self.unet[1] / max(1, self.unet[0])))


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by part; see the module. `is_loaded`: `base` is in memory already."""

    base: int
    adapter: int
    activations: int
    encoding: int
    is_loaded: bool

    @property
    def total(self) -> int:
        """The most at any time."""
        return self.base + max(self.adapter + self.activations, self.encoding)

    @property
    def extra(self) -> int:
        """What has to be free when the run starts."""
        return self.total - (self.base if self.is_loaded else 0)


def estimate_memory(
    model: CheckpointSizes, config: TrainConfig, plan: Plan, *, dtype_bytes: int = 0, is_loaded: bool = False
) -> MemoryEstimate:
    """The run's memory; `dtype_bytes` of the format it computes in, 0: as the settings or the file say.

    AdapterError for lists of block settings that do not fit the model.
    """
    size = dtype_bytes or _NUMBER_BYTES.get(config.precision, model.dtype_bytes)
    batch, positions = _largest_batch(plan)
    unet, texts, count = _passes(model.spec, config, positions)
    trained = _numbers_in(config.continue_from) or count
    working = WORKING * model.spec.unet["block_out_channels"][0] * positions
    kept = batch * (unet.peak + working + sum(trace.saved for trace in texts))
    vae_bytes = 4 if size == 4 or config.precision == "bf16" else 2
    return MemoryEstimate(
        base=_base(model, size, vae_bytes, is_fp8=config.fp8_base and not is_loaded),
        adapter=round(trained * _adapter_bytes(config, size)),
        activations=round(max(kept * size, trained * _step_bytes(config))),
        encoding=round(ENCODING * model.spec.vae["block_out_channels"][0] * _encoded_px(plan) * vae_bytes),
        is_loaded=is_loaded,
    )


def _base(model: CheckpointSizes, size: int, vae_bytes: int, *, is_fp8: bool) -> int:
    unet = model.unet[0] * (1 if is_fp8 else size)
    return unet + model.text[0] * size + model.vae[0] * vae_bytes


def _adapter_bytes(config: TrainConfig, size: int) -> float:
    """Per trained number."""
    own = _NUMBER_BYTES[config.lora_precision]
    weight, gradient, way_back = own, own, own  # the way back is a copy for when the loss is no number any more
    cast = 0 if size == own else size
    mean = 4 if config.ema_decay else 0
    return weight + gradient + way_back + cast + mean + _STATE_BYTES[config.optimizer]


def _step_bytes(config: TrainConfig) -> int:
    """Per trained number, for the moment of the optimiser's step: fp32 weight and gradient where they are not so."""
    return 0 if config.lora_precision == "fp32" else 4 + 4


def _largest_batch(plan: Plan) -> tuple[int, int]:
    """(images, latent positions) of the micro-batch with the most positions."""
    batches = [
        (min(plan.batch_size, bucket.sample_count), bucket.width * bucket.height // LATENT_CELL_PX**2)
        for bucket in plan.buckets
    ]
    return max(batches, key=lambda batch: batch[0] * batch[1])


def _encoded_px(plan: Plan) -> int:
    """The most pixels that go through the VAE together."""
    counts = ((bucket.width * bucket.height, bucket.image_count) for bucket in plan.buckets)
    return max(size * max(1, min(ENCODED_IMAGES, ENCODED_PX // size, images)) for size, images in counts)


# --- forward passes -----------------------------------------------------------------------------


def _passes(spec: ModelSpec, config: TrainConfig, positions: int) -> tuple[Trace, list[Trace], int]:
    """The UNet's pass and those of the trained text encoders with their adapters, and how many numbers these have."""
    tokens = config.max_token_length // _CHUNK * (_CHUNK + 2)
    texts = [_text_pass(spec, encoder, config, tokens) for encoder in spec.text_encoders if config.train_text_encoder]
    unet, count = unet_pass(spec, config, positions=positions, tokens=tokens)
    kept = [trace for trace, _ in texts] if _learns_text(config) else []
    return unet, kept, count + sum(numbers for _, numbers in texts)


def unet_pass(spec: ModelSpec, config: TrainConfig, *, positions: int, tokens: int) -> tuple[Trace, int]:
    """The UNet's forward pass with its adapter, one sample of `positions` latent positions, and the trained numbers."""
    text = Activation(spec.unet["cross_attention_dim"], tokens, requires_grad=_learns_text(config))
    plain = Trace(lambda _: None)
    run_unet(plain, spec.unet, positions=positions, text=text)
    ranks = unet_ranks(plain.layers, config, architecture=spec.architecture) if config.train_unet else {}
    trace, count = _adapted(plain, ranks, config)
    run_unet(trace, spec.unet, positions=positions, text=text)
    return trace, count


def _text_pass(
    spec: ModelSpec, encoder: TextEncoderSpec, config: TrainConfig, tokens: int
) -> tuple[Trace, int]:
    plain = Trace(lambda _: None)
    run_text_encoder(plain, encoder.config, tokens=tokens)
    is_packed = encoder.layout == "open_clip"
    ranks = text_ranks(plain.layers, config, architecture=spec.architecture, is_packed=is_packed)
    trace, count = _adapted(plain, ranks, config)
    run_text_encoder(trace, encoder.config, tokens=tokens)
    return trace, count


def _adapted(plain: Trace, ranks: Mapping[str, int], config: TrainConfig) -> tuple[Trace, int]:
    """A trace for the same pass with adapters in place, and the numbers they train."""
    known = {layer.name: layer for layer in plain.layers}
    kept = {name: saved_by_layer(known[name], config, rank) for name, rank in ranks.items()}
    numbers = sum(count_parameters(known[name], config, rank) for name, rank in ranks.items())
    return Trace(kept.get, checkpointing=config.gradient_checkpointing), numbers


def _learns_text(config: TrainConfig) -> bool:
    rate = config.learning_rate if config.text_encoder_lr is None else config.text_encoder_lr
    return config.train_text_encoder and rate > 0


# --- files --------------------------------------------------------------------------------------


def read_checkpoint_sizes(path: Path) -> CheckpointSizes | None:
    """What the checkpoint's header tells; None for a file that is not there, not readable or of another kind."""
    try:
        stat = path.stat()
        return _read_model(path, stat.st_mtime_ns, stat.st_size)
    except (LoraTrainError, OSError):
        return None


@functools.lru_cache(maxsize=8)
def _read_model(path: Path, _changed: int, _size: int) -> CheckpointSizes:
    header = read_header(path)
    entries = add_text_model_prefix(header.entries)
    shapes = {name: entry.shape for name, entry in entries.items()}
    spec = infer_spec(shapes, hints=read_hints(path, header.metadata))
    return CheckpointSizes(
        spec,
        unet=_part(header.entries, (UNET_PREFIX,)),
        text=_part(header.entries, TEXT_PREFIXES),
        vae=_part(header.entries, (VAE_PREFIX,)),
    )


def _part(entries: Mapping[str, TensorEntry], prefixes: tuple[str, ...]) -> tuple[int, int]:
    """(numbers, bytes) of the tensors with these prefixes."""
    found = [entry for name, entry in entries.items() if name.startswith(prefixes)]
    return sum(entry.element_count for entry in found), sum(entry.bytes for entry in found)


def _numbers_in(continue_from: str) -> int:
    """The trained numbers of the LoRA file that is gone on with, 0 without one."""
    if not continue_from:
        return 0
    try:
        return sum(entry.element_count for entry in read_header(user_path(continue_from)).entries.values())
    except LoraTrainError:
        return 0
