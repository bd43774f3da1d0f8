"""Tag completion: tags of the folder that the page shows first, then those of a list that the user supplies."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lib_lora_train.core.errors import DataError
from lib_lora_train.core.tag_patterns import normalise_tag
from lib_lora_train.core.wording import count
from lib_lora_train.dataset_tools.caption_edits import underscores_to_spaces
from lib_lora_train.dataset_tools.caption_files import CaptionSet, count_tags
from lib_lora_train.dataset_tools.tag_vocabulary import Completion, KnownTag, TagList, load_tag_list
from lib_lora_train.web.caption_folders import CaptionFolders, named_folder
from lib_lora_train.web.json_values import optional_path

_SHOWN = 8


class TagCompleter:
    """Completes tags on the server."""

    def __init__(self, folders: CaptionFolders) -> None:
        self._folders = folders
        self._own: tuple[CaptionSet, TagList] | None = None
        self._list: tuple[tuple[Path, int], TagList] | None = None
        self._lock = threading.Lock()

    def actions(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        """The actions that the page can request, by name."""
        return {"tag-list": self.load_list, "complete-tag": self.complete}

    def load_list(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Load the list ahead of the first completion; the number of its tags."""
        found = self._tag_list(values)
        if found is None:
            return {"message": ""}
        return {"message": f"{count(len(found), 'tag')}, {count(found.alias_count, 'alias', 'aliases')}"}

    def complete(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Some tags that begin with `typed`: {tag, count, alias, own}. An unreadable list contributes none."""
        typed = str(values.get("typed", ""))
        try:
            known = self._tag_list(values)
        except DataError:
            known = None
        own = self._folder_tags(values)
        found = [_suggestion(one, is_own=True) for one in (own.complete_prefix(typed, _SHOWN) if own else ())]
        seen = {normalise_tag(one["tag"]) for one in found}
        if known is not None:
            spelling = (lambda name: name) if "_" in typed else underscores_to_spaces()
            more = known.complete_prefix(typed, 2 * _SHOWN)
            found += [
                _suggestion(one, spelling(one.tag.name)) for one in more if normalise_tag(one.tag.name) not in seen
            ]
        return {"found": [one for one in found if one["tag"] != typed.strip()][:_SHOWN]}

    def _folder_tags(self, values: Mapping[str, Any]) -> TagList | None:
        """The tags of the folder that the request names, None without a readable one."""
        try:
            captions = self._folders.recent(named_folder(values))
        except DataError:
            return None
        with self._lock:
            if self._own is None or self._own[0] is not captions:
                self._own = captions, TagList(_counted(captions))
            return self._own[1]

    def _tag_list(self, values: Mapping[str, Any]) -> TagList | None:
        """The list that the page names, reloaded only when the file changes; DataError if it is unreadable."""
        file = optional_path(values, "list")
        if file is None:
            return None
        with self._lock:
            state = (file, file.stat().st_mtime_ns if file.is_file() else 0)
            if self._list is None or self._list[0] != state:
                self._list = state, load_tag_list(file)
            return self._list[1]


def _counted(captions: CaptionSet) -> Iterator[tuple[KnownTag, tuple[str, ...]]]:
    for tag, number in count_tags(captions):
        yield KnownTag(tag, number), ()


def _suggestion(found: Completion, spelling: str = "", *, is_own: bool = False) -> dict[str, Any]:
    return {"tag": spelling or found.tag.name, "count": found.tag.count, "alias": found.alias, "own": is_own}
