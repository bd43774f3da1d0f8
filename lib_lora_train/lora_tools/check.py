"""What is in an adapter file: family, ranks, alphas, norms, problems, and the models it is for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from lib_lora_train.adapters.files.anima_layers import anima_part, describe_parts
from lib_lora_train.adapters.files.decode import (
    NEWER_GLORA,
    OTHER_ALPHA,
    TUCKER_LOKR,
    ParsedLayer,
    ParsedLora,
    has_output_dora,
    parse_file,
)
from lib_lora_train.adapters.files.defects import Defect, describe_defects
from lib_lora_train.adapters.files.lora_file import AdapterFile, read_adapter
from lib_lora_train.adapters.files.unread_keys import describe_unread
from lib_lora_train.config.architecture_titles import TITLES
from lib_lora_train.config.family_catalog import families_forge_ignores
from lib_lora_train.core.wording import count, shorten_list
from lib_lora_train.models.other_models import find_by_layers, find_by_word

_MODELS_BY_CROSS_ATTENTION = {768: "SD1", 1024: "SD2", 2048: "SDXL"}
_MODELS_BY_TEXT_WIDTH = {768: "SD1", 1024: "SD2"}
_SDXL_ONLY = re.compile(r"transformer_blocks_[1-9]")
_NOT_SDXL = re.compile(r"_(down_blocks_0_attentions|input_blocks_[12]_1|up_blocks_3_attentions)_")
_SHOWN = 5
_SD_LAYER = re.compile(
    r"lora_(te[12]?_text_|unet_(down_blocks|up_blocks|mid_block|input_blocks|middle_block|output_blocks)_\d|unet_mid_block_"
    r"|unet_(conv_|time_embed|add_embedding|label_emb|out_))"
)
_REMARKS = {
    NEWER_GLORA: "GLoRA in LyCORIS' newer layout, which A1111 cannot read. `convert` writes what every webui reads.",
    OTHER_ALPHA: "GLoRA with an alpha other than its rank: Forge scales by it, A1111 and this tool do not.",
    TUCKER_LOKR: "LoKr with a Tucker core, with which Forge fails to generate. `convert` rewrites it for every webui.",
}


@dataclass(frozen=True)
class LoraReport:
    """What `check` found.

    Attributes:
        families, parts, ranks, alphas: value → number of layers
        norms: layer → ‖ΔW‖, where it does not depend on the model
        zero: layers whose ΔW is 0
        defects: layers that are damaged, and why
        unknown: keys that are not recognised
        output_dora: layers with DoRA per output channel
        foreign: layers that no Stable Diffusion model has
        foreign_model: the model that these belong to, "" if unknown
        remarks: what webuis disagree on → number of layers
        base_model: the models the file is for
    """

    path: Path
    families: Mapping[str, int]
    parts: Mapping[str, int]
    ranks: Mapping[int, int]
    alphas: Mapping[float, int]
    norms: Mapping[str, float]
    zero: tuple[str, ...]
    defects: tuple[Defect, ...]
    unknown: tuple[str, ...]
    output_dora: tuple[str, ...]
    foreign: tuple[str, ...]
    foreign_model: str
    remarks: Mapping[str, int]
    base_model: str
    metadata: Mapping[str, str]

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence for each thing to know before using the file."""
        found = []
        if self.defects:
            found.append(f"{describe_defects(self.defects)}: the file is unusable.")
        if self.output_dora:
            found.append(
                f"{count(len(self.output_dora), 'layer')}: DoRA per output channel, which webuis silently misread. "
                "`convert` writes a file with the effect it had in training."
            )
        found += [f"{count(layers, 'layer')}: {_REMARKS[remark]}" for remark, layers in self.remarks.items()]
        model = self.foreign_model
        if model and model not in TITLES.values():
            found.append(f"It is for {model}; only files for SD1, SD2, SDXL and Anima can be used here.")
        parts = describe_parts(self.foreign)
        if parts:
            found.append(
                f"It has {parts}. Webuis that know Anima use them, but a run that continues from the file, `convert` "
                "and merging into a LoRA leave them out; merging into a checkpoint keeps those of the adapter."
            )
        if self.foreign and not model:
            names = shorten_list(self.foreign, _SHOWN)
            found.append(
                f"{count(len(self.foreign), 'layer does', 'layers do')} not belong to any Stable Diffusion model "
                f"({names})."
            )
        if self.unknown:
            found.append(f"Not read: {describe_unread(self.unknown)}.")
        if self.zero and len(self.zero) == sum(self.parts.values()):
            found.append("Every layer is zero: the file has no effect.")
        ignored = [name for name in self.families if name in families_forge_ignores()]
        if ignored:
            found.append(f"Forge ignores {', '.join(ignored)}. `convert` writes a LoRA or a diff, which Forge reads.")
        return tuple(found)


def check_file(path: Path) -> LoraReport:
    """The report on the file at `path`; AdapterError if it cannot be read."""
    return check(read_adapter(path))


