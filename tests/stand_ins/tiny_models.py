"""Random-weight Stable Diffusions in memory: the exact key sets of SD1, SD2 and SDXL, shrunk in width.

The names and shapes are written down from ldm's, sgm's and open_clip's module definitions, not from
our own name tables, so that a mistake there shows. `full_shapes` gives the published sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib_lora_train.models.architecture import Architecture, CheckpointHints, ModelSpec, PredictionType
from lib_lora_train.models.checkpoint import shapes_of
from lib_lora_train.models.diffusion_model import DiffusionModel, assemble
from lib_lora_train.models.infer_spec import infer_spec
from lib_lora_train.models.noise_schedule import DiffusionSchedule
from lib_lora_train.models.text_encoding import load_tokenizer
from tests.paths import ROOT

STABLE_DIFFUSION: tuple[Architecture, ...] = ("sd1", "sd2", "sdxl")
TOKENIZER = ROOT / "assets" / "tiny-sd" / "tokenizer"
VOCABULARY = 49408
Shape = tuple[int, ...]
Named = Iterator[tuple[str, Shape]]


@dataclass(frozen=True)
class Widths:
    """Everything in which a tiny model differs from a published one."""

    unet: tuple[int, ...]
    depth: tuple[int, ...]
    context: int
    vae: tuple[int, ...]
    text: tuple[tuple[int, int, int], ...]  # width, mlp width, layers
    sizes: int = 0  # SDXL: width of each of the six size embeddings


FULL: dict[Architecture, Widths] = {
    "sd1": Widths((320, 640, 1280, 1280), (1, 1, 1, 0), 768, (128, 256, 512, 512), ((768, 3072, 12),)),
    "sd2": Widths((320, 640, 1280, 1280), (1, 1, 1, 0), 1024, (128, 256, 512, 512), ((1024, 4096, 24),)),
    "sdxl": Widths(
        (320, 640, 1280), (0, 2, 10), 2048, (128, 256, 512, 512), ((768, 3072, 12), (1280, 5120, 32)), sizes=256
    ),
}
TINY: dict[Architecture, Widths] = {
    "sd1": Widths((64, 128, 64, 64), (1, 1, 1, 0), 32, (32, 64, 96, 96), ((32, 64, 12),)),
    "sd2": Widths((64, 128, 64, 64), (1, 1, 1, 0), 64, (32, 64, 96, 96), ((64, 128, 24),)),
    "sdxl": Widths((32, 64, 128), (0, 2, 10), 96, (32, 64, 96, 96), ((32, 64, 12), (64, 128, 32)), sizes=32),
}
# The same topology but for SDXL's depth: 3 transformer blocks instead of 70, for tests that train on it.
SHALLOW_SDXL = Widths((32, 64, 128), (0, 1, 1), 96, (32, 64, 96, 96), ((32, 64, 12), (64, 128, 4)), sizes=32)
HEADS: dict[Architecture, tuple[int, ...]] = {"sd1": (4,), "sd2": (4,), "sdxl": (4, 4)}


def full_shapes(architecture: Architecture) -> dict[str, Shape]:
    """Names and shapes of a published checkpoint of this architecture."""
    return dict(_checkpoint(architecture, FULL[architecture]))


def tiny_tensors(architecture: Architecture, *, seed: int = 0, shallow: bool = False) -> dict[str, Tensor]:
    """A tiny checkpoint's tensors (float32) by ldm name; every layer passes its signal on at about its size."""
    widths = SHALLOW_SDXL if shallow and architecture == "sdxl" else TINY[architecture]
    return {name: tensor.clone() for name, tensor in _drawn_tensors(architecture, widths, seed).items()}


@lru_cache(maxsize=4)  # about 60 MB each
def _drawn_tensors(architecture: Architecture, widths: Widths, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: _random(name, shape, generator) for name, shape in _checkpoint(architecture, widths)}


def tiny_spec(
    tensors: dict[str, Tensor],
    *,
    prediction_type: PredictionType | None = None,
    zero_terminal_snr: bool | None = None,
) -> ModelSpec:
    """The spec of such tensors; the heads of the narrow text encoders are given as a side-car would."""
    return infer_spec(
        shapes_of(tensors),
        CheckpointHints(prediction_type=prediction_type, zero_terminal_snr=zero_terminal_snr, text_heads=(4, 4)),
    )


def tiny_model(architecture: Architecture, *, seed: int = 0, shallow: bool = True, **spec: Any) -> DiffusionModel:
    """A tiny random model, ready to train; `spec` as for `tiny_spec`. SDXL shallow unless asked otherwise.

    SDXL is v-prediction with zero-terminal SNR unless asked otherwise: the settings nothing else tests.
    """
    tensors = tiny_tensors(architecture, seed=seed, shallow=shallow)
    if architecture == "sdxl":
        spec = {"prediction_type": "v_prediction", "zero_terminal_snr": True, **spec}
    found = tiny_spec(tensors, **spec)
    tokenizers = [load_tokenizer(TOKENIZER)] * len(found.text_encoders)
    return assemble(tensors, spec=found, tokenizers=tokenizers, name=f"tiny-{architecture}", file_hash="0" * 64)


