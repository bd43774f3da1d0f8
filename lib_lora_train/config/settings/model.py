"""Settings: the model that is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lib_lora_train.config.parameters import Group, param

PREDICTIONS = ("auto", "epsilon", "v_prediction", "rectified_flow")
SWITCHES = ("auto", "on", "off")


@dataclass(frozen=True)
class ModelSettings:
    """The model that is trained on."""

    GROUP: ClassVar[Group] = "model"

    checkpoint: str = param(
        "",
        "Checkpoint to train on: a .safetensors file, or a folder in diffusers' layout (with model_index.json). Empty: "
        "the checkpoint loaded in the webui (stand-alone: the built-in tiny model).",
        tier="essential",
        kohya="pretrained_model_name_or_path",
    )
    vae: str = param(
        "",
        "VAE file (or diffusers folder) to use in place of the checkpoint's own. Empty: the checkpoint's own.",
        kohya="vae",
    )
    prediction_type: str = param(
        "auto",
        "What the checkpoint predicts: noise (epsilon), v (v_prediction), or the direction from image to noise "
        "(rectified_flow: NoobAI-RF, Chenkin and other SDXL models with RF or Rectified in their name). auto uses what "
        "the webui or the file says; SDXL with “rectified” in its path is rectified flow, as in Forge Neo. Set it only "
        "for files that do not say; with the wrong type, images turn into noise within a few steps.",
        choices=PREDICTIONS,
        kohya="v_parameterization",
    )
    zero_terminal_snr: str = param(
        "auto",
        "Train the last timestep on pure noise (zero terminal SNR, Lin et al. 2023), which allows really dark and "
        "bright images. auto uses what the webui or the file says. Use on for v-prediction models that were trained "
        "this way but do not say so; epsilon models learn nothing at pure noise. Generate with the same setting, or "
        "brightness will be off.",
        choices=SWITCHES,
        kohya="zero_terminal_snr",
    )
    clip_skip: int = param(
        1,
        "Text encoder layer to use, counted from the end. 1 for most models, 2 for anime models. Use the same value "
        "when generating images; SDXL ignores it.",
        tier="beginner",
        low=1,
        high=12,
        kohya="clip_skip",
    )
