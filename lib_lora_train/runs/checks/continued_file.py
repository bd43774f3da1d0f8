"""The LoRA file that a run continues, checked before a model is loaded: its contents, and whether they fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from lib_lora_train.adapters.create import parse_continued_file, require_trained_part
from lib_lora_train.adapters.files.anima_layers import anima_part, describe_parts
from lib_lora_train.adapters.files.decode import ParsedLayer, ParsedLora
from lib_lora_train.adapters.inject import require_a_fit
from lib_lora_train.adapters.targets import match_targets
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import AdapterError, Problem
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.core.wording import count, shorten_list
from lib_lora_train.models.architecture import ModelSpec
from lib_lora_train.models.kinds.registry import kind_of

_SETTING = "continue_from"
_SHOWN = 3


@dataclass(frozen=True)
class _EmptyModel:
    """A model's networks on the meta device."""

    unet: nn.Module
    text_encoders: tuple[nn.Module, ...]
    spec: ModelSpec


def continued_file_problems(config: TrainConfig, spec: ModelSpec | None = None) -> Iterator[Problem]:
    """What speaks against continuing the file: an error if it cannot be used, a warning for what is left out.

    `spec`: the model that will be trained; None if it is unknown, so that only the file's contents count.
    """
    if not config.continue_from or config.method != "lora":
        return
    try:
        parsed = _read_parsed(user_path(config.continue_from))
        if spec is not None:
            yield from left_out_problems(_match(parsed, config, spec))
    except AdapterError as reason:
        yield Problem("error", _SETTING, str(reason))


def left_out_problems(left_out: Sequence[str]) -> Iterator[Problem]:
    """A warning for each kind of keys and layers of the file that the model or this program lacks."""
    parts, others = describe_parts(left_out), [name for name in left_out if not anima_part(name)]
    if parts:
        text = f"the file has {parts}, not trained here and missing from this run's files."
        yield Problem("warning", _SETTING, text)
    if others:
        shown = shorten_list(others, _SHOWN)
        text = f"this model lacks {count(len(others), 'key or layer', 'keys or layers')} of the file: {shown}."
        yield Problem("warning", _SETTING, text)


def _match(parsed: ParsedLora, config: TrainConfig, spec: ModelSpec) -> tuple[str, ...]:
    """What the model lacks of the file; AdapterError if nothing of it would be trained."""
    networks = {network.label: network.module for network in kind_of(spec.architecture).networks(spec)}
    encoders = tuple(module for label, module in networks.items() if label.startswith("text_encoder"))
    found, unmatched = match_targets(_EmptyModel(networks["unet"], encoders, spec), parsed)
    require_a_fit(found, parsed)
    require_trained_part(config, found)
    return (*parsed.unknown, *unmatched)


def _read_parsed(path: Path) -> ParsedLora:
    """The file's layers without their numbers; AdapterError if it cannot be used. An unchanged file is read once."""
    try:
        status = path.stat()
    except OSError:
        return parse_continued_file(path)  # which says what is wrong
    return _read_once(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1)
def _read_once(path: Path, _changed: int, _size: int) -> ParsedLora:
    """Keeps shapes only: the tensors are mapped from the file, which Windows would not let anyone delete meanwhile."""
    parsed = parse_continued_file(path)
    return replace(parsed, layers={name: _without_numbers(layer) for name, layer in parsed.layers.items()})


def _without_numbers(layer: ParsedLayer) -> ParsedLayer:
    """The layer with zeros of the same shapes, which take no memory; flags stay."""
    zero = torch.zeros(())
    weights = {
        name: zero.expand(tensor.shape) if tensor.is_floating_point() else tensor.clone()
        for name, tensor in layer.weights.items()
    }
    return replace(layer, weights=weights)
