"""The words by which files and settings say what a model predicts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from lib_lora_train.models.architecture import PredictionType

_V_WORDS = ("v", "vpred", "vprediction", "vparam", "vparameterization", "velocity")
_FLOW_WORDS = ("rectifiedflow", "rf", "flow", "flowmatching", "flowmatch", "flowprediction", "const")
_EPSILON_WORDS = ("eps", "epsilon", "epspred", "epsilonpred", "epsprediction", "epsilonprediction", "noise")
_WORDS: Mapping[PredictionType, tuple[str, ...]] = {
    "epsilon": _EPSILON_WORDS,
    "v_prediction": _V_WORDS,
    "rectified_flow": _FLOW_WORDS,
}


def prediction_of(word: str) -> PredictionType | None:
    """The prediction type that a word in a file means, in any of the spellings in use; None for unknown words."""
    plain = re.sub(r"[^a-z]", "", word.lower())
    return next((prediction for prediction, words in _WORDS.items() if plain in words), None)


def path_says_rectified(path: Path) -> bool:
    """Whether "rectified" is in the path: Forge Neo's mark of rectified flow, which SDXL files do not say."""
    return "rectified" in str(path).lower()
