"""A new checkpoint with adapters merged into its weights; the original file is not changed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from lib_lora_train.adapters.files.lora_file import AdapterFile
from lib_lora_train.core import atomic_write
from lib_lora_train.core.errors import LoraTrainError, ModelError, OutputError
from lib_lora_train.core.wording import count
from lib_lora_train.core.writable import failed_write_advice
from lib_lora_train.lora_tools.merge import WeightedFiles, add_to_layers, merged_metadata
from lib_lora_train.lora_tools.merge_into_transformer import merge_into_transformer
from lib_lora_train.lora_tools.new_file import ENDING, new_config, refuse_existing
from lib_lora_train.lora_tools.new_model_folder import write_model_copy
from lib_lora_train.models.architecture import VAE_PREFIX, add_text_model_prefix
from lib_lora_train.models.checkpoint import load_checkpoint, shapes_of
from lib_lora_train.models.diffusion_model import assemble
from lib_lora_train.models.infer_spec import infer_spec
from lib_lora_train.models.kinds.registry import kind_in
from lib_lora_train.models.model_files import read_contents


@dataclass(frozen=True)
class MergedCheckpoint:
    """`layers`: how many were changed; `left_out`: what of the files does not fit the checkpoint."""

    path: Path
    size_bytes: int
    layers: int
    left_out: tuple[str, ...]


def write_merged_checkpoint(
    checkpoint: Path, files: WeightedFiles, path: Path, blocks: Sequence[str] = ()
) -> MergedCheckpoint:
    """Write `checkpoint` with the files' updates to `path`, in its own dtypes; a .yaml beside it is copied too.

    A model in diffusers' layout becomes another such folder, `path` without its ending. `blocks` are the files' block
    weights, as for `merge.sum_layers`.

    LoraTrainError if that exists, ModelError for a checkpoint that cannot be used or is stored in 8 bit, AdapterError
    for files that do not fit it, OutputError if it cannot be written.
    """
    if checkpoint.is_dir():
        path = path.with_name(path.name.removesuffix(ENDING))
    refuse_existing(path)
    config = new_config(checkpoint, path)
    try:
        layers, left_out = _write(checkpoint, files, path, blocks)
        if config:
            shutil.copy(checkpoint.with_suffix(".yaml"), config)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{path} could not be written: {reason}. {failed_write_advice(error)}") from error
    return MergedCheckpoint(path, _size_of(path), layers, left_out)


def _write(checkpoint: Path, files: WeightedFiles, path: Path, blocks: Sequence[str]) -> tuple[int, tuple[str, ...]]:
    """Write the merged checkpoint; (layers changed, what of the files does not fit)."""
    file = load_checkpoint(checkpoint)
    metadata = {**file.metadata, "modelspec.merged_from": merged_metadata(files)["modelspec.merged_from"]}
    if not kind_in(file.tensors).has_vae:
        if any(blocks):
            raise ModelError(
                f"Block weights are for the blocks of a UNet, which {checkpoint.name} lacks. Leave them out."
            )
        return merge_into_transformer(checkpoint, files, path, metadata=metadata)
    # The tensors are memory-mapped: those that will be changed must be copies. The VAE is not changed.
    tensors = {key: t if key.startswith(VAE_PREFIX) else t.clone() for key, t in file.tensors.items()}
    spec = infer_spec(shapes_of(tensors), hints=file.hints)
    model = assemble(tensors, spec=spec, tokenizers=(), name=file.name, file_hash="", path=checkpoint)
    if any(slot.is_copy for slot in model.slots if not slot.key.startswith(VAE_PREFIX)):
        raise ModelError(f"{checkpoint.name} is stored in 8 bit or less. Merge into its 16-bit or 32-bit version.")
    layers, left_out = add_to_layers(files, model, blocks)
    if checkpoint.is_dir():
        write_model_copy(checkpoint, tensors, add_text_model_prefix(read_contents(checkpoint).places), path)
    else:
        with atomic_write.replacing(path) as part:
            save_file(tensors, part, metadata=metadata)
    return layers, left_out


def _size_of(path: Path) -> int:
    """The bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def pair_weights(files: list[AdapterFile], weights: list[float]) -> WeightedFiles:
    """Files with their weights, 1 where none is given; LoraTrainError for more weights than files."""
    if len(weights) > len(files):
        raise LoraTrainError(
            f"{count(len(weights), 'weight')} for {count(len(files), 'file')}. Give at most one per file."
        )
    return list(zip(files, [*weights, *[1.0] * (len(files) - len(weights))], strict=True))
