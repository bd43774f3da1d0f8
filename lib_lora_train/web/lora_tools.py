"""The Tools panel's side of the server: a LoRA file looked into, or written in another kind. No gradio here.

Both need PyTorch, which is loaded when the first file is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import AdapterError, LoraTrainError
from lib_lora_train.core.user_paths import typed_path

if TYPE_CHECKING:
    from lib_lora_train.adapters.files.lora_file import AdapterFile


_PRECISION = "fp16"  # as nearly all LoRA files; the commands have --precision


class LoraToolsSession:
    """Nothing is kept between two questions; no file that is there is ever written over.

    `loaded` tells the checkpoint file that the form means or the host has loaded, None where there is none: the model
    that is meant where nobody names another.
    """

    def __init__(self, loaded: Callable[[], Path | None] = lambda: None) -> None:
        self._loaded = loaded

    def asks(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        """What the page's buttons ask, by name."""
        return {"tools-check": self.check, "tools-convert": self.convert, "tools-merge": self.merge}

    def check(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What is in a LoRA file of any family, and what its user should know."""
        from lib_lora_train.lora_tools.check import check_file, report

        checked = check_file(_given(values))
        facts = [line for line in report(checked).splitlines() if not line.lstrip().startswith("!")]
        return {"facts": facts, "problems": list(checked.problems), "broken": bool(checked.broken)}

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Write the file as a LoRA of a rank, or as the exact difference, beside it; what was lost."""
        from lib_lora_train.adapters.files.lora_file import read_adapter
        from lib_lora_train.lora_tools.convert import convert, write_converted

        path, to, rank = _given(values), str(values.get("to", "lora")), _rank(values)
        place = path.with_name(f"{path.stem}-{'diff' if to == 'diff' else f'rank{rank}'}.safetensors")
        if place.exists():
            raise LoraTrainError(f"{place.name} is there already. Rename it, or choose another rank.")
        file = read_adapter(path)
        converted = convert(file, self._model(values, place.parent), to=to, rank=rank, precision=_PRECISION)
        saved = write_converted(place, converted, to=to, rank=rank, metadata=file.metadata)
        return _answer(place, saved.size_bytes, converted, self._other_bases(values, [file]))

    def merge(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Write the sum of files beside the first, or a checkpoint with it beside the old one; what was lost."""
        from lib_lora_train.adapters.files.lora_file import read_adapter
        from lib_lora_train.lora_tools.merge import merge_into_file
        from lib_lora_train.lora_tools.merge_into_checkpoint import weighted, write_baked

        named = _listed(values)
        files = weighted([read_adapter(path) for path, _ in named], [weight for _, weight in named])
        stem, to = "+".join(path.stem for path, _ in named), str(values.get("to", "lora"))
        if to == "checkpoint":
            checkpoint = self._checkpoint(values)
            baked = write_baked(checkpoint, files, checkpoint.with_name(f"{checkpoint.stem}+{stem}.safetensors"))
            return _answer(baked.path, baked.size_bytes, baked, self._other_bases(values, [file for file, _ in files]))
        rank = _rank(values) if to == "rank" else 0
        place = named[0][0].with_name(
            f"{stem}{'-diff' if to == 'diff' else f'-rank{rank}' if rank else ''}.safetensors"
        )
        kind = "diff" if to == "diff" else "lora"
        model = self._model(values, place.parent)
        merged, saved = merge_into_file(place, files, model, to=kind, rank=rank, precision=_PRECISION)
        return _answer(place, saved.size_bytes, merged, self._other_bases(values, [file for file, _ in files]))

    def _other_bases(self, values: Mapping[str, Any], files: Sequence[AdapterFile]) -> list[str]:
        """A sentence for each file that means another checkpoint than this one."""
        from lib_lora_train.lora_tools.convert import other_base

        told = (other_base(file, self._checkpoint(values)) for file in files)
        return [sentence for sentence in told if sentence]

    def _checkpoint(self, values: Mapping[str, Any]) -> Path:
        """The checkpoint that is named, else the one the host has, else the tiny model."""
        from lib_lora_train.models.embedded import EMBEDDED_CHECKPOINT

        text = str(values.get("checkpoint", "")).strip().strip("\"'")
        return typed_path(text) if text else self._loaded() or EMBEDDED_CHECKPOINT

    def _model(self, values: Mapping[str, Any], folder: Path) -> Any:
        """That checkpoint in full precision, read for this alone."""
        from lib_lora_train.hosts.standalone import StandaloneHost

        config = TrainConfig(checkpoint=str(self._checkpoint(values)), precision="fp32")
        return StandaloneHost(None, None, folder).load_model(config)


def _answer(path: Path, size: int, made: Any, warnings: Sequence[str]) -> dict[str, Any]:
    """What the page tells of a file: `made` is a Converted or a Baked, which loses nothing."""
    return {
        "path": str(path),
        "megabytes": size / 1e6,
        "error": getattr(made, "error", 0.0),
        "worst": getattr(made, "worst", ""),
        "left_out": list(made.left_out),
        "warnings": list(warnings),
    }


def _listed(values: Mapping[str, Any]) -> list[tuple[Path, float]]:
    """The files of a text, one a line, each with `: weight` behind it or none (1)."""
    found = []
    for line in str(values.get("files", "")).splitlines():
        text = line.strip()
        if text:
            named, _, weight = text.rpartition(":")
            number = _number(weight) if named else None
            found.append((_given({"file": text if number is None else named}), 1.0 if number is None else number))
    if not found:
        raise AdapterError("Name LoRA files, one a line: .safetensors, with a weight behind a colon.")
    return found


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


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
