"""How captions are read and varied."""

from __future__ import annotations

from dataclasses import dataclass

from lib_lora_train.parameters import param


@dataclass(frozen=True)
class CaptionSettings:
    """How captions are read and varied."""

    caption_extension: str = param(
        ".txt",
        "File ending of the captions beside the pictures. `.caption` is looked for as well.",
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
    keep_tokens: int = param(
        1,
        "How many tags at the front are never shuffled or dropped; the trigger word stands there.",
        group="captions",
        tier="beginner",
        low=0,
        high=32,
        kohya="keep_tokens",
    )
    caption_dropout: float = param(
        0.0,
        "Share of pictures shown with an empty caption. 0.05 to 0.1 helps a style; a concept needs its trigger: 0.",
        group="captions",
        low=0.0,
        high=1.0,
        kohya="caption_dropout_rate",
    )
