"""What an epoch at a strength is really worth: the truth that `benchmarks/advisor.py` holds the advisor against.

    truth = share of the concept images that show the concept
            - share of the control images that show it too (leak)
            - damage to the control images

The concept is found by a detector of its hues (`advisor_concepts.py`), which sees nothing in noise or on a ruined
background. *Damage* is how much of a control image changed against the image of the same prompt and seed without LoRA:
the number of its 16 × 16 cells that have plainly another colour, as a share of the cells that its object covers; 1
from there on. None of it uses the UNet's features, the losses or the predictions that the advisor's measures are made
of.

All cells of a run share prompts and seeds, none of which are among the run's samples, so differences between cells
have far less noise than the cells themselves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from lib_lora_train.config.sample_prompts import SamplePrompt
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.runs.demo.concept_detector import ConceptDetector
from lib_lora_train.sampling.sample import sample_images

STRENGTHS = (0.6, 0.8, 1.0, 1.25, 1.5, 2.0)
CONCEPT_SCENES = (
    "{}, green background",
    "{}, gray background",
    "{}, purple background",
    "{}, small, white background",
    "{}, large, orange background",
    "{}, on the left, blue background",
)
CONTROL_SCENES = (
    "a cat on a red background",
    "a house, green background",
    "a blue star on a yellow background",
)
_CELLS = 16  # per side
_OTHER_COLOUR = 110  # RGB distance of 0…441: red and orange are 90 apart, other colours more
_OFF_BACKGROUND = 40  # cells of the object, in an image without LoRA
_LEAST_OBJECT = 0.06  # of the image, so that a badly drawn object does not make every change look large
_STEPS, _CFG, _SIDE, _FIRST_SEED = 6, 3.0, 128, 7001


@dataclass(frozen=True)
class TruthCell:
    """One epoch at one strength; the lists have an entry for each image, in the order of the scenes.

    `drawn_at`: the strength at which the images were drawn, another than `strength` where `climb` saved them.
    `shown`: whether concept images show the concept; `leaked`: whether control images do; `damage`: 0…1 of each
    control image; `findings`: the detector's measurements of each concept image.
    """

    strength: float
    drawn_at: float
    shown: tuple[bool, ...]
    leaked: tuple[bool, ...]
    damage: tuple[float, ...]
    findings: tuple[dict[str, Any], ...]

    @property
    def truth(self) -> float:
        """-2…1."""
        return float(np.mean(self.shown) - np.mean(self.leaked) - np.mean(self.damage))


def draw_row(model: DiffusionModel, trigger: str) -> list[Image.Image]:
    """The images of all scenes with the model as it is: those that must show the concept, then the control images."""
    prompts = [*_prompts([scene.format(trigger) for scene in CONCEPT_SCENES]), *_prompts(CONTROL_SCENES)]
    return sample_images(model, prompts, sampler="Euler", clip_skip=1)


def judge(
    detector: ConceptDetector, strength: float, row: Sequence[Image.Image], without_lora: Sequence[Image.Image]
) -> TruthCell:
    """The truth of a row: the concept images, then the control images. `without_lora` is the row without it."""
    first = len(CONCEPT_SCENES)
    findings = [detector.find(image) for image in row[:first]]
    pairs = zip(row[first:], without_lora[first:], strict=True)
    return TruthCell(
        strength=strength,
        drawn_at=strength,
        shown=tuple(detector.detects(image) for image in row[:first]),
        leaked=tuple(detector.detects(image) for image in row[first:]),
        damage=tuple(damage(image, before) for image, before in pairs),
        findings=tuple({name: _rounded(value) for name, value in vars(finding).items()} for finding in findings),
    )


def climb(cell_at: Callable[[float], TruthCell]) -> list[TruthCell]:
    """The cells of all strengths, weakest first. What is certain to be no better is not drawn.

    Up from strength 1 until the control images are ruined: more strength does not bring them back. Down from it until
    no image shows the concept: less strength does not bring it back.
    """
    cells = {1.0: cell_at(1.0)}
    for strengths, is_end in (
        ([strength for strength in STRENGTHS if strength > 1], _is_ruined),
        ([strength for strength in reversed(STRENGTHS) if strength < 1], _is_empty),
    ):
        last = cells[1.0]
        for strength in strengths:
            last = dataclasses.replace(last, strength=strength) if is_end(last) else cell_at(strength)
            cells[strength] = last
    return [cells[strength] for strength in STRENGTHS]


def _is_ruined(cell: TruthCell) -> bool:
    return not any(cell.shown) and min(cell.damage) >= 1


def _is_empty(cell: TruthCell) -> bool:
    return not any(cell.shown) and not _is_ruined(cell)


def damage(image: Image.Image, without_lora: Image.Image) -> float:
    """How much of the scene changed: 0 if nothing plainly did, 1 if as much did as the object covers, or more."""
    cells, before = _cells(image), _cells(without_lora)
    border = np.concatenate([before[0], before[-1], before[:, 0], before[:, -1]])
    covered = (np.linalg.norm(before - np.median(border, axis=0), axis=-1) > _OFF_BACKGROUND).mean()
    changed = (np.linalg.norm(cells - before, axis=-1) > _OTHER_COLOUR).mean()
    return float(min(1.0, changed / max(covered, _LEAST_OBJECT)))


def _cells(image: Image.Image) -> npt.NDArray[np.float64]:
    """(16, 16, 3): the mean colour of each cell."""
    return np.asarray(image.convert("RGB").resize((_CELLS, _CELLS), Image.Resampling.BOX), dtype=np.float64)


def _prompts(texts: Sequence[str]) -> list[SamplePrompt]:
    return [
        SamplePrompt(text, "", _SIDE, _SIDE, _FIRST_SEED + number, _STEPS, _CFG) for number, text in enumerate(texts)
    ]


def save_row(path: Path, images: Sequence[Image.Image]) -> None:
    """Write the images side by side into one file."""
    strip = Image.new("RGB", (_SIDE * len(images), _SIDE))
    for place, image in enumerate(images):
        strip.paste(image, (_SIDE * place, 0))
    strip.save(path, quality=90)


def read_row(path: Path) -> list[Image.Image]:
    """The images that `save_row` wrote."""
    with Image.open(path) as strip:
        whole = strip.convert("RGB")
    return [whole.crop((left, 0, left + _SIDE, _SIDE)) for left in range(0, whole.width, _SIDE)]


def row_file(epoch: int, strength: float) -> str:
    """The file name of a cell's images; epoch 0 is without LoRA."""
    return f"e{epoch}-s{strength:g}.webp" if epoch else "without-lora.webp"


def _rounded(value: Any) -> Any:
    return [round(one, 4) for one in value] if isinstance(value, tuple) else round(value, 4)
