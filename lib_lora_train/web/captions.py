"""The Captions panel: the captions of one folder, filtered, in pages, edited in bulk, with undo."""

from __future__ import annotations

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
    count_tags,
    filter_captions,
    list_backups,
    load_captions,
    plan_edit,
    write_plan,
    write_undo,
)
from lib_lora_train.dataset_tools.tag_advice import Advice, find_advice, find_tags_to_prune, group_advice
from lib_lora_train.dataset_tools.tag_vocabulary import load_implications
from lib_lora_train.web.caption_edits import make_edit
from lib_lora_train.web.gallery import paginate
from lib_lora_train.web.image_tokens import ImageTokens
from lib_lora_train.web.json_values import optional_path
from lib_lora_train.web.markup import count
from lib_lora_train.web.token_analysis import TokenAnalysis

_TAGS_SHOWN = 200
_TOPICS_SHOWN = 40
_CAPTIONS_SHOWN = 60
_EXAMPLES = 3


class CaptionSession:
    """One open folder at a time. `config` returns the settings of the saved draft."""

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

    # --- browsing ------------------------------------------------------------------------------
    def folders(self, _values: Mapping[str, Any]) -> dict[str, Any]:
        """The folders of the concepts, with their trigger and class word."""
        concepts = [concept for concept in self._config().concepts if concept.folder]
        return {
            "folders": [
                {"folder": concept.folder, "trigger": concept.trigger, "class_word": concept.class_word}
                for concept in concepts
            ]
        }

    def open(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Load the captions of a folder; the first page."""
        folder = str(values.get("folder", "")).strip()
        if not folder:
            raise DataError("No folder given. Enter one, or add a concept in the Dataset panel.")
        loaded = load_captions(user_path(folder), self._config().caption_extension)
        if not loaded.captions:
            raise DataError(f"{folder} contains no images. Choose another folder.")
        self._captions = loaded
        return self.show({})

    def show(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """One page of the captions that match the filter, and the frequency of each tag in them.

        `tokens` are None while the tokenizer is loading; the page requests them again.
        """
        captions = self._require_open()
        numbers = self._filtered(captions, values)
        shown, page, pages = paginate(numbers, int(values.get("page", 0)))
        return {
            "folder": str(captions.folder),
            "total": len(captions),
            "found": len(numbers),
            "page": page,
            "pages": pages,
            "images": self._images(captions, shown),
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

    def open_captions(self) -> CaptionSet | None:
        """The captions of the open folder, None before one is opened."""
        return self._captions

    def _require_open(self) -> CaptionSet:
        if self._captions is None:
            raise DataError("Open a folder first.")
        return self._captions

    def _filtered(self, captions: CaptionSet, values: Mapping[str, Any]) -> tuple[int, ...]:
        return filter_captions(captions, read_filter(values.get("filter") or {}), self._words.count)

    # --- editing -------------------------------------------------------------------------------
    def save(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Write one caption as typed."""
        text = str(values["text"]).replace("\r", "").strip()
        number = int(values["number"])
        with self._lock:
            captions = self._require_open()
            if not 0 <= number < len(captions):
                raise DataError("This image is no longer available. Open the folder again.")
            before = captions.captions[number].text
            changes = (Change(number, before, text),) if text != before else ()
            self._captions, _ = write_plan(EditPlan(captions, changes, 1))
        return {"tokens": self._words.count([text])[0], "undo": len(list_backups(captions.folder))}

    def preview(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """How many captions an edit would change, and some of them before and after."""
        plan = self._plan_edit(values)
        examples = [{"before": c.before, "after": c.after} for c in plan.changes[:_EXAMPLES]]
        return {"message": str(plan), "number": len(plan.changes), "examples": examples}

    def apply(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Apply an edit, with a backup; the page after it, and a message."""
        with self._lock:
            plan = self._plan_edit(values)
            self._captions, _ = write_plan(plan)
        return {**self.show(values), "message": f"{len(plan.changes)} of {plan.considered} captions changed."}

    def undo(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Undo the latest edit; the page after it, and a message."""
        with self._lock:
            captions = self._require_open()
            undoable = list_backups(captions.folder)
            if not undoable:
                raise DataError("There is nothing to undo.")
            number = write_undo(undoable[0])
            self._captions = load_captions(captions.folder, self._config().caption_extension)
        return {**self.show(values), "message": f"Last edit undone: {count(number, 'caption')} restored."}

    def _plan_edit(self, values: Mapping[str, Any]) -> EditPlan:
        captions = self._require_open()
        edit = make_edit(str(values.get("edit", "")), [str(text) for text in values.get("texts", ())])
        return plan_edit(captions, edit, self._numbers_in_scope(captions, values))

    def _numbers_in_scope(self, captions: CaptionSet, values: Mapping[str, Any]) -> Iterable[int]:
        """All captions, those that match the filter, or the selected ones."""
        scope = values.get("scope", "all")
        if scope == "filtered":
            return self._filtered(captions, values)
        if scope == "selected":
            return sorted({int(n) for n in values.get("selected", ()) if 0 <= int(n) < len(captions)})
        return range(len(captions))

    # --- for Auto-tag --------------------------------------------------------------------------
    def selection(self, values: Mapping[str, Any]) -> tuple[CaptionSet, list[int]]:
        """The open captions, and the numbers of those in `scope`, as for an edit."""
        captions = self._require_open()
        return captions, list(self._numbers_in_scope(captions, values))

    def rewrite(self, folder: Path, make_plan: Callable[[CaptionSet], EditPlan]) -> EditPlan:
        """Apply the plan that `make_plan` makes from the captions on disk now; that plan."""
        with self._lock:
            plan = make_plan(load_captions(folder, self._config().caption_extension))
            written, _ = write_plan(plan)
            if self._captions is not None and self._captions.folder == folder:
                self._captions = written
        return plan

    # --- advice --------------------------------------------------------------------------------
    def advice(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Tags that compete with the trigger word, and other advice, by topic."""
        captions = self._require_open()
        trigger = str(values.get("trigger", ""))
        tag_list = optional_path(values, "list")
        groups = group_advice(find_advice(captions, load_implications(tag_list) if tag_list else {}))
        return {
            "prune": [
                {"tag": one.tag, "share": one.share, "text": str(one)} for one in find_tags_to_prune(captions, trigger)
            ],
            "advice": [_topic_summary(captions, group) for group in groups[:_TOPICS_SHOWN]],
            "more": max(0, len(groups) - _TOPICS_SHOWN),
        }

    def words(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Captions by length in tokens; the tokens of the trigger words; rare words for new ones."""
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
    """A topic, the numbers of all its captions, and the first of them by name."""
    numbers = list(dict.fromkeys(one.number for one in group))
    topic = group[0].topic
    shown = [
        {"name": captions.captions[one.number].image.name, "detail": one.detail} for one in group[:_CAPTIONS_SHOWN]
    ]
    title = f"{count(len(numbers), 'caption')}: {topic.title}"
    return {"title": title, "why": topic.why, "numbers": numbers, "captions": shown}


def _lengths(counts: Sequence[int]) -> list[dict[str, Any]]:
    limits = ((0, 75), (76, 150), (151, 225), (226, 10**6))
    return [
        {"from": low, "to": high, "captions": sum(low <= count <= high for count in counts)} for low, high in limits
    ]


def read_filter(values: Mapping[str, Any]) -> CaptionFilter:
    """The filter that the text boxes describe. Tags are separated by commas; an empty token limit means none."""
    low, high = (str(values.get(name) or "").strip() for name in ("fewest", "most"))
    if not all(text == "" or text.isdigit() for text in (low, high)):
        raise DataError("Token limits must be whole numbers or empty.")
    return CaptionFilter(
        all_of=tuple(split_tags(str(values.get("all_of") or ""))),
        any_of=tuple(split_tags(str(values.get("any_of") or ""))),
        none_of=tuple(split_tags(str(values.get("none_of") or ""))),
        text=str(values.get("text") or "").strip(),
        untagged=bool(values.get("untagged")),
        tokens=(int(low or 0), int(high or 10**9)) if low or high else None,
    )
