"""Settings: how captions are read and varied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lib_lora_train.config.parameters import STEPS_OR_SHARE, Group, param
from lib_lora_train.core.encoding_limits import TOKEN_LIMITS, TOKEN_LIMITS_TEXT


@dataclass(frozen=True)
class CaptionSettings:
    """How captions are read and varied."""

    GROUP: ClassVar[Group] = "captions"

    caption_extension: str = param(
        ".txt",
        "File extension of the captions beside the images. `.caption` files are found too.",
        kohya="caption_extension",
    )
    shuffle_captions: bool = param(
        False,
        "Shuffle the comma-separated tags each time an image is used, so that their order is not learnt. For tag "
        "captions, not for sentences.",
        tier="beginner",
        kohya="shuffle_caption",
    )
    caption_variants: int = param(
        0,
        "Number of fixed variants of each caption when tags are shuffled or dropped, or wildcards are used. 0: a new "
        "variant every time. With a few, such as 8, captions are encoded once before training if the text encoder is "
        "not trained, which saves time with SDXL.",
        low=0,
        high=1000,
    )
    keep_tokens: int = param(
        1,
        "Number of tags at the start of a caption that are never shuffled or dropped. The trigger word is one of them.",
        tier="beginner",
        low=0,
        high=32,
        kohya="keep_tokens",
    )
    keep_tokens_separator: str = param(
        "|||",
        "Tags before this separator are never shuffled or dropped, nor are tags after a second one. It overrides "
        "keep_tokens in captions that contain it, and is removed from them.",
        kohya="keep_tokens_separator",
    )
    caption_separator: str = param(
        ",",
        "Text between the tags of a caption. With another one than a comma, such as a full stop, sentences are "
        "shuffled and dropped in place of tags.",
        kohya="caption_separator",
    )
    secondary_separator: str = param(
        "",
        "Text such as ;;; between tags that belong together: they are shuffled and dropped as one, and the text "
        "becomes caption_separator. Empty: none.",
        kohya="secondary_separator",
    )
    missing_captions: str = param(
        "words",
        "Caption of images that have none. words: the class word or the words in the folder's or file's name, with the "
        "trigger. folder name: the class word or the name of an N_words folder after its number, with its underscores, "
        "and otherwise an empty caption, as in sd-scripts.",
        choices=("words", "folder name"),
    )
    caption_lines: str = param(
        "joined",
        "How caption files with several lines are read. joined: all lines form one caption; first: only the first "
        "line, as in sd-scripts; random: each line is a caption, and one is chosen at random each time.",
        choices=("joined", "first", "random"),
    )
    caption_wildcards: bool = param(
        False,
        "Replace wildcards such as {a|b|c} in captions with a random choice each time. Write {{ and }} for literal "
        "braces.",
        kohya="enable_wildcard",
    )
    caption_prefix: str = param(
        "",
        "Text put before every caption, even before the trigger. It is never shuffled or dropped with single tags. "
        "End it with a comma if it is a tag.",
        kohya="caption_prefix",
    )
    caption_suffix: str = param(
        "",
        "Text put after every caption. It is never shuffled or dropped with single tags. Begin it with a comma if it "
        "is a tag.",
        kohya="caption_suffix",
    )
    affixes_as_tags: bool = param(
        False,
        "Prefix and suffix are part of the caption, as in sd-scripts: their tags count for keep_tokens, and are "
        "shuffled and dropped like the others.",
    )
    leave_out_tags: tuple[str, ...] = param(
        (),
        "Tags that are left out of every caption in this run, one per line; caption files do not change. * stands for "
        "any text, as in *background. The trigger cannot be left out. Guides prune tags that are part of the concept, "
        "so that the trigger learns it, then compare both runs.",
    )
    tag_dropout: float = param(
        0.0,
        "Share of the tags that are left out at random each time, so that the LoRA does not depend on single tags. "
        "0.05 to 0.2 is usual; with more, captions no longer describe the image. Kept tags and the trigger always "
        "stay.",
        low=0.0,
        high=1.0,
        kohya="caption_tag_dropout_rate",
    )
    token_warmup_steps: float = param(
        0.0,
        "Length of a warm-up in which captions grow from token_warmup_min tags after the kept ones to all of them: "
        "below 1 a share of all steps (0.1 or 10%), from 1 on a number of steps. The first tags are learnt first. 0: "
        "off.",
        low=0.0,
        high=10_000_000.0,
        unit=STEPS_OR_SHARE,
        kohya="token_warmup_step",
    )
    token_warmup_min: int = param(
        1,
        "Number of tags after the kept ones at the start of the warm-up of captions.",
        low=0,
        high=1000,
        kohya="token_warmup_min",
    )
    caption_dropout: float = param(
        0.0,
        "Share of the images that are trained with an empty caption. 0.05 to 0.1 helps a style; use 0 for a concept, "
        "which needs its trigger.",
        low=0.0,
        high=1.0,
        kohya="caption_dropout_rate",
    )
    caption_dropout_every_n_epochs: int = param(
        0,
        "Train every nth epoch with empty captions. 0: never. Below 5, too few captions are left.",
        low=0,
        high=10_000,
        kohya="caption_dropout_every_n_epochs",
    )
    drop_trigger: bool = param(
        False,
        "Let caption and tag dropout remove the trigger too. The LoRA then has some effect without the trigger, "
        "which suits a style; a concept would leak into other images.",
    )
    weighted_captions: bool = param(
        False,
        "Read (word:1.2), (word) and [word] in captions as weights, like the webui does in prompts. If off, brackets "
        "are ordinary text. If on, escape brackets in tag names with a backslash: zorp \\(fox\\).",
        kohya="weighted_captions",
    )
    max_token_length: int = param(
        TOKEN_LIMITS[-1],
        f"Maximum length of a caption in tokens: {TOKEN_LIMITS_TEXT}. The rest is cut off. Captions are split into "
        f"chunks of {TOKEN_LIMITS[0]} at commas and BREAK, as in the webui, and each batch is only as long as its "
        "longest caption.",
        low=TOKEN_LIMITS[0],
        high=TOKEN_LIMITS[-1],
        unit="tokens",
        kohya="max_token_length",
    )
