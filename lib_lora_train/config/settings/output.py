"""Settings: the files that a run writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lib_lora_train.config.parameters import Group, param

SAVE_PRECISIONS = ("fp16", "bf16", "fp32")


@dataclass(frozen=True)
class OutputSettings:
    """The files that a run writes."""

    GROUP: ClassVar[Group] = "output"

    output_name: str = param(
        "my-lora",
        "File name of the LoRA, without folder and extension. Epochs are numbered: NAME-000001.safetensors.",
        tier="essential",
        kohya="output_name",
    )
    output_dir: str = param(
        "",
        "Folder for the LoRA files. Empty: the webui's LoRA folder (stand-alone: models/Lora).",
        kohya="output_dir",
    )
    save_every_n_epochs: int = param(
        1,
        "Save a LoRA file every N epochs. The last epoch is always saved.",
        tier="beginner",
        low=1,
        high=10_000,
        kohya="save_every_n_epochs",
    )
    save_from_epoch: int = param(
        1,
        "First epoch that is saved as a LoRA file. Useful if there are many short epochs; if it is too late, you may "
        "miss the best one.",
        low=1,
        high=10_000,
    )
    save_every_n_steps: int = param(
        0,
        "Also save a LoRA file every N steps: NAME-step00000100.safetensors. 0: never. Useful for long epochs; small "
        "values fill the folder.",
        low=0,
        high=10_000_000,
        kohya="save_every_n_steps",
    )
    keep_last_epochs: int = param(
        0,
        "Keep only the files of the last N epochs and delete this run's older ones. 0: keep all, as the guides do, "
        "since the best epoch is often not among the last.",
        low=0,
        high=10_000,
        kohya="save_last_n_epochs",
    )
    keep_last_step_files: int = param(
        0,
        "Keep only the last N files saved by save_every_n_steps and delete this run's older ones. 0: keep all.",
        low=0,
        high=10_000,
    )
    save_state: bool = param(
        True,
        "Save the training state after each epoch and when paused or stopped, so that the run can be resumed "
        "exactly, even after a crash. It takes six to ten times the space of an fp16 LoRA file.",
        tier="beginner",
    )
    save_state_every_n_steps: int = param(
        0,
        "Also save the training state every N steps, so that a crash costs at most that many. 0: only after each "
        "epoch. Below 50, saving slows down training.",
        low=0,
        high=10_000_000,
    )
    keep_last_states: int = param(
        1,
        "Number of training states to keep; older ones are deleted. With more than 1, the run can also be resumed "
        "from an earlier step, but each takes as much space again.",
        low=1,
        high=1000,
    )
    tensorboard: bool = param(
        False,
        "Write TensorBoard logs, with kohya's tag names, to the folder tensorboard beside the runs. This needs the "
        "package tensorboard (pip install tensorboard).",
    )
    save_precision: str = param(
        "fp16",
        "Number format of the LoRA file. fp16 is what everyone shares; bf16 is less precise; fp32 doubles the size.",
        choices=SAVE_PRECISIONS,
        kohya="save_precision",
    )
    files_for_webui: bool = param(
        False,
        "Save each LoRA file in a form that this webui reads (stand-alone: that all webuis read), if it does not read "
        "the trained one, as with ia3, oft or lokr with tucker in some. The effect is the same. The trained form is "
        "kept in the run's folder. No effect for files that the webui reads.",
    )
    write_card: bool = param(
        True,
        "Write a .json file with the trigger words and a .png preview beside each LoRA file, which the webui shows "
        "as its card.",
    )
    comment: str = param("", "Comment stored in the LoRA file's metadata.", kohya="training_comment")
