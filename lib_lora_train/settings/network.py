"""What the LoRA is and where it sits."""

from __future__ import annotations

from dataclasses import dataclass

from lib_lora_train.parameters import param

TARGETS = ("attention", "standard", "all")


@dataclass(frozen=True)
class NetworkSettings:
    """What the LoRA is and where it sits."""

    rank: int = param(
        16,
        "Rank of the low-rank update (network dim): how much the LoRA can hold; the file grows with it. 8 to 32 for a "
        "character or concept, up to 128 for a style.",
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
        "what kohya calls LoRA. all: convolutions too (LoCon), for styles.",
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
