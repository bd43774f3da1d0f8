"""What a checkpoint file contains, read from its header, with the same errors as when it is loaded.

Does not import PyTorch.
"""

from __future__ import annotations

import functools
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lib_lora_train.core.errors import AdapterError, ModelError
from lib_lora_train.core.safetensors_header import MAX_HEADER_BYTES, Header, TensorEntry, parse_header, read_header
from lib_lora_train.models.architecture import (
    TEXT_PREFIXES,
    TITLES,
    UNET_PREFIX,
    VAE_PREFIX,
    ModelSpec,
    add_text_model_prefix,
)
from lib_lora_train.models.checkpoint_hints import read_hints
from lib_lora_train.models.file_kinds import explain_other_vae, refuse_other_kinds
from lib_lora_train.models.infer_spec import infer_spec, infer_vae_config

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
    predicts = "v" if spec.prediction_type == "v_prediction" else "noise (epsilon)"
    if spec.architecture == "sd2" and not spec.is_prediction_known:
        predicts = "noise (epsilon) or v (the file does not say; it is measured at the start)"
    snr = " with zero-terminal SNR" if spec.zero_terminal_snr else ""
    parts = (
        TITLES[spec.architecture],
        f"predicts {predicts}{snr}",
        f"{spec.own_resolution} px",
        f"VAE {vae}" if vae else "its own VAE",
        precision,
    )
    return ", ".join(part for part in parts if part)


def read_checkpoint_info(path: Path, vae: Path | None = None) -> CheckpointInfo:
    """What the checkpoint (with the VAE of another file) contains; ModelError if it cannot be trained on.

    The header is read again only if the files have changed.
    """
    return _read_info(path, _version_of(path), vae, _version_of(vae) if vae else None)


def _version_of(path: Path) -> tuple[int, ...]:
    """What changes when the file, or the .yaml beside it, changes."""
    versions = []
    for file in (path, path.with_suffix(".yaml")):
        try:
            status = file.stat()
            versions += [status.st_mtime_ns, status.st_size]
        except (OSError, ValueError):
            versions += [0, 0]
    return tuple(versions)


@functools.lru_cache(maxsize=16)
def _read_info(path: Path, _version: object, vae: Path | None, _vae_version: object) -> CheckpointInfo:
    header = read_model_header(path)
    vae_entries = _read_vae_entries(vae) if vae else {}
    try:
        refuse_other_kinds(header.tensors)
        wanted = (UNET_PREFIX, VAE_PREFIX, *TEXT_PREFIXES)
        entries = {n: e for n, e in header.entries.items() if n.startswith(wanted) or n in MARKER_TENSORS}
        if vae:
            entries = {n: e for n, e in entries.items() if not n.startswith(VAE_PREFIX)} | vae_entries
        entries = add_text_model_prefix(entries)
        hints = read_hints(path, header.metadata)
        spec = infer_spec({name: entry.shape for name, entry in entries.items()}, hints=hints)
    except ModelError as reason:
        raise ModelError(f"{path.name}: {reason}") from None
    sizes: Counter[str] = Counter()
    for name, entry in entries.items():
        if name.startswith(UNET_PREFIX):
            sizes[PRECISION_NAMES.get(entry.dtype, entry.dtype.lower())] += entry.bytes
    return CheckpointInfo(path.stem, spec, sizes.most_common(1)[0][0], entries, vae.name if vae else "")


def _read_vae_entries(path: Path) -> dict[str, TensorEntry]:
    """The entries of a VAE file under ldm's names with `first_stage_model.`; ModelError if it is none that fits."""
    header = read_model_header(path)
    prefix = VAE_PREFIX if any(name.startswith(VAE_PREFIX) for name in header.tensors) else ""
    if f"{prefix}encoder.down.0.block.0.conv1.weight" not in header.tensors:
        raise ModelError(f"{path.name} {explain_other_vae(header.tensors)}")
    found = {VAE_PREFIX + n.removeprefix(prefix): e for n, e in header.entries.items() if n.startswith(prefix)}
    try:
        infer_vae_config({name: entry.shape for name, entry in found.items()})
    except ModelError as reason:
        raise ModelError(f"{path.name}: {reason}") from None
    return found


# --- files that cannot be read ------------------------------------------------------------------


def read_model_header(path: Path) -> Header:
    """The header of a whole safetensors file; ModelError for any other file, saying what it is."""
    refuse_unsafe(path)
    try:
        header = read_header(path)
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
        is_whole = path.stat().st_size - 8 - length >= header.data_bytes
    except (AdapterError, OSError, struct.error) as reason:
        raise ModelError(f"{path.name} {explain_unreadable(path)}") from reason
    if not is_whole:
        raise ModelError(f"{path.name} {explain_unreadable(path)}")
    return header


_SIGNATURES = (
    (b"GGUF", "a GGUF file, whose weights are quantised"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"RIFF", "an image or a video"),
    (b"7z\xbc\xaf", "an archive"),
    (b"Rar!", "an archive"),
    (b"\x1f\x8b", "an archive"),
    (b"\x08\x07onnx", "an ONNX file"),
)


def refuse_unsafe(path: Path) -> None:
    """ModelError for a missing file, a folder or a pickle."""
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise ModelError(f"{path} {what}. Choose a .safetensors checkpoint.")
    if path.suffix.lower() in (".ckpt", ".pt", ".pth", ".bin"):
        raise ModelError(
            f"{path.name} is a pickle file, which can run any program when it is opened. "
            "Convert it to .safetensors first (the webui's checkpoint merger can do that)."
        )


def explain_unreadable(path: Path) -> str:
    """Why safetensors could not open the file, from its first bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(512)
        if size < 8:
            return "is empty. Download it again."
        if start.lstrip()[:15].lower().startswith((b"<!doctype", b"<html")):
            return "is a web page, not a model: the download failed, perhaps a log-in was required. Download it again."
        if start.startswith(b"version https://git-lfs"):
            return "is only a Git LFS pointer. Fetch the actual file with `git lfs pull`."
        if start.startswith((b"PK\x03\x04", b"\x80\x02")):
            return "is a pickle file with a .safetensors name. Convert it to safetensors first."
        for signature, what in _SIGNATURES:
            if start.startswith(signature):
                return f"is {what}, not a safetensors file. Choose a .safetensors checkpoint."
        (length,) = struct.unpack("<Q", start[:8])
        if length > MAX_HEADER_BYTES:
            return "is not a safetensors file. Choose a .safetensors checkpoint."
        if length > size - 8:
            return "is damaged: it ends inside its header. Download it again."
        file.seek(8)
        return _explain_truncated(file.read(length), size - 8 - length)


def _explain_truncated(header: bytes, present: int) -> str:
    try:
        needed = parse_header(header).data_bytes
    except ValueError:
        return "is not a safetensors file. Choose a .safetensors checkpoint."
    if present < needed:
        return f"is truncated: it has {present} of {needed} bytes of weights. Download it again."
    return "uses a data type that is not known here, or is damaged. Choose the version in fp16, bf16 or fp32."
