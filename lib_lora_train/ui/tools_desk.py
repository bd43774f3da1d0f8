"""The Tools panel's side of the server: a LoRA file looked into, or written in another kind. No gradio here.

Both need PyTorch, which is loaded when the first file is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lib_lora_train.config import TrainConfig
from lib_lora_train.errors import AdapterError, LoraTrainError
from lib_lora_train.typed_paths import typed_path


class ToolsDesk:
    """Nothing is kept between two questions; no file that is there is ever written over."""

    def asks(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        """What the page's buttons ask, by name."""
        return {"tools-check": self.check, "tools-convert": self.convert}

    def check(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What is in a LoRA file of any family, and what its user should know."""
        from lib_lora_train.tools.check import check_file, report

        checked = check_file(_given(values))
        facts = [line for line in report(checked).splitlines() if not line.lstrip().startswith("!")]
        return {"facts": facts, "problems": list(checked.problems), "broken": bool(checked.broken)}

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Write the file as a LoRA of a rank, or as the exact difference, beside it; what was lost."""
        from lib_lora_train.adapters.file import read_adapter
        from lib_lora_train.hosts.standalone import StandaloneHost
        from lib_lora_train.tools.convert import convert, write_converted

        path, to, rank = _given(values), str(values.get("to", "lora")), _rank(values)
        place = path.with_name(f"{path.stem}-{'diff' if to == 'diff' else f'rank{rank}'}.safetensors")
        if place.exists():
            raise LoraTrainError(f"{place.name} is there already. Rename it, or choose another rank.")
        file = read_adapter(path)
        config = TrainConfig(checkpoint=str(values.get("checkpoint", "")).strip(), precision="fp32")
        model = StandaloneHost(None, None, place.parent).load_model(config)
        converted = convert(file, model, to=to, rank=rank)
        saved = write_converted(place, converted, to=to, rank=rank, metadata=file.metadata)
        return {
            "path": str(place),
            "megabytes": saved.size_bytes / 1e6,
            "error": converted.error,
            "worst": converted.worst,
            "left_out": list(converted.left_out),
        }


def _given(values: Mapping[str, Any]) -> Path:
    text = str(values.get("file", "")).strip().strip("\"'")
    if not text:
        raise AdapterError("Name a LoRA file: a .safetensors.")
    path = typed_path(text)
    if not path.is_file() or path.suffix.lower() != ".safetensors":
        raise AdapterError(f"{path} is no .safetensors file. Check its spelling.")
    return path


def _rank(values: Mapping[str, Any]) -> int:
    text = str(values.get("rank", "16")).strip()
    if not text.isdigit():
        raise AdapterError(f"{text!r} is no rank. Give a whole number; 16 to 64 is usual.")
    return int(text)
