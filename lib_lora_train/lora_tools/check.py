"""What is in an adapter file: family, ranks, alphas, norms, faults, and which models it is for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from lib_lora_train.adapters.families.dora import MAGNITUDE
from lib_lora_train.adapters.files.decode import (
    NEWER_GLORA,
    OTHER_ALPHA,
    TUCKER_LOKR,
    ParsedLayer,
    ParsedLora,
    has_other_axis,
    open_file,
)
from lib_lora_train.adapters.files.lora_file import AdapterFile, read_adapter
from lib_lora_train.adapters.files.other_models import other_model

_CROSS = {768: "SD1", 1024: "SD2", 2048: "SDXL"}
_TEXT = {768: "SD1", 1024: "SD2"}
_DEEP = re.compile(r"transformer_blocks_[1-9]")
_SHALLOW = re.compile(r"_(down_blocks_0_attentions|input_blocks_[12]_1|up_blocks_3_attentions)_")
_NOT_IN_FORGE = ("ia3", "oft", "boft")
_SHOWN = 5
_OF_SD = re.compile(
    r"lora_(te[12]?_text_|unet_(down_blocks|up_blocks|mid_block|input_blocks|middle_block|output_blocks)_\d|unet_mid_block_"
    r"|unet_(conv_|time_embed|add_embedding|label_emb|out_))"
)
_REMARKS = {
    NEWER_GLORA: "GLoRA in LyCORIS' newer layout, which A1111 cannot read. `convert` writes what every webui reads.",
    OTHER_ALPHA: "GLoRA with an alpha that is not its rank: Forge scales by it, A1111 and this tool do not.",
    TUCKER_LOKR: "LoKr with a Tucker core, at which Forge fails as it draws. `convert` writes what every webui reads.",
}


@dataclass(frozen=True)
class Checked:
    """The findings.

    `norms`: layer → ‖ΔW‖, where it does not depend on the model; `broken`: keys with NaN or infinity; `turned`: layers
    whose DoRA is for output channels; `foreign`: layers that no Stable Diffusion has; `remarks`: what hosts disagree on
    → in how many layers.
    """

    path: Path
    families: Mapping[str, int]
    parts: Mapping[str, int]
    ranks: Mapping[int, int]
    alphas: Mapping[float, int]
    norms: Mapping[str, float]
    zero: tuple[str, ...]
    broken: tuple[str, ...]
    unknown: tuple[str, ...]
    turned: tuple[str, ...]
    foreign: tuple[str, ...]
    remarks: Mapping[str, int]
    base_model: str
    metadata: Mapping[str, str]

    @property
    def problems(self) -> tuple[str, ...]:
        """A sentence for everything that a user should know before using the file."""
        found = []
        if self.broken:
            found.append(f"{len(self.broken)} tensors hold NaN or infinity ({_some(self.broken)}): unusable.")
        if self.turned:
            found.append(
                "Its DoRA is for output channels, which A1111 and Forge read as something else, silently. "
                "`convert` writes what it meant in training."
            )
        found += [f"{count} layers: {_REMARKS[remark]}" for remark, count in self.remarks.items()]
        if other_model(self.foreign):
            found.append(f"It is for {other_model(self.foreign)}: only files for SD1, SD2 and SDXL can be used here.")
        elif self.foreign:
            found.append(f"{len(self.foreign)} layers are of no Stable Diffusion ({_some(self.foreign)}).")
        if self.unknown:
            found.append(f"{len(self.unknown)} keys are not understood ({_some(self.unknown)}).")
        if self.zero and len(self.zero) == sum(self.parts.values()):
            found.append("Every layer is zero: the file has no effect.")
        ignored = [name for name in self.families if name.startswith(_NOT_IN_FORGE)]
        if ignored:
            found.append(f"Forge ignores {', '.join(ignored)}. `convert` writes a LoRA or a diff, which it reads.")
        return tuple(found)


def check_file(path: Path) -> Checked:
    """The findings on a file; AdapterError if it cannot be read."""
    return check(read_adapter(path))


def check(file: AdapterFile) -> Checked:
    """The findings on a file that was read."""
    opened = open_file(file)
    layers = opened.layers
    return Checked(
        path=file.path,
        families=Counter(layer.kind for layer in layers.values()),
        parts=Counter(_part(name) for name in layers),
        ranks=Counter(layer.options.rank for layer in layers.values()),
        alphas=Counter(round(layer.options.alpha, 6) for layer in layers.values()),
        norms={name: norm for name, layer in layers.items() if (norm := _norm(layer)) is not None},
        zero=tuple(name for name, layer in layers.items() if _norm(layer) == 0),
        broken=tuple(key for key, tensor in file.state.items() if not bool(torch.isfinite(tensor.float()).all())),
        unknown=opened.unknown,
        foreign=tuple(name for name in layers if not _OF_SD.match(name)),
        remarks=Counter(layer.remark for layer in layers.values() if layer.remark),
        turned=tuple(name for name, layer in layers.items() if has_other_axis(layer)),
        base_model=_base_model(opened, file.metadata),
        metadata=file.metadata,
    )


def report(checked: Checked) -> str:
    """The findings as lines of text."""
    norms = list(checked.norms.values())
    lines = [
        f"{checked.path.name}: {_told(checked.families)}",
        f"  for {checked.base_model}; layers: {_told(checked.parts)}",
        f"  rank: {_told(checked.ranks)}; alpha: {_told(checked.alphas)}",
    ]
    if norms:
        lines.append(f"  ‖ΔW‖: {min(norms):.4g} to {max(norms):.4g}, {sum(norms) / len(norms):.4g} on average")
    if checked.zero:
        lines.append(f"  without effect: {len(checked.zero)} layers ({_some(checked.zero)})")
    for key in ("ss_output_name", "ss_network_module", "ss_sd_model_name", "ss_steps", "modelspec.trigger_phrase"):
        if checked.metadata.get(key) not in (None, "", "None"):
            lines.append(f"  {key}: {checked.metadata[key]}")
    return "\n".join([*lines, *(f"  ! {problem}" for problem in checked.problems)])


def _part(name: str) -> str:
    for prefix, part in (("lora_unet_", "UNet"), ("lora_te2", "text encoder 2"), ("lora_te1", "text encoder 1")):
        if name.startswith(prefix):
            return part
    return "text encoder" if name.startswith("lora_te") else "other"


def _norm(layer: ParsedLayer) -> float | None:
    """‖ΔW‖, None where it depends on the model's weights."""
    if layer.depends_on_model:
        return None
    weights = {name: tensor.float() for name, tensor in layer.weights.items()}
    if layer.family.NAME == "loha" and "t1" not in weights:
        rows, columns = weights["w1_a"].shape[0], weights["w1_b"].shape[1]
        return float(layer.family.diff_norm(weights, layer.options, torch.empty(rows, columns, device="meta")))
    return float(layer.family.diff_norm(weights, layer.options, torch.empty(0)))


