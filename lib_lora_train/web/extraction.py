"""The Tools panel: a LoRA from two checkpoints, which takes minutes and so runs in the background."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_lora_train.core.control import RunStoppedError
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.web.json_values import optional_path
from lib_lora_train.web.lora_tools import number_in, output_path, rank_rule_in, result_of
from lib_lora_train.web.task_session import TaskSession

if TYPE_CHECKING:
    from lib_lora_train.lora_tools.extract import ExtractOptions

_PRECISION = "fp16"


class ExtractSession(TaskSession):
    """Extracts one LoRA at a time into the folder that `lora_dir` returns; existing files are never overwritten.

    `stop` ends it after the current layer; nothing is written.
    """

    def __init__(self, lora_dir: Callable[[], Path]) -> None:
        super().__init__("extraction")
        self._lora_dir = lora_dir
        self._result: dict[str, Any] | None = None

    def actions(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        """The actions that the page can request, by name."""
        return {"extract-start": self.start, "extract-status": self.status, "extract-stop": self.stop}

    def start(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Extract the change from `checkpoint` to `tuned`; the status.

        Ranks as for `resize`; `targets` are the layers, `text_encoder` and `clamp` as in `lora_tools.extract`.
        """
        from lib_lora_train.lora_tools.extract import ExtractOptions

        base, tuned = optional_path(values, "checkpoint"), optional_path(values, "tuned")
        if base is None or tuned is None:
            raise AdapterError("Enter two checkpoints: the base model, and the one that was fine-tuned from it.")
        rule, clamp = rank_rule_in(values), number_in(str(values.get("clamp") or 1)) or 0.0
        layers = str(values.get("targets", "all"))
        options = ExtractOptions(rule, layers, bool(values.get("text_encoder", True)), clamp)
        options.check()
        folder = self._lora_dir()
        folder.mkdir(parents=True, exist_ok=True)
        path = output_path(values, folder, f"{tuned.stem}-{rule.name}")
        self.task.start(lambda: self._extract(base, tuned, options, path))
        return self.status({})

    def status(self, _values: Mapping[str, Any]) -> dict[str, Any]:
        """The progress, and what was written by the last extraction, None while it runs."""
        return {**self.task.status(), "result": self._result}

    def _extract(self, base: Path, tuned: Path, options: ExtractOptions, path: Path) -> None:
        from lib_lora_train.lora_tools.extract import extract, write_extracted
        from lib_lora_train.lora_tools.rank_rule import describe_ranks

        self._result = None
        self.task.start_phase("Reading both checkpoints", 0)
        try:
            on_layer = self.task.count_units("layers extracted")
            found = extract(base, tuned, options, precision=_PRECISION, on_layer=on_layer)
        except RunStoppedError:
            return
        saved = write_extracted(path, found)
        self._result = {
            **result_of(path, saved.size_bytes, found.converted, found.notes),
            "worst": found.worst,
            "ranks": describe_ranks(found.ranks),
            "layers": len(found.ranks),
            "outside": found.outside,
        }
