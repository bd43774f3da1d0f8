"""Samplers as pure functions, and the noise levels they pass through.

Three notations meet here. DDIM works on x = √ᾱ·x₀ + √(1−ᾱ)·ε, as the model was trained. The Euler samplers work on
x = x₀ + σ·ε with σ = √((1−ᾱ)/ᾱ), as k-diffusion and the webuis do (Karras et al. 2022); for rectified flow on
x = (1 − σ)·x₀ + σ·ε.

B: images; C, h, w: a latent's channels, height and width; T: timesteps of the schedule. `denoise(x, i)` is the expected
x₀ at level i. Samplers yield after every step, so that their caller may stop there or let others use the model, and
return x₀.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lib_lora_train.models.architecture import PredictionType
from lib_lora_train.models.noise_schedule import DiffusionSchedule, FlowSchedule, NoiseSchedule, shifted
from lib_lora_train.sampling.sampler_options import SamplerOptions
from lib_lora_train.sampling.used_sampler import UsedSampler, used_sampler

Denoise = Callable[[Tensor, int], Tensor]
Noise = Callable[[], Tensor]
Sampling = Generator[None, None, Tensor]
"""Yields after every step and returns x₀."""
# The webuis' ᾱ for the last timestep of a zero-terminal schedule, where σ would be infinite.
_MIN_ALPHA = 4.8973451890853435e-08


@dataclass(frozen=True)
class NoiseLevels:
    """Noise levels, highest first: `timesteps` and `sigmas`, one per step; after the last comes σ = 0.

    `is_flow`: they are those of a rectified flow.
    """

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    is_flow: bool = False

    @property
    def quantized(self) -> NoiseLevels:
        """The same σ, each with the nearest integer timestep; halves round down. A flow's are not changed."""
        if self.is_flow:
            return self
        return replace(self, timesteps=tuple(float(math.ceil(timestep - 0.5)) for timestep in self.timesteps))

    def sigma_after(self, index: int) -> float:
        """The σ after step `index`."""
        return self.sigmas[index + 1] if index + 1 < len(self.sigmas) else 0.0


def sampler_for(schedule: NoiseSchedule, chosen: str, options: SamplerOptions) -> UsedSampler:
    """What draws with the sampler `chosen`; a rectified flow with the shift of the options, else its usual one."""
    shift = (options.flow_shift or schedule.shift) if isinstance(schedule, FlowSchedule) else None
    return used_sampler(chosen, schedule.prediction_type, shift)


def sigma_levels(schedule: NoiseSchedule, steps: int, *, shift: float | None = None) -> NoiseLevels:
    """The levels of `steps` steps; `shift` None is the schedule's own, and only for rectified flow.

    For diffusion models k-diffusion's discrete schedule: timesteps spaced evenly from T − 1 to 0, log σ interpolated
    between them. For rectified flow σ = 1 − i/steps, shifted: "Simple" in the webuis.
    """
    if isinstance(schedule, FlowSchedule):
        shares = [shifted(1.0 - number / steps, shift or schedule.shift) for number in range(steps)]
        return NoiseLevels(tuple(len(schedule) * share for share in shares), tuple(shares), is_flow=True)
    assert isinstance(schedule, DiffusionSchedule)
    alphas = schedule.alphas_cumprod.clamp_min(_MIN_ALPHA)
    log_sigmas = ((1 - alphas) / alphas).log() / 2  # (T,) rising
    timesteps = torch.linspace(len(schedule) - 1, 0, steps, dtype=torch.float64)
    below, share = timesteps.floor().long(), timesteps.frac()
    above = timesteps.ceil().long()
    sigmas = torch.lerp(log_sigmas[below], log_sigmas[above], share).exp()
    return NoiseLevels(tuple(timesteps.tolist()), tuple(sigmas.tolist()))


def network_input(x: Tensor, sigma: float, prediction_type: PredictionType) -> Tensor:
    """What the network gets for x, in σ notation: x / √(σ² + 1), and x itself for a rectified flow."""
    return x if prediction_type == "rectified_flow" else x / (sigma**2 + 1) ** 0.5


def expected_image(x: Tensor, output: Tensor, sigma: float, prediction_type: PredictionType) -> Tensor:
    """x₀ from the model's output for `network_input`, in σ notation; (B, C, h, w).

    ε and flow: x₀ = x − σ·output. v: x₀ = x / (σ² + 1) − σ·v / √(σ² + 1).
    """
    if prediction_type != "v_prediction":
        return x - sigma * output
    root = math.sqrt(sigma * sigma + 1)
    return x / root**2 - output * (sigma / root)


