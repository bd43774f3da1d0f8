"""What the LoRA is and where it sits."""

from __future__ import annotations

from dataclasses import dataclass

from lib_lora_train.config.parameters import param

FAMILIES = ("lora", "loha", "lokr", "dylora", "glora", "ia3", "oft", "boft", "full")
TARGETS = ("attention", "standard", "all", "full")


@dataclass(frozen=True)
class NetworkSettings:
    """What the LoRA is and where it sits."""

    family: str = param(
        "lora",
        "Mathematics of the update. lora: small, robust, read by every webui; with targets all it is LoCon. loha, "
        "lokr: more from few numbers. dylora: every smaller rank comes with it. glora: a LoRA that also reuses the "
        "model's weights. ia3: less than a megabyte, learning rate near 0.005. oft, boft: rotations. full: native "
        "fine-tuning, as large as the model. Forge ignores ia3, oft and boft.",
        group="network",
        tier="beginner",
        choices=FAMILIES,
    )
    rank: int = param(
        16,
        "Rank of the low-rank update (network dim): how much the LoRA can hold; the file grows with it. 8 to 32 for a "
        "character or concept, up to 128 for a style; at most 64 with convolutions, 32 for loha. oft and boft: the "
        "largest block.",
        group="network",
        tier="essential",
        low=1,
        high=1024,
        kohya="network_dim",
    )
    alpha: float | None = param(
        None,
        "The update is scaled by alpha / rank. Empty: as large as the rank (scale 1). A smaller alpha needs a larger "
        "learning rate.",
        group="network",
        tier="essential",
        low=0.001,
        high=1024.0,
        kohya="network_alpha",
    )
    targets: str = param(
        "standard",
        "Which layers get a LoRA. attention: attention projections only. standard: attention and feed-forward blocks, "
        "what kohya calls LoRA. all: convolutions too (LoCon), for styles. full: also the first and last convolution "
        "and the time embedding. ia3: keys, values and the end of feed-forward blocks, but with all and full every "
        "linear layer.",
        group="network",
        tier="beginner",
        choices=TARGETS,
    )
    train_unet: bool = param(True, "Train a LoRA on the UNet, which draws.", group="network", tier="beginner")
    train_text_encoder: bool = param(
        True,
        "Train a LoRA on the text encoder, which reads the prompt: new words are learnt faster, and spoil other words "
        "sooner.",
        group="network",
        tier="beginner",
    )
    continue_from: str = param(
        "",
        "A LoRA file to go on with, of any origin. Family, ranks, alphas and layers are then the file's, and the "
        "settings for them have no effect. Empty: a fresh one.",
        group="network",
        kohya="network_weights",
    )
    conv_rank: int | None = param(
        None,
        "Rank of 3×3 convolutions, with targets all. Empty: as rank. Half the rank or less is usual, and at most 64: "
        "above it files grow and images turn rigid.",
        group="network",
        tier="beginner",
        low=1,
        high=1024,
        kohya="conv_dim",
    )
    conv_alpha: float | None = param(
        None,
        "Alpha of 3×3 convolutions. Empty: as alpha, or as large as conv_rank where that is given.",
        group="network",
        low=0.001,
        high=1024.0,
        kohya="conv_alpha",
    )
    dora: bool = param(
        False,
        "DoRA for lora, loha and lokr: direction and length of the weights are learnt apart, closer to full "
        "fine-tuning at a small rank. Half as slow again; a lower learning rate suits it.",
        group="network",
        kohya="dora_wd",
    )
    rank_stabilized: bool = param(
        False,
        "Scale by alpha / √rank in place of alpha / rank, so that large ranks learn as fast as small ones. Above rank "
        "32; lower alpha with it.",
        group="network",
        kohya="rs_lora",
    )
    scalar: bool = param(
        False,
        "A factor of each layer's whole update is learnt too, from 0 on, for lora, loha, lokr and glora: matrices "
        "begin at random, and the first steps only find how strongly each layer should change. Give it some more "
        "steps; the file is as ever, with the factor in it.",
        group="network",
        kohya="use_scalar",
    )
    tucker: bool = param(
        False,
        "Tucker form of 3×3 convolutions in lora, loha and lokr: much smaller files, slightly less exact. Forge cannot "
        "read a lokr of this kind.",
        group="network",
        kohya="use_tucker",
    )
    lokr_factor: int = param(
        -1,
        "LoKr: size of the small matrix. 4 to 16; the smaller, the more it holds and the larger the file. -1: as "
        "square as possible, the smallest file.",
        group="network",
        low=-1,
        high=128,
        kohya="factor",
    )
    decompose_both: bool = param(
        False,
        "LoKr: the small matrix is split by the rank too, for the smallest files.",
        group="network",
        kohya="decompose_both",
    )
    full_matrix: bool = param(
        False,
        "LoKr: nothing is split by the rank. Rank and alpha then have no effect; choose a factor of 8 or more.",
        group="network",
        kohya="full_matrix",
    )
    dylora_unit: int = param(
        1,
        "DyLoRA: how many ranks are trained at a time. It should divide the rank; 4 is usual. The file can be cut at "
        "every multiple of it.",
        group="network",
        low=1,
        high=1024,
        kohya="unit",
    )
    constraint: float = param(
        0.0,
        "OFT and BOFT: bounds how far weights are turned, per output channel. 0: no bound. 1e-5 to 1e-3 keeps the "
        "model's knowledge longer; too small learns nothing.",
        group="network",
        low=0.0,
        high=10.0,
        kohya="constraint",
    )
    rescaled: bool = param(
        False,
        "OFT and BOFT: a factor for each output channel is trained along, since rotations cannot change lengths.",
        group="network",
        kohya="rescaled",
    )
    network_dropout: float = param(
        0.0,
        "Share of the LoRA's inner numbers that are left out at random in each step, against overfitting: 0.1 to 0.3, "
        "with more steps. For lora and dylora, without dora.",
        group="network",
        low=0.0,
        high=0.95,
        kohya="network_dropout",
    )
    rank_dropout: float = param(
        0.0,
        "Share of the ranks that are left out at random for each image: 0.1 to 0.3. With dora and in the other "
        "families, which have no ranks in between, of the channels a layer puts out; not for ia3.",
        group="network",
        low=0.0,
        high=0.95,
        kohya="rank_dropout",
    )
    module_dropout: float = param(
        0.0,
        "Share of the layers whose update is left out at random in each micro-batch: 0.1 to 0.2; above 0.5 little is "
        "learnt. For every family.",
        group="network",
        low=0.0,
        high=0.95,
        kohya="module_dropout",
    )
    scale_weight_norms: float = param(
        0.0,
        "Longest update a layer may have; longer ones are scaled down after each step, so that no layer burns and the "
        "LoRA mixes well with others. 0: no limit. 1 is usual; below 0.5 the concept fades.",
        group="network",
        low=0.0,
        high=1000.0,
        kohya="scale_weight_norms",
    )
    block_ranks: str = param(
        "",
        "A rank for each UNet block, separated by commas: 25 numbers for SD1 and SD2, 23 for SDXL, from the first to "
        "the last; 0 leaves a block out. Empty: rank everywhere.",
        group="network",
        kohya="block_dims",
    )
    block_alphas: str = param(
        "",
        "An alpha for each UNet block, as many numbers as block_ranks. Empty: each block has the scale of the others.",
        group="network",
        kohya="block_alphas",
    )
    down_lr_weight: str = param(
        "",
        "Learning-rate weights of the blocks on the way down: 12 numbers for SD1 and SD2, 9 for SDXL, or a curve: "
        "sine, cosine, linear, reverse_linear, zeros, with +0.25 to raise it. 0 leaves a block out. They carry layout.",
        group="network",
        kohya="down_lr_weight",
    )
    mid_lr_weight: str = param(
        "",
        "Learning-rate weight of the middle block: 1 number, 3 for SDXL. 0 leaves it out. Empty: 1.",
        group="network",
        kohya="mid_lr_weight",
    )
    up_lr_weight: str = param(
        "",
        "Learning-rate weights of the blocks on the way up, as down_lr_weight. They carry style and detail: for a "
        "style alone, weaken the others.",
        group="network",
        kohya="up_lr_weight",
    )
    train_norm: bool = param(
        False,
        "The UNet's norm layers within the targets are trained too: a few kilobytes that shift contrast and colour, "
        "good for styles.",
        group="network",
        kohya="train_norm",
    )
