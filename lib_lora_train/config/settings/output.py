"""Files that are written."""

from __future__ import annotations

from dataclasses import dataclass

from lib_lora_train.config.parameters import param

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
    save_from_epoch: int = param(
        1,
        "The first epoch that is written as a file; earlier ones are passed over. Useful where many short epochs come "
        "first; a late start hides the epoch at which the LoRA was best.",
        group="output",
        low=1,
        high=10_000,
    )
    save_every_n_steps: int = param(
        0,
        "Also write a LoRA file after every so many steps: NAME-step00000100.safetensors. 0: never. For long epochs; "
        "with few steps in between the folder fills up.",
        group="output",
        low=0,
        high=10_000_000,
        kohya="save_every_n_steps",
    )
    keep_last_epochs: int = param(
        0,
        "Keep the files of the last so many epochs and delete this run's older ones. 0: keep all. The guides keep all, "
        "since the best epoch is often not among the last.",
        group="output",
        low=0,
        high=10_000,
        kohya="save_last_n_epochs",
    )
    keep_last_step_files: int = param(
        0,
        "Of the files written every n steps, keep the last so many and delete this run's older ones. 0: keep all.",
        group="output",
        low=0,
        high=10_000,
    )
    save_state: bool = param(
        True,
        "Keep the training state in the run's folder after each epoch, in a pause and at a stop, so that the run can "
        "be resumed exactly where it was, after a crash too. It takes six to ten times the size of an fp16 LoRA file.",
        group="output",
        tier="beginner",
    )
    save_state_every_n_steps: int = param(
        0,
        "Also keep the state after every so many steps: how much a crash can cost. 0: after each epoch only. Below 50 "
        "the writing slows the training down.",
        group="output",
        low=0,
        high=10_000_000,
    )
    keep_last_states: int = param(
        1,
        "How many training states are kept; older ones are deleted. More than 1 lets a run go on from an earlier step, "
        "and takes as much room again.",
        group="output",
        low=1,
        high=1000,
    )
    tensorboard: bool = param(
        False,
        "Write logs for TensorBoard, with kohya's names, into the folder tensorboard beside the runs. It needs the "
        "package tensorboard (pip install tensorboard).",
        group="output",
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
