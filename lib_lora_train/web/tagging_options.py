"""The taggers and their options, as the Captions panel shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lib_lora_train.dataset_tools.tagger_names import EXISTING, WD14

TAGGERS: Mapping[str, str] = {
    "DeepBooru": "Built into the webui: danbooru tags with scores. Pauses while you generate images.",
    "BLIP": "Built into the webui: one sentence. Uses the lengths and beams of the webui's Interrogate settings.",
    WD14: "Your own WD14 model: newer danbooru tags, separate threshold for characters. Needs the package onnxruntime.",
}


@dataclass(frozen=True)
class TagField:
    """One option of a request. `taggers` are those that have it, () means all."""

    label: str
    help: str
    kind: str
    default: str | bool
    taggers: tuple[str, ...] = ()
    choices: tuple[tuple[str, str], ...] = ()


FIELDS: Mapping[str, TagField] = {
    "model": TagField(
        "Model folder",
        "A folder with model.onnx and selected_tags.csv, as WD14 taggers are distributed.",
        "wide",
        "",
        (WD14,),
    ),
    "general": TagField(
        "Threshold",
        "Tags below this score are left out. 0.35 is typical; lower values give more tags, and more wrong ones.",
        "number",
        "0.35",
        ("DeepBooru", WD14),
    ),
    "character": TagField(
        "Character threshold",
        "The same for character names, which are wrong more often. 0.85 is typical; 1 leaves all of them out.",
        "number",
        "0.85",
        (WD14,),
    ),
    "exclude": TagField(
        "Exclude",
        "Tags that are never written, separated by commas; * matches anything. Exclude what belongs to the concept "
        "itself, so that the trigger word learns it.",
        "wide",
        "",
    ),
    "trigger": TagField("Trigger word", "Written before all tags, including existing ones.", "text", ""),
    "existing": TagField(
        "Existing captions",
        "Keep: only images without a caption are tagged. Add: new tags are appended. Replace: old captions are "
        "overwritten. Undo restores them.",
        "choice",
        EXISTING[0],
        choices=(("skip", "keep"), ("append", "add to them"), ("replace", "replace")),
    ),
    "blanks": TagField("Underscores to spaces", "long_hair becomes long hair; ^_^ stays.", "checkbox", True),
    "escape": TagField(
        "Escape brackets",
        r"saber (fate) becomes saber \(fate\). Only needed with weighted_captions, where brackets are weights.",
        "checkbox",
        False,
    ),
}
