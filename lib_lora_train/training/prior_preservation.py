"""What the LoRA must not change is held at the answer of the model without LoRA: two additions to the loss.

- *Prior preservation*: under another prompt, such as the caption with the class word in the trigger's place, the
  prediction for the same noisy latent is held. ai-toolkit calls it differential output preservation; it needs no
  regularisation images. One more pass with gradients, and one without.
- *Masked prior*: outside the mask, where the image does not count, the prediction under the image's own caption is
  held (OneTrainer's masked prior preservation). One more pass without gradients.

Both errors are plain mean squares, without the timestep weights of the image loss, which are made for its target. The
model without LoRA is the same modules with the adapter switched off, text encoders included. Each answer is made before
or after the passes with gradients, never within one, so that the peak of memory stays what it is.

B: samples of a micro-batch; C, h, w: a latent's channels, height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.methods.trained_part import TrainedPart
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.training.loss import sample_errors
from lib_lora_train.training.step import Batch, MaskedPrior, noisy_latents, predict
from lib_lora_train.training.text_conditions import TextConditions, text_conditions


@dataclass(frozen=True, eq=False)
class PriorPreservation:
    """The weights of both additions, and the text conditions of the text encoders without LoRA."""

    adapter: TrainedPart
    weight: float
    masked_weight: float
    base_conditions: TextConditions

    def masked_prior(self, model: DiffusionModel, batch: Batch) -> MaskedPrior | None:
        """What to hold outside the masks; None without masks or with the weight 0."""
        if batch.masks is None or not self.masked_weight:
            return None
        return MaskedPrior(self._answer(model, batch, batch.captions), self.masked_weight)

    def loss(self, model: DiffusionModel, batch: Batch, conditions: TextConditions) -> Tensor | None:
        """The weighted sum over the samples, 0-d float32 with gradients; None if no prompts are kept.

        `conditions` are those of the text encoders with LoRA.
        """
        if not batch.preserved_captions:
            return None
        target = self._answer(model, batch, batch.preserved_captions)
        condition = conditions.encode(model, batch.preserved_captions)
        prediction = predict(model, noisy_latents(model, batch), batch.timesteps, condition, batch.sizes)
        return self.weight * sample_errors(prediction, target).sum()

    @torch.no_grad()
    def _answer(self, model: DiffusionModel, batch: Batch, captions: Sequence[str]) -> Tensor:
        """(B, C, h, w): the prediction of the model without LoRA."""
        with self.adapter.enabled(False):
            condition = self.base_conditions.encode(model, captions)
            return predict(model, noisy_latents(model, batch), batch.timesteps, condition, batch.sizes)


def prior_preservation(config: TrainConfig, adapter: TrainedPart, conditions: TextConditions) -> PriorPreservation:
    """For the settings; `conditions`, the run's own, serve for both where no adapter changes the text encoders."""
    is_shared = list(adapter.groups) == ["unet"]
    return PriorPreservation(
        adapter=adapter,
        weight=config.prior_preservation_weight,
        masked_weight=config.masked_prior_preservation_weight,
        base_conditions=conditions if is_shared else text_conditions(config, trained=False),
    )
