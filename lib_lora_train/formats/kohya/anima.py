"""The settings of sd-scripts' Anima trainer: anima_train_network.py with networks.lora_anima."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lib_lora_train.config.settings.noise import FLUX_SHIFT
from lib_lora_train.formats.kohya.import_state import (
    AT_DEFAULT,
    NOT_NEEDED,
    NOT_YET,
    PARAMETERS,
    ImportState,
    is_same,
    parse_flag,
    parse_number,
)
from lib_lora_train.models.other_models import find_by_word

_MODULE = "networks.lora_anima"
_CHECKPOINTS = ("pretrained_model_name_or_path", "sd_model_name")
_NOT_NEEDED: Mapping[str, tuple[str, ...]] = {
    "the VAE and the text encoder of Forge Neo's loaded model are used": (
        *("vae", "vae_name", "qwen3", "llm_adapter_path", "t5_tokenizer_path"),
    ),
    "the precision is that of the loaded model": ("mixed_precision", "fp8_base"),
    "gradient_checkpointing saves memory here": (
        *("attn_mode", "split_attn", "vae_chunk_size", "vae_disable_cache"),
        *("unsloth_offload_checkpointing", "cpu_offload_checkpointing"),
    ),
    "it is for full fine-tuning": ("self_attn_lr", "cross_attn_lr", "mlp_lr", "mod_lr", "llm_adapter_lr"),
    "sd-scripts ignores it for Anima": (
        *("min_snr_gamma", "debiased_estimation_loss", "scale_v_pred_loss_like_noise_pred", "v_pred_like_loss"),
        *("noise_offset", "noise_offset_type", "noise_offset_random_strength", "adaptive_noise_scale"),
        *("multires_noise_iterations", "multires_noise_discount", "min_timestep", "max_timestep"),
        *("v2", "v_parameterization", "zero_terminal_snr", "clip_skip", "max_token_length"),
    ),
}
_DEFAULTS: Mapping[str, Any] = {"qwen3_max_token_length": 512, "t5_max_token_length": 512, "blocks_to_swap": 0}
"""Arguments without a counterpart here, with the value at which they do nothing."""
_NETWORK_DEFAULTS: Mapping[str, Any] = {
    "train_llm_adapter": False,
}
"""The same of the network, which no other network has."""
_WEIGHTINGS = ("sigma_sqrt", "cosmap")


def is_for_anima(values: Mapping[str, Any] | ImportState) -> bool:
    """Whether these settings are for Anima: by the network, the model's name, or the text encoder that it alone has."""
    get = values.value if isinstance(values, ImportState) else values.get
    module = str(get("network_module") or "").lower()
    names = (get("LoRA_type"), get("base_model_version"), get("ss_base_model_version"), get("modelspec.architecture"))
    is_named = any(find_by_word(str(name)) == "Anima" for name in names if name)
    return module.startswith(_MODULE) or is_named or bool(get("qwen3"))


def import_anima(state: ImportState) -> None:
    """Files, timesteps and text encoder of the Anima trainer; nothing for the settings of other trainers."""
    if not is_for_anima(state):
        return
    if str(state.value("network_module") or "").lower().startswith(_MODULE):
        state.pop("network_module")
    if find_by_word(str(state.value("LoRA_type") or "")) == "Anima":
        state.pop("LoRA_type")
    _checkpoint(state)
    _timesteps(state)
    _text_encoder(state)
    _leave_out_without_counterpart(state, _DEFAULTS)
    for reason, names in _NOT_NEEDED.items():
        for name in names:
            _leave_out(state, name, f"{NOT_NEEDED}: {reason}")


def ignore_network_arguments(state: ImportState) -> None:
    """What of the network's arguments, once these are read, has no counterpart here."""
    _leave_out_without_counterpart(state, _NETWORK_DEFAULTS)


def _leave_out_without_counterpart(state: ImportState, defaults: Mapping[str, Any]) -> None:
    for name, default in defaults.items():
        if name in state:
            _leave_out(state, name, AT_DEFAULT if is_same(state.value(name), default) else NOT_YET)


