"""What a LoRA does to prompts, measured on the UNet's predictions: trigger obedience, bleed and drift.

The model without LoRA draws each prompt in four steps once; its noisy latents on the way are kept. After every epoch
the UNet predicts for them again, with the LoRA. The *effect* Δ on a prompt is the difference of both predictions, its
*worth* that between the prompt and an empty one, without LoRA. All numbers are means over the timesteps of quotients,
so that no noise level counts more than another.

- *Drift*, ‖Δ‖ of the control prompts: in units of their worth, and as a share of ‖Δ‖ of the prompts with a trigger.
- *Trigger obedience*: 1 − ‖Δ‖ without the trigger / ‖Δ‖ with it, on the same latents.
- *Bleed*: ⟨Δ with the class word instead of the trigger, Δ⟩ / ‖Δ‖², the share of what the trigger does that happens
  without it. Between triggers the same, with another trigger instead.

When they lie: the share makes an undertrained LoRA look leaky, since what little it does it does everywhere; therefore
drift has a second unit. Drift says nothing about which epoch of one good run is best. A prompt that the model hardly
follows has little worth, so its drift is high.

N: prompts; K: timesteps; C, h, w: a latent's channels, height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, permutations

import torch
from torch import Tensor

from lib_lora_train.core.image_sizes import LATENT_CELL_PX
from lib_lora_train.core.measures import BLEED, DRIFT, DRIFT_SHARE, OBEDIENCE, TRIGGER_BLEED
from lib_lora_train.core.seeding import seed_for
from lib_lora_train.core.words import replace_trigger, with_class_word
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.prompts import encode_prompts, prompt_chunks
from lib_lora_train.models.text_encoding import TextCondition, size_condition
from lib_lora_train.sampling.sample import images_at_once
from lib_lora_train.sampling.samplers import NoiseLevels, expected_image, network_input, sample_euler, sigma_levels
from lib_lora_train.training.lease import YieldLease
from lib_lora_train.training.step import predict

MAX_PAIRS = 6
"""Pairs of triggers beyond these are not compared."""

_STEPS = 5  # of the schedule; the first is pure noise and the last nearly none: both are alike for all prompts
_LEAST_EFFECT = 0.01
"""Of the prompts' worth: less than that is hardly more than rounding."""


@dataclass(frozen=True)
class TriggerPrompt:
    """A prompt with a trigger, and the trigger's class word ("" if it has none)."""

    text: str
    trigger: str
    class_word: str = ""

    @property
    def without(self) -> str:
        """The prompt without its trigger."""
        return self.replaced("")

    @property
    def with_class_word(self) -> str:
        """The prompt with the class word in the place of the trigger."""
        return with_class_word(self.text, self.trigger, self.class_word)

    def replaced(self, word: str) -> str:
        """The prompt with another word in the place of the trigger; if that is several tags, of its first one."""
        return replace_trigger(self.text, self.trigger, word)


@dataclass(frozen=True)
class _Variant:
    """A text for which the UNet predicts at the latents that prompt number `at` was drawn through."""

    text: str
    at: int


@dataclass(frozen=True, eq=False)
class _Job:
    """One pass of the UNet: a text, a noisy latent (C, h, w) and its timestep."""

    text: str
    latent: Tensor
    timestep: float


