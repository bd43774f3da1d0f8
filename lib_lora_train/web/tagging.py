"""Auto-tag in the Captions panel: the taggers and their options, a preview, and progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib_lora_train.core.errors import DataError
from lib_lora_train.core.wording import count
from lib_lora_train.dataset.captions import split_tags
from lib_lora_train.dataset_tools.auto_tagger import AutoTagger, TaggerHost, TaggingRequest
from lib_lora_train.dataset_tools.caption_files import (
    Caption,
    CaptionSet,
    EditPlan,
    caption_journal,
    describe_left_out,
)
from lib_lora_train.dataset_tools.journal import Journal
from lib_lora_train.dataset_tools.tagger import TaggerResult, TagRule, numbers_to_tag, plan_tags
from lib_lora_train.dataset_tools.tagger_names import EXISTING
from lib_lora_train.web.captions import CaptionSession
from lib_lora_train.web.json_values import optional_path
from lib_lora_train.web.tagging_options import FIELDS, TAGGERS


@dataclass
class _Written:
    """What was written for a request so far, as one edit unless the user edited the folder in between."""

    request: TaggingRequest
    journal: Journal
    files: set[Path] = field(default_factory=set)
    left_out: list[Caption] = field(default_factory=list)
    tagged: int = 0
    changed: int = 0

    def add(self, plan: EditPlan) -> None:
        """Count a plan that was written."""
        self.files |= {caption.file for caption in plan.captions.captions}
        self.left_out += [plan.captions.captions[number] for number in plan.left_out]
        self.tagged += plan.considered
        self.changed += len(plan.changes)

    def __str__(self) -> str:
        unchanged = self.tagged - self.changed - len(self.left_out)
        note = f"; {unchanged:,} of {self.tagged:,} needed no change" if unchanged else ""
        left_out = CaptionSet(self.request.folder, tuple(self.left_out))
        named = describe_left_out(left_out, range(len(left_out)))
        return f"{count(self.changed, 'caption')} written{note}. {named}".strip()


class TaggingSession:
    """Runs a tagger on images of the folder that the request names, one request at a time."""

    def __init__(self, host: TaggerHost, captions: CaptionSession) -> None:
        self._captions = captions
        self.tagger = AutoTagger(host, self._write)
        self._written: _Written | None = None

    def actions(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        """The actions that the page can request, by name."""
        return {
            "tagging-options": self.options,
            "tagging-preview": self.preview,
            "tagging-start": self.start,
            "tagging-stop": self.stop,
            "tagging-status": self.status,
        }

    def options(self, _values: Mapping[str, Any]) -> dict[str, Any]:
        """The taggers that are available, and the progress of a running one."""
        names = self.tagger.tagger_names()
        return {
            "taggers": [{"name": name, "help": TAGGERS[name]} for name in names],
            "note": self.tagger.missing,
            "status": self.tagger.status(),
        }

    def preview(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """How many images a request would tag."""
        request, selected, left_out = self._request(values)
        number = len(request.images)
        skipped = selected - number  # with "skip" nothing is left out for its encoding
        notes = {
            "skip": f"; {count(skipped, 'already has a caption', 'already have captions')}" if skipped else "",
            "append": "; tags are appended to existing captions",
            "replace": "; existing captions are overwritten",
        }
        message = f"{number:,} of {count(selected, 'image')} would be tagged{notes[request.existing]}. {left_out}"
        return {"message": message.strip(), "number": number}

    def start(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Start tagging; the status."""
        request, _, left_out = self._request(values)
        if left_out and not request.images:
            raise DataError(left_out)
        self.tagger.start(request)
        return self.tagger.status()

    def stop(self, _values: Mapping[str, Any]) -> dict[str, Any]:
        """Stop after the current image; the status."""
        self.tagger.stop()
        return self.tagger.status()

    def status(self, _values: Mapping[str, Any]) -> dict[str, Any]:
        """The progress of the tagger."""
        return self.tagger.status()

    def _request(self, values: Mapping[str, Any]) -> tuple[TaggingRequest, int, str]:
        """The request, the number of selected images including those it skips, and a sentence on those left out."""
        captions, numbers = self._captions.selection(values)
        existing = next((one for one in EXISTING if one == values.get("existing")), None)
        if existing is None or values.get("tagger") not in TAGGERS:
            raise DataError("This page is out of date. Reload it.")
        to_tag = numbers_to_tag(captions, numbers, existing)
        request = TaggingRequest(
            folder=captions.folder,
            images=tuple(one.image for one in (captions.captions[number] for number in to_tag) if one.is_certain),
            tagger=str(values["tagger"]),
            model=optional_path(values, "model"),
            rule=read_rule(values),
            existing=existing,
        )
        left_out = [number for number in to_tag if not captions.captions[number].is_certain]
        return request, len(numbers), describe_left_out(captions, left_out)

    def _write(self, request: TaggingRequest, found: Mapping[Path, TaggerResult]) -> str:
        """Write the captions of these images, as they are on disk now, as part of the request's one edit; a message."""
        if self._written is None or self._written.request is not request:
            self._written = _Written(request, caption_journal(request.folder))
        written = self._written
        written.journal = written.journal.continued()
        plan = self._captions.rewrite(
            request.folder,
            found.keys(),
            lambda captions, lines: plan_tags(
                captions, found, request.rule, request.existing, lines=lines, done=written.files
            ),
            written.journal,
        )
        written.add(plan)
        return str(written)


def read_rule(values: Mapping[str, Any]) -> TagRule:
    """The rule that the options on the page describe; DataError for an invalid threshold."""
    return TagRule(
        general_threshold=_threshold(values, "general"),
        character_threshold=_threshold(values, "character"),
        exclude=tuple(split_tags(str(values.get("exclude") or ""))),
        underscores_to_spaces=bool(values.get("blanks", FIELDS["blanks"].default)),
        escape_brackets=bool(values.get("escape", FIELDS["escape"].default)),
        trigger=str(values.get("trigger") or "").strip(),
    )


def _threshold(values: Mapping[str, Any], name: str) -> float:
    text = str(values.get(name) or FIELDS[name].default).strip().replace(",", ".")
    try:
        threshold = float(text)
    except ValueError:
        threshold = -1.0
    if not 0 <= threshold <= 1:
        field = FIELDS[name]
        raise DataError(
            f"{field.label}: {text!r} is not a valid score. Enter a number from 0 to 1; {field.default} is typical."
        )
    return threshold
