"""The graft: diffusers and transformers modules whose parameters are views of a checkpoint's tensors.

The modules are built on the meta device; each parameter then becomes a new frozen tensor on the storage of the
checkpoint's tensor. Nothing is copied that can be shared, and the original tensors keep their `requires_grad`. They may
be inference tensors: `detach()` and `nn.Parameter()` do not make usable tensors of those, `set_` on their storage does.

A shared tensor must never be written to, and its owner must not write to it between our forward and our backward pass:
autograd would not notice.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lib_lora_train.core.errors import ModelError
from lib_lora_train.core.wording import count
from lib_lora_train.models import library_compat as compat
from lib_lora_train.models.architecture import (
    UNET_PREFIX,
    ModelSpec,
    Shapes,
    add_text_model_prefix,
)
from lib_lora_train.models.infer_stable_diffusion import infer_vae_config
from lib_lora_train.models.kinds.base import Network
from lib_lora_train.models.kinds.registry import kind_of
from lib_lora_train.models.kinds.stable_diffusion import vae_network
from lib_lora_train.models.ldm_names import Source
from lib_lora_train.models.quantized import dequantized, is_quantized, packed_dtype

_TRAINABLE = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
QUANTIZED = "quantised: "
"""How the reason of a `GraftRow` begins for a copy of a quantised tensor, before what it is packed in."""
ELSEWHERE = "kept on "
"""The same for a copy of a tensor on another device, before that device."""
_DEVICE = 2  # its position in the result of `_storage_key`


@dataclass(frozen=True)
class GraftRow:
    """How one tensor was used.

    `name` is the parameter (`unet.conv_in.weight`), empty for an unused tensor of the checkpoint; `source` is the
    checkpoint's tensor, empty for one that we created.
    """

    name: str
    source: str
    status: Literal["shared", "copied", "created", "unused"]
    bytes: int
    reason: str = ""


@dataclass(eq=False)
class Slot:
    """One parameter of our modules: attribute `leaf` of `owner`, from the checkpoint's tensor `key`.

    `device` is where the parameter must be, None for where the tensor is. `origin` is the tensor's storage when the
    parameter was created, None while the slot is empty. The slot stays valid when adapters wrap `owner`. `is_copy`: the
    parameter is a converted copy, which shares nothing with the tensor's owner, so it is created once and kept. A
    tensor on another device is copied too, but only until the slot is emptied: the owner may move it, and a kept copy
    would take the memory for which the owner moved it away.
    """

    owner: nn.Module
    leaf: str
    key: str
    source: Source
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device | None = None
    origin: tuple[object, ...] | None = None
    is_copy: bool = False

    def fill(self, tensor: Tensor) -> bool:
        """Point the parameter at `tensor`, or at a converted copy of it; returns whether it shares the storage.

        The Parameter stays the same object unless device or dtype change, since this happens in every lease.
        """
        is_plain = tensor.shape == self.shape and not self.source.is_transposed and self.source.qkv_index is None
        plain = dequantized(tensor) if is_quantized(tensor) else tensor
        view = plain if is_plain else parameter_view(alias(plain), self.source, self.shape)
        is_moved = self.device is not None and _is_elsewhere(view.device, self.device)
        if view.dtype != self.dtype or is_moved:
            view = view.to(self.device if is_moved else view.device, self.dtype)
        parameter = self.owner._parameters[self.leaf]
        if parameter is None or parameter.device != view.device or parameter.dtype != view.dtype:
            parameter = nn.Parameter(torch.empty(0, dtype=view.dtype, device=view.device), requires_grad=False)
            self.owner._parameters[self.leaf] = parameter
        parameter.set_(view.untyped_storage(), view.storage_offset(), view.shape, view.stride())
        self.origin = _storage_key(tensor)
        is_shared = not is_quantized(tensor) and _shares_storage(parameter, tensor)
        self.is_copy = not is_shared and (is_quantized(tensor) or not is_moved)
        return is_shared

    def is_current(self, tensor: Tensor) -> bool:
        """Whether the parameter is still on the tensor's storage, or a copy on its device."""
        if self.is_copy:
            return self.origin is not None and self.origin[_DEVICE] == tensor.device
        return self.origin == _storage_key(tensor)

    def empty(self) -> None:
        """Release the owner's storage; unless it is a copy, the parameter is empty then."""
        if self.is_copy:
            return
        parameter = self.owner._parameters[self.leaf]
        assert parameter is not None
        parameter.set_()  # type: ignore[call-overload]  # without a source: empty
        self.origin = None


@dataclass(frozen=True)
class Graft:
    """The grafted modules, frozen and in eval mode, a report row per tensor, and the slots of their parameters.

    `vae` is None for kinds of models whose VAE is the host's own.
    """

    unet: nn.Module
    vae: Any
    text_encoders: tuple[nn.Module, ...]
    report: tuple[GraftRow, ...]
    slots: tuple[Slot, ...]


