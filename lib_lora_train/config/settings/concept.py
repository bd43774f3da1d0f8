"""Settings of a concept: one folder of the dataset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lib_lora_train.config.parameters import Group, param

OWN_SHUFFLES = ("as the run", "on", "off")


@dataclass(frozen=True)
class Concept:
    """One folder of images, with its trigger and augmentation."""

    GROUP: ClassVar[Group] = "data"

    folder: str = param(
        "",
        "Folder with the images. Subfolders named like 10_cat (kohya's N_words) are read with that number of "
        "repeats; images directly in the folder use the repeats set here.",
        tier="essential",
        kohya="image_dir",
    )
    repeats: int | None = param(
        None,
        "How often each image is used per epoch. Empty: the number in the folder name (10_cat), or 1. Guides aim for "
        "100 to 400 images × repeats per epoch.",
        tier="essential",
        low=1,
        high=10_000,
        kohya="num_repeats",
    )
    trigger: str = param(
        "",
        "Trigger word that activates the concept in prompts. It is added to the start of every caption without it, "
        "and never shuffled or dropped. Choose a rare word that the model does not know.",
        tier="essential",
    )
    class_word: str = param(
        "",
        "What the subject is: cat, woman, car. Images without a caption get the trigger and this word.",
        tier="beginner",
        kohya="class_tokens",
    )
    caption_file: str = param(
        "",
        "One file with the captions of all images, in place of caption files beside them: kohya's fine-tuning metadata "
        "(.json, .jsonl) or the metadata.jsonl of diffusers. A name in the folder, or a full path. Images that it does "
        "not list are not used. Empty: none.",
        kohya="metadata_file",
    )
    only_class_word: bool = param(
        False,
        "Use only the trigger and class word as the caption of every image, and ignore caption files. Usual for "
        "regularisation images, which show the plain class.",
    )
    is_regularisation: bool = param(
        False,
        "These are regularisation images: they show the class without the concept, so that the model does not forget "
        "it. They are weighted with prior_loss_weight and never get the trigger.",
        tier="beginner",
        kohya="is_reg",
    )
    resolutions: str = param(
        "",
        "Train each image at several resolutions, for example 512 768 (in px), so that the LoRA works at all of "
        "them. Each adds as many steps to an epoch, and the bucket limits scale with it. Empty: the run's resolution.",
    )
    flip: bool = param(
        False,
        "Mirror each image half of the time, as if there were twice as many. Not for anything with a distinct left "
        "and right: faces with a parting or scar, text, logos.",
        tier="beginner",
        kohya="flip_aug",
    )
    random_crop: bool = param(
        False,
        "Crop each image at random positions instead of the centre. This matters for images whose aspect ratio "
        "differs a lot from their bucket's.",
        kohya="random_crop",
    )
    colour_jitter: float = param(
        0.0,
        "Randomly change brightness, contrast, saturation and hue by up to this share, so that colours are not "
        "learnt. 0.1 is usual for shapes and poses; use 0 for characters and styles, whose colours matter.",
        low=0.0,
        high=0.5,
    )
    augment_variants: int = param(
        8,
        "Number of crops and colour variants per image. They are encoded and cached before training, so more take "
        "longer to encode and more disk space.",
        low=2,
        high=64,
    )
    alpha_background: str = param(
        "white",
        "Background colour for transparent areas, as a name or a code such as #808080. With several, such as white, "
        "black, grey, they alternate, so that none is learnt.",
    )
    tag_background: bool = param(
        False,
        "Add the background colour of transparent images to the caption (white background), so that prompts can "
        "control it.",
    )
    use_masks: bool = param(
        False,
        "Train only on the masked area. The mask is a file NAME-mask.png or NAME_mask.png beside the image, white "
        "where the image counts; without one, the image's transparency is used. Small masks count as much as large "
        "ones.",
        kohya="alpha_mask",
    )
    own_shuffle: str = param(
        "as the run",
        "Shuffle the tags of this folder, whatever the run's setting: on for tag captions, off for sentences.",
        choices=OWN_SHUFFLES,
    )
    own_keep_tokens: int | None = param(
        None,
        "Number of tags at the start of this folder's captions that are never shuffled or dropped. Empty: the run's "
        "setting.",
        low=0,
        high=32,
    )
    own_prefix: str = param(
        "",
        "Caption prefix for this folder, in place of the run's. Empty: the run's. End it with a comma if it is a tag.",
    )
    own_suffix: str = param(
        "",
        "Caption suffix for this folder, in place of the run's. Empty: the run's. Begin it with a comma if it is a "
        "tag.",
    )
    own_caption_dropout: float | None = param(
        None,
        "Share of this folder's images that are trained with an empty caption. Empty: the run's setting. 0.05 to 0.1 "
        "helps a style; use 0 for concepts, which need their triggers.",
        low=0.0,
        high=1.0,
    )
    own_tag_dropout: float | None = param(
        None,
        "Share of the tags in this folder that are left out at random each time. Empty: the run's setting. 0.05 to "
        "0.2 is usual; with more, captions no longer describe the image.",
        low=0.0,
        high=1.0,
    )