class PromptEffect:
    """Measures prompts with a trigger and control prompts; there must be at least one of either.

    `size`: width and height of the latents in px, multiples of 8.
    """

    def __init__(
        self, triggers: Sequence[TriggerPrompt], controls: Sequence[str], *, size: tuple[int, int], clip_skip: int
    ) -> None:
        self._triggers = tuple(triggers)
        self._size, self._clip_skip = size, clip_skip
        self._drawn = [prompt.text for prompt in triggers] + list(controls)
        self._pairs = [
            (first, second)
            for first, second in islice(permutations(range(len(triggers)), 2), MAX_PAIRS)
            if triggers[first].trigger != triggers[second].trigger
        ]
        self._latents: list[Tensor] = []  # per timestep (N, C, h, w), scaled as the UNet expects them
        self._timesteps: tuple[float, ...] = ()
        self._without_lora: dict[_Variant, Tensor] = {}  # (K, C, h, w)

    @property
    def is_prepared(self) -> bool:
        """Whether the predictions without LoRA are known."""
        return bool(self._without_lora)

    @torch.no_grad()
    def prepare(self, model: DiffusionModel, yield_lease: YieldLease) -> None:
        """Draw the prompts and keep the predictions without LoRA; the adapter must be switched off."""
        levels = sigma_levels(model.schedule, _STEPS)
        self._timesteps = levels.timesteps[1:-1]
        self._latents = self._draw(model, levels, yield_lease)
        empty = [_Variant("", at) for at in range(len(self._drawn))]
        # Batches as in `measure`, so that an untrained LoRA differs by nothing, not even rounding.
        self._without_lora = self._predictions(model, self._variants(), yield_lease)
        self._without_lora |= self._predictions(model, empty, yield_lease)

    @torch.no_grad()
    def measure(self, model: DiffusionModel, yield_lease: YieldLease) -> dict[str, float]:
        """The measures by name, of the model with its adapter; only those for which there are prompts.

        A LoRA with hardly any effect has only its drift: shares of next to nothing are noise.
        """
        after = self._predictions(model, self._variants(), yield_lease)
        effects = {variant: after[variant] - self._without_lora[variant] for variant in after}
        own = [effects[_Variant(prompt.text, at)] for at, prompt in enumerate(self._triggers)]
        moved = [effects[control] for control in self._control_variants()]
        has_effect = bool(own) and _mean_quotient(_norms(own), _norms(self._worths(range(len(own))))) >= _LEAST_EFFECT
        values: dict[str, float] = {}
        if moved:
            places = range(len(own), len(self._drawn))
            values[DRIFT] = _mean_quotient(_norms(moved), _norms(self._worths(places)))
        if moved and has_effect:
            values[DRIFT_SHARE] = _mean_quotient(_norms(moved), _norms(own))
        if has_effect:
            without = [effects[_Variant(prompt.without, at)] for at, prompt in enumerate(self._triggers)]
            by_class = [effects[_Variant(prompt.with_class_word, at)] for at, prompt in enumerate(self._triggers)]
            values[OBEDIENCE] = 1 - _mean_quotient(_norms(without), _norms(own))
            values[BLEED] = _mean_quotient(_products(by_class, own), _products(own, own))
        if has_effect and self._pairs:
            firsts = [own[first] for first, _ in self._pairs]
            others = [effects[self._exchanged(first, second)] for first, second in self._pairs]
            values[TRIGGER_BLEED] = _mean_quotient(_products(others, firsts), _products(firsts, firsts))
        return values

    def _worths(self, places: Sequence[int]) -> list[Tensor]:
        """What the drawn prompts at `places` change in the model without LoRA, compared with an empty prompt."""
        before = self._without_lora
        return [before[_Variant(self._drawn[at], at)] - before[_Variant("", at)] for at in places]

    def _control_variants(self) -> list[_Variant]:
        return [_Variant(text, at) for at, text in enumerate(self._drawn) if at >= len(self._triggers)]

    def _variants(self) -> list[_Variant]:
        """Everything that is predicted with and without LoRA, each once."""
        drawn = [_Variant(text, at) for at, text in enumerate(self._drawn)]
        without = [_Variant(prompt.without, at) for at, prompt in enumerate(self._triggers)]
        by_class = [_Variant(prompt.with_class_word, at) for at, prompt in enumerate(self._triggers)]
        return list(dict.fromkeys([*drawn, *without, *by_class, *(self._exchanged(*pair) for pair in self._pairs)]))

    def _exchanged(self, first: int, second: int) -> _Variant:
        return _Variant(self._triggers[first].replaced(self._triggers[second].trigger), first)

    # --- passes ---------------------------------------------------------------------------------

    def _draw(self, model: DiffusionModel, levels: NoiseLevels, yield_lease: YieldLease) -> list[Tensor]:
        """The noisy latents of every prompt at every timestep but the first and the last."""
        width, height = self._size
        shape = (model.latent_format.channels, height // LATENT_CELL_PX, width // LATENT_CELL_PX)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed_for(0, "prompt effect", *shape)))
        start = noise.to(model.device).expand(len(self._drawn), *shape) * levels.sigmas[0]
        kept: list[Tensor] = []

        def denoise(x: Tensor, index: int) -> Tensor:
            sigma = levels.sigmas[index]
            scaled = network_input(x, sigma, model.schedule.prediction_type)
            if index:
                kept.append(scaled.cpu())
            jobs = [_Job(text, one, levels.timesteps[index]) for text, one in zip(self._drawn, scaled, strict=True)]
            outputs = torch.stack(self._outputs(model, jobs, yield_lease)).to(x.device)
            return expected_image(x, outputs, sigma, model.schedule.prediction_type)

        euler = sample_euler(denoise, start, levels)
        with suppress(StopIteration):
            for _ in range(len(levels.sigmas) - 1):
                next(euler)
        return kept

    def _predictions(
        self, model: DiffusionModel, variants: Sequence[_Variant], yield_lease: YieldLease
    ) -> dict[_Variant, Tensor]:
        """The UNet's output for each variant at every timestep, (K, C, h, w) float32 on the processor."""
        jobs = [
            _Job(variant.text, latents[variant.at], timestep)
            for variant in variants
            for timestep, latents in zip(self._timesteps, self._latents, strict=True)
        ]
        outputs = torch.stack(self._outputs(model, jobs, yield_lease))
        return dict(zip(variants, outputs.view(len(variants), -1, *outputs.shape[1:]), strict=True))

    def _outputs(self, model: DiffusionModel, jobs: Sequence[_Job], yield_lease: YieldLease) -> list[Tensor]:
        """The UNet's output for each job, (C, h, w) float32 on the processor."""
        outputs: dict[int, Tensor] = {}
        lengths = [prompt_chunks(model, [job.text]) for job in jobs]
        for chunks in set(lengths):
            numbers = [number for number, length in enumerate(lengths) if length == chunks]
            at_once = images_at_once(*self._size)
            for start in range(0, len(numbers), at_once):
                batch = numbers[start : start + at_once]
                found = self._pass([jobs[number] for number in batch], model)
                outputs.update(zip(batch, found.float().cpu(), strict=True))
                yield_lease()
        return [outputs[number] for number in range(len(jobs))]

    def _pass(self, jobs: Sequence[_Job], model: DiffusionModel) -> Tensor:
        """(B, C, h, w) for jobs whose texts have equally many chunks."""
        texts = list(dict.fromkeys(job.text for job in jobs))
        rows = torch.tensor([texts.index(job.text) for job in jobs], device=model.device)
        encoded = encode_prompts(model, texts, self._clip_skip)
        condition = TextCondition(encoded.hidden[rows], None if encoded.pooled is None else encoded.pooled[rows])
        size = (self._size[1], self._size[0])
        return predict(
            model,
            torch.stack([job.latent for job in jobs]).to(model.device),
            torch.tensor([float(job.timestep) for job in jobs]),
            condition,
            size_condition([size] * len(jobs), [(0, 0)] * len(jobs), [size] * len(jobs)),
        )


def _norms(differences: Sequence[Tensor]) -> Tensor:
    """‖·‖ over all prompts at each timestep, (K,) float64, for tensors (K, C, h, w)."""
    return _products(differences, differences).sqrt()


def _products(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """The scalar product over all prompts at each timestep, (K,) float64, for tensors (K, C, h, w)."""
    pairs = zip(first, second, strict=True)
    return torch.stack([(one.double() * other.double()).flatten(1).sum(1) for one, other in pairs]).sum(0)


def _mean_quotient(numerators: Tensor, denominators: Tensor) -> float:
    """The mean over the timesteps; 0 where nothing is divided by nothing, such as the effect of an untrained LoRA."""
    smallest = torch.finfo(torch.float64).tiny
    return float((numerators / denominators.clamp_min(smallest)).mean())
