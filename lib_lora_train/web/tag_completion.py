"""What may be meant while a tag is typed: the folder's own tags, then those of a list that the user supplies."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lib_lora_train.core.errors import DataError
from lib_lora_train.core.user_paths import typed_path
from lib_lora_train.dataset_tools.caption_edits import underscores_to_blanks
from lib_lora_train.dataset_tools.caption_files import CaptionSet, tag_frequency
from lib_lora_train.dataset_tools.tag_vocabulary import Completion, KnownTag, TagList, load_tag_list, plain_tag
from lib_lora_train.web.markup import count

_SHOWN = 8


class Completer:
    """Answers while somebody types. `opened` gives the captions that are shown; nothing is searched in the page."""

    def __init__(self, opened: Callable[[], CaptionSet | None]) -> None:
        self._opened = opened
        self._own: tuple[CaptionSet, TagList] | None = None
        self._list: tuple[tuple[str, int], TagList] | None = None
        self._lock = threading.Lock()

    def asks(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        """What the page asks, by name."""
        return {"completing-list": self.use, "completing": self.complete}

    def use(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Read the list now, so that the first letter does not wait for it; how much is in it."""
        found = self._listed(values)
        if found is None:
            return {"told": ""}
        return {"told": f"{count(len(found), 'tag')}, {count(found.alias_count, 'alias', 'aliases')}"}

    def complete(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A few tags that begin as `typed`: {tag, count, alias, own}. A list that cannot be read gives none."""
        typed = str(values.get("typed", ""))
        try:
            known = self._listed(values)
        except DataError:
            known = None
        own = self._own_tags()
        found = [_shown(one, is_own=True) for one in (own.beginning_with(typed, _SHOWN) if own else ())]
        taken = {plain_tag(one["tag"]) for one in found}
        if known is not None:
            written = (lambda name: name) if "_" in typed else underscores_to_blanks()
            more = known.beginning_with(typed, 2 * _SHOWN)
            found += [_shown(one, written(one.tag.name)) for one in more if plain_tag(one.tag.name) not in taken]
        return {"found": [one for one in found if one["tag"] != typed.strip()][:_SHOWN]}

    def _own_tags(self) -> TagList | None:
        captions = self._opened()
        if captions is None:
            return None
        with self._lock:
            if self._own is None or self._own[0] is not captions:
                self._own = captions, TagList(_counted(captions))
            return self._own[1]

    def _listed(self, values: Mapping[str, Any]) -> TagList | None:
        """The list that the page names, read again only when the file changed; DataError when it cannot be read."""
        text = str(values.get("list") or "").strip().strip("\"'")
        if not text:
            return None
        file = typed_path(text)
        with self._lock:
            state = (text, file.stat().st_mtime_ns if file.is_file() else 0)
            if self._list is None or self._list[0] != state:
                self._list = state, load_tag_list(file)
            return self._list[1]


def _counted(captions: CaptionSet) -> Iterator[tuple[KnownTag, tuple[str, ...]]]:
    for tag, number in tag_frequency(captions):
        yield KnownTag(tag, number), ()


def _shown(found: Completion, written: str = "", *, is_own: bool = False) -> dict[str, Any]:
    return {"tag": written or found.tag.name, "count": found.tag.count, "alias": found.alias, "own": is_own}
