"""The graft: diffusers and transformers modules whose parameters are views of a checkpoint's tensors.

The modules are built on the meta device and get, for each parameter, a fresh frozen tensor on the
storage of the tensor it was given. Nothing is copied that can be shared, the given tensors keep
their own `requires_grad`, and they may be inference tensors: neither `detach()` nor `nn.Parameter()`
makes a usable tensor of those, `set_` on their storage does.

A shared tensor must never be written to, and whoever owns it must not write between our forward and
our backward: autograd would not notice.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lib_lora_train.core.errors import ModelError
from lib_lora_train.models import library_compat as compat
from lib_lora_train.models.architecture import (
    UNET_PREFIX,
    VAE_PREFIX,
    ModelSpec,
    Shapes,
    TextEncoderSpec,
    with_text_model_level,
)
from lib_lora_train.models.ldm_names import Source, ldm_unet_name, ldm_vae_name, open_clip_source

_TRAINABLE = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_DEVICE = 2  # in what `_place` gives


@dataclass(frozen=True)
class GraftRow:
    """What became of one tensor.

    `name` is the parameter (`unet.conv_in.weight`) and `source` the checkpoint's tensor; one of them is
    empty for a tensor of the checkpoint that nothing uses and for one that we had to make.
    """

    name: str
    source: str
    status: Literal["shared", "copied", "made", "unused"]
    bytes: int
    reason: str = ""


@dataclass(eq=False)
class Slot:
    """One parameter's place in our modules: leaf `leaf` of `owner`, made of the checkpoint's tensor `key`.

    `origin` says where that tensor lay when the parameter was made of it, None while the slot is empty. The
    place stays the same however adapters are put around `owner`. `is_own` says that the parameter is a converted
    copy of the tensor: it holds nothing of its owner's, so it is made once and kept.
    """

    owner: nn.Module
    leaf: str
    key: str
    source: Source
    shape: torch.Size
    dtype: torch.dtype
    origin: tuple[object, ...] | None = None
    is_own: bool = False

    def fill(self, given: Tensor) -> bool:
        """Lay the parameter on `given`, or on a converted copy of it; whether it shares the storage.

        The Parameter stays the same object unless device or dtype change: this happens in every turn.
        """
        is_plain = given.shape == self.shape and not self.source.is_transposed and self.source.third is None
        view = given if is_plain else _view(alias(given), self.source, self.shape)
        if view.dtype != self.dtype:
            view = view.to(self.dtype)
        parameter = self.owner._parameters[self.leaf]
        if parameter is None or parameter.device != view.device or parameter.dtype != view.dtype:
            parameter = nn.Parameter(torch.empty(0, dtype=view.dtype, device=view.device), requires_grad=False)
            self.owner._parameters[self.leaf] = parameter
        parameter.set_(view.untyped_storage(), view.storage_offset(), view.shape, view.stride())
        self.origin = _place(given)
        self.is_own = not _shares_storage(parameter, given)
        return not self.is_own

    def holds(self, given: Tensor) -> bool:
        """Whether the parameter has the tensor's numbers where the tensor lies now."""
        if self.is_own:
            return self.origin is not None and self.origin[_DEVICE] == given.device
        return self.origin == _place(given)

    def empty(self) -> None:
        """Let go of the owner's storage; the parameter has no numbers then, if it is not a copy."""
        if self.is_own:
            return
        parameter = self.owner._parameters[self.leaf]
        assert parameter is not None
        parameter.set_()  # type: ignore[call-overload]  # without a source: nothing at all
        self.origin = None


@dataclass(frozen=True)
class Graft:
    """The grafted modules, frozen and in eval mode, a row per tensor, and the slots of their parameters."""

    unet: nn.Module
    vae: nn.Module
    text_encoders: tuple[nn.Module, ...]
    report: tuple[GraftRow, ...]
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class _Part:
    """One network: `source` maps its parameter names to tensors under `prefix`."""

    label: str
    prefix: str
    module: nn.Module
    source: Callable[[str], Source]


