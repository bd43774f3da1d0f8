"""Models as folders in diffusers' layout: the weight files of each part, and their tensors by ldm name.

    model_index.json          the pipeline's class, and the class of each part
    unet/                     config.json, diffusion_pytorch_model.safetensors
    vae/                      config.json, diffusion_pytorch_model.safetensors
    text_encoder/             config.json, model.safetensors; SDXL has text_encoder_2/ too
    tokenizer/                vocab.json, merges.txt
    scheduler/                scheduler_config.json

A file of weights may have a variant in its name (`model.fp16.safetensors`), or be split into several, which a
`….safetensors.index.json` lists. Does not import PyTorch, and runs no code of the folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib_lora_train.core.errors import ModelError
from lib_lora_train.core.wording import shorten_list
from lib_lora_train.models.ldm_names import text_names, unet_names, vae_names
from lib_lora_train.models.other_models import NEEDS_SD, find_by_word, with_article
from lib_lora_train.models.weight_files import PICKLE_ENDINGS, TensorPlace, file_places

INDEX = "model_index.json"
TEXT_PARTS = ("text_encoder", "text_encoder_2")
MODEL_PARTS = ("unet", "vae", *TEXT_PARTS)
_CLASSES: Mapping[str, tuple[str, ...]] = {
    "unet": ("UNet2DConditionModel",),
    **dict.fromkeys(TEXT_PARTS, ("CLIPTextModel", "CLIPTextModelWithProjection")),
}
"""The classes whose tensors can be read; a VAE is recognised by its tensors."""

_WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(\.(?P<variant>[\w-]+))?\.safetensors")
_LIST = re.compile(r"(diffusion_pytorch_model|model)(\.(?P<first>\w+))?\.safetensors\.index(\.(?P<variant>\w+))?\.json")
_SHARD = re.compile(r"-\d{5}-of-\d{5}")
_LAST_VARIANT = "non_ema"  # weights without averaging, which are for training on, but not what others use


@dataclass(frozen=True)
class ModelFolder:
    """A folder with a whole model; `files` are the weight files of each of its parts."""

    path: Path
    files: Mapping[str, tuple[Path, ...]]

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """The weight files of all parts."""
        return tuple(file for files in self.files.values() for file in files)


def read_model_folder(path: Path) -> ModelFolder:
    """The parts of the model in this folder; ModelError, naming what is missing or what the folder is instead."""
    if not (path / INDEX).is_file():
        raise ModelError(_explain_no_model(path))
    index = read_json(path / INDEX)
    named = {part: name for part in index if (name := _class_of(index[part]))}
    pipeline = index.get("_class_name")
    _refuse_other_pipelines(path, pipeline if isinstance(pipeline, str) else "", named)
    files: dict[str, tuple[Path, ...]] = {}
    wrong: list[str] = []
    for part in MODEL_PARTS:
        if part in named:
            try:
                files[part] = part_files(path / part)
            except ModelError as reason:
                wrong.append(str(reason))
    if wrong:
        raise ModelError(
            f"{path.name} is not a whole model: {' '.join(wrong)} Add what it lacks, or choose another one."
        )
    return ModelFolder(path, files)


def refuse_part(path: Path) -> None:
    """ModelError, naming the folder to choose, for a file that is a part of a model in diffusers' layout."""
    whole = path.parent.parent if path.parent.name in MODEL_PARTS else path.parent
    is_part = path.parent.name in MODEL_PARTS or path.name == INDEX
    if is_part and (whole / INDEX).is_file():
        raise ModelError(f"{path} is only a part of a model. Choose the folder of the whole model: {whole}.")


def read_weight_files(path: Path) -> tuple[Path, ...]:
    """The files whose tensors are read from a folder with a whole model, or with a part alone, such as a VAE."""
    return read_model_folder(path).weight_files if (path / INDEX).is_file() else part_files(path)


def folder_places(folder: ModelFolder) -> dict[str, TensorPlace]:
    """The place of every tensor by ldm name."""
    is_sdxl = "text_encoder_2" in folder.files
    mapped: dict[str, TensorPlace] = {}
    for part, files in folder.files.items():
        places = part_places(files)
        if part == "unet":
            names = unet_names(places)
            _refuse_unknown(folder.path, [name for name in places if name not in names])
        elif part == "vae":
            names = vae_names(places)
        else:
            names = text_names(places, number=TEXT_PARTS.index(part), is_sdxl=is_sdxl)
        mapped |= {names[name]: place for name, place in places.items()}
    return mapped


def part_places(files: tuple[Path, ...]) -> dict[str, TensorPlace]:
    """The place of every tensor in a part's files by its own name; ModelError, naming the part, if one is damaged."""
    places: dict[str, TensorPlace] = {}
    for file in files:
        try:
            places |= file_places(file)
        except ModelError as reason:
            raise ModelError(f"{file.parent.name}/{reason}") from None
    return places


