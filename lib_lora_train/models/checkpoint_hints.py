"""What a checkpoint's shapes do not show, read from its metadata, the webui's .yaml and config.json."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lib_lora_train.core.errors import ModelError
from lib_lora_train.models.architecture import CheckpointHints
from lib_lora_train.models.model_folder_hints import folder_tokenizer
from lib_lora_train.models.prediction_words import path_says_rectified, prediction_of

_PREDICTION_KEYS = ("modelspec.prediction_type", "modelspec.predict_key", "prediction_type", "ss_prediction_type")
"""Metadata keys in order of precedence; ComfyUI writes `predict_key`."""
_SNR_KEYS = ("ss_zero_terminal_snr", "modelspec.zero_terminal_snr", "ztsnr", "zsnr")
_YAML_SNR_KEYS = ("zero_terminal_snr", "rescale_betas_zero_snr", "zero_snr", "ztsnr", "zsnr")


def read_hints(path: Path, metadata: Mapping[str, str]) -> CheckpointHints:
    """The hints in the metadata, the webui's .yaml beside the checkpoint and its text encoder's config.json.

    The .yaml takes precedence over the metadata. ModelError if the .yaml cannot be read, rather than guessing.
    """
    hints = _metadata_hints(metadata)
    config = _read_yaml(path.with_suffix(".yaml"))
    parameters = _at(config, "model", "params")
    unet = _at(parameters, "unet_config", "params") or _at(parameters, "network_config", "params")
    word = _yaml_prediction(parameters)
    if word:
        prediction = prediction_of(word)
        hints = replace(hints, prediction_type=prediction, unknown_prediction="" if prediction else word)
    snr = [bool(parameters[key]) for key in _YAML_SNR_KEYS if key in parameters]
    heads, head_dim = _positive(unet.get("num_heads")), _positive(unet.get("num_head_channels"))
    hints = replace(
        hints,
        path_says_rectified=path_says_rectified(path),
        zero_terminal_snr=snr[0] if snr else None,
        scale_factor=parameters.get("scale_factor") or hints.scale_factor,
        unet_heads=heads or (None if head_dim else hints.unet_heads),
        unet_head_dim=None if heads else head_dim,
    )
    return _with_text_config(hints, tokenizer_folder(path))


def _yaml_prediction(parameters: Mapping[str, Any]) -> str:
    """The .yaml's word for the prediction type: ldm's parameterization, or the class of sgm's scaling; "" for none."""
    if parameters.get("parameterization"):
        return str(parameters["parameterization"])
    scaling = str(_at(parameters, "denoiser_config", "params", "scaling_config").get("target", "")).rpartition(".")[2]
    return re.sub(r"(With\w*)?Scaling(With\w*)?$", "", scaling)


def _metadata_hints(metadata: Mapping[str, str]) -> CheckpointHints:
    words = [metadata[key] for key in _PREDICTION_KEYS if metadata.get(key)]
    known = [prediction for word in words if (prediction := prediction_of(word))]
    snr = [metadata[key].lower() in ("true", "1", "yes", "on") for key in _SNR_KEYS if key in metadata]
    sides = [int(side) for side in re.findall(r"\d+", metadata.get("modelspec.resolution", ""))]
    heads = [int(number) for number in re.findall(r"\d+", metadata.get("text_heads", ""))]
    return CheckpointHints(
        metadata_prediction_type=known[0] if known else None,
        metadata_zero_terminal_snr=snr[0] if snr else None,
        unknown_prediction=words[0] if words and not known else "",
        resolution=round(math.prod(sides[:2]) ** (1 / len(sides[:2]))) if sides else None,
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

    That of a folder in diffusers' layout is in it. For a file, it is the local folder that the .yaml's
    `cond_stage_config.params.version` names, relative to the checkpoint; else a folder `tokenizer` beside the
    checkpoint, if the checkpoint has a .yaml.
    """
    if path.is_dir():
        return folder_tokenizer(path)
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
