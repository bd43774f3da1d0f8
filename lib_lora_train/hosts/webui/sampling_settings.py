"""How the webui samples, from its settings."""

from __future__ import annotations

from typing import Any

import torch

from lib_lora_train.sampling.sampler_options import NoiseSource, SamplerOptions

_CPU_NOISE_PROGRAMS = ("ComfyUI", "DrawThings")


def sampler_options(shared: Any, device: torch.device) -> SamplerOptions:
    """How the webui samples, from the settings in its `modules.shared`; missing settings have their defaults."""
    usual, opts = SamplerOptions(), shared.opts
    early = float(getattr(opts, "skip_early_cond", 0.0))
    return SamplerOptions(
        noise_source=noise_source(shared, device),
        eta_noise_seed_delta=int(getattr(opts, "eta_noise_seed_delta", 0) or 0),
        eta_ancestral=float(getattr(opts, "eta_ancestral", usual.eta_ancestral)),
        eta_ddim=float(getattr(opts, "eta_ddim", usual.eta_ddim)),
        quantize_timesteps=bool(getattr(opts, "enable_quantization", False)),
        skip_early_cond=early if early > 0 else None,
    )


def noise_source(shared: Any, device: torch.device) -> NoiseSource:
    """Where the webui generates noise, from its `modules.shared`: on the GPU only if set so, and never on Apple's MPS.

    Forge always generates it on the CPU while it reproduces a program that does so.
    """
    if getattr(shared.opts, "forge_try_reproduce", "None") in _CPU_NOISE_PROGRAMS:
        return torch.device("cpu")
    source = getattr(shared.opts, "randn_source", "GPU")
    if source == "NV":
        return "philox"
    return device if source == "GPU" and device.type != "mps" else torch.device("cpu")
