"""What a checkpoint's shapes do not show, read from its metadata, the webui's .yaml and config.json."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lib_lora_train.core.errors import ModelError
from lib_lora_train.models.architecture import CheckpointHints, PredictionType

_PREDICTIONS: Mapping[str, PredictionType] = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
    "velocity": "v_prediction",
}


def read_hints(path: Path, metadata: Mapping[str, str]) -> CheckpointHints:
    """The hints in the metadata, the webui's .yaml beside the checkpoint and its text encoder's config.json.

    The .yaml takes precedence over the metadata. ModelError if the .yaml cannot be read, rather than guessing.
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


def _metadata_hints(metadata: Mapping[str, str]) -> CheckpointHints:
    prediction = metadata.get("modelspec.prediction_type", "").lower()
    heads = [int(number) for number in re.findall(r"\d+", metadata.get("text_heads", ""))]
    return CheckpointHints(
        prediction_type=_PREDICTIONS.get(prediction),
        unet_heads=_positive(metadata.get("unet_heads")),
        text_heads=tuple(heads),
    )


def _with_text_config(hints: CheckpointHints, folder: Path | None) -> CheckpointHints:
    """The hints, updated from `folder`'s config.json, which describes the (first) text encoder."""
    if folder is None or not (folder / "config.json").is_file():
        return hints
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as reason:
        raise ModelError(f"{folder / 'config.json'} is not valid JSON ({reason}).") from reason
    heads = _positive(config.get("num_attention_heads"))
    return replace(hints, text_heads=(heads, *hints.text_heads[1:])) if heads else hints


def tokenizer_folder(path: Path) -> Path | None:
    """The checkpoint's own tokenizer folder; None if it has none.

    It is the local folder that the .yaml's `cond_stage_config.params.version` names, relative to the checkpoint; else
    a folder `tokenizer` beside the checkpoint, if the checkpoint has a .yaml.
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
        raise ModelError(f"{path} cannot be read as YAML. Fix or remove it. ({reason})") from reason
    return values if isinstance(values, dict) else {}


def _at(values: Any, *names: str) -> Mapping[str, Any]:
    for name in names:
        values = values.get(name) if isinstance(values, dict) else None
    return values if isinstance(values, dict) else {}


def _positive(value: Any) -> int | None:
    """`value` as an integer above 0, else None (-1 means "not used" in ldm's files)."""
    return int(value) if str(value).isdigit() and int(value) > 0 else None