def graft(tensors: Mapping[str, Tensor], spec: ModelSpec, dtype: torch.dtype | None = None) -> Graft:
    """Modules on the tensors' own storage; see `Graft`.

    A network computes in `dtype`, or in the dtype that most of its numbers have; tensors of other dtypes are copied.
    Raises ModelError, naming them, for tensors that are missing, left over or of another shape, that
    lie on the meta device or are stored in a format that cannot be computed with (fp8, packed 4 bit).
    """
    tensors = with_text_model_level(tensors)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    parts = tuple(_parts(spec))
    unused = _check(parts, shapes)
    slots: list[Slot] = []
    rows = [row for part in parts for row in _graft_part(part, tensors, slots, dtype)]
    rows += [GraftRow("", name, "unused", tensors[name].nbytes, reason) for name, reason in unused.items()]
    modules = [part.module for part in parts]
    return Graft(
        unet=modules[0], vae=modules[1], text_encoders=tuple(modules[2:]), report=tuple(rows), slots=tuple(slots)
    )


def follow(slots: Sequence[Slot], tensors: Mapping[str, Tensor]) -> int:
    """Let the parameters follow tensors that were moved, renewed or let go; how many had to.

    The tensors must be the same checkpoint's, with the same numbers: copies are not made anew unless the tensor lies
    on another device. ModelError, changing nothing, if one is missing, of another shape or dtype, or not in memory.
    """
    if any(slot.key not in tensors for slot in slots):
        tensors = with_text_model_level(tensors)
    wrong = next((slot for slot in slots if not _is_usable(tensors.get(slot.key), slot)), None)
    if wrong is not None:
        raise ModelError(f"{wrong.key} is missing, not in memory or of another kind than when the run began.")
    moved = [slot for slot in slots if not slot.holds(tensors[slot.key])]
    with torch.inference_mode(False), torch.no_grad():
        for slot in moved:
            slot.fill(tensors[slot.key])
    return len(moved)


def let_go(slots: Iterable[Slot]) -> None:
    """Keep none of the owner's storage alive, so that it can be freed or moved; `follow` brings it back."""
    with torch.inference_mode(False), torch.no_grad():
        for slot in slots:
            slot.empty()


def can_be_trained_on(tensor: Tensor) -> bool:
    """Whether a tensor is in memory, in a format that can be computed with."""
    return not tensor.is_meta and tensor.dtype in _TRAINABLE


def _is_usable(given: Tensor | None, slot: Slot) -> bool:
    if given is None or not can_be_trained_on(given):
        return False
    return given.shape == slot.shape or _fits(tuple(given.shape), tuple(slot.shape), slot.source)


def _place(tensor: Tensor) -> tuple[object, ...]:
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.device, tensor.dtype


def check_graft(shapes: Shapes, spec: ModelSpec) -> dict[str, int]:
    """Number of parameters each network would get, by label, without touching a tensor; errors as `graft`."""
    parts = tuple(_parts(spec))
    _check(parts, with_text_model_level(shapes))
    return {part.label: len(list(part.module.parameters())) for part in parts}


def ldm_unet_names(spec: ModelSpec) -> Mapping[str, str]:
    """diffusers parameter name → name in the checkpoint without `model.diffusion_model.`, for the whole UNet."""
    part = next(_parts(spec))
    return {name: part.source(name).name for name, _ in part.module.named_parameters()}


def unet_name_of(spec: ModelSpec) -> Callable[[str], str]:
    """A function from diffusers module or parameter names to ldm's for this model's UNet."""
    layers = spec.unet["layers_per_block"]
    has_attention = tuple("CrossAttn" in kind for kind in spec.unet["up_block_types"])
    return lambda name: ldm_unet_name(name, layers, has_attention)


# --- matching names -----------------------------------------------------------------------------


def _parts(spec: ModelSpec) -> Iterator[_Part]:
    unet_name = unet_name_of(spec)
    levels = len(spec.vae["block_out_channels"])
    yield _Part("unet", UNET_PREFIX, compat.build_unet(spec.unet), lambda name: Source(unet_name(name)))
    vae = compat.build_vae(spec.vae, spec.scale_factor)
    yield _Part("vae", VAE_PREFIX, vae, lambda name: Source(ldm_vae_name(name, levels)))
    for number, encoder in enumerate(spec.text_encoders, start=1):
        module = compat.build_text_encoder(encoder.config, encoder.has_projection)
        yield _Part(f"text_encoder_{number}", encoder.prefix, module, _text_source(encoder))


def _text_source(encoder: TextEncoderSpec) -> Callable[[str], Source]:
    if encoder.layout == "open_clip":
        return lambda name: open_clip_source(compat.plain_text_name(name))

    def clip_source(name: str) -> Source:
        plain = compat.plain_text_name(name)
        return Source(plain if plain.startswith("text_projection") else f"text_model.{plain}")

    return clip_source


