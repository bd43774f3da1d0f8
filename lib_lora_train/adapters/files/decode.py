"""Adapter files of any origin, parsed into layers with their family, weights, rank and alpha.

`key_formats` lists the key formats that are read. Keys that are not recognised are reported, never dropped silently.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lib_lora_train.adapters.families.base import Family, base_weight
from lib_lora_train.adapters.families.dora import MAGNITUDE, Dora, RowDora
from lib_lora_train.adapters.families.glora import KernelGlora, as_older, is_newer
from lib_lora_train.adapters.families.ia3 import KernelIa3
from lib_lora_train.adapters.families.input_oft import InputOft
from lib_lora_train.adapters.families.layouts import match_layout, rank_of, required_names
from lib_lora_train.adapters.families.options import Options
from lib_lora_train.adapters.files.defects import Defect, describe_defects, find_defect, find_misfit
from lib_lora_train.adapters.files.key_formats import FIXED, split_key
from lib_lora_train.adapters.files.lora_file import AdapterFile
from lib_lora_train.adapters.files.other_layouts import has_renamed_magnitudes, in_our_layout
from lib_lora_train.adapters.files.peft_alphas import add_external_alphas
from lib_lora_train.adapters.layer_names import text_encoder_groups, text_key
from lib_lora_train.adapters.registry import FAMILIES, NORM
from lib_lora_train.core.errors import AdapterError

NEWER_GLORA = "newer layout"
OTHER_ALPHA = "alpha that is not a rank"
TUCKER_LOKR = "LoKr with a core"
_KERNEL_GLORA, _KERNEL_IA3 = KernelGlora(), KernelIa3()


@dataclass(frozen=True, eq=False)
class ParsedLayer:
    """One layer of a file. `weights`: the family's short names → tensors as in the file.

    `remark`: what webuis disagree on, NEWER_GLORA, OTHER_ALPHA or TUCKER_LOKR. Newer GLoRA is converted to the older
    layout.
    """

    family: Family
    weights: Mapping[str, Tensor]
    options: Options
    remark: str = ""

    @property
    def kind(self) -> str:
        """The family's name, with "+ dora" if it has a magnitude per input, "+ dora per output" if per output."""
        name = "norm" if self.family is NORM else self.family.NAME
        if MAGNITUDE not in self.weights:
            return name
        return f"{name} + dora per output" if has_output_dora(self) else f"{name} + dora"

    @property
    def depends_on_model(self) -> bool:
        """Whether its ΔW depends on the base weights."""
        return self.family.DEPENDS_ON_MODEL

    def diff_weight(self, base: Tensor) -> Tensor:
        """ΔW at strength 1 for a layer with the weight `base`, which the tensors must fit, in their dtype."""
        weights = reshape_for_layer(self.weights, base)
        assert weights is not None, "the caller matches layers first"
        return self.family.diff_weight(weights, self.options, base)

    @property
    def input_width(self) -> int | None:
        """In-features of a linear layer; None if its tensors do not show them."""
        shape = self.family.update_shape(self.weights)
        return int(shape[1]) if len(shape) > 1 else None


@dataclass(frozen=True, eq=False)
class ParsedLora:
    """A file's layers by kohya's name, the keys that were not recognised, and the layers that are damaged."""

    layers: Mapping[str, ParsedLayer]
    unknown: tuple[str, ...]
    defects: tuple[Defect, ...] = ()

    @property
    def input_widths(self) -> dict[str, int | None]:
        """The layers' names and input widths."""
        return {name: layer.input_width for name, layer in self.layers.items()}


def parse_file(file: AdapterFile) -> ParsedLora:
    """The file's layers, with alphas from its metadata or from a configuration file beside it."""
    return parse_state(add_external_alphas(file))


def parse_sound_file(file: AdapterFile) -> ParsedLora:
    """The file's layers; AdapterError if any of them is damaged."""
    parsed = parse_file(file)
    if parsed.defects:
        found = describe_defects(parsed.defects)
        raise AdapterError(f"{file.path.name}: {found}. The file cannot be used. Download or train it again.")
    return parsed


