"""What a LoRA's metadata say about the model that it is for."""

from __future__ import annotations

from lib_lora_train.models.architecture import ModelSpec

_BASE_VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0", "anima": "anima"}
_IMPLEMENTATIONS = {
    "sdxl": "https://github.com/Stability-AI/generative-models",
    "anima": "https://huggingface.co/circlestone-labs/Anima",
}
_ARCHITECTURES = {
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2-512",
    "sd2-v": "stable-diffusion-v2-768-v",
    "sdxl": "stable-diffusion-xl-v1-base",
    "anima": "anima",
}


def base_metadata(spec: ModelSpec, *, kind: str = "lora") -> dict[str, str]:
    """Which kind of model a LoRA is for, or a file of another `kind`, as kohya and the ModelSpec standard say it."""
    is_v, version = spec.prediction_type == "v_prediction", _BASE_VERSIONS[spec.architecture]
    architecture = "sd2-v" if is_v and spec.architecture == "sd2" else spec.architecture
    return {
        "ss_v2": str(spec.architecture == "sd2"),
        "ss_base_model_version": f"{version}_v" if is_v and spec.architecture != "sdxl" else version,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{_ARCHITECTURES[architecture]}/{kind}",
        "modelspec.implementation": _IMPLEMENTATIONS.get(spec.architecture, "diffusers"),
        "modelspec.prediction_type": "v" if is_v else spec.prediction_type,
    }