def check(file: AdapterFile) -> LoraReport:
    """The report on a file in memory."""
    parsed = parse_file(file)
    layers = parsed.layers
    foreign = {name: layer.input_width for name, layer in layers.items() if not _SD_LAYER.match(name)}
    return LoraReport(
        path=file.path,
        families=Counter(layer.kind for layer in layers.values()),
        parts=Counter(_part(name, is_anima=_foreign_model(foreign, file.metadata) == "Anima") for name in layers),
        ranks=Counter(layer.options.rank for layer in layers.values()),
        alphas=Counter(round(layer.options.alpha, 6) for layer in layers.values()),
        norms={name: norm for name, layer in layers.items() if (norm := _norm(layer)) is not None},
        zero=tuple(name for name, layer in layers.items() if _norm(layer) == 0),
        defects=parsed.defects,
        unknown=parsed.unknown,
        foreign=tuple(foreign),
        foreign_model=_foreign_model(foreign, file.metadata),
        remarks=Counter(layer.remark for layer in layers.values() if layer.remark),
        output_dora=tuple(name for name, layer in layers.items() if has_output_dora(layer)),
        base_model=_base_model(parsed, file.metadata),
        metadata=file.metadata,
    )


def format_report(report: LoraReport) -> str:
    """The report as lines of text."""
    norms = list(report.norms.values())
    lines = [
        f"{report.path.name}: {_format_counts(report.families)}",
        f"  for {report.base_model}; layers: {_format_counts(report.parts)}",
        f"  rank: {_format_counts(report.ranks)}; alpha: {_format_counts(report.alphas)}",
    ]
    if norms:
        lines.append(f"  ‖ΔW‖: {min(norms):.4g} to {max(norms):.4g}, {sum(norms) / len(norms):.4g} on average")
    if report.zero:
        lines.append(f"  no effect: {count(len(report.zero), 'layer')} ({shorten_list(report.zero, _SHOWN)})")
    for key in ("ss_output_name", "ss_network_module", "ss_sd_model_name", "ss_steps", "modelspec.trigger_phrase"):
        if report.metadata.get(key) not in (None, "", "None"):
            lines.append(f"  {key}: {report.metadata[key]}")
    return "\n".join([*lines, *(f"  ! {problem}" for problem in report.problems)])


def _part(name: str, *, is_anima: bool) -> str:
    if is_anima:
        return anima_part(name) or "transformer"
    for prefix, part in (("lora_unet_", "UNet"), ("lora_te2", "text encoder 2"), ("lora_te1", "text encoder 1")):
        if name.startswith(prefix):
            return part
    return "text encoder" if name.startswith("lora_te") else "other"


def _norm(layer: ParsedLayer) -> float | None:
    """‖ΔW‖; None if it depends on the model's weights."""
    if layer.depends_on_model:
        return None
    weights = {name: tensor.float() for name, tensor in layer.weights.items()}
    base = torch.empty(layer.family.update_shape(weights), device="meta")
    return float(layer.family.diff_norm(weights, layer.options, base))


def read_base_model(path: Path) -> str:
    """The models that a LoRA file is for, as in `LoraReport.base_model`, but "" if unknown; AdapterError as there."""
    file = read_adapter(path)
    return _known_base_model(parse_file(file), file.metadata)


def _base_model(parsed: ParsedLora, metadata: Mapping[str, str]) -> str:
    return _known_base_model(parsed, metadata) or "an unknown model"


def _known_base_model(parsed: ParsedLora, metadata: Mapping[str, str]) -> str:
    """The models the file is for: by the input width of cross-attention, else by metadata, else by layer names."""
    other = _foreign_model(parsed.input_widths, metadata)
    if other:
        return other
    for name, width in parsed.input_widths.items():
        if name.endswith(("attn2_to_k", "attn2_to_v")) and width in _MODELS_BY_CROSS_ATTENTION:
            return _MODELS_BY_CROSS_ATTENTION[width]
    version = metadata.get("ss_base_model_version", "") or metadata.get("modelspec.architecture", "")
    if "xl" in version:
        return "SDXL (according to its metadata)"
    if version:
        kind = next((kind for mark, kind in (("v2", "SD2"), ("v1", "SD1")) if mark in version), version)
        return f"{kind} (according to its metadata)"
    return _base_model_by_layers(parsed)


def _base_model_by_layers(parsed: ParsedLora) -> str:
    """By SDXL's second text encoder and deeper transformers, or the text encoder's width of SD1 and SD2; else ""."""
    if any(name.startswith(("lora_te1", "lora_te2")) or _SDXL_ONLY.search(name) for name in parsed.layers):
        return "SDXL"
    for name, width in parsed.input_widths.items():
        if not name.endswith(("self_attn_q_proj", "self_attn_k_proj", "mlp_fc1")):
            continue
        if width in _MODELS_BY_TEXT_WIDTH:
            return _MODELS_BY_TEXT_WIDTH[width]
    return "SD1 or SD2" if any(_NOT_SDXL.search(name) for name in parsed.layers) else ""


def _foreign_model(widths: Mapping[str, int | None], metadata: Mapping[str, str]) -> str:
    """The model other than Stable Diffusion that layers belong to; if they fit several, the metadata decides."""
    found = find_by_layers(widths)
    said = find_by_word(metadata.get("ss_base_model_version", "") or metadata.get("modelspec.architecture", ""))
    return said if " or " in found and said and said in found else found


def _format_counts(counts: Mapping[str, int] | Mapping[int, int] | Mapping[float, int]) -> str:
    return ", ".join(f"{value} × {count}" for value, count in counts.items()) or "none"
