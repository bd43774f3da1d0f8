"""A copy of a model in diffusers' layout with other weights, complete or not there at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lib_lora_train.models.model_folder import MODEL_PARTS
from lib_lora_train.models.weight_files import PICKLE_ENDINGS, TensorPlace

_WEIGHT_ENDINGS = (*PICKLE_ENDINGS, ".safetensors", ".msgpack", ".onnx", ".h5")


def write_model_copy(
    folder: Path, tensors: Mapping[str, Tensor], places: Mapping[str, TensorPlace], path: Path
) -> None:
    """Copy the folder to `path`, which does not exist, with `tensors` at their places in its weight files.

    Weight files of the model that `places` does not name, such as another precision or the whole model in one file,
    are not copied: they would have the old weights. OSError or SafetensorError if it cannot be written; nothing is left
    then.
    """
    named: dict[Path, dict[str, Tensor]] = defaultdict(dict)
    for name, place in places.items():
        named[place.file][place.name] = tensors[name]
    with _new_folder(path) as part:
        shutil.copytree(folder, part, ignore=partial(_old_weights, folder), dirs_exist_ok=True)
        for file, new in named.items():
            with safe_open(str(file), framework="pt") as old:
                others = {key: old.get_tensor(key) for key in old.keys() if key not in new}  # noqa: SIM118
                metadata = old.metadata()
            whole = {key: tensor.contiguous() for key, tensor in {**others, **new}.items()}
            save_file(whole, part / file.relative_to(folder), metadata=metadata)


def _old_weights(model: Path, folder: str, names: Collection[str]) -> list[str]:
    """The files with weights, in any format, among these names in the model's folder or in one of its parts."""
    if Path(folder) not in (model, *(model / part for part in MODEL_PARTS)):
        return []
    return [name for name in names if name.lower().endswith(_WEIGHT_ENDINGS)]


@contextlib.contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, renamed to it at the end; deleted after an exception."""
    part = path.with_name(f".lora-train-{os.getpid()}.part")
    try:
        part.mkdir()
        yield part
        part.rename(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
