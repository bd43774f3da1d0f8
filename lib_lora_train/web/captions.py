"""The Captions panel's side of the server: one folder's captions, filtered, paged, edited in bulk and undone.

No gradio here; every public method answers one button of the page with plain values.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import DataError
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.dataset.captions import split_tags
from lib_lora_train.dataset_tools.caption_files import (
    CaptionFilter,
    CaptionSet,
    Change,
    EditPlan,
    list_backups,
    load_captions,
    filter_captions,
    plan_edit,
    count_tags,
    write_plan,
    write_undo,
)
from lib_lora_train.dataset_tools.tag_advice import Advice, find_advice, group_advice, find_tags_to_prune
from lib_lora_train.web.caption_edits import make_edit
from lib_lora_train.web.image_tokens import ImageTokens
from lib_lora_train.web.markup import count
from lib_lora_train.web.token_analysis import TokenAnalysis

PER_PAGE = 48
_TAGS_SHOWN = 200
_TOPICS_SHOWN = 40
_CAPTIONS_SHOWN = 60
_EXAMPLES = 3


class CaptionSession:
    """One data folder at a time. `config` gives the form's settings as they were last kept."""

    def __init__(self, image_tokens: ImageTokens, words: TokenAnalysis, config: Callable[[], TrainConfig]) -> None:
        self._image_tokens = image_tokens
        self._words = words
        self._config = config
        self._captions: CaptionSet | None = None
        self._lock = threading.Lock()

    def actions(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        """The actions that the page can request, by name."""
        return {
            "captions-folders": self.folders,
            "captions-open": self.open,
            "captions-show": self.show,
            "captions-save": self.save,
            "captions-preview": self.preview,
            "captions-apply": self.apply,
            "captions-undo": self.undo,
            "captions-advice": self.advice,
            "captions-words": self.words,
        }

    # --- looking -------------------------------------------------------------------------------
    def folders(self, _values: Mapping[str, Any]) -> dict[str, Any]:
        """The concepts' folders to choose from, with the words that their edits begin with."""
        concepts = [concept for concept in self._config().concepts if concept.folder]
        return {
            "folders": [
                {"folder": concept.folder, "trigger": concept.trigger, "class_word": concept.class_word}
                for concept in concepts
            ]
        }

    def open(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Read a folder's captions, and show the first page."""
        folder = str(values.get("folder", "")).strip()
        if not folder:
            raise DataError("No folder is given. Name one in the Dataset panel.")
        loaded = load_captions(user_path(folder), self._config().caption_extension)
        if not loaded.captions:
            raise DataError(f"{folder} holds no images. Choose another folder.")
        self._captions = loaded
        return self.show({})

    def show(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """One page of the captions that pass the filter, and how often each tag stands in them.

        `tokens` are None while the tokenizer is being loaded: the page asks again a little later.
        """
        captions = self._require_open()
        numbers = self._filtered(captions, values)
        pages = max(1, math.ceil(len(numbers) / PER_PAGE))
        page = min(max(0, int(values.get("page", 0))), pages - 1)
        return {
            "folder": str(captions.folder),
            "total": len(captions),
            "found": len(numbers),
            "page": page,
            "pages": pages,
            "images": self._images(captions, numbers[page * PER_PAGE : (page + 1) * PER_PAGE]),
            "tags": count_tags(captions, numbers)[:_TAGS_SHOWN],
            "undo": len(list_backups(captions.folder)),
        }

    def _images(self, captions: CaptionSet, numbers: Sequence[int]) -> list[dict[str, Any]]:
        shown = [captions.captions[number] for number in numbers]
        tokens = self._image_tokens.publish(caption.image for caption in shown)
        counts: Sequence[int | None] | None = self._words.count_if_loaded([caption.text for caption in shown])
        return [
            {"number": number, "token": token, "name": caption.image.name, "text": caption.text, "tokens": count}
            for number, token, caption, count in zip(numbers, tokens, shown, counts or [None] * len(shown), strict=True)
        ]

    def opened(self) -> CaptionSet | None:
        """The captions that are open, None before any are."""
        return self._captions

    def _require_open(self) -> CaptionSet:
        if self._captions is None:
            raise DataError("Open a folder first.")
        return self._captions

    def _filtered(self, captions: CaptionSet, values: Mapping[str, Any]) -> tuple[int, ...]:
        return filter_captions(captions, read_filter(values.get("filter") or {}), self._words.count)

    # --- editing -------------------------------------------------------------------------------
    def save(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Write one caption as it was typed."""
        text = str(values["text"]).replace("\r", "").strip()
        number = int(values["number"])
        with self._lock:
            captions = self._require_open()
            if not 0 <= number < len(captions):
                raise DataError("This image is not shown any more. Open the folder again.")
            before = captions.captions[number].text
            changes = (Change(number, before, text),) if text != before else ()
            self._captions, _ = write_plan(EditPlan(captions, changes, 1))
        return {"tokens": self._words.count([text])[0], "undo": len(list_backups(captions.folder))}

    def preview(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """How many captions an edit would touch, and the first of them before and after."""
        plan = self._planned(values)
        examples = [{"before": c.before, "after": c.after} for c in plan.changes[:_EXAMPLES]]
        return {"told": str(plan), "touched": len(plan.changes), "examples": examples}

    def apply(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Do an edit, with a backup; the page afterwards, and what was done."""
        with self._lock:
            plan = self._planned(values)
            self._captions, _ = write_plan(plan)
        return {**self.show(values), "told": f"{len(plan.changes)} of {plan.asked} captions were changed."}

    def undo(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Take the latest edit back; the page afterwards."""
        with self._lock:
            captions = self._require_open()
            kept = list_backups(captions.folder)
            if not kept:
                raise DataError("There is nothing to undo.")
            number = write_undo(kept[0])
            self._captions = load_captions(captions.folder, self._config().caption_extension)
        were = "is as it was" if number == 1 else "are as they were"
        return {**self.show(values), "told": f"{count(number, 'caption')} {were} before the last edit."}

    def _planned(self, values: Mapping[str, Any]) -> EditPlan:
        captions = self._require_open()
        edit = make_edit(str(values.get("edit", "")), [str(text) for text in values.get("texts", ())])
        return plan_edit(captions, edit, self._numbers_in_scope(captions, values))

    def _numbers_in_scope(self, captions: CaptionSet, values: Mapping[str, Any]) -> Iterable[int]:
        """All captions, those that pass the filter, or those that are selected."""
        scope = values.get("scope", "all")
        if scope == "filtered":
            return self._filtered(captions, values)
        if scope == "selected":
            return sorted({int(n) for n in values.get("selected", ()) if 0 <= int(n) < len(captions)})
        return range(len(captions))

    # --- for the taggers -----------------------------------------------------------------------
    def chosen(self, values: Mapping[str, Any]) -> tuple[CaptionSet, list[int]]:
        """The opened captions, and the numbers of those that `scope` means, as for an edit."""
        captions = self._require_open()
        return captions, list(self._numbers_in_scope(captions, values))

    def rewrite(self, folder: Path, make_plan: Callable[[CaptionSet], EditPlan]) -> EditPlan:
        """Write what `make_plan` makes of the folder's captions as they are on the disk now; the plan that was done."""
        with self._lock:
            plan = make_plan(load_captions(folder, self._config().caption_extension))
            written, _ = write_plan(plan)
            if self._captions is not None and self._captions.folder == folder:
                self._captions = written
        return plan

    # --- advice --------------------------------------------------------------------------------
    def advice(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Tags that steal from the trigger, and what stands out in captions, by topic."""
        captions = self._require_open()
        trigger = str(values.get("trigger", ""))
        groups = group_advice(find_advice(captions))
        return {
            "prune": [{"tag": thief.tag, "share": thief.share} for thief in find_tags_to_prune(captions, trigger)],
            "advice": [_topic_summary(captions, group) for group in groups[:_TOPICS_SHOWN]],
            "more": max(0, len(groups) - _TOPICS_SHOWN),
        }

    def words(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """How many captions fit in 75, 150 and 225 tokens; the triggers' tokens; rare words for new triggers."""
        captions = self._captions.captions if self._captions else ()
        counts = self._words.count([caption.text for caption in captions])
        triggers = [concept.trigger for concept in self._config().concepts if concept.trigger]
        extra = [word for word in split_tags(str(values.get("words", ""))) if word not in triggers]
        used = {word.lower() for caption in captions for word in caption.text.replace(",", " ").split()}
        return {
            "lengths": _lengths(counts),
            "triggers": [{"word": word, "tokens": self._words.tokenize(word)} for word in (*triggers, *extra)],
            "shared": self._words.shared_tokens((*triggers, *extra)),
            "rare": self._words.rare_words(used),
        }


def _topic_summary(captions: CaptionSet, group: Sequence[Advice]) -> dict[str, Any]:
    """A topic, the numbers of all captions that it is about, and the first of these by name."""
    numbers = list(dict.fromkeys(one.number for one in group))
    topic = group[0].topic
    shown = [
        {"name": captions.captions[one.number].image.name, "detail": one.detail} for one in group[:_CAPTIONS_SHOWN]
    ]
    told = f"{count(len(numbers), 'caption')}: {topic.title}"
    return {"told": told, "why": topic.why, "numbers": numbers, "captions": shown}


def _lengths(counts: Sequence[int]) -> list[dict[str, Any]]:
    limits = ((0, 75), (76, 150), (151, 225), (226, 10**6))
    return [
        {"from": low, "to": high, "captions": sum(low <= count <= high for count in counts)} for low, high in limits
    ]


def read_filter(values: Mapping[str, Any]) -> CaptionFilter:
    """The filter that the page's boxes describe; tags are separated by commas, a missing token limit is open."""
    low, high = (str(values.get(name) or "").strip() for name in ("fewest", "most"))
    if not all(text == "" or text.isdigit() for text in (low, high)):
        raise DataError("The token limits must be whole numbers, or empty.")
    return CaptionFilter(
        all_of=tuple(split_tags(str(values.get("all_of") or ""))),
        any_of=tuple(split_tags(str(values.get("any_of") or ""))),
        none_of=tuple(split_tags(str(values.get("none_of") or ""))),
        text=str(values.get("text") or "").strip(),
        untagged=bool(values.get("untagged")),
        tokens=(int(low or 0), int(high or 10**9)) if low or high else None,
    )
