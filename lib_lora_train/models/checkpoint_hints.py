"""What the files around a checkpoint tell that its shapes cannot: metadata, the webui's .yaml, config.json."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lib_lora_train.core.errors import ModelError
from lib_lora_train.models.architecture import Hints, PredictionType

_PREDICTIONS: Mapping[str, PredictionType] = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
    "velocity": "v_prediction",
}


def read_hints(path: Path, metadata: Mapping[str, str]) -> Hints:
    """What the metadata, the webui's .yaml beside the checkpoint and its text encoder's config.json tell.

    The .yaml wins over the metadata. ModelError if the .yaml cannot be read: going on would mean guessing.
    """
    hints = _metadata_hints(metadata)
    config = _read_yaml(path.with_suffix(".yaml"))
    parameters = _at(config, "model", "params")
    unet = _at(parameters, "unet_config", "params") or _at(parameters, "network_config", "params")
    if parameters.get("parameterization") in ("eps", "v"):
        hints = replace(hints, prediction_type=_PREDICTIONS[parameters["parameterization"]])
    scaling = str(_at(parameters, "denoiser_config", "params", "scaling_config").get("target", ""))
    if scaling.endswith("VScaling"):
        hints = replace(hints, prediction_type="v_prediction")
    heads, head_dim = _positive(unet.get("num_heads")), _positive(unet.get("num_head_channels"))
    hints = replace(
        hints,
        scale_factor=parameters.get("scale_factor") or hints.scale_factor,
        unet_heads=heads or (None if head_dim else hints.unet_heads),
        unet_head_dim=None if heads else head_dim,
    )
    return _with_text_config(hints, tokenizer_folder(path))


def _metadata_hints(metadata: Mapping[str, str]) -> Hints:
    said = metadata.get("modelspec.prediction_type", "").lower()
    heads = [int(number) for number in re.findall(r"\d+", metadata.get("text_heads", ""))]
    return Hints(
        prediction_type=_PREDICTIONS.get(said),
        unet_heads=_positive(metadata.get("unet_heads")),
        text_heads=tuple(heads),
    )


def _with_text_config(hints: Hints, folder: Path | None) -> Hints:
    """`folder`'s config.json describes the (first) text encoder."""
    if folder is None or not (folder / "config.json").is_file():
        return hints
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as reason:
        raise ModelError(f"{folder / 'config.json'} is not valid JSON ({reason}).") from reason
    heads = _positive(config.get("num_attention_heads"))
    return replace(hints, text_heads=(heads, *hints.text_heads[1:])) if heads else hints


def tokenizer_folder(path: Path) -> Path | None:
    """The tokenizer folder that belongs to this checkpoint, if it has its own.

    The .yaml's `cond_stage_config.params.version` names it, relative to the checkpoint, when it is a local
    folder; else a folder `tokenizer` beside it, but only for a checkpoint with a .yaml of its own.
    """
    sidecar = path.with_suffix(".yaml")
    named = _at(_read_yaml(sidecar), "model", "params", "cond_stage_config", "params").get("version")
    for name in (named, "tokenizer" if sidecar.is_file() else None):
        if isinstance(name, str) and (path.parent / name / "vocab.json").is_file():
            return path.parent / name
    return None


def _read_yaml(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    import yaml  # type: ignore[import-untyped]  # comes with huggingface_hub, without types

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as reason:
        raise ModelError(f"{path} cannot be read as YAML. Mend it or remove it. ({reason})") from reason
    return values if isinstance(values, dict) else {}


def _at(values: Any, *names: str) -> Mapping[str, Any]:
    for name in names:
        values = values.get(name) if isinstance(values, dict) else None
    return values if isinstance(values, dict) else {}


def _positive(value: Any) -> int | None:
    """`value` as a number above 0 (-1 stands for "not used" in ldm's files), else None."""
    return int(value) if str(value).isdigit() and int(value) > 0 else None
