"""Replaces names and paths in texts by placeholders, so that a report can be published."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

_ENDING = (
    r"\.(?:png|jpe?g|webp|gif|bmp|tiff?|avif|jxl|heic|txt|caption|npz|safetensors|ckpt|pth?|bin|py|toml|jsonl?|csv|"
    r"ya?ml|zip|log|part)(?![^\W_])"
)
_PART = r"[^\\/\n:\"<>|]*"
_INNER = rf"(?:{_PART}[^\\/\s:\"<>|][\\/]+)*"
_REST = rf"(?:{_INNER}?{_PART}?{_ENDING}|{_INNER}[^\s\\/:\"'<>|,;()]+)"
_START = r"(?<![\w<>.\\/])(?:[A-Za-z]:|~)?[\\/]+(?![\\/\s])"
_QUOTED = r"(?P<quote>[\"'`])(?P<inside>(?:[A-Za-z]:|~)?[\\/](?:(?!(?P=quote))[^\n])+)(?P=quote)"
_FILE = rf"[^\s\\/\"'`<>]+{_ENDING}"
_CODE = re.compile(r"/(lib_lora_train/|(?:site|dist)-packages/|lib/python[\d.]+/)(?=.*\.py$)", re.IGNORECASE)
OWN_FILES = frozenset({"crash.txt", "config.toml", "events.jsonl", "run.json", "queue.json", "draft.json", "grid.png"})


class Anonymiser:
    """Replaces what it was given and whatever looks like a path or a file name; the same name, the same placeholder.

    `folders` are known paths and `names` other words, each with its kind: {"/data/cats": "dataset"} → <dataset-1>.
    Modules in `code_roots`, whose placeholders are the values, keep their place, as tracebacks need it.
    """

    def __init__(
        self, folders: Mapping[str, str], names: Mapping[str, str], code_roots: Mapping[str, str] | None = None
    ) -> None:
        self._kinds = {_plain(path): kind for path, kind in folders.items() if len(_plain(path)) > 1}
        self._names = {name.casefold(): kind for name, kind in names.items() if len(name) > 1 and not name.isdecimal()}
        self._roots = {_plain(root): label for root, label in (code_roots or {}).items() if len(_plain(root)) > 1}
        self._placeholders: dict[tuple[str, str], str] = {}
        self._counts: dict[str, int] = {}
        self._pattern = self._compile()

    def _compile(self) -> re.Pattern[str]:
        known = [re.escape(path).replace("/", r"[\\/]+") for path in _longest_first([*self._kinds, *self._roots])]
        names = [re.escape(name) for name in _longest_first(self._names)]
        parts = [_QUOTED]
        if known:
            parts.append(rf"(?P<known>(?:{'|'.join(known)})(?![^\W_])(?:[\\/]+(?:{_REST})?)?)")
        parts.append(rf"(?P<path>{_START}{_REST})")
        parts.append(rf"(?P<file>{_FILE})")
        if names:
            parts.append(rf"(?P<name>(?<![^\W_])(?:{'|'.join(names)})(?![^\W_]))")
        return re.compile("|".join(parts), re.IGNORECASE)

    def text(self, text: str) -> str:
        """The text with placeholders."""
        return self._pattern.sub(self._replaced, text)

    def value(self, value: Any) -> Any:
        """A JSON value with placeholders in its texts; keys stay."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {key: self.value(one) for key, one in value.items()}
        return [self.value(one) for one in value] if isinstance(value, (list, tuple)) else value

    def hidden(self, kind: str, value: str) -> str:
        """The placeholder for a whole text; "" stays."""
        return self._placeholder(self._names.get(value.casefold(), kind), value.casefold()) if value.strip() else value

    def path(self, path: str) -> str:
        """The path with placeholders for its folder and its file; code is shown relative to its root."""
        plain = _plain(path)
        if plain in self._kinds:
            return self._placeholder(self._kinds[plain], plain)
        code = self._code(plain)
        if code:
            return code
        folder, _, name = plain.rpartition("/")
        if not re.search(f"{_ENDING}$", name, re.IGNORECASE):
            return self._placeholder("folder", plain)
        return f"{self.path(folder)}/{self._file(name)}" if folder else self._file(name)

    def _code(self, path: str) -> str:
        """A module relative to its root; "" for anything else."""
        if not path.endswith(".py"):
            return self._roots.get(path, "")
        found = list(_CODE.finditer(path))
        if found:
            return f"…/{path[found[-1].start(1) :]}"
        roots = (root for root in _longest_first(self._roots) if path.startswith(f"{root}/"))
        return next((f"{self._roots[root]}{path[len(root) :]}" for root in roots), "")

    def _file(self, name: str) -> str:
        if name in OWN_FILES:
            return name
        stem, dot, ending = name.rpartition(".")
        return f"{self._placeholder('file', stem)}{dot}{ending}"

    def _placeholder(self, kind: str, key: str) -> str:
        if (kind, key) not in self._placeholders:
            self._counts[kind] = self._counts.get(kind, 0) + 1
            self._placeholders[kind, key] = f"<{kind}-{self._counts[kind]}>"
        return self._placeholders[kind, key]

    def _replaced(self, match: re.Match[str]) -> str:
        found = match.groupdict()
        if found["inside"]:
            return f"{found['quote']}{self.path(found['inside'])}{found['quote']}"
        if found["file"]:
            return self._file(found["file"])
        if found.get("name"):
            return self.hidden("name", found["name"])
        return self.path(found.get("known") or found["path"])


def _plain(path: str) -> str:
    return re.sub(r"[\\/]+", "/", path).rstrip("/")


def _longest_first(texts: Iterable[str]) -> list[str]:
    return sorted(texts, key=len, reverse=True)
