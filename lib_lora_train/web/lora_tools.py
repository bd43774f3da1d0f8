"""The Tools panel: check, convert, resize and merge LoRA files.

All of it needs PyTorch, which is imported on first use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.lora_tools.merge_options import MergeOptions
from lib_lora_train.lora_tools.metadata_fields import FIELDS
from lib_lora_train.lora_tools.new_file import new_file
from lib_lora_train.web.json_values import optional_path

if TYPE_CHECKING:
    from lib_lora_train.adapters.files.lora_file import AdapterFile
    from lib_lora_train.lora_tools.rank_rule import RankRule


_PRECISION = "fp16"  # as in nearly all LoRA files; the command line has --precision


class LoraToolsSession:
    """Stateless; existing files are never overwritten.

    `loaded` returns the checkpoint of the form or the one that the host has loaded, None if there is neither. It is
    used when the page names no checkpoint.
    """

    def __init__(self, loaded: Callable[[], Path | None] = lambda: None) -> None:
        self._loaded = loaded

    def actions(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        """The actions that the page can request, by name."""
        return {
            "tools-check": self.check,
            "tools-convert": self.convert,
            "tools-resize": self.resize,
            "tools-merge": self.merge,
            "tools-metadata": self.show_metadata,
            "tools-metadata-write": self.edit_metadata,
        }

    def check(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The contents of a LoRA file of any family, and its problems."""
        from lib_lora_train.lora_tools.check import check_file, format_report

        checked = check_file(lora_path_in(values))
        facts = [line for line in format_report(checked).splitlines() if not line.lstrip().startswith("!")]
        return {"facts": facts, "problems": list(checked.problems), "broken": bool(checked.defects)}

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Write the file as plain LoRA or exact difference beside the original, under `name` if one is given.

        The result has its path, and how much was lost.
        """
        from lib_lora_train.adapters.files.lora_file import read_adapter
        from lib_lora_train.lora_tools.convert import convert, write_converted

        path, to, rank = lora_path_in(values), str(values.get("to", "lora")), rank_in(values)
        output = output_path(values, path.parent, f"{path.stem}-{'diff' if to == 'diff' else f'rank{rank}'}")
        file = read_adapter(path)
        converted = convert(file, self._model(values, output.parent), to=to, rank=rank, precision=_PRECISION)
        saved = write_converted(output, converted, to=to, rank=rank, metadata=file.metadata)
        return result_of(output, saved.size_bytes, converted, self._base_warnings(values, [file]))

    def resize(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Write the file with other ranks beside the original, as `lora_tools.resize`; its path, ranks and loss.

        `rule` "" takes `rank`; else `rank` and `conv_rank` are the highest ranks, "" for none.
        """
        from lib_lora_train.adapters.files.lora_file import read_adapter
        from lib_lora_train.lora_tools.rank_rule import describe_ranks
        from lib_lora_train.lora_tools.resize import resize, write_resized

        path, rule = lora_path_in(values), rank_rule_in(values)
        output = output_path(values, path.parent, f"{path.stem}-{rule.name}")
        file = read_adapter(path)
        resized = resize(file, rule, precision=_PRECISION)
        saved = write_resized(output, resized, file.metadata)
        return {**result_of(output, saved.size_bytes, resized.converted, ()), "ranks": describe_ranks(resized.ranks)}

    def merge(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Write the sum of files beside the first, or a merged checkpoint beside the original; else as `convert`.

        `files` as in `_weighted_files`, `method`, `density` and `seed` as in `MergeOptions`.
        """
        from lib_lora_train.adapters.files.lora_file import read_adapter
        from lib_lora_train.lora_tools.merge import merge_into_file
        from lib_lora_train.lora_tools.merge_into_checkpoint import pair_weights, write_merged_checkpoint
        from lib_lora_train.models.model_files import model_name

        named = _weighted_files(values)
        files = pair_weights([read_adapter(path) for path, _, _ in named], [weight for _, weight, _ in named])
        stem, to = "+".join(path.stem for path, _, _ in named), str(values.get("to", "lora"))
        options = _merge_options(values, tuple(blocks for _, _, blocks in named))
        if to == "checkpoint":
            options.require_sum()
            checkpoint = self._checkpoint(values)
            output = output_path(values, checkpoint.parent, f"{model_name(checkpoint)}+{stem}")
            baked = write_merged_checkpoint(checkpoint, files, output, options.blocks)
            warnings = self._base_warnings(values, [file for file, _ in files])
            return result_of(baked.path, baked.size_bytes, baked, warnings)
        rank = rank_in(values) if to == "rank" else 0
        ending = "-diff" if to == "diff" else f"-rank{rank}" if rank else ""
        way = "" if options.method == "sum" else f"-{options.method}"
        output = output_path(values, named[0][0].parent, f"{stem}{way}{ending}")
        kind = "diff" if to == "diff" else "lora"
        model = self._model(values, output.parent)
        merged, saved = merge_into_file(output, files, model, to=kind, rank=rank, precision=_PRECISION, options=options)
        warnings = self._base_warnings(values, [file for file, _ in files])
        return {**result_of(output, saved.size_bytes, merged, warnings), "change": merged.change}

    def show_metadata(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The entries as lines, and the texts of the fields that can be set."""
        from lib_lora_train.core.safetensors_header import read_header
        from lib_lora_train.lora_tools.edit_metadata import describe_metadata

        header = read_header(lora_path_in(values))
        fields = {name: header.metadata.get(key, "") for name, key in FIELDS.items()}
        return {"facts": describe_metadata(header), "fields": fields}

    def edit_metadata(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Write the file beside itself with the texts of `entries`, `image` as its preview, and `strip` applied."""
        from lib_lora_train.lora_tools.edit_metadata import MetadataEdit, write_edited

        path = lora_path_in(values)
        output = output_path(values, path.parent, f"{path.stem}-edited")
        entries = {str(key): str(value) for key, value in values.get("entries", {}).items()}
        write_edited(path, output, MetadataEdit(entries, bool(values.get("strip")), optional_path(values, "image")))
        return {"path": str(output)}

    def _base_warnings(self, values: Mapping[str, Any], files: Sequence[AdapterFile]) -> list[str]:
        """A warning for each file that was trained on another checkpoint."""
        from lib_lora_train.lora_tools.convert import base_mismatch

        warnings = (base_mismatch(file, self._checkpoint(values)) for file in files)
        return [warning for warning in warnings if warning]

    def _checkpoint(self, values: Mapping[str, Any]) -> Path:
        """The checkpoint that the page names, else the loaded one, else the tiny model."""
        from lib_lora_train.models.embedded import EMBEDDED_CHECKPOINT

        return optional_path(values, "checkpoint") or self._loaded() or EMBEDDED_CHECKPOINT

    def _model(self, values: Mapping[str, Any], folder: Path) -> Any:
        """A copy of that checkpoint in fp32."""
        from lib_lora_train.hosts.standalone import StandaloneHost

        config = TrainConfig(checkpoint=str(self._checkpoint(values)), precision="fp32")
        return StandaloneHost(None, None, folder).load_layers(config)


def output_path(values: Mapping[str, Any], folder: Path, default: str) -> Path:
    """The file to write, under the name that the request gives or `default`; LoraTrainError as for `new_file`."""
    return new_file(folder, str(values.get("name", "")).strip() or default)


def result_of(path: Path, size: int, made: Any, warnings: Sequence[str]) -> dict[str, Any]:
    """The file written and what was lost; `made` is a Converted, or a MergedCheckpoint, which loses nothing."""
    return {
        "path": str(path),
        "megabytes": size / 1e6,
        "error": getattr(made, "error", 0.0),
        "worst": getattr(made, "worst", ""),
        "left_out": list(made.left_out),
        "warnings": list(warnings),
    }


def _weighted_files(values: Mapping[str, Any]) -> list[tuple[Path, float, str]]:
    """The files in a text, one per line: `path`, `path: weight` or `path: weight: block weights`; the weight is 1."""
    found = []
    for line in str(values.get("files", "")).splitlines():
        named, blocks = line.strip(), ""
        start, _, end = named.rpartition(":")
        if start and "," in end and all(number_in(word) is not None for word in end.split(",")):
            named, blocks = start.strip(), end.strip()
        start, _, end = named.rpartition(":")
        weight = number_in(end) if start else None
        if named:
            path = lora_path_in({"file": named if weight is None else start})
            found.append((path, 1.0 if weight is None else weight, blocks))
    if not found:
        raise AdapterError(
            "Enter LoRA files (.safetensors), one per line, each optionally followed by a colon and its weight."
        )
    return found


def _merge_options(values: Mapping[str, Any], blocks: tuple[str, ...]) -> MergeOptions:
    """How a request wants files merged: `method`, `density` and `seed`."""
    density, seed = number_in(str(values.get("density") or 0.5)), str(values.get("seed") or 0).strip()
    if not seed.isdigit():
        raise AdapterError(f"{seed!r} is not a valid seed. Enter a whole number from 0.")
    options = MergeOptions(str(values.get("method", "sum")), density or 0.0, int(seed), blocks)
    options.check()
    return options


def rank_rule_in(values: Mapping[str, Any]) -> RankRule:
    """The rule for ranks that a request gives: `rule`, `threshold`, `rank` and `conv_rank`, each "" for none."""
    from lib_lora_train.lora_tools.rank_rule import RankRule

    kind = str(values.get("rule", ""))
    rank, conv_rank = (rank_in(values, name) if values.get(name) else 0 for name in ("rank", "conv_rank"))
    threshold = number_in(str(values.get("threshold", ""))) or 0.0
    rule = RankRule(rank, conv_rank or None, kind, threshold if kind else 0.0)
    rule.check()
    return rule


def number_in(text: str) -> float | None:
    """The number in a text box, None if it holds none."""
    try:
        return float(text)
    except ValueError:
        return None


def lora_path_in(values: Mapping[str, Any]) -> Path:
    path = optional_path(values, "file")
    if path is None:
        raise AdapterError("Enter the path of a LoRA file (.safetensors).")
    if not path.is_file() or path.suffix.lower() != ".safetensors":
        raise AdapterError(f"{path} is not an existing .safetensors file. Check the path.")
    return path


def rank_in(values: Mapping[str, Any], name: str = "rank") -> int:
    text = str(values.get(name, "16")).strip()
    if not text.isdigit():
        raise AdapterError(f"{text!r} is not a valid rank. Enter a whole number; 16 to 64 is typical.")
    return int(text)
