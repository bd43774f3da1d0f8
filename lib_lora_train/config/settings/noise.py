"""Settings: noise, timesteps and loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lib_lora_train.config.parameters import Group, param

LOSS_TYPES = ("l2", "l1", "huber", "smooth_l1")
HUBER_SCHEDULES = ("snr", "exponential", "constant")
TIMESTEP_SAMPLINGS = ("uniform", "sigmoid")
FLUX_SHIFT, QWEN_SHIFT = "flux", "qwen"
RESOLUTION_SHIFTS = ("off", FLUX_SHIFT, QWEN_SHIFT)


@dataclass(frozen=True)
class NoiseSettings:
    """Noise, timesteps and loss."""

    GROUP: ClassVar[Group] = "noise"

    min_snr_gamma: float = param(
        0.0,
        "Give nearly noise-free timesteps less weight (Min-SNR, Hang et al. 2023). 5 is the value of the paper and "
        "the guides. 0: off, all timesteps have the same weight.",
        tier="beginner",
        low=0.0,
        high=20.0,
        kohya="min_snr_gamma",
    )
    debiased_estimation: bool = param(
        False,
        "Weight timesteps so that errors of the predicted image count by √SNR (Debiased estimation, Yu et al. 2023): "
        "noisy timesteps count more, nearly noise-free ones less. Use either this or min_snr_gamma; with both, the "
        "timesteps that hold details are almost ignored.",
        kohya="debiased_estimation_loss",
    )
    scale_v_pred_loss_like_noise_pred: bool = param(
        False,
        "For v-prediction checkpoints: weight timesteps by SNR / (SNR + 1), as an epsilon checkpoint does, which "
        "favours details over composition. min_snr_gamma and debiased_estimation already include this.",
        kohya="scale_v_pred_loss_like_noise_pred",
    )
    v_pred_like_loss: float = param(
        0.0,
        "For epsilon checkpoints: add this factor × the loss of a v-prediction checkpoint, which favours composition "
        "over details. 0.1 to 1 is usual; above, the noisiest timesteps dominate. 0: off.",
        low=0.0,
        high=10.0,
        kohya="v_pred_like_loss",
    )
    loss_type: str = param(
        "l2",
        "How the difference between prediction and target is measured. l2: squared, the standard. l1: absolute, so "
        "outliers (watermarks, mislabelled images) count less, but so does fine texture. huber, smooth_l1: quadratic "
        "for small differences, linear for large ones.",
        choices=LOSS_TYPES,
        kohya="loss_type",
    )
    huber_schedule: str = param(
        "snr",
        "For huber and smooth_l1: how the threshold between small and large differences changes from 1 at noise-free "
        "timesteps to huber_c at the noisiest ones. snr: with the signal-to-noise ratio; exponential: with the "
        "timestep; constant: huber_c everywhere.",
        choices=HUBER_SCHEDULES,
        kohya="huber_schedule",
    )
    huber_c: float = param(
        0.1,
        "For huber and smooth_l1: threshold between small and large differences at the noisiest timesteps. 0.1 is "
        "usual; near 1 the loss is almost l2, at 0.01 almost l1 (for huber, the gradients shrink as much).",
        low=0.001,
        high=1.0,
        kohya="huber_c",
    )
    huber_scale: float = param(
        1.0,
        "For huber and smooth_l1 with huber_schedule exponential or constant: factor on the threshold. 1 is usual; "
        "with more, larger differences are still quadratic; near 0, all are linear.",
        low=0.001,
        high=100.0,
        kohya="huber_scale",
    )
    noise_offset: float = param(
        0.0,
        "Add a random brightness shift of the whole image to the noise, so that very dark and bright images can be "
        "learnt. 0.03 to 0.1 is usual; above, colours drift. 0: off.",
        low=0.0,
        high=1.0,
        kohya="noise_offset",
    )
    noise_offset_random_strength: bool = param(
        False,
        "Use a random strength between 0 and noise_offset for each image. This is milder, so values up to 0.15 work "
        "without colour drift.",
        kohya="noise_offset_random_strength",
    )
    adaptive_noise_scale: float = param(
        0.0,
        "Add this factor × each latent channel's absolute mean to noise_offset, so that very dark and bright images "
        "get more of it. Up to the value of noise_offset is usual; negative values give them less. Large values make "
        "colours drift. 0: off.",
        low=-1.0,
        high=1.0,
        kohya="adaptive_noise_scale",
    )
    multires_noise_iterations: int = param(
        0,
        "Mix coarser noise into the noise (multi-resolution or pyramid noise, Whitaker 2023), so that large areas "
        "can become darker or brighter. 6 to 10 is usual; noise_offset is a simpler way to the same result. 0: off.",
        low=0,
        high=32,
        kohya="multires_noise_iterations",
    )
    multires_noise_discount: float = param(
        0.3,
        "Strength of each coarser noise layer compared to the one before. 0.1 to 0.3 for a LoRA; from 0.8 on, the "
        "noise is mostly large blotches, which small datasets learn as such.",
        low=0.0,
        high=1.0,
        kohya="multires_noise_discount",
    )
    ip_noise_gamma: float = param(
        0.0,
        "Input perturbation (Ning et al. 2023): add this much extra noise to the UNet's input only, so that it "
        "learns to tolerate its own errors when generating. 0.05 to 0.15 is usual, 0.1 in the paper; above, images "
        "lose contrast and detail. 0: off.",
        low=0.0,
        high=1.0,
        kohya="ip_noise_gamma",
    )
    ip_noise_gamma_random_strength: bool = param(
        False,
        "Use a random strength between 0 and ip_noise_gamma for each image.",
        kohya="ip_noise_gamma_random_strength",
    )
    min_timestep: int = param(
        0,
        "Lowest timestep to train on; 0 is nearly noise-free. Low timesteps hold texture and detail, high ones "
        "composition and colour; nothing outside the range is learnt.",
        low=0,
        high=999,
        kohya="min_timestep",
    )
    max_timestep: int = param(
        1000,
        "Upper limit of the timesteps to train on, not included; 1000 includes pure noise. Keep 0 to 1000 unless "
        "only details (up to about 500) or only composition (from about 500) should be learnt.",
        low=1,
        high=1000,
        kohya="max_timestep",
    )
    timestep_sampling: str = param(
        "uniform",
        "How timesteps are chosen within the range. uniform: all equally often, the standard of Stable Diffusion. "
        "sigmoid (logit-normal): mostly from the middle, where subjects take shape; the ends are learnt slowly. It is "
        "usual for rectified flow.",
        choices=TIMESTEP_SAMPLINGS,
    )
    sigmoid_scale: float = param(
        1.0,
        "For timestep_sampling sigmoid: width of the distribution. 1 is usual; 0.5 stays in the middle half; from 2 "
        "on, the ends are chosen most often.",
        low=0.1,
        high=5.0,
    )
    sigmoid_mean: float = param(
        0.0,
        "For timestep_sampling sigmoid: centre of the distribution. 0 is the middle of the range, 1 is at 73% "
        "(noisier: composition), -1 at 27% (details). Beyond 2, only one end is learnt.",
        low=-5.0,
        high=5.0,
    )
    resolution_shift: str = param(
        "off",
        "Shift the chosen timesteps towards noise by the size of each image, in addition to timestep_shift. flux: by "
        "1.65 at 256 px, 1.88 at 512 px and 3.16 at 1024 px (flux_shift in kohya's tools and ai-toolkit); qwen: by "
        "1.65, 1.71 and 2. For rectified flow and Anima; leave timestep_shift at 1 with it.",
        choices=RESOLUTION_SHIFTS,
    )
    timestep_shift: float = param(
        1.0,
        "Shift the chosen timesteps towards noise (above 1) or towards details (below 1). 1: no shift. For rectified "
        "flow, 2 to 3 is usual at 1024 px; with uniform sampling, 3 moves the middle of the distribution to 75%.",
        low=0.1,
        high=20.0,
    )