def graft(
    tensors: Mapping[str, Tensor],
    spec: ModelSpec,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Graft:
    """Modules on the tensors' own storage.

    A network computes in `dtype`, or in the dtype of most of its weights; tensors of other dtypes are copied. So are
    quantised ones, and with a `device` those that are elsewhere: see `Slot`.
    ModelError, naming them, for tensors that are missing, left over, of another shape, on the meta device, or in a
    format that cannot be computed with (fp8, packed 4 bit).
    """
    tensors = add_text_model_prefix(tensors)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    parts = tuple(kind_of(spec.architecture).networks(spec))
    unused = check_networks(parts, shapes)
    slots: list[Slot] = []
    rows = [row for part in parts for row in _graft_part(part, tensors, slots, dtype, device)]
    rows += [GraftRow("", name, "unused", tensors[name].nbytes, reason) for name, reason in unused.items()]
    modules = {part.label: part.module for part in parts}
    return Graft(
        unet=modules.pop("unet"),
        vae=modules.pop("vae", None),
        text_encoders=tuple(modules.values()),
        report=tuple(rows),
        slots=tuple(slots),
    )


def rebind(slots: Sequence[Slot], tensors: Mapping[str, Tensor]) -> int:
    """Point the parameters at tensors that were moved, replaced or released; returns how many changed.

    The tensors must be the same checkpoint's, with the same values: copies are only renewed if the tensor is on another
    device. ModelError, changing nothing, if one is missing, of another shape or dtype, or not in memory.
    """
    if any(slot.key not in tensors for slot in slots):
        tensors = add_text_model_prefix(tensors)
    wrong = next((slot for slot in slots if not _is_usable(tensors.get(slot.key), slot)), None)
    if wrong is not None:
        raise ModelError(
            f"{wrong.key} is missing, not in memory, or different from when the run began. Load the model again."
        )
    moved = [slot for slot in slots if not slot.is_current(tensors[slot.key])]
    with torch.inference_mode(False), torch.no_grad():
        for slot in moved:
            slot.fill(tensors[slot.key])
    return len(moved)


def release_weights(slots: Iterable[Slot]) -> None:
    """Keep none of the owner's storage alive, so that it can be freed or moved; `rebind` restores the parameters."""
    with torch.inference_mode(False), torch.no_grad():
        for slot in slots:
            slot.empty()


def can_be_trained_on(tensor: Tensor) -> bool:
    """Whether a tensor is in memory, in a format that can be computed with, if need be on an unpacked copy."""
    return not tensor.is_meta and tensor.dtype in _TRAINABLE


def _is_usable(tensor: Tensor | None, slot: Slot) -> bool:
    if tensor is None or not can_be_trained_on(tensor):
        return False
    return tensor.shape == slot.shape or _fits(tuple(tensor.shape), tuple(slot.shape), slot.source)


def _is_elsewhere(device: torch.device, wanted: torch.device) -> bool:
    """Whether these are different devices; `cuda` without a number is any GPU."""
    return device.type != wanted.type or (wanted.index is not None and device.index != wanted.index)


def _storage_key(tensor: Tensor) -> tuple[object, ...]:
    if is_quantized(tensor):  # its storage cannot be reached; copies only depend on the device
        return None, 0, tensor.device, tensor.dtype
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.device, tensor.dtype


# --- matching names -----------------------------------------------------------------------------


_UNUSED = (
    (r"^first_stage_model\.(loss|model_ema)\.", "only for training the VAE"),
    (r"\.position_ids$", "position ids are created again"),
    (r"\.(logit_scale|attn_mask|text_projection(\.weight)?)$", "only for comparing texts with images"),
    (r"\.(visual|vision_model|visual_projection)\.", "only for comparing texts with images"),
    (r"\.(lora|lokr|hada)_", "a leftover of a LoRA"),
)
_FEW_UNKNOWN = 0.01
"""Up to this share of a file's tensors outside the UNet may be unknown: leftovers of other programs, never read."""


def check_networks(parts: tuple[Network, ...], shapes: Shapes) -> dict[str, str]:
    """Unused tensors → the reason; ModelError for tensors that are missing, unknown or of another shape."""
    used: set[str] = set()
    wrong: list[str] = []
    for part in parts:
        for name, parameter in part.module.named_parameters():
            source = part.source(name)
            theirs = part.prefix + source.name
            used.add(theirs)
            if theirs not in shapes:
                wrong.append(f"{theirs} is missing")
            elif not _fits(shapes[theirs], tuple(parameter.shape), source):
                wrong.append(f"{theirs} is {shapes[theirs]}, expected {tuple(parameter.shape)}")
    left = [name for name in shapes if name not in used and name.startswith(tuple(part.prefix for part in parts))]
    unused = {name: _why_unused(name, parts) for name in left}
    unknown = [name for name, reason in unused.items() if not reason]
    if wrong or len(unknown) > _FEW_UNKNOWN * len(shapes) or any(name.startswith(UNET_PREFIX) for name in unknown):
        wrong += [f"{name} is unknown" for name in unknown]
        whole = "VAE" if len(parts) == 1 else "checkpoint"
        raise ModelError(
            f"The {whole} has {count(len(wrong), 'tensor that does', 'tensors that do')} not match its "
            "architecture, so it cannot be used: " + "; ".join(wrong[:5]) + ("; …" if len(wrong) > 5 else ".")
        )
    return {name: reason or "unknown" for name, reason in unused.items()}


def check_vae(shapes: Shapes) -> None:
    """ModelError if these tensors (named as in a checkpoint) are not those of a whole VAE for SD1, SD2 or SDXL."""
    config = infer_vae_config(shapes)
    check_networks((vae_network(config, scale_factor=1.0),), shapes)


def _why_unused(name: str, parts: tuple[Network, ...]) -> str:
    for part in parts:
        layers = getattr(getattr(part.module, "config", None), "num_hidden_layers", None)
        if layers is not None and name.startswith(
            (f"{part.prefix}transformer.resblocks.{layers}.", f"{part.prefix}text_model.encoder.layers.{layers}.")
        ):
            return "SD2 reads the layer before it"
    return next((reason for pattern, reason in _UNUSED if re.search(pattern, name)), "")


def _fits(theirs: tuple[int, ...], ours: tuple[int, ...], source: Source) -> bool:
    if source.qkv_index is not None:
        return theirs == (3 * ours[0], *ours[1:])
    if source.is_transposed:
        return theirs == ours[::-1]
    return theirs in (ours, (*ours, 1, 1))  # ldm's VAE attention is made of 1×1 convolutions


# --- sharing storage ----------------------------------------------------------------------------


def _graft_part(
    part: Network,
    tensors: Mapping[str, Tensor],
    slots: list[Slot],
    wanted: torch.dtype | None,
    place: torch.device | None,
) -> Iterator[GraftRow]:
    """Fill the part's parameters, adding a slot and yielding a report row for each."""
    main = _main_dtype(part, tensors)
    dtype = wanted or main
    device = torch.device("cpu")
    for name, parameter in list(part.module.named_parameters()):
        source = part.source(name)
        tensor = tensors[part.prefix + source.name]
        owner_name, _, leaf = name.rpartition(".")
        owner = part.module.get_submodule(owner_name)
        slot = Slot(owner, leaf, part.prefix + source.name, source, parameter.shape, dtype, place)
        with torch.inference_mode(False), torch.no_grad():
            shared = slot.fill(tensor)
        slots.append(slot)
        filled = owner.get_parameter(leaf)
        device = filled.device
        reason = "" if shared else _why_copied(tensor, filled, main)
        label = f"{part.label}.{name}"
        yield GraftRow(label, part.prefix + source.name, "shared" if shared else "copied", filled.nbytes, reason)
    if part.label.startswith("text_encoder"):
        size = compat.create_position_ids(part.module, device)
        yield GraftRow(f"{part.label}.position_ids", "", "created", size, "the numbers 0…76, not weights")


def _why_copied(tensor: Tensor, ours: Tensor, main: torch.dtype) -> str:
    if is_quantized(tensor):
        return f"{QUANTIZED}{packed_dtype(tensor)}"
    if tensor.device != ours.device:
        return f"{ELSEWHERE}{tensor.device}"
    stored, dtype = tensor.dtype, ours.dtype
    if stored == dtype:
        return "not contiguous"
    return f"{stored} among {dtype}" if main == dtype else f"{stored}, computed in {dtype}"


def alias(tensor: Tensor) -> Tensor:
    """A new, ordinary tensor of the same shape on the same storage; works for inference tensors too."""
    with torch.inference_mode(False), torch.no_grad():
        empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        return empty.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())