def parse_state(state: Mapping[str, Tensor]) -> ParsedLora:
    """The tensors by layer. Keys of layers of an unknown family, and other stray keys, are `unknown`."""
    found: dict[str, dict[str, Tensor]] = {}
    origin: dict[str, list[str]] = {}
    unknown = []
    endings = _known_endings()
    for key, tensor in state.items():
        module, ending = split_key(key, endings)
        if not ending:
            unknown.append(key)
            continue
        found.setdefault(module, {})[ending] = tensor
        origin.setdefault(module, []).append(key)
    has_two = any(module.startswith("lora_te2_") for module in found)
    is_renamed = has_renamed_magnitudes(found.values())
    is_peft = any(key.startswith("base_model.model.") for key in state)
    layers: dict[str, ParsedLayer] = {}
    defects: list[Defect] = []
    for module, theirs in found.items():
        tensors = in_our_layout(theirs, has_renamed_magnitudes=is_renamed)
        name = "lora_te1_" + module[len("lora_te_") :] if has_two and module.startswith("lora_te_") else module
        family = _input_oft(tensors, is_peft=is_peft) if "oft_R.weight" in tensors else _family_of(tensors)
        layer: ParsedLayer | Defect | None = (
            _missing_partner(name, tensors) if family is None else find_defect(name, tensors)
        )
        if family is not None and layer is None:
            layer = _layer(name, family, tensors)
        if layer is None:
            unknown += origin[module]
        elif isinstance(layer, Defect):
            defects.append(layer)
        else:
            layers[name] = layer
    return ParsedLora(layers, tuple(unknown), tuple(defects))


def _known_endings() -> set[str]:
    families = (*FAMILIES.values(), NORM, Dora(FAMILIES["lora"]), InputOft())
    return {ending for family in families for ending in family.STATE_KEYS.values()}


def _family_of(tensors: Mapping[str, Tensor]) -> Family | None:
    """The family of a layer with these tensors by ending; None if there is none, or some tensors are left over."""
    endings = set(tensors) - set(FIXED)
    family = _family(endings)
    if family is None or not endings <= set(family.STATE_KEYS.values()):
        return None
    if family.NAME == "ia3" and ("on_input" not in tensors or _misfit("", family, {"weight": tensors["weight"]})):
        return None  # a layer of something else: every weight of any model has such a key
    if family.NAME == "ia3" and tensors["weight"].dim() == 4:
        return _KERNEL_IA3
    if family.NAME == "glora" and tensors["a1.weight"].dim() == 4:
        return _KERNEL_GLORA
    if family.NAME == "oft" and tensors["oft_blocks"].dim() == 4:
        return FAMILIES["boft"]  # the two share a key
    return family


def _input_oft(tensors: Mapping[str, Tensor], *, is_peft: bool) -> Family | None:
    """OFT of inputs by PEFT's rule or OneTrainer's; None for a file of PEFT without its configuration."""
    if set(tensors) - set(FIXED) != {"oft_R.weight"} or (is_peft and "oft_R.terms" not in tensors):
        return None
    if is_peft:
        return InputOft(int(tensors["oft_R.terms"]))
    is_scaled = bool(tensors.get("oft_R.scaled_oft", torch.tensor(False)))
    return InputOft(turns_back=True, is_scaled=is_scaled)


def _missing_partner(name: str, tensors: Mapping[str, Tensor]) -> Defect | None:
    """A defect if the layer has some of the tensors that a family needs, and nothing else."""
    endings = set(tensors) - set(FIXED)
    for plain in FAMILIES.values():
        family, needed = Dora(plain), _needed_endings(plain)
        missing = sorted(needed - endings)
        if missing and needed & endings and endings <= set(family.STATE_KEYS.values()):
            return Defect(name, f"{', '.join(missing)} is missing")
    return None


def _misfit(name: str, family: Family, weights: Mapping[str, Tensor]) -> Defect | None:
    return find_misfit(name, weights, family.STATE_KEYS, family.LAYOUTS)


def _layer(name: str, family: Family, tensors: Mapping[str, Tensor]) -> ParsedLayer | Defect:
    """The layer of this family with these tensors by ending, or why it is none."""
    fixed = {ending: tensors[ending] for ending in FIXED if ending in tensors}
    weights = {short: tensors[ending] for short, ending in family.STATE_KEYS.items() if ending in tensors}
    misfit = _misfit(name, family, weights)
    if misfit:
        return misfit
    rank = rank_of(match_layout(weights, family.LAYOUTS) or {})
    layer = ParsedLayer(family, weights, family.with_fixed(Options(rank=rank, alpha=float(rank)), fixed))
    if family is _KERNEL_GLORA:
        return replace(layer, remark=NEWER_GLORA)
    if family.NAME == "glora":
        return _glora(layer, float(fixed.get("alpha", torch.tensor(0.0))))
    if family.NAME == "lokr" and "t2" in weights:
        layer = replace(layer, remark=TUCKER_LOKR)
    return _with_output_dora(layer)


