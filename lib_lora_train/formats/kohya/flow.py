"""The arguments for rectified flow on SDXL, of the forks of sd-scripts that have it (bluvoll, 67372a)."""

from __future__ import annotations

from lib_lora_train.formats.kohya.import_state import (
    AT_DEFAULT,
    NOT_NEEDED,
    NOT_YET,
    PARAMETERS,
    ImportState,
    parse_flag,
)

_SAMPLINGS = {"uniform": "uniform", "logit_normal": "sigmoid"}
_NUMBERS = {
    "flow_logit_mean": "sigmoid_mean",
    "flow_logit_std": "sigmoid_scale",
    "flow_uniform_static_ratio": "timestep_shift",
}
_NOT_SUPPORTED = ("flow_use_ot", "flow_uniform_shift", "contrastive_flow_matching")
_IGNORED_THERE = (
    "min_snr_gamma",
    "debiased_estimation_loss",
    "scale_v_pred_loss_like_noise_pred",
    "v_pred_like_loss",
    "zero_terminal_snr",
    "noise_offset",
    "adaptive_noise_scale",
    "multires_noise_iterations",
    "ip_noise_gamma",
)


def import_flow(state: ImportState) -> None:
    """`flow_model` and the draws of σ, logit-normal by default; what those forks ignore with it is ignored too."""
    for name in _NOT_SUPPORTED:
        value = state.pop(name)
        if value is not None:
            state.ignore(name, value, NOT_YET if parse_flag(value) else AT_DEFAULT)
    if not state.pop_flag("flow_model"):
        for name in ("flow_timestep_distribution", *_NUMBERS):
            value = state.pop(name)
            if value is not None:
                state.ignore(name, value, f"{NOT_NEEDED}: flow_model is off")
        return
    state.values["prediction_type"] = "rectified_flow"
    distribution = str(state.pop("flow_timestep_distribution") or "logit_normal").lower()
    state.set_parameter(
        PARAMETERS["timestep_sampling"], "flow_timestep_distribution", _SAMPLINGS.get(distribution, distribution)
    )
    for name, ours in _NUMBERS.items():
        value = state.pop(name)
        if value is None:
            continue
        if distribution == "uniform" and name.startswith("flow_logit"):
            state.ignore(name, value, f"{NOT_NEEDED}: flow_timestep_distribution is {distribution}")
        else:
            state.set_parameter(PARAMETERS[ours], name, value)
    for name in _IGNORED_THERE:
        value = state.pop(name)
        if value is not None:
            state.ignore(name, value, f"{NOT_NEEDED}: with flow_model it is ignored")
