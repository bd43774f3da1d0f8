"""What a checkpoint contains, read from the headers of its files, with the same errors as when it is loaded.

Does not import PyTorch.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lib_lora_train.config.architecture_titles import TITLES
from lib_lora_train.core.errors import ModelError, VaeError
from lib_lora_train.core.safetensors_header import TensorEntry
from lib_lora_train.models.architecture import (
    TEXT_PREFIXES,
    UNET_PREFIX,
    VAE_PREFIX,
    CheckpointHints,
    ModelSpec,
    PredictionType,
    add_text_model_prefix,
)
from lib_lora_train.models.checkpoint_hints import read_hints
from lib_lora_train.models.file_kinds import explain_other_vae
from lib_lora_train.models.infer_spec import infer_spec
from lib_lora_train.models.infer_stable_diffusion import infer_vae_config
from lib_lora_train.models.kinds.registry import kind_in, kind_of
from lib_lora_train.models.ldm_names import vae_names
from lib_lora_train.models.model_folder import (
    INDEX,
    folder_places,
    part_files,
    part_places,
    read_model_folder,
    refuse_part,
)
from lib_lora_train.models.model_folder_hints import read_folder_hints
from lib_lora_train.models.weight_files import TensorPlace, file_places, read_model_header

MARKER_TENSORS = ("v_pred", "ztsnr")
"""Tensors without weights by which webuis recognise v-prediction and zero-terminal SNR."""
PRECISION_NAMES: Mapping[str, str] = {
    "F32": "fp32",
    "F16": "fp16",
    "BF16": "bf16",
    "F64": "fp64",
    "F8_E4M3": "fp8",
    "F8_E5M2": "fp8",
}
_PREDICTS: Mapping[PredictionType, str] = {
    "epsilon": "predicts noise (epsilon)",
    "v_prediction": "predicts v",
    "rectified_flow": "rectified flow",
}


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint's model, the precision of its UNet (such as fp16), and its tensors' entries by ldm name.

    `vae` is the name of the VAE file that replaces the checkpoint's own VAE, or "".
    """

    name: str
    spec: ModelSpec
    precision: str
    entries: Mapping[str, TensorEntry]
    vae: str = ""

    @property
    def description(self) -> str:
        """`anime-xl: SDXL, predicts v with zero-terminal SNR, 1024 px, its own VAE, fp16`."""
        return f"{self.name}: {describe_model(self.spec, vae=self.vae, precision=self.precision)}"


def describe_model(spec: ModelSpec, *, vae: str = "", precision: str = "") -> str:
    """What was detected: architecture, prediction type, zero-terminal SNR, resolution, VAE and precision."""
    predicts = _PREDICTS[spec.prediction_type] + (" (“rectified” in its path)" if spec.is_named_rectified else "")
    if spec.architecture == "sd2" and not spec.is_prediction_known:
        predicts = "predicts noise (epsilon) or v (the file does not say; it is measured at the start)"
    snr = " with zero-terminal SNR" if spec.zero_terminal_snr else ""
    parts = (
        TITLES[spec.architecture],
        f"{predicts}{snr}",
        f"{spec.own_resolution} px",
        f"VAE {vae}" if vae else "its own VAE" if kind_of(spec.architecture).has_vae else "",
        precision,
    )
    return ", ".join(part for part in parts if part)


def read_checkpoint_info(path: Path, vae: Path | None = None) -> CheckpointInfo:
    """What the checkpoint (with the VAE of another file) contains; ModelError if it cannot be trained on.

    The header is read again only if the files have changed.
    """
    try:
        return _read_info(path, _version_of(path), vae, _version_of(vae) if vae else None)
    except OSError as reason:
        raise ModelError(_unreadable(path, reason)) from reason


def _version_of(path: Path) -> tuple[object, ...]:
    """What changes when the file, the .yaml beside it, or a file in the folder changes."""
    beside = [path.with_suffix(".yaml")] if path.name else []
    patterns = ("*.json", "*.safetensors", *(("*/*.json", "*/*.safetensors") if any(path.glob(INDEX)) else ()))
    inside = sorted(file for pattern in patterns for file in path.glob(pattern))
    return tuple(_file_version(file) for file in (path, *beside, *inside))


def _file_version(file: Path) -> tuple[str, int, int]:
    try:
        status = file.stat()
    except (OSError, ValueError):
        return str(file), 0, 0
    return str(file), status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=16)
