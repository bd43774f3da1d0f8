"""Everything needed to resume a run as if it had never been interrupted, as one value and one file.

Random generators have no state to save: every draw is a function of the seed and of counters that follow from `step`.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib_lora_train.config.parameters import parameters_of
from lib_lora_train.config.train_config import Concept, TrainConfig, config_values
from lib_lora_train.core import atomic_write
from lib_lora_train.core.errors import OutputError, Problem, ResumeRefusedError, TrainingError
from lib_lora_train.core.memory_errors import saving
from lib_lora_train.core.writable import failed_write_advice, system_error
from lib_lora_train.dataset.augmentation import View
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.training.dataset_changes import Images, describe_changes

_FORMAT = "lora-train-state-1"
_SEAL = b"lora-train-sha256:"  # then the sha256 of everything before it
_SEAL_BYTES = len(_SEAL) + 32
# What may change when a run is resumed: output and samples, how memory is used, and the length, so that a finished run
# can be extended. Folders may move: the fingerprint covers their contents.
_CHANGEABLE_GROUPS = ("output", "samples")
_CHANGEABLE = frozenset(
    (
        *("concepts", "checkpoint", "vae", "cache_to_disk", "caption_extension", "gradient_checkpointing"),
        *("epochs", "max_steps"),
        *(parameter.name for parameter in parameters_of(TrainConfig) if parameter.group in _CHANGEABLE_GROUPS),
    )
)
_DEFAULT_CONCEPT = Concept()
_OWN_CAPTIONS = (
    "own_shuffle",
    "own_keep_tokens",
    "own_prefix",
    "own_suffix",
    "own_caption_dropout",
    "own_tag_dropout",
)


@dataclass(frozen=True, eq=False)
class TrainState:
    """A run after `step` optimiser steps; tensors are copies on the processor.

    `parameters`: group → its flat tensors; `optimizer`: the optimiser's state; `loss_scale`: float16's;
    `epoch_losses`: (sum, count) over the steps of the current epoch; `average`: the EMA of the parameters, in the order
    of `parameters`, empty without one; `model`: the values of the `ModelIdentity`; `images`: the `plan_images`. The
    states of older versions lack the last two.
    """

    step: int
    parameters: Mapping[str, list[Tensor]]
    optimizer: Mapping[str, Any]
    loss_scale: Mapping[str, Tensor]
    epoch_losses: tuple[float, int]
    config: Mapping[str, Any]
    fingerprint: str
    average: list[Tensor] = field(default_factory=list)
    model: Mapping[str, str] = field(default_factory=dict)
    images: Images = field(default_factory=dict)


def copy_to_cpu(tree: Any) -> Any:
    """The same nested dicts, lists and tuples with every tensor copied to the processor."""
    if isinstance(tree, Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, Mapping):
        return {key: copy_to_cpu(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(copy_to_cpu(value) for value in tree)
    return tree


def plan_fingerprint(plan: Plan) -> str:
    """sha256 (hex) of everything that determines the samples: images, captions, crops, repeats, batches."""
    items = [
        [
            item.image.content_hash,
            item.caption,
            plan.is_regularisation(number),
            plan.dataset.concepts[item.concept].trigger,
            *item.lines,
            item.mask.content_hash if item.mask else "",
            plan.dataset.concepts[item.concept].settings.tag_background,
            *_own_captions(plan.dataset.concepts[item.concept].settings),
        ]
        for number, item in enumerate(plan.dataset.items)
    ]
    views = [_fingerprint_of(view) for view in plan.all_views]
    parts = [items, views, list(plan.repeats), plan.batch_size, plan.accumulation]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _fingerprint_of(view: View) -> dict[str, Any]:
    """The view under the keys that every version of the fingerprint has had; "look" is its `transform`."""
    return {
        "item": view.item,
        "placement": asdict(view.placement),
        "look": asdict(view.transform),
        "background": view.background,
    }


def _own_captions(concept: Concept) -> list[tuple[str, Any]]:
    """The folder's own caption settings that are set; empty by default, as in older versions' states."""
    return [
        (name, getattr(concept, name))
        for name in _OWN_CAPTIONS
        if getattr(concept, name) != getattr(_DEFAULT_CONCEPT, name)
    ]


def require_same_run(state: TrainState, config: TrainConfig, plan: Plan, advice: str = "start a new run") -> None:
    """ResumeRefusedError, naming every difference, if resuming from `state` would not be the same run."""
    now = config_values(config)
    was = config_values(TrainConfig()) | dict(state.config)  # a setting newer than the state had its default
    message = f"was {{}} when this run was interrupted and is now {{}}. Set it back, or {advice}."
    problems = [
        Problem("error", name, message.format(was[name], now[name]))
        for name in now
        if name not in _CHANGEABLE and was[name] != now[name]
    ]
    if state.fingerprint != plan_fingerprint(plan):
        changes = describe_changes(state.images, plan)
        what = f"since the interruption, {changes}. Put back what has changed"
        if not changes:
            what = "triggers, repeats, batches or crops have changed since the interruption. Set them back"
        if not state.images:
            what = "images, captions, repeats or batches have changed since the interruption. Put them back"
        problems.append(Problem("error", "concepts", f"{what}, or {advice}."))
    if problems:
        raise ResumeRefusedError(problems)


def write_state(path: Path, state: TrainState) -> None:
    """Write the file completely or leave the previous one in place; OutputError if that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with saving(path), atomic_write.replacing(path) as place:
            with place.open("wb") as file:  # an open file: of a path, torch hides why it failed
                torch.save({"format": _FORMAT, **_fields(state)}, file)
            digest = _digest(place, place.stat().st_size)
            with place.open("ab") as file:
                file.write(_SEAL + digest)  # a zip archive may have bytes behind its end
    except (OSError, RuntimeError) as reason:
        why = system_error(reason)
        what = f"{path}: the training state cannot be written ({getattr(why, 'strerror', None) or why})."
        raise OutputError(f"{what} {failed_write_advice(reason)}") from reason


