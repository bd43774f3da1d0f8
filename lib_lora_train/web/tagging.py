"""The Captions panel's *Auto-tag*: which taggers there are, what an order would touch, how far it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib_lora_train.core.errors import DataError
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.dataset.captions import split_tags
from lib_lora_train.dataset_tools.auto_tagger import WD14, AutoTagger, TaggerHost, TaggingRequest
from lib_lora_train.dataset_tools.tagger import EXISTING, TaggerResult, TagRule, plan_tags, numbers_to_tag
from lib_lora_train.web.captions import CaptionSession
from lib_lora_train.web.markup import count

TAGGERS: Mapping[str, str] = {
    "DeepBooru": "The webui's own: danbooru tags with scores. It waits for your generations and goes on after them.",
    "BLIP": "The webui's own: one sentence. Its lengths and beams are those of the webui's Interrogate settings.",
    WD14: "A WD14 model of yours: newer danbooru tags, characters apart. Needs the package onnxruntime.",
}


@dataclass(frozen=True)
class TagField:
    """One option of an order; `only` names the taggers that it is for, () for all."""

    label: str
    help: str
    kind: str
    start: str | bool
    only: tuple[str, ...] = ()
    choices: tuple[tuple[str, str], ...] = ()


FIELDS: Mapping[str, TagField] = {
    "model": TagField(
        "Model folder", "A folder with model.onnx and selected_tags.csv, as WD14 taggers come.", "wide", "", (WD14,)
    ),
    "general": TagField(
        "Threshold",
        "Tags below this score are left out. 0.35 is usual; lower gives more tags and more wrong ones.",
        "number",
        "0.35",
        ("DeepBooru", WD14),
    ),
    "character": TagField(
        "Threshold for characters",
        "The same for names of characters, which are wrong more often: 0.85 is usual. 1 leaves all out.",
        "number",
        "0.85",
        (WD14,),
    ),
    "exclude": TagField(
        "Leave out",
        "Tags that are never written, separated by commas; * stands for any letters. What belongs to the concept "
        "itself is best left out, so that the trigger learns it.",
        "wide",
        "",
    ),
    "trigger": TagField("Trigger in front", "Put before the tags, also before those that are there.", "text", ""),
    "existing": TagField(
        "Captions that are there",
        "Leave them: only images without a caption are tagged. Add: new tags go behind. Replace: they are gone, "
        "until you undo it.",
        "choice",
        EXISTING[0],
        choices=(("skip", "leave them"), ("append", "add to them"), ("replace", "replace them")),
    ),
    "blanks": TagField("Underscores to spaces", "long_hair becomes long hair; ^_^ stays.", "tick", True),
    "escape": TagField(
        "Escape brackets",
        r"saber (fate) becomes saber \(fate\). Only for weighted_captions, where brackets are weights.",
        "tick",
        False,
    ),
}


class TaggingSession:
    """Answers the page's buttons; one set of images is tagged at a time."""

    def __init__(self, host: TaggerHost, captions: CaptionSession) -> None:
        self._captions = captions
        self.tagger = AutoTagger(host, self._write)

    def actions(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        """The actions that the page can request, by name."""
        return {
            "tagging-options": self.offer,
            "tagging-preview": self.preview,
            "tagging-start": self.start,
            "tagging-stop": self.stop,
            "tagging-status": self.status,
        }

    def offer(self, _values: Mapping[str, Any]) -> dict[str, Any]:
        """The taggers that can be used here, and how far one is that is at work."""
        names = self.tagger.names()
        note = "" if len(names) > 1 else "DeepBooru and BLIP belong to webuis; here a WD14 model of yours does it."
        return {
            "taggers": [{"name": name, "help": TAGGERS[name]} for name in names],
            "note": note,
            "status": self.tagger.status(),
        }

    def preview(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """How many images an order would tag."""
        order, asked = self._order(values)
        number, left = len(order.images), asked - len(order.images)
        told = f"{number:,} of {asked:,} images would be tagged"
        more = {
            "skip": f"; {left:,} {'has a caption and stays as it is' if left == 1 else 'have captions and stay'}",
            "append": "; tags are added to captions that are there",
            "replace": "; captions that are there are replaced",
        }
        return {"told": f"{told}{more[order.existing] if left or order.existing != 'skip' else ''}.", "touched": number}

    def start(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Begin; the status."""
        self.tagger.start(self._order(values)[0])
        return self.tagger.status()

    def stop(self, _values: Mapping[str, Any]) -> dict[str, Any]:
        """End after the present image; the status."""
        self.tagger.stop()
        return self.tagger.status()

    def status(self, _values: Mapping[str, Any]) -> dict[str, Any]:
        """How far it is."""
        return self.tagger.status()

    def _order(self, values: Mapping[str, Any]) -> tuple[TaggingRequest, int]:
        """What is asked for, and how many images are meant before those with captions are left out."""
        captions, numbers = self._captions.chosen(values)
        existing = next((one for one in EXISTING if one == values.get("existing")), None)
        if existing is None or values.get("tagger") not in TAGGERS:
            raise DataError("The page is older than the server. Reload it.")
        wanted = numbers_to_tag(captions, numbers, existing)
        model = str(values.get("model") or "").strip().strip("\"'")
        order = TaggingRequest(
            folder=captions.folder,
            images=tuple(captions.captions[number].image for number in wanted),
            tagger=str(values["tagger"]),
            model=user_path(model) if model else None,
            rule=read_rule(values),
            existing=existing,
        )
        return order, len(numbers)

    def _write(self, order: TaggingRequest, found: Mapping[Path, TaggerResult]) -> str:
        """The captions as they are by now are what is added to; one edit, that Undo takes back."""
        plan = self._captions.rewrite(
            order.folder, lambda captions: plan_tags(captions, found, order.rule, order.existing)
        )
        changed = len(plan.changes)
        told = f"{count(changed, 'caption')} {'was' if changed == 1 else 'were'} written"
        same = len(found) - changed
        return f"{told}; {same:,} of {len(found):,} need no change." if same else f"{told}."


def read_rule(values: Mapping[str, Any]) -> TagRule:
    """The rule that the page's boxes describe; DataError for a threshold that is none."""
    return TagRule(
        general_threshold=_threshold(values, "general"),
        character_threshold=_threshold(values, "character"),
        exclude=tuple(split_tags(str(values.get("exclude") or ""))),
        underscores_to_spaces=bool(values.get("blanks", FIELDS["blanks"].start)),
        escape_brackets=bool(values.get("escape", FIELDS["escape"].start)),
        trigger=str(values.get("trigger") or "").strip(),
    )


def _threshold(values: Mapping[str, Any], name: str) -> float:
    text = str(values.get(name) or FIELDS[name].start).strip().replace(",", ".")
    try:
        threshold = float(text)
    except ValueError:
        threshold = -1.0
    if not 0 <= threshold <= 1:
        field = FIELDS[name]
        raise DataError(f"{field.label}: {text!r} is no score. Give a number from 0 to 1; {field.start} is usual.")
    return threshold