def _read_info(path: Path, _version: object, vae: Path | None, _vae_version: object) -> CheckpointInfo:
    contents = read_contents(path)
    entries = {name: place.entry for name, place in contents.places.items()}
    if vae and kind_in(entries).has_vae:
        replaced = {name: place.entry for name, place in read_vae_places(vae).items()}
        _require_fitting_vae(vae, replaced)
        entries = {name: entry for name, entry in entries.items() if not name.startswith(VAE_PREFIX)} | replaced
    try:
        entries = add_text_model_prefix(entries)
        spec = infer_spec({name: entry.shape for name, entry in entries.items()}, hints=contents.hints)
    except ModelError as reason:
        raise ModelError(f"{path.name}: {reason}") from None
    sizes: Counter[str] = Counter()
    for name, entry in entries.items():
        if name.startswith(UNET_PREFIX):
            sizes[PRECISION_NAMES.get(entry.dtype, entry.dtype.lower())] += entry.bytes
    return CheckpointInfo(contents.name, spec, sizes.most_common(1)[0][0], entries, vae.name if vae else "")


def _require_fitting_vae(path: Path, entries: Mapping[str, TensorEntry]) -> None:
    try:
        infer_vae_config({name: entry.shape for name, entry in entries.items()})
    except ModelError as reason:
        raise VaeError(f"{path.name}: {reason}") from None


# --- which tensors a checkpoint has ---------------------------------------------------------------


@dataclass(frozen=True)
class CheckpointContents:
    """The places of a checkpoint's UNet, VAE and text encoder tensors by ldm name, and what else is known of it."""

    path: Path
    name: str
    places: Mapping[str, TensorPlace]
    metadata: Mapping[str, str]
    hints: CheckpointHints


def read_contents(path: Path) -> CheckpointContents:
    """What a single file, or a folder in diffusers' layout, contains; leftovers of training are left out.

    ModelError for what is missing, damaged, not allowed to be read or not a checkpoint of Stable Diffusion.
    """
    try:
        return _read_contents(path.absolute())  # the folder "." has no name
    except OSError as reason:
        raise ModelError(_unreadable(path, reason)) from reason


def _unreadable(path: Path, reason: OSError) -> str:
    return f"{reason.filename or path} cannot be read: {reason.strerror or reason}. Check its permissions."


def _read_contents(path: Path) -> CheckpointContents:
    refuse_part(path)
    folder = read_model_folder(path) if path.is_dir() else None
    metadata = {} if folder else read_model_header(path).metadata
    places = folder_places(folder) if folder else file_places(path)
    try:
        places = kind_in(places).own_tensors(places)
    except ModelError as reason:
        raise ModelError(f"{path.name}: {reason}") from None
    hints = read_folder_hints(folder) if folder else read_hints(path, metadata)
    wanted = (UNET_PREFIX, VAE_PREFIX, *TEXT_PREFIXES)
    places = {name: place for name, place in places.items() if name.startswith(wanted) or name in MARKER_TENSORS}
    return CheckpointContents(path, model_name(path), places, metadata, hints)


def model_name(path: Path) -> str:
    """A checkpoint's name: the file's without its ending, or the folder's, in Hugging Face's cache the model's."""
    if not path.is_dir():
        return path.stem
    place = path.absolute()
    repository = place.parent.parent.name
    if place.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.rpartition("--")[2]
    return place.name


def read_vae_places(path: Path) -> dict[str, TensorPlace]:
    """The places of a VAE's tensors under ldm's names with `first_stage_model.`; VaeError if it is none for SD.

    `path` is a file or a folder, of a VAE alone or with a whole model, in ldm's or diffusers' layout.
    """
    try:
        places = _read_vae_places(path)
    except VaeError:
        raise
    except ModelError as reason:
        raise VaeError(str(reason)) from None
    except OSError as reason:
        raise VaeError(_unreadable(path, reason)) from reason
    prefix = VAE_PREFIX if any(name.startswith(VAE_PREFIX) for name in places) else ""
    if f"{prefix}encoder.down.0.block.0.conv1.weight" not in places:
        raise VaeError(f"{path.name} {explain_other_vae(list(places))}")
    own = {VAE_PREFIX + name.removeprefix(prefix): place for name, place in places.items() if name.startswith(prefix)}
    return {name: place for name, place in own.items() if not name.startswith(_VAE_LEFTOVERS)}


_VAE_LEFTOVERS = (f"{VAE_PREFIX}loss.", f"{VAE_PREFIX}model_ema.")


def _read_vae_places(path: Path) -> dict[str, TensorPlace]:
    if not path.is_dir():
        places = file_places(path)
    elif (path / INDEX).is_file():
        return folder_places(read_model_folder(path))
    else:
        places = part_places(part_files(path))
    if any(name.startswith("encoder.down_blocks.") for name in places):
        return {name: places[own] for own, name in vae_names(places).items()}
    return places
