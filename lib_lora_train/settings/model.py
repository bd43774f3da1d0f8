"""What is trained on."""

from __future__ import annotations

from dataclasses import dataclass

from lib_lora_train.parameters import param


@dataclass(frozen=True)
class ModelSettings:
    """What is trained on."""

    checkpoint: str = param(
        "",
        "Checkpoint file to train on. Empty: the one the webui has loaded (stand-alone: the embedded tiny model).",
        group="model",
        tier="essential",
        kohya="pretrained_model_name_or_path",
    )
    vae: str = param(
        "", "VAE file to use instead of the checkpoint's own. Empty: the checkpoint's.", group="model", kohya="vae"
    )
    clip_skip: int = param(
        1,
        "Which text-encoder layer is used, counted from the end. 1 for photographs and most models, 2 for anime "
        "models. Use the value you will generate with; SDXL ignores it.",
        group="model",
        tier="beginner",
        low=1,
        high=12,
        kohya="clip_skip",
    )
