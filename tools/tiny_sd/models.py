"""The three networks of the tiny Stable Diffusion: SD1's blocks and key set, few channels."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

SCALE_FACTOR = 0.18215
LATENT_CHANNELS = 4
CONTEXT_DIM = 64

TEXT_CONFIG: dict[str, object] = {
    "vocab_size": 49408,
    "hidden_size": CONTEXT_DIM,
    "intermediate_size": 256,
    "projection_dim": 64,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}


def build_vae() -> AutoencoderKL:
    """An f = 8 KL autoencoder, 64 channels on each level so that GroupNorm 32 keeps pairs."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(64, 64, 64, 64),
        layers_per_block=2,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=32,
        sample_size=128,
        scaling_factor=SCALE_FACTOR,
    )


def build_unet() -> UNet2DConditionModel:
    """SD1's UNet at 64/128/64/64 channels: 686 tensors, the exact SD1.5 key set.

    The a, b, c, c pattern keeps ``conv_shortcut`` where SD1 has it. Levels of 32 channels
    would turn GroupNorm 32 into instance norm, which removes the mean of each channel.
    """
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 128, 64, 64),
        layers_per_block=2,
        cross_attention_dim=CONTEXT_DIM,
        attention_head_dim=8,  # diffusers' old name for the number of heads
        norm_num_groups=32,
    )


def build_text_encoder() -> CLIPTextModel:
    """A 12-layer CLIP text encoder of width 64 over the full 49,408-token vocabulary."""
    return CLIPTextModel(CLIPTextConfig(**TEXT_CONFIG))


def zero_last_layers(module: nn.Module, endings: tuple[str, ...]) -> None:
    """Make the branches whose last layer has one of these names start as the identity."""
    for name, value in module.named_parameters():
        if name.rpartition(".")[0].endswith(endings):
            nn.init.zeros_(value)


def let_averages_through(vae: AutoencoderKL) -> None:
    """Start the VAE so that flat colours survive GroupNorm with two channels a group.

    Two channels over a flat image are normalised to ±1: only signs would reach the
    output. So one channel of each group before the two final norms gets a *carrier*, a rim
    one pixel wide of fixed height, made from a constant and the zero padding. The rim, not
    the image, then sets the group's spread, and SiLU clips the (negative) rim away.
    The resampling convolutions start near the identity, so that averages have a short way.
    """
    for level in vae.decoder.up_blocks:
        for sampler in level.upsamplers or []:
            sampler.conv.weight.data *= 0.5
            add_identity(sampler.conv, ((1, 1),))
    for level in vae.encoder.down_blocks:
        for sampler in level.downsamplers or []:
            sampler.conv.weight.data *= 0.7
            add_identity(sampler.conv, ((0, 0), (0, 1), (1, 0), (1, 1)))
    add_rim(vae.decoder.up_blocks[-1].resnets[-1], height=8.0)
    add_rim(vae.encoder.mid_block.resnets[-1], height=3.0)


@torch.no_grad()
def calibrate(vae: AutoencoderKL, pixels: torch.Tensor) -> None:
    """Scale the convolutions on the short way so that ``pixels`` give signals of useful size.

    Default weights let differences of colour shrink to a few hundredths at the latents and
    thousandths at the output. Output channels get zero mean and the spread listed here.
    """
    channels = torch.arange(LATENT_CHANNELS)
    for conv in (vae.quant_conv, vae.post_quant_conv):
        conv.weight.zero_()
        conv.bias.zero_()
        conv.weight[channels, channels] = 1
    spreads = (
        (vae.encoder.conv_in, 1.5),
        (vae.encoder.conv_out, 1.0),
        (vae.decoder.conv_in, 1.5),
        (vae.decoder.conv_out, 0.4),
    )
    for conv, spread in spreads:
        seen: list[torch.Tensor] = []
        hook = conv.register_forward_hook(lambda _m, _i, output, seen=seen: seen.append(output))
        vae.decode(vae.encode(pixels).latent_dist.mode())
        hook.remove()
        deviation, mean = torch.std_mean(seen[0], (0, 2, 3))
        scale = spread / deviation
        conv.weight *= scale[:, None, None, None]
        conv.bias.copy_((conv.bias - mean) * scale)


@torch.no_grad()
def add_identity(conv: nn.Conv2d, taps: tuple[tuple[int, int], ...]) -> None:
    """Add the mean over ``taps`` of each channel to that channel of the output."""
    diagonal = torch.arange(conv.out_channels)
    for y, x in taps:
        conv.weight[diagonal, diagonal, y, x] += 1 / len(taps)


@torch.no_grad()
def add_rim(resnet: ResnetBlock2D, *, height: float) -> None:
    """Make the odd output channels of ``resnet`` carry -height on the rim, 0 elsewhere."""
    resnet.norm2.weight[0] = 0
    resnet.norm2.bias[0] = 3.0
    constant = nn.functional.silu(torch.tensor(3.0)).item()
    tap = height / (3 * constant)
    resnet.conv2.weight[1::2, 0] = tap
    resnet.conv2.bias[1::2] = -9 * tap * constant
    # A step of the optimiser on these few numbers would move whole channels: hold them.
    resnet.norm2.weight.register_hook(lambda grad: _without(grad, 0))
    resnet.norm2.bias.register_hook(lambda grad: _without(grad, 0))
    resnet.conv2.weight.register_hook(lambda grad: _without(grad, (slice(1, None, 2), 0)))


def _without(gradient: torch.Tensor, where: object) -> torch.Tensor:
    """The gradient with zeros at ``where``."""
    held = gradient.clone()
    held[where] = 0  # type: ignore[index]
    return held


def count_parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def in_parts(batch: torch.Tensor, size: int) -> list[torch.Tensor]:
    """The batch cut into parts of at most ``size`` rows, to bound memory."""
    return [batch[start : start + size] for start in range(0, len(batch), size)]


def tensor_from_images(images: list[torch.Tensor]) -> torch.Tensor:
    """uint8 images (H, W, 3) as one float batch (B, 3, H, W) in [-1, 1]."""
    return torch.stack(images).permute(0, 3, 1, 2).float() / 127.5 - 1
