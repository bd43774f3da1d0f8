"""WD14 taggers from a folder of the user: `model.onnx` with `selected_tags.csv`, run by onnxruntime.

Input: one image as float32, 0 to 255, (1, size, size, 3), BGR, padded to a square with white. Output: one score per row
of the tag list.
"""

from __future__ import annotations

import csv
import importlib
from pathlib import Path
from typing import Any

from PIL import Image

from lib_lora_train.core.errors import ModelError
from lib_lora_train.core.wording import count
from lib_lora_train.dataset.images import WHITE
from lib_lora_train.dataset_tools.tagger import Kind, ScoredTag, Tagger, TaggerResult

MODEL, LABELS = "model.onnx", "selected_tags.csv"
_KINDS: dict[str, Kind] = {"4": "character", "9": "rating"}  # danbooru's categories; all others are general
_PROVIDERS = ("CUDAExecutionProvider", "ROCMExecutionProvider", "DmlExecutionProvider", "CPUExecutionProvider")
"""Tried in this order. TensorRT is left out because it would compile for minutes first."""


def load_wd14(folder: Path) -> Tagger:
    """The tagger in this folder; ModelError if onnxruntime or a file is missing or unusable."""
    folder = folder.parent if folder.name == MODEL else folder
    for name in (MODEL, LABELS):
        if not (folder / name).is_file():
            raise ModelError(f"{folder} has no {name}. Enter the folder of a WD14 tagger, with {MODEL} and {LABELS}.")
    labels = read_labels(folder / LABELS)
    session = _load_session(folder / MODEL)
    size = _input_size(session, folder / MODEL)
    name = session.get_inputs()[0].name

    def tagger(image: Image.Image) -> TaggerResult:
        try:
            scores = session.run(None, {name: prepare_input(image, size)})[0].reshape(-1)
        except _onnx_errors() as error:
            raise ModelError(f"{folder / MODEL} failed on an image: {error}") from error
        if len(scores) != len(labels):
            raise ModelError(
                f"{folder / LABELS} lists {count(len(labels), 'tag')}, but the model scores {len(scores)}."
            )
        return TaggerResult(
            tuple(ScoredTag(label, float(score), kind) for (label, kind), score in zip(labels, scores, strict=True))
        )

    return tagger


def read_labels(file: Path) -> list[tuple[str, Kind]]:
    """(name, kind) of each row; ModelError if the file lacks these columns."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            return [(row["name"], _KINDS.get(row["category"].strip(), "general")) for row in csv.DictReader(lines)]
    except (OSError, ValueError, csv.Error, KeyError, AttributeError) as error:
        raise ModelError(f"{file} cannot be read as a tag list with the columns name and category.") from error


def prepare_input(image: Image.Image, size: int) -> Any:
    """The model's input (1, size, size, 3): float32, 0 to 255, BGR."""
    import numpy as np

    side = max(image.size)
    square = Image.new("RGB", (side, side), WHITE)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    if side != size:
        square = square.resize((size, size), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(square, np.float32)[None, :, :, ::-1])


def _load_session(file: Path) -> Any:
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as reason:
        raise ModelError(
            f"A WD14 tagger needs the package onnxruntime ({reason}). Install it: pip install onnxruntime"
        ) from reason
    offered = onnxruntime.get_available_providers()
    try:
        return onnxruntime.InferenceSession(str(file), providers=[name for name in _PROVIDERS if name in offered])
    except _onnx_errors() as error:
        raise ModelError(f"{file} cannot be opened as an ONNX model ({error}). Download it again.") from error


def _onnx_errors() -> tuple[type[Exception], ...]:
    """The exceptions that onnxruntime raises; they have no common base class."""
    named = vars(importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")).values()
    own = (kind for kind in named if isinstance(kind, type) and issubclass(kind, Exception))
    return (*own, RuntimeError, ValueError, OSError)


def _input_size(session: Any, file: Path) -> int:
    """Side of the model's square input; ModelError if the model does not take WD14's input."""
    shape = list(session.get_inputs()[0].shape)
    if len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2] or not isinstance(shape[1], int):
        raise ModelError(
            f"{file} takes inputs of shape {shape}; WD14 taggers take (images, size, size, 3). Choose another model."
        )
    return int(shape[1])