def parameter_view(tensor: Tensor, source: Source, shape: torch.Size) -> Tensor:
    """The parameter's part of the tensor in the parameter's shape; a view if the strides allow one."""
    with torch.inference_mode(False), torch.no_grad():
        if source.qkv_index is not None:
            tensor = tensor.chunk(3)[source.qkv_index]
        if source.is_transposed:
            tensor = tensor.t()
        return tensor.reshape(shape)


def _shares_storage(ours: Tensor, theirs: Tensor) -> bool:
    return ours.untyped_storage().data_ptr() == theirs.untyped_storage().data_ptr()


def _main_dtype(part: Network, tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype of most of the network's weights: a module computes in one dtype only."""
    sizes: Counter[torch.dtype] = Counter()
    for name, _ in part.module.named_parameters():
        tensor = tensors[part.prefix + part.source(name).name]
        if tensor.is_meta:
            raise ModelError(
                f"{part.label}: the weights are not in memory (the webui moved them away). Load the model again."
            )
        if tensor.dtype not in _TRAINABLE:
            raise ModelError(
                f"{part.label}: weights stored as {tensor.dtype} cannot be trained on. Use a 16- or 32-bit file."
            )
        sizes[tensor.dtype] += tensor.numel()
    return sizes.most_common(1)[0][0]