def sample_euler(denoise: Denoise, x: Tensor, levels: NoiseLevels) -> Sampling:
    """x₀ by Euler steps along dx/dσ = (x − x₀)/σ (Karras et al. 2022, algorithm 2 without churn)."""
    for index, sigma in enumerate(levels.sigmas):
        slope = (x - denoise(x, index)) / sigma
        x = x + slope * (levels.sigma_after(index) - sigma)
        yield
    return x


def sample_euler_ancestral(
    denoise: Denoise, x: Tensor, levels: NoiseLevels, noise: Noise, *, eta: float = 1.0
) -> Sampling:
    """x₀ by Euler steps to a lower σ with fresh noise added back (k-diffusion's ancestral sampling)."""
    for index, sigma in enumerate(levels.sigmas):
        after = levels.sigma_after(index)
        down, up = (flow_ancestral_split if levels.is_flow else ancestral_split)(sigma, after, eta)
        slope = (x - denoise(x, index)) / sigma
        x = x + slope * (down - sigma)
        if levels.is_flow:
            x = x * ((1.0 - after) / (1.0 - down))
        if up:
            x = x + noise() * up
        yield
    return x


def ancestral_split(start: float, end: float, eta: float = 1.0) -> tuple[float, float]:
    """(σ to step down to, σ of the noise to add) so that together they are at `end`: down² + up² = end².

    η scales the noise: 1 adds as much as a step of the diffusion process, 0 none.
    """
    up = min(end, eta * (end**2 * (start**2 - end**2) / start**2) ** 0.5)
    return (end**2 - up**2) ** 0.5, up


def flow_ancestral_split(start: float, end: float, eta: float = 1.0) -> tuple[float, float]:
    """The same for a rectified flow, where x at `down` is scaled to have the signal of `end` before noise is added.

    As in ComfyUI and Forge Neo: down = end·(1 + η·(end/start − 1)); then up² = end² − (down·(1 − end)/(1 − down))².
    """
    down = end * (1.0 + eta * (end / start - 1.0))
    kept = down * (1.0 - end) / (1.0 - down)
    return down, max(0.0, end**2 - kept**2) ** 0.5


# --- DDIM ---------------------------------------------------------------------------------------


def ddim_timesteps(schedule: DiffusionSchedule, steps: int) -> tuple[int, ...]:
    """Falling timesteps: T//steps apart and ending at 1, as in ldm and the webuis.

    A zero-terminal schedule starts at T − 1 instead, the only timestep whose input is pure noise (Lin et al.
    2023, section 3.3, "trailing").
    """
    total = len(schedule)
    if is_zero_terminal(schedule):
        return tuple(round(total - number * total / steps) - 1 for number in range(steps))
    return tuple(min(number * (total // steps) + 1, total - 1) for number in reversed(range(steps)))


def is_zero_terminal(schedule: DiffusionSchedule) -> bool:
    """Whether the last timestep is pure noise."""
    return float(schedule.alphas_cumprod[-1]) == 0.0


def sample_ddim(
    predict: Denoise,
    x: Tensor,
    schedule: DiffusionSchedule,
    timesteps: tuple[int, ...],
    *,
    eta: float = 0.0,
    noise: Noise | None = None,
) -> Sampling:
    """x₀ by DDIM (Song et al. 2021, eq. 12 and 16); `predict(x, i)` is the model's output at timesteps[i].

    The last step ends at ᾱ of timestep 0, as in ldm. With η above 0, `noise` is drawn after every step.
    """
    for index, timestep in enumerate(timesteps):
        alpha = float(schedule.alphas_cumprod[timestep])
        after = timesteps[index + 1] if index + 1 < len(timesteps) else 0
        image, predicted = split_prediction(x, predict(x, index), alpha, schedule.prediction_type)
        alpha_after = float(schedule.alphas_cumprod[after])
        noise_scale = eta * math.sqrt((1 - alpha_after) / (1 - alpha) * (1 - alpha / alpha_after))
        x = alpha_after**0.5 * image + (1 - alpha_after - noise_scale**2) ** 0.5 * predicted
        if noise_scale and noise:
            x = x + noise_scale * noise()
        yield
    return x


def split_prediction(x: Tensor, output: Tensor, alpha: float, prediction_type: PredictionType) -> tuple[Tensor, Tensor]:
    """(x₀, ε) from the model's output for x, with ᾱ = `alpha`."""
    signal, spread = alpha**0.5, (1 - alpha) ** 0.5
    if prediction_type == "epsilon":
        return (x - spread * output) / signal, output
    return signal * x - spread * output, signal * output + spread * x