_UNUSED = (
    (r"^first_stage_model\.(loss|model_ema)\.", "only for training the VAE"),
    (r"\.position_ids$", "position numbers are made anew"),
    (r"\.(logit_scale|attn_mask|text_projection(\.weight)?)$", "only for comparing texts with images"),
)


def _check(parts: tuple[_Part, ...], shapes: Shapes) -> dict[str, str]:
    """The tensors that nothing uses, with the reason; ModelError for anything unexpected."""
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
                wrong.append(f"{theirs} is {shapes[theirs]}, not as expected for {tuple(parameter.shape)}")
    unused: dict[str, str] = {}
    for name in shapes:
        if name not in used and name.startswith(tuple(part.prefix for part in parts)):
            reason = _why_unused(name, parts)
            if reason:
                unused[name] = reason
            else:
                wrong.append(f"{name} is unknown")
    if wrong:
        raise ModelError(
            f"The checkpoint differs from its family in {len(wrong)} tensors and cannot be trained: "
            + "; ".join(wrong[:5])
            + ("; …" if len(wrong) > 5 else ".")
        )
    return unused


def _why_unused(name: str, parts: tuple[_Part, ...]) -> str:
    for part in parts:
        layers = getattr(getattr(part.module, "config", None), "num_hidden_layers", None)
        if layers is not None and name.startswith(f"{part.prefix}transformer.resblocks.{layers}."):
            return "SD2 reads the layer before the last one"
    return next((reason for pattern, reason in _UNUSED if re.search(pattern, name)), "")


def _fits(theirs: tuple[int, ...], ours: tuple[int, ...], source: Source) -> bool:
    if source.third is not None:
        return theirs == (3 * ours[0], *ours[1:])
    if source.is_transposed:
        return theirs == ours[::-1]
    return theirs in (ours, (*ours, 1, 1))  # ldm's VAE attention is made of 1×1 convolutions


# --- sharing storage ----------------------------------------------------------------------------


def _graft_part(
    part: _Part, tensors: Mapping[str, Tensor], slots: list[Slot], wanted: torch.dtype | None
) -> Iterator[GraftRow]:
    """Fill the part's parameters, adding a slot for each, and tell a row for each."""
    main = _main_dtype(part, tensors)
    dtype = wanted or main
    device = torch.device("cpu")
    for name, parameter in list(part.module.named_parameters()):
        source = part.source(name)
        given = tensors[part.prefix + source.name]
        owner, _, leaf = name.rpartition(".")
        place = part.module.get_submodule(owner)
        slot = Slot(place, leaf, part.prefix + source.name, source, parameter.shape, dtype)
        with torch.inference_mode(False), torch.no_grad():
            shared = slot.fill(given)
        slots.append(slot)
        laid = place.get_parameter(leaf)
        device = laid.device
        reason = "" if shared else _why_copied(given.dtype, dtype, main)
        label = f"{part.label}.{name}"
        yield GraftRow(label, part.prefix + source.name, "shared" if shared else "copied", laid.nbytes, reason)
    if part.label.startswith("text_encoder"):
        size = compat.renew_position_ids(part.module, device)
        yield GraftRow(f"{part.label}.position_ids", "", "made", size, "numbers 0…76, not weights")


def _why_copied(given: torch.dtype, dtype: torch.dtype, main: torch.dtype) -> str:
    if given == dtype:
        return "not contiguous"
    return f"{given} among {dtype}" if main == dtype else f"{given}, computed in {dtype}"


def alias(tensor: Tensor) -> Tensor:
    """A fresh, ordinary tensor of the same shape on the same storage; works for inference tensors too."""
    with torch.inference_mode(False), torch.no_grad():
        fresh = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        return fresh.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())


def _view(tensor: Tensor, source: Source, shape: torch.Size) -> Tensor:
    """The parameter's part of the tensor in the parameter's shape, as a view wherever strides allow one."""
    with torch.inference_mode(False), torch.no_grad():
        if source.third is not None:
            tensor = tensor.chunk(3)[source.third]
        if source.is_transposed:
            tensor = tensor.t()
        return tensor.reshape(shape)


def _shares_storage(ours: Tensor, theirs: Tensor) -> bool:
    return ours.untyped_storage().data_ptr() == theirs.untyped_storage().data_ptr()


def _main_dtype(part: _Part, tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype of most numbers of the network: a module computes in one dtype only."""
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
