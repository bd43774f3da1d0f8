"""The Captions panel: the captions of one folder, filtered, in pages, edited in bulk, with undo."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import DataError
from lib_lora_train.core.wording import count
from lib_lora_train.dataset.captions import split_tags
from lib_lora_train.dataset_tools.caption_files import (
    CaptionFilter,
    CaptionSet,
    Change,
    EditPlan,
    count_tags,
    filter_captions,
    list_backups,
    plan_edit,
    write_plan,
    write_undo,
)
from lib_lora_train.dataset_tools.journal import Journal
from lib_lora_train.dataset_tools.tag_advice import Advice, find_advice, find_tags_to_prune, group_advice
from lib_lora_train.dataset_tools.tag_vocabulary import load_implications
from lib_lora_train.web.caption_edits import make_edit
from lib_lora_train.web.caption_folders import CaptionFolders, named_folder
from lib_lora_train.web.gallery import paginate
from lib_lora_train.web.image_tokens import ImageTokens
from lib_lora_train.web.json_values import optional_path
from lib_lora_train.web.token_analysis import NOT_COUNTED, TokenAnalysis

_TAGS_SHOWN = 200
_TOPICS_SHOWN = 40
_CAPTIONS_SHOWN = 60
_EXAMPLES = 3
_ONE_LIMIT = "Rare words are known for CLIP's vocabulary only. Here any word works that the model does not know yet."


class CaptionSession:
    """Shows and edits captions. `config` returns the settings of the saved draft.

    Every request names its folder, its images by their path in it, and what the page last saw: another page, or
    another program, may have changed the files since.
    """

    def __init__(self, image_tokens: ImageTokens, words: TokenAnalysis, config: Callable[[], TrainConfig]) -> None:
        self._image_tokens = image_tokens
        self._words = words
        self._config = config
        self.folders = CaptionFolders(lambda: self._config().caption_extension)
        """The captions by folder."""
        self._lock = threading.Lock()

    def actions(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        """The actions that the page can request, by name."""
        return {
            "captions-folders": self.list_folders,
            "captions-open": self.open,
            "captions-show": self.show,
            "captions-read": self.read,
            "captions-save": self.save,
            "captions-preview": self.preview,
            "captions-apply": self.apply,
            "captions-undo": self.undo,
            "captions-advice": self.advice,
            "captions-words": self.words,
        }

    # --- browsing ------------------------------------------------------------------------------
    def list_folders(self, _values: Mapping[str, Any]) -> dict[str, Any]:
        """The folders of the concepts, with their trigger and class word."""
        concepts = [concept for concept in self._config().concepts if concept.folder]
        return {
            "folders": [
                {"folder": concept.folder, "trigger": concept.trigger, "class_word": concept.class_word}
                for concept in concepts
            ]
        }

    def open(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The first page of the captions of a folder; DataError if it has no images."""
        if not str(values.get("folder") or "").strip():
            raise DataError("No folder given. Enter one, or add a concept in the Dataset panel.")
        if not self._load(values).captions:
            raise DataError(f"{named_folder(values)} contains no images. Choose another folder.")
        return self.show({"folder": values["folder"]})

    def show(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """One page of the captions that match the filter, and the frequency of each tag in them.

        `tokens` are None while the tokenizer is loading; the page requests them again.
        """
        captions = self._load(values)
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
            "limits": self._words.limits,
            "note": self._words.note,
            **_undo_state(captions.folder),
        }

    def _images(self, captions: CaptionSet, numbers: Sequence[int]) -> list[dict[str, Any]]:
        shown = [captions.captions[number] for number in numbers]
        tokens = self._image_tokens.publish(caption.image for caption in shown)
        counts: Sequence[int | None] | None = self._words.count_if_loaded([caption.text for caption in shown])
        return [
            {
                "image": captions.names[number],
                "token": token,
                "name": caption.image.name,
                "text": caption.text,
                "seen": _digest(caption.text),
                "certain": caption.is_certain,
                "tokens": count,
            }
            for number, token, caption, count in zip(numbers, tokens, shown, counts or [None] * len(shown), strict=True)
        ]

    def _load(self, values: Mapping[str, Any]) -> CaptionSet:
        """The captions of the folder that the request names, as they are on disk now."""
        return self.folders.load(named_folder(values))

    def _filtered(self, captions: CaptionSet, values: Mapping[str, Any]) -> tuple[int, ...]:
        return filter_captions(captions, read_filter(values.get("filter") or {}), self._words.count)

    # --- editing -------------------------------------------------------------------------------
    def read(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The caption of one image as it is on disk now, and what to send as seen to save another one."""
        captions = self._load(values)
        text = captions.captions[_number_of(captions, values)].text
        return {"text": text, "seen": _digest(text)}

    def save(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Write one caption as typed; DataError if it is no longer the one that the page has seen."""
        text = str(values["text"]).replace("\r", "").strip()
        with self._lock:
            captions = self._load(values)
            number = _number_of(captions, values)
            before = captions.captions[number].text
            if _digest(before) != values["seen"]:
                raise DataError(
                    f"The caption of {captions.names[number]} has changed since it was shown, so yours was not saved."
                )
            changes = (Change(number, before, text),) if text != before else ()
            self._write(EditPlan(captions, changes, 1))
        tokens = NOT_COUNTED if self._words.note else self._words.count([text])[0]
        return {"text": text, "seen": _digest(text), "tokens": tokens, **_undo_state(captions.folder)}

    def preview(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """How many captions an edit would change, some of them before and after, and what to send to apply it."""
        plan = self._plan_edit(values)
        examples = [{"before": c.before, "after": c.after} for c in plan.changes[:_EXAMPLES]]
        return {"message": str(plan), "number": len(plan.changes), "examples": examples, "seen": _digest_plan(plan)}

    def apply(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Apply an edit, with a backup; the page after it, and a message. DataError if it is not what was previewed."""
        with self._lock:
            plan = self._plan_edit(values)
            if _digest_plan(plan) != values["seen"]:
                raise DataError(
                    f"The captions in {plan.captions.folder} have changed since the preview, so nothing was written. "
                    "Check the preview, then press Apply again."
                )
            self._write(plan)
        message = f"{len(plan.changes)} of {count(plan.considered, 'caption')} changed. {plan.note}".strip()
        return {**self.show(values), "message": message}

    def undo(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Undo the latest edit of the folder; the page after it, and a message. DataError if another one is named."""
        folder, record = named_folder(values), str(values["record"])
        with self._lock:
            undoable = list_backups(folder)
            if not undoable:
                raise DataError(f"There is nothing to undo in {folder}.")
            if record != undoable[0].name:
                raise DataError(
                    f"The captions in {folder} were edited again in the meantime, so nothing was undone. "
                    "Undo now reverts that edit."
                )
            try:
                number = write_undo(undoable[0])
            finally:
                self.folders.forget(folder)
        return {**self.show(values), "message": f"Last edit undone: {count(number, 'caption')} restored."}

    def _write(self, plan: EditPlan, journal: Journal | None = None) -> None:
        try:
            write_plan(plan, journal)
        finally:
            self.folders.forget(plan.captions.folder)

    def _plan_edit(self, values: Mapping[str, Any]) -> EditPlan:
        captions, numbers = self.selection(values)
        edit = make_edit(str(values.get("edit", "")), [str(text) for text in values.get("texts", ())])
        return plan_edit(captions, edit, numbers, lines=self._config().caption_lines)

    # --- also for Auto-tag ---------------------------------------------------------------------
    def selection(self, values: Mapping[str, Any]) -> tuple[CaptionSet, list[int]]:
        """The captions of the folder, and the numbers of those in `scope`: all, the filtered or the selected ones."""
        captions = self._load(values)
        scope = values.get("scope", "all")
        if scope == "filtered":
            return captions, list(self._filtered(captions, values))
        if scope == "selected":
            names = map(str, values.get("selected", ()))
            return captions, sorted({captions.numbers[name] for name in names if name in captions.numbers})
        return captions, list(range(len(captions)))

    def rewrite(
        self, folder: Path, images: Collection[Path], make_plan: Callable[[CaptionSet, str], EditPlan], journal: Journal
    ) -> EditPlan:
        """Apply the plan made from the captions of these images on disk now and the setting `caption_lines`.

        Returns the plan. Plans with the same journal are undone together.
        """
        with self._lock:
            plan = make_plan(self.folders.load_some(folder, images), self._config().caption_lines)
            self._write(plan, journal)
        return plan

    # --- advice --------------------------------------------------------------------------------
    def advice(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Tags that compete with the trigger word, and other advice, by topic."""
        captions = self._load(values)
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
        captions = self._load(values).captions if values.get("folder") else ()
        note = self._words.note
        if note:
            return {"lengths": [], "triggers": [], "shared": [], "rare": [], "note": note}
        counts, limits = self._words.count([caption.text for caption in captions]), self._words.limits
        triggers = [concept.trigger for concept in self._config().concepts if concept.trigger]
        extra = [word for word in split_tags(str(values.get("words", ""))) if word not in triggers]
        used = {word.lower() for caption in captions for word in caption.text.replace(",", " ").split()}
        return {
            "lengths": _lengths(counts, limits),
            "triggers": [{"word": word, "tokens": self._words.tokenize(word)} for word in (*triggers, *extra)],
            "shared": self._words.shared_tokens((*triggers, *extra)),
            "rare": self._words.rare_words(used),
            "note": "" if len(limits) > 1 else _ONE_LIMIT,
        }


def _number_of(captions: CaptionSet, values: Mapping[str, Any]) -> int:
    """The number of the image that the request names; DataError if it is gone."""
    name = str(values["image"])
    if name not in captions.numbers:
        raise DataError(f"{name} is no longer in {captions.folder}, so nothing was changed.")
    return captions.numbers[name]


def _undo_state(folder: Path) -> dict[str, Any]:
    """The number of edits that can be undone, and the record of the latest one, which a request to undo it names."""
    records = list_backups(folder)
    return {"undo": len(records), "record": records[0].name if records else ""}


def _digest(text: str) -> str:
    """A short text that differs for different texts."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _digest_plan(plan: EditPlan) -> str:
    """A short text that differs for edits that change different captions, or change them otherwise."""
    changes = [(plan.captions.names[change.number], change.before, change.after) for change in plan.changes]
    return _digest(json.dumps(changes))


def _topic_summary(captions: CaptionSet, group: Sequence[Advice]) -> dict[str, Any]:
    """A topic, the names of all its images, and the first of its captions."""
    images = list(dict.fromkeys(captions.names[one.number] for one in group))
    topic = group[0].topic
    shown = [
        {"name": captions.captions[one.number].image.name, "detail": one.detail} for one in group[:_CAPTIONS_SHOWN]
    ]
    title = f"{count(len(images), 'caption')}: {topic.title}"
    return {"title": title, "why": topic.why, "images": images, "captions": shown}


def _lengths(counts: Sequence[int], limits: Sequence[int]) -> list[dict[str, Any]]:
    """How many captions have a length up to each limit; those that are too long have no upper limit."""
    starts = (0, *(limit + 1 for limit in limits))
    return [
        {"from": low, "to": high, "captions": sum(low <= count and (high is None or count <= high) for count in counts)}
        for low, high in zip(starts, (*limits, None), strict=True)
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
