"""What belongs together in the dataset."""

from __future__ import annotations

from dataclasses import dataclass

from lib_lora_train.config.parameters import param

OWN_SHUFFLES = ("as the run", "on", "off")


@dataclass(frozen=True)
class Concept:
    """One folder of images that belong together."""

    folder: str = param(
        "",
        "Folder with the images. Sub-folders named N_words (kohya's way: 10_cat) are read with N repeats "
        "each; a plain folder is read with the repeats given here.",
        group="data",
        tier="essential",
        kohya="image_dir",
    )
    repeats: int | None = param(
        None,
        "How often every image is shown per epoch. Empty: taken from the folder name (N_words), else 1. "
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
        "What the subject is (cat, woman, car). Used with the trigger as the caption where an image has none.",
        group="data",
        tier="beginner",
        kohya="class_tokens",
    )
    only_class_word: bool = param(
        False,
        "Caption every image with trigger and class word alone, whatever its caption file says. Usual for "
        "regularisation images, which then stand for the bare class.",
        group="data",
    )
    is_regularisation: bool = param(
        False,
        "Regularisation images show what the model must not forget: the class without the concept. They are "
        "trained with the prior loss weight, and never get the trigger.",
        group="data",
        tier="beginner",
        kohya="is_reg",
    )
    resolutions: str = param(
        "",
        "Empty: the run's resolution. One or several sides in px, such as 512 768: every image is shown at each of "
        "them, so that the LoRA works at all; an epoch grows by as much. The limits of buckets grow along.",
        group="data",
    )
    flip: bool = param(
        False,
        "Show every image mirrored half of the time, as if there were twice as many. Not for what has a left and a "
        "right: faces with a parting or scar, text, logos.",
        group="data",
        tier="beginner",
        kohya="flip_aug",
    )
    random_crop: bool = param(
        False,
        "Cut each image's bucket out of it at changing places instead of the middle. It matters for images whose "
        "shape is far from their bucket's.",
        group="data",
        kohya="random_crop",
    )
    colour_jitter: float = param(
        0.0,
        "Change brightness, contrast, saturation and hue by up to this share, so that colours are not learnt. 0.1 is "
        "usual for shapes and poses; 0 for characters and styles, whose colours belong to them.",
        group="data",
        low=0.0,
        high=0.5,
    )
    augment_variants: int = param(
        8,
        "How many crops and colourings of each image there are. All are encoded before the run and kept, so more "
        "only take longer to encode, and more space.",
        group="data",
        low=2,
        high=64,
    )
    alpha_background: str = param(
        "white",
        "Colour behind transparent parts, as a name or #808080. Several, such as white, black, grey, take turns, so "
        "that none is learnt.",
        group="data",
    )
    tag_background: bool = param(
        False,
        "Add the colour behind transparent parts to the caption (white background), so that it can be asked for or "
        "not.",
        group="data",
    )
    use_masks: bool = param(
        False,
        "Learn only what is under the mask: a file NAME-mask.png or NAME_mask.png beside the image, white where it "
        "counts, else the image's own transparency. Small masks count as much as large ones.",
        group="data",
        kohya="alpha_mask",
    )
    own_shuffle: str = param(
        "as the run",
        "Shuffle this folder's tags, whatever the run does: on for tag captions, off for sentences.",
        group="data",
        choices=OWN_SHUFFLES,
    )
    own_keep_tokens: int | None = param(
        None,
        "How many tags at the front of this folder's captions are never shuffled or dropped. Empty: as the run.",
        group="data",
        low=0,
        high=32,
    )
    own_prefix: str = param(
        "",
        "Put before every caption of this folder instead of the run's prefix. Empty: the run's. End it with a comma if "
        "it is a tag of its own.",
        group="data",
    )
    own_suffix: str = param(
        "",
        "Put behind every caption of this folder instead of the run's suffix. Empty: the run's. Begin it with a comma "
        "if it is a tag of its own.",
        group="data",
    )
    own_caption_dropout: float | None = param(
        None,
        "Share of this folder's images shown with an empty caption. Empty: as the run. 0.05 to 0.1 helps a style "
        "beside concepts, which need their triggers: 0.",
        group="data",
        low=0.0,
        high=1.0,
    )
    own_tag_dropout: float | None = param(
        None,
        "Share of the tags left out each time in this folder. Empty: as the run. 0.05 to 0.2 is usual; more leaves "
        "captions that do not tell what is seen.",
        group="data",
        low=0.0,
        high=1.0,
    )
