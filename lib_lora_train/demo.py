"""The demo: a LoRA of a creature the tiny model has never seen, measured epoch by epoch.

Everything is the product's own: the job, the files, the grid. The demo adds the shipped data set, settings
that suit it, numbers after every epoch, and a gate that fails loudly when the LoRA has not learnt the
concept or has harmed its neighbours.
"""

from __future__ import annotations

from pathlib import Path

from lib_lora_train.config import Concept, TrainConfig
from lib_lora_train.evaluate.concept import ColourSign, ConceptDetector

DEMO_SET = Path(__file__).resolve().parents[1] / "assets" / "demo"
TRIGGER = "zorp"

MASCOT = ConceptDetector(
    body=ColourSign(low=160, high=197, least_share=0.03),  # teal, absent from the tiny model's training pictures
    marks=(ColourSign(low=305, high=345, least_share=0.006),),  # the magenta belly
)
