"""What belongs together in the data set."""

from __future__ import annotations

from dataclasses import dataclass

from lib_lora_train.parameters import param


@dataclass(frozen=True)
class Concept:
    """One folder of pictures that belong together."""

    folder: str = param(
        "",
        "Folder with the pictures. Sub-folders named N_words (kohya's way: 10_cat) are read with N repeats "
        "each; a plain folder is read with the repeats given here.",
        group="data",
        tier="essential",
        kohya="image_dir",
    )
    repeats: int | None = param(
        None,
        "How often every picture is shown per epoch. Empty: taken from the folder name (N_words), else 1. "
        "Guides aim at images × repeats of 100 to 400 per epoch.",
        group="data",
        tier="essential",
        low=1,
        high=10_000,
        kohya="num_repeats",
    )
    trigger: str = param(
        "",
        "Activation word. It is put first into every caption that does not have it and is never shuffled or "
        "dropped. Choose a rare word that the model does not know yet.",
        group="data",
        tier="essential",
    )
    class_word: str = param(
        "",
        "What the subject is (cat, woman, car). Used with the trigger as the caption where a picture has none.",
        group="data",
        tier="beginner",
        kohya="class_tokens",
    )
    is_regularisation: bool = param(
        False,
        "Regularisation pictures show what the model must not forget: the class without the concept. They are "
        "trained with the prior loss weight, and never get the trigger.",
        group="data",
        tier="beginner",
        kohya="is_reg",
    )
