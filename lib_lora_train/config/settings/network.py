"""Settings: the type, size and layers of the LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lib_lora_train.config.family_catalog import FAMILY_CATALOG, families_forge_ignores, families_with
from lib_lora_train.config.parameters import Group, param
from lib_lora_train.core.wording import join_names

FAMILIES = tuple(FAMILY_CATALOG)
TARGETS = ("attention", "standard", "all", "full")


def _families(setting: str) -> str:
    return join_names(families_with(setting))


@dataclass(frozen=True)
class NetworkSettings:
    """The type, size and layers of the LoRA."""

    GROUP: ClassVar[Group] = "network"

    family: str = param(
        "lora",
        "Type of LoRA: how updates are computed and stored. lora: small, robust, read by every webui; with targets "
        "all it is a LoCon. loha, lokr: more capacity in a small file. dylora: can be cut down to smaller ranks. "
        "glora: a LoRA that also reuses the model's weights. ia3: less than a megabyte, needs a learning rate near "
        "0.005. oft, boft: rotations. full: fine-tuning of whole layers, in a file as large as the model. "
        f"Forge ignores {join_names(families_forge_ignores())}.",
        tier="beginner",
        choices=FAMILIES,
    )
    rank: int = param(
        16,
        "Rank of the LoRA (network dim): its capacity and file size. 8 to 32 for a character or concept, up to 128 "
        "for a style; at most 64 with convolutions, 32 for loha. For oft and boft it is the largest block size.",
        tier="essential",
        low=1,
        high=1024,
        kohya="network_dim",
    )
    alpha: float | None = param(
        None,
        "Updates are scaled by alpha / rank. Empty: same as rank, so the scale is 1. A smaller alpha needs a higher "
        "learning rate.",
        tier="essential",
        low=0.001,
        high=1024.0,
        kohya="network_alpha",
    )
    targets: str = param(
        "standard",
        "Layers that are trained. attention: only the attention projections. standard: attention and feed-forward "
        "blocks, which kohya calls LoRA. all: convolutions too (LoCon), for styles. full: also the first and last "
        "convolution and the time embedding. With ia3, attention and standard mean keys, values and the last "
        "feed-forward layer; all and full mean every linear layer.",
        tier="beginner",
        choices=TARGETS,
    )
    train_unet: bool = param(True, "Train the UNet, which generates the image.", tier="beginner")
    train_text_encoder: bool = param(
        True,
        "Train the text encoder, which reads the prompt. New words are learnt faster, but other words suffer sooner.",
        tier="beginner",
    )
    continue_from: str = param(
        "",
        "LoRA file to continue training from, made with any tool. Its family, ranks, alphas and layers replace the "
        "settings here. Empty: start a new LoRA.",
        kohya="network_weights",
    )
    conv_rank: int | None = param(
        None,
        "Rank of the 3×3 convolutions, with targets all. Empty: same as rank. Half the rank or less is usual, and at "
        "most 64: above, files grow and images become rigid. For oft and boft it is their largest block size.",
        tier="beginner",
        low=1,
        high=1024,
        kohya="conv_dim",
    )
    conv_alpha: float | None = param(
        None,
        "Alpha of the 3×3 convolutions. Empty: same as conv_rank if that is set, otherwise same as alpha.",
        low=0.001,
        high=1024.0,
        kohya="conv_alpha",
    )
    dora: bool = param(
        False,
        f"Train the direction and the magnitude of weights separately (DoRA), for {_families('dora')}. It comes "
        "closer to full fine-tuning at a small rank, but is about 50% slower and needs a lower learning rate.",
        kohya="dora_wd",
    )
    rank_stabilized: bool = param(
        False,
        "Scale updates by alpha / √rank instead of alpha / rank, so that large ranks learn as fast as small ones. "
        "Useful above rank 32; lower alpha as well.",
        kohya="rs_lora",
    )
    scalar: bool = param(
        False,
        f"Also train a scale factor for each layer, starting at 0, for {_families('scalar')}. All matrices start "
        "at random values, and the first steps find how much each layer should change, so train a few more steps. "
        "The factor is merged into the saved file, which any tool can read.",
        kohya="use_scalar",
    )
    tucker: bool = param(
        False,
        f"Use Tucker decomposition for the 3×3 convolutions of {_families('tucker')}: much smaller files, slightly "
        "less exact. Forge cannot read lokr files of this type.",
        kohya="use_tucker",
    )
    lokr_factor: int = param(
        -1,
        "LoKr: size of the small matrix, usually 4 to 16. The smaller, the more capacity and the larger the file. "
        "-1: as square as possible, for the smallest file.",
        low=-1,
        high=128,
        kohya="factor",
    )
    decompose_both: bool = param(
        False,
        "LoKr: decompose the small matrix by rank too, for the smallest files.",
        kohya="decompose_both",
    )
    full_matrix: bool = param(
        False,
        "LoKr: do not decompose any matrix. Rank and alpha then have no effect; use a factor of 8 or more.",
        kohya="full_matrix",
    )
    dylora_unit: int = param(
        1,
        "DyLoRA: number of ranks trained at a time. It should divide the rank; 4 is usual. The file can later be cut "
        "down to any multiple of it.",
        low=1,
        high=1024,
        kohya="unit",
    )
    constraint: float = param(
        0.0,
        "OFT and BOFT: limit on how far the weights of each output channel are rotated. 0: no limit. 1e-5 to 1e-3 "
        "preserves the model's knowledge longer; if too small, nothing is learnt.",
        low=0.0,
        high=10.0,
        kohya="constraint",
    )
    rescaled: bool = param(
        False,
        "OFT and BOFT: also train a scale factor for each output channel, as rotations cannot change magnitudes.",
        kohya="rescaled",
    )
    network_dropout: float = param(
        0.0,
        "Share of the LoRA's inner values that are dropped at random in each step, against overfitting. 0.1 to 0.3 "
        "is usual, with more training steps. Only for lora and dylora, without dora.",
        low=0.0,
        high=0.95,
        kohya="network_dropout",
    )
    rank_dropout: float = param(
        0.0,
        "Share of the ranks that are dropped at random for each image. 0.1 to 0.3 is usual. With dora and families "
        "without ranks, output channels are dropped instead; no effect with ia3.",
        low=0.0,
        high=0.95,
        kohya="rank_dropout",
    )
    module_dropout: float = param(
        0.0,
        "Share of the layers whose update is skipped at random in each micro-batch. 0.1 to 0.2 is usual; above 0.5 "
        "little is learnt. Works with every family.",
        low=0.0,
        high=0.95,
        kohya="module_dropout",
    )
    scale_weight_norms: float = param(
        0.0,
        "Maximum norm of each layer's update. Larger updates are scaled down after each step, so that no layer is "
        "overtrained and the LoRA combines well with others. 0: no limit. 1 is usual; below 0.5 the concept fades.",
        low=0.0,
        high=1000.0,
        kohya="scale_weight_norms",
    )
    block_ranks: str = param(
        "",
        "A rank for each UNet block, separated by commas: 25 numbers for SD1 and SD2, 23 for SDXL, from first to "
        "last. 0 skips a block. Empty: rank for all blocks.",
        kohya="block_dims",
    )
    block_alphas: str = param(
        "",
        "An alpha for each UNet block, as many numbers as in block_ranks. Empty: all blocks get the same scale.",
        kohya="block_alphas",
    )
    layer_ranks: tuple[str, ...] = param(
        (),
        "Ranks of single layers, one per line, such as *attn2* = 32; 0 leaves layers out, and 32/16 also sets the "
        "alpha. * stands for any text, and re: begins a regular expression. The pattern must fit a layer's whole name "
        "in diffusers, kohya's tools or LoRA files. The first that fits counts, before block_ranks and conv_rank.",
    )
    layer_lr_weights: tuple[str, ...] = param(
        (),
        "Learning rate factors of single layers, one per line in the format of layer_ranks: *attn1* = 0.5. 0 leaves "
        "layers out. They override those of the blocks.",
    )
    down_lr_weight: str = param(
        "",
        "Learning rate factors of the down blocks: 12 numbers for SD1 and SD2, 9 for SDXL. Or a curve: sine, cosine, "
        "linear, reverse_linear or zeros, with for example +0.25 to raise it. 0 skips a block. Down blocks determine "
        "the composition.",
        kohya="down_lr_weight",
    )
    mid_lr_weight: str = param(
        "",
        "Learning rate factor of the middle block: 1 number, or 3 for SDXL. 0 skips the block. Empty: 1.",
        kohya="mid_lr_weight",
    )
    up_lr_weight: str = param(
        "",
        "Learning rate factors of the up blocks, in the same format as down_lr_weight. Up blocks determine style and "
        "detail; to train only a style, lower the other blocks.",
        kohya="up_lr_weight",
    )
    train_norm: bool = param(
        False,
        "Also train the UNet's norm layers within the targets. They add a few kilobytes and shift contrast and "
        "colour, which helps styles.",
        kohya="train_norm",
    )
