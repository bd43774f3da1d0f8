"""What is trained on."""

from __future__ import annotations

from dataclasses import dataclass

from lib_lora_train.config.parameters import param

PREDICTIONS = ("auto", "epsilon", "v_prediction")
SWITCHES = ("auto", "on", "off")


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
    prediction_type: str = param(
        "auto",
        "What the checkpoint predicts: the noise (epsilon) or v. auto: what the webui or the file says, right for "
        "nearly all. Set it only for a file that tells nothing, such as a v model that needs a .yaml elsewhere; with "
        "the wrong one images turn to noise within a few steps.",
        group="model",
        choices=PREDICTIONS,
        kohya="v_parameterization",
    )
    zero_terminal_snr: str = param(
        "auto",
        "Whether the noisiest timestep is pure noise (Lin et al. 2023), which lets images be really dark or bright. "
        "auto: what the webui or the file says. on: for a v model that was trained so and does not tell; noise "
        "prediction has nothing to learn there. Draw with the same choice, or brightness is off.",
        group="model",
        choices=SWITCHES,
        kohya="zero_terminal_snr",
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
