"""Settings that do not suit what the checkpoint predicts: noise (epsilon), v, or the direction of a rectified flow."""

from __future__ import annotations

from collections.abc import Iterator

from lib_lora_train.config.problems import hint_at
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import Problem

_PREDICTED = {
    "epsilon": "the noise (epsilon)",
    "v_prediction": "v",
    "rectified_flow": "the direction of a rectified flow",
}
_BRIGHTNESS_NOISE = ("noise_offset", "adaptive_noise_scale", "multires_noise_iterations")
_LOSS_WEIGHTS = ("min_snr_gamma", "debiased_estimation")


def prediction_problems(config: TrainConfig, prediction_type: str) -> Iterator[Problem]:
    """What speaks against these settings for a model with this prediction type."""
    predicts = _PREDICTED[prediction_type]
    if config.scale_v_pred_loss_like_noise_pred and prediction_type != "v_prediction":
        where = "scale_v_pred_loss_like_noise_pred"
        text = f"is for checkpoints that predict v; this one predicts {predicts}. Turn it off."
        yield Problem("error", where, text, ((where, False),))
    if config.v_pred_like_loss and prediction_type != "epsilon":
        text = f"is for checkpoints that predict the noise (epsilon); this one predicts {predicts}. Set it to 0."
        yield Problem("error", "v_pred_like_loss", text, (("v_pred_like_loss", 0.0),))
    if prediction_type == "rectified_flow":
        yield from _flow_problems(config)


def _flow_problems(config: TrainConfig) -> Iterator[Problem]:
    for name in _BRIGHTNESS_NOISE:
        if getattr(config, name):
            text = (
                "is for checkpoints that cannot draw very dark or bright images. A rectified flow starts from pure "
                "noise, so it can, and would learn wrong brightness instead. Set it to 0."
            )
            yield Problem("error", name, text, ((name, 0),))
    for name in _LOSS_WEIGHTS:
        if getattr(config, name):
            text = (
                "weights the errors of a rectified flow as those of other models, which is seldom done: "
                "timestep_sampling and timestep_shift choose the timesteps that matter instead."
            )
            yield Problem("hint", name, text, ((name, getattr(TrainConfig(), name)),))
    if config.zero_terminal_snr == "on":
        yield hint_at("zero_terminal_snr", "has no effect on a rectified flow, which always ends in pure noise.")
    if config.sample_sampler == "DDIM" and not config.webui_sampler:
        text = "DDIM is the same as Euler for a rectified flow, so samples are drawn with Euler."
        yield Problem("hint", "sample_sampler", text, (("sample_sampler", "Euler"),))
