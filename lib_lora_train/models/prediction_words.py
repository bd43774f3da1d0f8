"""The words by which files and settings say what a model predicts."""

from __future__ import annotations

import re

from lib_lora_train.models.architecture import PredictionType

_V_WORDS = ("v", "vpred", "vprediction", "vparam", "vparameterization", "velocity")
_EPSILON_WORDS = ("eps", "epsilon", "epspred", "epsilonpred", "epsprediction", "epsilonprediction", "noise")


def prediction_of(word: str) -> PredictionType | None:
    """The prediction type that a word in a file means, in any of the spellings in use; None for unknown words."""
    plain = re.sub(r"[^a-z]", "", word.lower())
    return "v_prediction" if plain in _V_WORDS else "epsilon" if plain in _EPSILON_WORDS else None
