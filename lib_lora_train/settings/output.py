"""Files that are written."""

from __future__ import annotations

from dataclasses import dataclass

from lib_lora_train.parameters import param

SAVE_PRECISIONS = ("fp16", "bf16", "fp32")


@dataclass(frozen=True)
class OutputSettings:
    """Files that are written."""

    output_name: str = param(
        "my-lora",
        "File name of the LoRA, without folder and ending. Epochs are numbered: NAME-000001.safetensors.",
        group="output",
        tier="essential",
        kohya="output_name",
    )
    output_dir: str = param(
        "",
        "Folder for the LoRA files. Empty: the webui's LoRA folder (stand-alone: models/Lora).",
        group="output",
        kohya="output_dir",
    )
    save_every_n_epochs: int = param(
        1,
        "Write a LoRA file after every so many epochs; the last epoch is always written.",
        group="output",
        tier="beginner",
        low=1,
        high=10_000,
        kohya="save_every_n_epochs",
    )
    save_precision: str = param(
        "fp16",
        "Number format of the LoRA file. fp16 is what everybody shares; bf16 is less precise; fp32 doubles the size.",
        group="output",
        choices=SAVE_PRECISIONS,
        kohya="save_precision",
    )
    write_card: bool = param(
        True,
        "Write a .json with the activation words and a .png beside each LoRA file: the card that the webui shows.",
        group="output",
    )
    comment: str = param("", "A note that is stored in the LoRA file.", group="output", kohya="training_comment")
