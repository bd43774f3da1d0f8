"""How captions are read and varied."""

from __future__ import annotations

from dataclasses import dataclass

from lib_lora_train.config.parameters import param


@dataclass(frozen=True)
class CaptionSettings:
    """How captions are read and varied."""

    caption_extension: str = param(
        ".txt",
        "File ending of the captions beside the images. `.caption` is looked for as well.",
        group="captions",
        kohya="caption_extension",
    )
    shuffle_captions: bool = param(
        False,
        "Shuffle the comma-separated tags anew each time, so that their order is not learnt. For tag captions, "
        "not for sentences.",
        group="captions",
        tier="beginner",
        kohya="shuffle_caption",
    )
    caption_variants: int = param(
        0,
        "How many forms of each caption there are when tags are shuffled or dropped or wildcards drawn. 0: a new one "
        "each time. With a few, such as 8, a frozen text encoder encodes them once before the run, which saves time "
        "with SDXL.",
        group="captions",
        low=0,
        high=1000,
    )
    keep_tokens: int = param(
        1,
        "How many tags at the front are never shuffled or dropped; the trigger word stands there.",
        group="captions",
        tier="beginner",
        low=0,
        high=32,
        kohya="keep_tokens",
    )
    keep_tokens_separator: str = param(
        "|||",
        "Where this mark stands in a caption, the tags before it are never shuffled or dropped; after a second one "
        "neither. It counts instead of keep_tokens there, and is itself never seen.",
        group="captions",
        kohya="keep_tokens_separator",
    )
    caption_lines: str = param(
        "joined",
        "What the lines of a caption file are: joined into one caption, the first one only (as in sd-scripts), or "
        "variants of which one is drawn at random each time.",
        group="captions",
        choices=("joined", "first", "random"),
    )
    caption_wildcards: bool = param(
        False,
        "Replace wildcards such as {a|b|c} in captions by one of their choices, drawn anew each time. {{ and }} are "
        "braces that stay.",
        group="captions",
        kohya="enable_wildcard",
    )
    caption_prefix: str = param(
        "",
        "Put before every caption, the trigger too; never shuffled or dropped with single tags. End it with a comma "
        "if it is a tag of its own.",
        group="captions",
        kohya="caption_prefix",
    )
    caption_suffix: str = param(
        "",
        "Put behind every caption; never shuffled or dropped with single tags. Begin it with a comma if it is a tag "
        "of its own.",
        group="captions",
        kohya="caption_suffix",
    )
    tag_dropout: float = param(
        0.0,
        "Share of the tags left out each time, so that no tag is leant on. 0.05 to 0.2 is usual; more leaves captions "
        "that do not tell what is seen. Kept tags and the trigger stay.",
        group="captions",
        low=0.0,
        high=1.0,
        kohya="caption_tag_dropout_rate",
    )
    caption_dropout: float = param(
        0.0,
        "Share of images shown with an empty caption. 0.05 to 0.1 helps a style; a concept needs its trigger: 0.",
        group="captions",
        low=0.0,
        high=1.0,
        kohya="caption_dropout_rate",
    )
    caption_dropout_every_n_epochs: int = param(
        0,
        "In every nth epoch all images are shown with an empty caption. 0: never. Below 5 too little of the captions "
        "is left.",
        group="captions",
        low=0,
        high=10_000,
        kohya="caption_dropout_every_n_epochs",
    )
    drop_trigger: bool = param(
        False,
        "Let dropout take the trigger too. It makes the LoRA work a little without its word, as for a style; a concept "
        "then leaks into images that did not ask for it.",
        group="captions",
    )
    weighted_captions: bool = param(
        False,
        "Read (word:1.2), (word) and [word] in captions as weights, as the webui does in prompts. Off: brackets are "
        "letters. Tags with brackets in their name then need a backslash: zorp \\(fox\\).",
        group="captions",
        kohya="weighted_captions",
    )
    max_token_length: int = param(
        225,
        "Longest caption in tokens: 75, 150 or 225. What is beyond is cut off. Captions are read in the webui's chunks "
        "of 75, parted at commas and at BREAK; a batch is only as long as its longest caption.",
        group="captions",
        low=75,
        high=225,
        unit="tokens",
        kohya="max_token_length",
    )
