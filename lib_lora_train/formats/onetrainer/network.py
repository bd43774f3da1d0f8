"""OneTrainer's network (LoRA, LoHa, LoKr, OFT) as ours."""

from __future__ import annotations

from lib_lora_train.config.family_catalog import families_with
from lib_lora_train.formats.kohya.import_state import REPLACED
from lib_lora_train.formats.onetrainer.reading import Reading

_FAMILIES = {"LORA": "lora", "LOHA": "loha", "LOKR": "lokr", "OFT_2": "oft"}
_PRECISIONS = {"FLOAT_32": "fp32", "FLOAT_16": "fp16", "BFLOAT_16": "bf16"}
_LAYERS = {"attn-only": "attention", "attn-mlp": "standard", "full": "full"}


def import_network(reading: Reading) -> None:
    """Family, rank, alpha, layers and dropout, with OneTrainer's defaults: rank 16, alpha 1, all layers."""
    kind = str(reading.pop("peft_type", "LORA"))
    family = _FAMILIES.get(kind, "lora")
    if kind not in _FAMILIES:
        reading.ignore("peft_type", kind, REPLACED)
        reading.warn("family", f"{kind} is not available; lora is used, the closest.")
    if family == "oft":
        text = "rotates the outputs of a layer, as webuis read it. OneTrainer's OFT rotates its inputs."
        reading.warn("family", f"oft {text}")
    reading.values["family"] = family
    rank = {"lokr": "lokr_dim", "oft": "oft_block_size"}.get(family, "lora_rank")
    reading.set("rank", rank, reading.pop(rank, 32 if family == "oft" else 16))
    alpha = reading.pop("lora_alpha", 1.0)
    if family in families_with("alpha"):
        reading.set("alpha", "lora_alpha", alpha)
    _dora(reading, family)
    if family == "lokr":
        reading.set("lokr_factor", "lokr_decompose_factor", reading.pop("lokr_decompose_factor", -1))
        reading.values["decompose_both"] = bool(reading.pop("lokr_decompose_both", False))
        reading.values["tucker"] = bool(reading.pop("lokr_use_tucker", False))
        reading.values["full_matrix"] = bool(reading.pop("lokr_full_matrix", False))
    dropout = reading.pop_number("dropout_probability", 0)
    if family in families_with("network_dropout"):
        reading.set("network_dropout", "dropout_probability", dropout)
    stored = str(reading.pop("lora_weight_dtype", "FLOAT_32"))
    reading.values["lora_precision"] = _PRECISIONS.get(stored, "fp32")
    _layers(reading)


def _dora(reading: Reading, family: str) -> None:
    is_lokr = family == "lokr"
    is_on = reading.pop("lokr_weight_decompose" if is_lokr else "lora_decompose", False)
    by_output = reading.pop("lokr_dora_on_output" if is_lokr else "lora_decompose_output_axis", is_lokr)
    if is_on and family in families_with("dora"):
        reading.values["dora"] = True
        if by_output:
            reading.warn("dora", "takes the norm over inputs, as webuis read it. The file takes it over outputs.")


def _layers(reading: Reading) -> None:
    preset, custom = str(reading.pop("layer_filter_preset", "full")), str(reading.pop("layer_filter", ""))
    reading.values["targets"] = _LAYERS.get(preset, "full")
    if preset not in _LAYERS and custom:
        text = f"{preset} ({custom}) is not available; all layers are trained. Leave some out with layer_ranks."
        reading.ignore("layer_filter_preset", preset, REPLACED)
        reading.warn("targets", text)