def _glora(layer: ParsedLayer, alpha: float) -> ParsedLayer:
    """The layer in the older layout. The newer layout's alpha, which LyCORIS applies, is multiplied in; 0: none."""
    if not is_newer(layer.weights):
        return replace(layer, remark=OTHER_ALPHA if alpha not in (0.0, layer.options.rank) else "")
    rank = layer.weights["a2"].shape[0]
    older = as_older(layer.weights, alpha / rank if alpha else 1.0)
    return ParsedLayer(layer.family, older, Options(rank=rank, alpha=float(rank)), NEWER_GLORA)


def _family(endings: set[str]) -> Family | None:
    if endings == {"w_norm", "b_norm"}:
        return NORM
    if any(ending.startswith("lokr_w1") for ending in endings):
        family: Family | None = FAMILIES["lokr"]
    else:
        wanted = ((family, _needed_endings(family)) for family in FAMILIES.values())
        family = next((family for family, needed in wanted if needed and needed <= endings), None)
    if family is not None and "dora_scale" in endings:
        return Dora(family)
    return family


def _needed_endings(family: Family) -> set[str]:
    """The endings by which a layer of this family is recognised; none if its forms have no tensor in common.

    Where two families share them (DyLoRA's file is a LoRA's), the first in the registry is meant.
    """
    return {family.STATE_KEYS[short] for short in required_names(family.LAYOUTS)}


def has_output_dora(layer: ParsedLayer) -> bool:
    """Whether it has DoRA's magnitudes per output channel, which webuis silently misread."""
    return isinstance(layer.family, RowDora)


def _with_output_dora(layer: ParsedLayer) -> ParsedLayer:
    """The layer, with DoRA as it was trained if its magnitudes are per output channel."""
    if isinstance(layer.family, Dora) and layer.weights[MAGNITUDE].shape[0] != 1:
        return replace(layer, family=RowDora(layer.family.inner))
    return layer


def aliases(unet: Mapping[str, str], text_names: Iterable[Iterable[str]]) -> dict[str, str]:
    """Every name that files have for a layer → the name we write; `unet` has those of the UNet (`lora_aliases`)."""
    texts = tuple(tuple(group) for group in text_names)
    groups = text_encoder_groups(len(texts))
    text = {
        text_key(name, prefix): text_key(name, prefix)
        for (_, prefix), group in zip(groups, texts, strict=True)
        for name in group
    }
    first = {key.replace("lora_te1_", "lora_te_", 1): key for key in text if key.startswith("lora_te1_")}
    return {**unet, **text, **first}


def reshape_for_layer(weights: Mapping[str, Tensor], base: Tensor) -> dict[str, Tensor] | None:
    """fp32 copies, reshaped for a layer with this weight; None if they are for one of another size.

    1×1 convolutions and linear layers have the same weights, and files disagree on which of the two a layer is.
    """
    is_conv = base.dim() == 4
    shaped = {}
    for short, tensor in weights.items():
        value = tensor.detach().to("cpu", torch.float32)
        if short in ("down", "up", "diff", "w2", MAGNITUDE) and is_conv != (value.dim() == 4):
            kernel = value.shape[2:].numel() if value.dim() == 4 else 1
            if kernel != 1:
                return None
            value = value[:, :, None, None] if is_conv else value.flatten(1)
        shaped[short] = value
    return shaped


def weights_for(layer: ParsedLayer, module: nn.Module) -> dict[str, Tensor] | None:
    """The layer's weights for this module, fp32; None if they are for one of another kind or size.

    Only shapes are computed, so that the module may be on the meta device.
    """
    base = torch.empty(base_weight(module).shape, device="meta")
    weights = reshape_for_layer(layer.weights, base) if layer.family.fits(module) else None
    if weights is None:
        return None
    try:
        diff = layer.family.diff_weight({n: t.to("meta") for n, t in weights.items()}, layer.options, base)
    except (RuntimeError, ValueError):  # torch raises these for shapes that do not match
        return None
    return weights if diff.shape == base.shape else None