def _base_model(opened: ParsedLora, metadata: Mapping[str, str]) -> str:
    """Which models the file is for: by the width of the prompt that cross-attention reads, else by names and words."""
    other = other_model(opened.layers)
    if other:
        return other
    for name, layer in opened.layers.items():
        if name.endswith(("attn2_to_k", "attn2_to_v")):
            width = _inputs(layer)
            if width in _CROSS:
                return _CROSS[width]
    told = metadata.get("ss_base_model_version", "") or metadata.get("modelspec.architecture", "")
    if "xl" in told:
        return "SDXL (as it says)"
    if told:
        kind = next((kind for mark, kind in (("v2", "SD2"), ("v1", "SD1")) if mark in told), told)
        return f"{kind} (as it says)"
    return _by_names(opened) or "an unknown model"


def _by_names(opened: ParsedLora) -> str:
    """By layers that not all have: SDXL's second encoder and deeper transformers, the other two's widths of text."""
    if any(name.startswith(("lora_te1", "lora_te2")) or _DEEP.search(name) for name in opened.layers):
        return "SDXL"
    for name, layer in opened.layers.items():
        width = _inputs(layer) if name.endswith(("self_attn_q_proj", "self_attn_k_proj", "mlp_fc1")) else None
        if width in _TEXT:
            return _TEXT[width]
    return "SD1 or SD2" if any(_SHALLOW.search(name) for name in opened.layers) else ""


def _inputs(layer: ParsedLayer) -> int | None:
    """In-features of a linear layer, as far as its tensors tell."""
    weights = layer.weights
    if layer.family.NAME == "lokr":
        small, big = weights["w1" if "w1" in weights else "w1_b"], weights["w2" if "w2" in weights else "w2_b"]
        return small.shape[1] * big.shape[1]
    return next((weights[n].shape[1] for n in ("down", "a1", "w1_b", "diff", MAGNITUDE) if n in weights), None)


def _told(counts: Mapping[str, int] | Mapping[int, int] | Mapping[float, int]) -> str:
    return ", ".join(f"{value} × {count}" for value, count in counts.items()) or "none"


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