def _leave_out(state: ImportState, name: str, reason: str) -> None:
    value = state.pop(name)
    if value is not None:
        state.ignore(name, value, reason)


def _checkpoint(state: ImportState) -> None:
    """Anima is trained on the loaded model, so the settings name no file."""
    for name in _CHECKPOINTS:
        value = state.pop(name)
        if value is not None:
            state.ignore(name, value, "is the model to load in Forge Neo: Anima is trained on the loaded one")


def _timesteps(state: ImportState) -> None:
    """How σ is drawn: sigmoid unless the file says otherwise, as in sd-scripts."""
    sampling = str(state.pop("timestep_sampling") or "sigmoid").lower()
    if sampling == "sigma":
        _weighting_scheme(state)
    else:
        _ignore_densities(state, sampling, ("weighting_scheme", "logit_mean", "logit_std", "mode_scale"))
    is_uniform = sampling in ("uniform", "sigma")
    if sampling != "sigma":
        state.values["timestep_sampling"] = "uniform" if is_uniform else "sigmoid"
    if is_uniform:
        _ignore_densities(state, sampling, ("sigmoid_scale",))
    elif "sigmoid_scale" in state:
        state.set_parameter(PARAMETERS["sigmoid_scale"], "sigmoid_scale", state.pop("sigmoid_scale"))
    if sampling == "flux_shift":
        state.values["resolution_shift"] = FLUX_SHIFT
    if sampling in ("shift", "sigma") and "discrete_flow_shift" in state:
        state.set_parameter(PARAMETERS["timestep_shift"], "discrete_flow_shift", state.pop("discrete_flow_shift"))
    else:
        _ignore_densities(state, sampling, ("discrete_flow_shift",))


def _weighting_scheme(state: ImportState) -> None:
    """The densities of "sigma". They count timesteps from noise to image, so a mean changes its sign here."""
    scheme = str(state.value("weighting_scheme") or "uniform").lower()
    state.values["timestep_sampling"] = "uniform"
    if scheme == "logit_normal":
        state.pop("weighting_scheme")
        state.values["timestep_sampling"] = "sigmoid"
        mean, scale = state.pop_number("logit_mean"), state.pop_number("logit_std")
        state.set_parameter(PARAMETERS["sigmoid_mean"], "logit_mean", -(mean or 0.0))
        state.set_parameter(PARAMETERS["sigmoid_scale"], "logit_std", 1.0 if scale is None else scale)
    elif scheme == "mode" or scheme in _WEIGHTINGS:
        _leave_out(state, "weighting_scheme", NOT_YET)
        state.warn("timestep_sampling", f"the weighting scheme {scheme} is not available; all timesteps count alike.")
    else:
        state.pop("weighting_scheme")
    _ignore_densities(state, f"sigma with {scheme}", ("logit_mean", "logit_std", "mode_scale"))


def _ignore_densities(state: ImportState, sampling: str, names: tuple[str, ...]) -> None:
    for name in names:
        _leave_out(state, name, f"{NOT_NEEDED}: timestep_sampling is {sampling}")


def _text_encoder(state: ImportState) -> None:
    """Only the transformer is trained here; sd-scripts also trains Qwen3 unless it is turned off or cached."""
    is_off = (
        parse_flag(state.value("network_train_unet_only"))
        or parse_flag(state.value("cache_text_encoder_outputs"))
        or parse_flag(state.value("cache_text_encoder_outputs_to_disk"))
        or parse_number(state.value("text_encoder_lr")) == 0
        or state.source == "metadata"
    )
    if not is_off:
        state.hint("train_text_encoder", "is off: sd-scripts would train Qwen3, too, which stays as it is here.")
    state.pop("network_train_unet_only")
    for name in ("text_encoder_lr", "loraplus_text_encoder_lr_ratio"):
        _leave_out(state, name, f"{NOT_NEEDED}: the text encoder is not trained")
    state.values |= {"train_unet": True, "train_text_encoder": False}
