"""Noise, timesteps and the loss."""

from __future__ import annotations

from dataclasses import dataclass

from lib_lora_train.config.parameters import param

LOSS_TYPES = ("l2", "l1", "huber", "smooth_l1")
HUBER_SCHEDULES = ("snr", "exponential", "constant")
TIMESTEP_SAMPLINGS = ("uniform", "sigmoid")


@dataclass(frozen=True)
class NoiseSettings:
    """Noise, timesteps and the loss."""

    min_snr_gamma: float = param(
        0.0,
        "Lowers the weight of nearly noise-free timesteps (Hang et al. 2023); 5 is the paper's and the guides' value. "
        "0: off, every timestep weighs the same.",
        group="noise",
        tier="beginner",
        low=0.0,
        high=20.0,
        kohya="min_snr_gamma",
    )
    debiased_estimation: bool = param(
        False,
        "Weighs timesteps so that the error of the image counts by √SNR (Yu et al. 2023): noisy timesteps weigh "
        "more, nearly noise-free ones less. An alternative to min_snr_gamma; with both, clean timesteps, which hold "
        "the details, are all but ignored.",
        group="noise",
        kohya="debiased_estimation_loss",
    )
    scale_v_pred_loss_like_noise_pred: bool = param(
        False,
        "For checkpoints that predict v: weighs timesteps as a noise-predicting checkpoint does, by SNR / (SNR + 1), "
        "which puts details before composition. min_snr_gamma and debiased_estimation do so themselves.",
        group="noise",
        kohya="scale_v_pred_loss_like_noise_pred",
    )
    v_pred_like_loss: float = param(
        0.0,
        "For checkpoints that predict noise: adds so many times the loss that a v-predicting checkpoint would have, "
        "which puts composition before details. 0.1 to 1; above, the noisiest timesteps decide everything. 0: off.",
        group="noise",
        low=0.0,
        high=10.0,
        kohya="v_pred_like_loss",
    )
    loss_type: str = param(
        "l2",
        "How the difference to the target counts. l2: by its square, the standard. l1: as it is, so that outliers "
        "(watermarks, mislabelled images) pull less, and fine texture too. huber and smooth_l1: square for small "
        "differences and straight for large ones.",
        group="noise",
        choices=LOSS_TYPES,
        kohya="loss_type",
    )
    huber_schedule: str = param(
        "snr",
        "For huber and smooth_l1: how the bound between small and large differences goes from 1 at noise-free "
        "timesteps to huber_c at the noisiest: by the signal-to-noise ratio, exponentially with the timestep, or "
        "constant: huber_c everywhere.",
        group="noise",
        choices=HUBER_SCHEDULES,
        kohya="huber_schedule",
    )
    huber_c: float = param(
        0.1,
        "For huber and smooth_l1: the bound between small and large differences at the noisiest timesteps. 0.1 is "
        "usual; near 1 it is nearly l2, at 0.01 nearly l1, and huber's gradients become as small.",
        group="noise",
        low=0.001,
        high=1.0,
        kohya="huber_c",
    )
    huber_scale: float = param(
        1.0,
        "For huber and smooth_l1 with huber_schedule exponential or constant: the bound times this. 1 is usual; above, "
        "more differences count by their square, towards 0 all count straight.",
        group="noise",
        low=0.001,
        high=100.0,
        kohya="huber_scale",
    )
    noise_offset: float = param(
        0.0,
        "Adds a shift of the whole image's brightness to the noise, so that very dark and bright images can be "
        "learnt. 0.03 to 0.1; above, colours drift. 0: off.",
        group="noise",
        low=0.0,
        high=1.0,
        kohya="noise_offset",
    )
    noise_offset_random_strength: bool = param(
        False,
        "Draws the strength of the noise offset anew for every sample, from 0 to noise_offset: milder, so that up to "
        "0.15 can be set without colours drifting.",
        group="noise",
        kohya="noise_offset_random_strength",
    )
    adaptive_noise_scale: float = param(
        0.0,
        "Adds so many times each latent channel's mean (without its sign) to noise_offset: very dark and bright "
        "images get more of it. A tenth of noise_offset up to as much; negative: they get less. Large values drift "
        "like a large noise_offset. 0: off.",
        group="noise",
        low=-1.0,
        high=1.0,
        kohya="adaptive_noise_scale",
    )
    multires_noise_iterations: int = param(
        0,
        "Mixes coarser and coarser noise into the noise (pyramid noise, Whitaker 2023), so that large areas can become "
        "darker or brighter. 6 to 10 is usual; noise_offset is the simpler cure for the same. 0: off.",
        group="noise",
        low=0,
        high=32,
        kohya="multires_noise_iterations",
    )
    multires_noise_discount: float = param(
        0.3,
        "How much each coarser layer of multires noise weighs against the one before. 0.1 to 0.3 for a LoRA; at 0.8 "
        "and above the noise is mostly blots, which small sets learn as blotches.",
        group="noise",
        low=0.0,
        high=1.0,
        kohya="multires_noise_discount",
    )
    ip_noise_gamma: float = param(
        0.0,
        "Input perturbation (Ning et al. 2023): the UNet gets the image with so much more noise than it is asked to "
        "predict, so that it learns to bear its own errors when drawing. 0.05 to 0.15, 0.1 is the paper's; above, "
        "images lose contrast and detail. 0: off.",
        group="noise",
        low=0.0,
        high=1.0,
        kohya="ip_noise_gamma",
    )
    ip_noise_gamma_random_strength: bool = param(
        False,
        "Draws the strength of the input perturbation anew for every sample, from 0 to ip_noise_gamma.",
        group="noise",
        kohya="ip_noise_gamma_random_strength",
    )
    min_timestep: int = param(
        0,
        "First timestep that is trained on; 0 is nearly noise-free. Low timesteps hold texture and detail, high ones "
        "composition and colour; what lies outside the range is not learnt.",
        group="noise",
        low=0,
        high=999,
        kohya="min_timestep",
    )
    max_timestep: int = param(
        1000,
        "Timesteps below this are trained on; 1000 includes pure noise. Leave the whole range 0 to 1000 unless only "
        "details (to about 500) or only composition (from about 500) is to be learnt.",
        group="noise",
        low=1,
        high=1000,
        kohya="max_timestep",
    )
    timestep_sampling: str = param(
        "uniform",
        "How often each timestep of the range is drawn. uniform: all alike, the standard of Stable Diffusion. sigmoid "
        "(logit-normal): mostly the middle, where subjects take shape; the ends are learnt slowly.",
        group="noise",
        choices=TIMESTEP_SAMPLINGS,
    )
    sigmoid_scale: float = param(
        1.0,
        "For timestep_sampling sigmoid: how wide the timesteps spread. 1 is usual; 0.5 keeps to the middle half, from "
        "2 on the two ends are drawn most.",
        group="noise",
        low=0.1,
        high=5.0,
    )
    sigmoid_mean: float = param(
        0.0,
        "For timestep_sampling sigmoid: where most timesteps lie: 0 the middle of the range, 1 to 73 % of it "
        "(noisier: composition), -1 to 27 % (details). Beyond 2, one end is all that is learnt.",
        group="noise",
        low=-5.0,
        high=5.0,
    )