def _refuse_unknown(path: Path, names: Sequence[str]) -> None:
    if names:
        found = f"Its unet has tensors that Stable Diffusion's does not have ({shorten_list(names, 3)})"
        raise ModelError(f"{path.name}: {found}: it is a variant, such as one distilled for few steps. {NEEDS_SD}")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is no file, ModelError if it is damaged, OSError if it may not be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as reason:
        raise ModelError(f"{path} is damaged ({reason}). Copy it again.") from reason
    if not isinstance(values, dict):
        raise ModelError(f"{path} is damaged: it is not a JSON object. Copy it again.")
    return values


# --- the weight files of a part -----------------------------------------------------------------


def part_files(part: Path) -> tuple[Path, ...]:
    """The files with a part's weights: without a variant if there are such, else fp16, else another variant.

    ModelError, beginning with the part's name, if there are none.
    """
    try:
        names = sorted(entry.name for entry in part.iterdir() if entry.is_file())
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(f"{part.name} is missing.") from None
    candidates = [(_rank(found["variant"]), name) for name in names if (found := _match_weights(name))]
    candidates += [
        (_rank(found["variant"] or found["first"]), name) for name in names if (found := _LIST.fullmatch(name))
    ]
    if not candidates:
        raise ModelError(_explain_no_weights(part, names))
    _, chosen = min(candidates, key=lambda one: (one[0], one[1].endswith(".json"), one[1]))
    return _shards(part / chosen) if chosen.endswith(".json") else (part / chosen,)


def _match_weights(name: str) -> re.Match[str] | None:
    return None if _SHARD.search(name) else _WEIGHTS.fullmatch(name)


def _rank(variant: str | None) -> tuple[int, str]:
    order = {"": 0, "fp16": 1, _LAST_VARIANT: 3}
    return order.get(variant or "", 2), variant or ""


def _shards(list_file: Path) -> tuple[Path, ...]:
    """The files that the list names; ModelError if one is missing or outside the folder."""
    part = list_file.parent
    shards = read_json(list_file).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ModelError(f"{part.name}/{list_file.name} lists no files.")
    names = sorted({str(name) for name in shards.values()})
    if outside := [name for name in names if Path(name).name != name]:
        raise ModelError(f"{part.name}/{list_file.name} names {outside[0]}, which is not in {part.name}.")
    if missing := [name for name in names if not (part / name).is_file()]:
        raise ModelError(f"{part.name} lacks {', '.join(missing)}.")
    return tuple(part / name for name in names)


def _explain_no_weights(part: Path, names: list[str]) -> str:
    pickles = [name for name in names if name.endswith(PICKLE_ENDINGS)]
    if pickles:
        return (
            f"{part.name}/{pickles[0]} is a pickle file, which can run any program when it is opened. "
            f"Get the .safetensors version of {part.name}, or save the model with diffusers' safe_serialization."
        )
    others = [name for name in names if name.endswith((".msgpack", ".onnx", ".xml", ".h5", ".gguf", ".safetensors"))]
    found = f" (only {', '.join(others[:3])})" if others else ""
    return f"{part.name} has no diffusion_pytorch_model.safetensors or model.safetensors{found}."


# --- folders that are no model for training -------------------------------------------------------


def _class_of(entry: Any) -> str:
    """The class that model_index.json names for a part, "" if the pipeline has no such part."""
    is_pair = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)
    return str(entry[1]) if is_pair else ""


def _refuse_other_pipelines(path: Path, pipeline: str, named: Mapping[str, str]) -> None:
    """ModelError, naming the model, for a pipeline without the parts of a Stable Diffusion."""
    other = find_by_word(pipeline)
    if not other and "unet" not in named:
        other = re.sub(r"(Img2Img|Inpaint)?Pipeline$", "", pipeline)
        if not other:
            raise ModelError(f"{path / INDEX} names no UNet. {NEEDS_SD}")
    if other:
        raise ModelError(f"{path.name}: This is {with_article(other)} model. {NEEDS_SD}")
    for part, classes in _CLASSES.items():
        if part in named and named[part].removeprefix("Flax") not in classes:
            raise ModelError(
                f"{path.name}: Its {part} has the class {named[part]}, which cannot be trained. {NEEDS_SD}"
            )


def _explain_no_model(path: Path) -> str:
    """What is wrong with a folder without model_index.json, and which one to choose."""
    if (path.parent / INDEX).is_file() and path.name:
        return f"{path} is only a part of a model. Choose the folder of the whole model: {path.parent}."
    nearby = sorted(found.parent for pattern in (f"*/{INDEX}", f"snapshots/*/{INDEX}") for found in path.glob(pattern))
    if nearby:
        return f"{path} is a folder, not a model. Choose the model in it: {nearby[0]}."
    if any((path / part).is_dir() for part in ("unet", "text_encoder")):
        return f"{path} is not a whole model: {INDEX} is missing. Add it, or choose another one."
    if (path / "config.json").is_file() or _has_weights(path):
        kind = read_json(path / "config.json").get("_class_name") or "one part"
        return f"{path} is a folder with only {kind} of a model. Choose the folder of the whole model, with {INDEX}."
    return f"{path} is a folder, not a model. Choose a .safetensors checkpoint, or a folder with {INDEX}."


def _has_weights(path: Path) -> bool:
    return any(_WEIGHTS.fullmatch(entry.name) for entry in path.iterdir())