def alphas_of(model: DiffusionModel) -> Tensor:
    """ᾱ of a model that has one, (T,) float64."""
    assert isinstance(model.schedule, DiffusionSchedule)
    return model.schedule.alphas_cumprod


def write_tiny_checkpoint(
    path: Path, architecture: Architecture, *, dtype: torch.dtype = torch.float16, **build: Any
) -> Path:
    """A tiny checkpoint as a file, its heads in the metadata; returns `path`."""
    from safetensors.torch import save_file

    tensors = {name: tensor.to(dtype) for name, tensor in tiny_tensors(architecture, **build).items()}
    save_file(tensors, path, metadata={"text_heads": ",".join(map(str, HEADS[architecture]))})
    return path


def _random(name: str, shape: Shape, generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    is_norm = any(part in name for part in ("norm", "ln_", "in_layers.0", "out_layers.0", ".out.0."))
    if len(shape) < 2:
        return 1 + 0.1 * noise if is_norm and name.endswith("weight") else 0.1 * noise
    if "embedding" in name:
        return 0.5 * noise
    fan_in = noise[0].numel()
    return torch.mul(noise, fan_in**-0.5)


# --- names and shapes, as ldm, sgm and open_clip define them -------------------------------------


def _checkpoint(architecture: Architecture, widths: Widths) -> Named:
    pooled = widths.text[-1][0] if architecture == "sdxl" else 0
    for name, shape in _unet(widths, linear=architecture != "sd1", vector=pooled + 6 * widths.sizes if pooled else 0):
        yield f"model.diffusion_model.{name}", shape
    for name, shape in _vae(widths.vae):
        yield f"first_stage_model.{name}", shape
    if architecture == "sd1":
        yield from _clip("cond_stage_model.transformer.text_model.", *widths.text[0])
    elif architecture == "sd2":
        yield from _open_clip("cond_stage_model.model.", *widths.text[0])
    else:
        yield from _clip("conditioner.embedders.0.transformer.text_model.", *widths.text[0])
        yield from _open_clip("conditioner.embedders.1.model.", *widths.text[1])


def _layer(name: str, *shape: int, bias: bool = True) -> Named:
    yield f"{name}.weight", shape
    if bias:
        yield f"{name}.bias", shape[:1]


def _unet(widths: Widths, *, linear: bool, vector: int) -> Named:
    """openaimodel.UNetModel, two res blocks per level."""
    base, embed = widths.unet[0], 4 * widths.unet[0]
    yield from _layer("time_embed.0", embed, base)
    yield from _layer("time_embed.2", embed, embed)
    if vector:
        yield from _layer("label_emb.0.0", embed, vector)
        yield from _layer("label_emb.0.2", embed, embed)
    yield from _layer("input_blocks.0.0", base, 4, 3, 3)
    skips, now, index = [base], base, 1
    for level, width in enumerate(widths.unet):
        for _ in range(2):
            yield from _res(f"input_blocks.{index}.0", now, width, embed)
            now = width
            yield from _attention(f"input_blocks.{index}.1", now, widths.depth[level], widths.context, linear)
            skips.append(now)
            index += 1
        if level + 1 < len(widths.unet):
            yield from _layer(f"input_blocks.{index}.0.op", now, now, 3, 3)
            skips.append(now)
            index += 1
    yield from _res("middle_block.0", now, now, embed)
    yield from _attention("middle_block.1", now, max(1, widths.depth[-1]), widths.context, linear)
    yield from _res("middle_block.2", now, now, embed)
    index = 0
    for level in reversed(range(len(widths.unet))):
        for layer in range(3):
            yield from _res(f"output_blocks.{index}.0", now + skips.pop(), widths.unet[level], embed)
            now = widths.unet[level]
            yield from _attention(f"output_blocks.{index}.1", now, widths.depth[level], widths.context, linear)
            if level and layer == 2:
                yield from _layer(f"output_blocks.{index}.{2 if widths.depth[level] else 1}.conv", now, now, 3, 3)
            index += 1
    yield from _layer("out.0", base)
    yield from _layer("out.2", 4, base, 3, 3)


def _res(name: str, into: int, out: int, embed: int) -> Named:
    yield from _layer(f"{name}.in_layers.0", into)
    yield from _layer(f"{name}.in_layers.2", out, into, 3, 3)
    yield from _layer(f"{name}.emb_layers.1", out, embed)
    yield from _layer(f"{name}.out_layers.0", out)
    yield from _layer(f"{name}.out_layers.3", out, out, 3, 3)
    if into != out:
        yield from _layer(f"{name}.skip_connection", out, into, 1, 1)


def _attention(name: str, width: int, depth: int, context: int, linear: bool) -> Named:
    if not depth:
        return
    kernel = () if linear else (1, 1)
    yield from _layer(f"{name}.norm", width)
    yield from _layer(f"{name}.proj_in", width, width, *kernel)
    for block in range(depth):
        inner = f"{name}.transformer_blocks.{block}"
        for number, source in ((1, width), (2, context)):
            yield from _layer(f"{inner}.attn{number}.to_q", width, width, bias=False)
            yield from _layer(f"{inner}.attn{number}.to_k", width, source, bias=False)
            yield from _layer(f"{inner}.attn{number}.to_v", width, source, bias=False)
            yield from _layer(f"{inner}.attn{number}.to_out.0", width, width)
        yield from _layer(f"{inner}.ff.net.0.proj", 8 * width, width)
        yield from _layer(f"{inner}.ff.net.2", width, 4 * width)
        for number in (1, 2, 3):
            yield from _layer(f"{inner}.norm{number}", width)
    yield from _layer(f"{name}.proj_out", width, width, *kernel)


def _vae(widths: tuple[int, ...]) -> Named:
    """ldm's AutoencoderKL with two res blocks per level on the way down, three on the way up."""
    yield from _layer("encoder.conv_in", widths[0], 3, 3, 3)
    now = widths[0]
    for level, width in enumerate(widths):
        for block in range(2):
            yield from _vae_res(f"encoder.down.{level}.block.{block}", now, width)
            now = width
        if level + 1 < len(widths):
            yield from _layer(f"encoder.down.{level}.downsample.conv", now, now, 3, 3)
    yield from _vae_middle("encoder.mid", now)
    yield from _layer("encoder.norm_out", now)
    yield from _layer("encoder.conv_out", 8, now, 3, 3)
    yield from _layer("quant_conv", 8, 8, 1, 1)
    yield from _layer("post_quant_conv", 4, 4, 1, 1)
    yield from _layer("decoder.conv_in", now, 4, 3, 3)
    yield from _vae_middle("decoder.mid", now)
    for level in reversed(range(len(widths))):
        for block in range(3):
            yield from _vae_res(f"decoder.up.{level}.block.{block}", now, widths[level])
            now = widths[level]
        if level:
            yield from _layer(f"decoder.up.{level}.upsample.conv", now, now, 3, 3)
    yield from _layer("decoder.norm_out", now)
    yield from _layer("decoder.conv_out", 3, now, 3, 3)


def _vae_res(name: str, into: int, out: int) -> Named:
    yield from _layer(f"{name}.norm1", into)
    yield from _layer(f"{name}.conv1", out, into, 3, 3)
    yield from _layer(f"{name}.norm2", out)
    yield from _layer(f"{name}.conv2", out, out, 3, 3)
    if into != out:
        yield from _layer(f"{name}.nin_shortcut", out, into, 1, 1)


def _vae_middle(name: str, width: int) -> Named:
    yield from _vae_res(f"{name}.block_1", width, width)
    yield from _layer(f"{name}.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        yield from _layer(f"{name}.attn_1.{part}", width, width, 1, 1)
    yield from _vae_res(f"{name}.block_2", width, width)


def _clip(prefix: str, width: int, mlp: int, layers: int) -> Named:
    """transformers' CLIPTextModel as ldm saved it."""
    yield f"{prefix}embeddings.token_embedding.weight", (VOCABULARY, width)
    yield f"{prefix}embeddings.position_embedding.weight", (77, width)
    for layer in range(layers):
        name = f"{prefix}encoder.layers.{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _layer(f"{name}.self_attn.{part}", width, width)
        yield from _layer(f"{name}.layer_norm1", width)
        yield from _layer(f"{name}.mlp.fc1", mlp, width)
        yield from _layer(f"{name}.mlp.fc2", width, mlp)
        yield from _layer(f"{name}.layer_norm2", width)
    yield from _layer(f"{prefix}final_layer_norm", width)


def _open_clip(prefix: str, width: int, mlp: int, layers: int) -> Named:
    """open_clip's text tower; q, k and v in one tensor, the projection a bare (width, projection) matrix."""
    yield f"{prefix}positional_embedding", (77, width)
    yield f"{prefix}text_projection", (width, width)
    yield f"{prefix}logit_scale", ()
    yield f"{prefix}token_embedding.weight", (VOCABULARY, width)
    for layer in range(layers):
        name = f"{prefix}transformer.resblocks.{layer}"
        yield from _layer(f"{name}.ln_1", width)
        yield f"{name}.attn.in_proj_weight", (3 * width, width)
        yield f"{name}.attn.in_proj_bias", (3 * width,)
        yield from _layer(f"{name}.attn.out_proj", width, width)
        yield from _layer(f"{name}.ln_2", width)
        yield from _layer(f"{name}.mlp.c_fc", mlp, width)
        yield from _layer(f"{name}.mlp.c_proj", width, mlp)
    yield from _layer(f"{prefix}ln_final", width)