def load_state(path: Path) -> TrainState:
    """The state in a file from `write_state`; TrainingError if it is missing, damaged or from another version."""
    advice = "Choose another state, or start a new run."
    try:
        _require_intact(path)
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise TrainingError(f"{path}: this training state does not exist. {advice}") from None
    except (
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        KeyError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as reason:
        raise TrainingError(f"{path}: the training state is damaged. {advice}") from reason
    if not isinstance(saved, dict) or saved.pop("format", None) != _FORMAT:
        raise TrainingError(f"{path}: not a training state of this version. {advice}")
    known = {name: value for name, value in saved.items() if name in TrainState.__dataclass_fields__}
    try:
        return TrainState(**known)
    except TypeError as reason:
        raise TrainingError(f"{path}: the training state is incomplete. {advice}") from reason


def _require_intact(path: Path) -> None:
    """ValueError if any byte of the file has changed since it was written.

    States of older versions have no seal; then the checksums of the archive's parts are compared.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _SEAL_BYTES))
        seal = file.read()
    if seal.startswith(_SEAL):
        if _digest(path, size - _SEAL_BYTES) != seal[len(_SEAL) :]:
            raise ValueError("its checksum is wrong")
        return
    with zipfile.ZipFile(path) as archive:
        if archive.testzip() is not None:
            raise ValueError("a part of it has a wrong checksum")


def _digest(path: Path, size: int) -> bytes:
    """sha256 of the file's first `size` bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (block := file.read(min(size, 1 << 22))):
            digest.update(block)
            size -= len(block)
    return digest.digest()


def _fields(state: TrainState) -> dict[str, Any]:
    """`dataclasses.asdict` without its deep copies."""
    return {name: getattr(state, name) for name in TrainState.__dataclass_fields__}
