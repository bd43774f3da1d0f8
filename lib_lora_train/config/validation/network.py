"""Validation of the network: each family's usual limits, settings without effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lib_lora_train.config.block_lists import MIDDLE_COUNTS, WEIGHT_COUNTS, parse_alphas, parse_ranks, parse_weights
from lib_lora_train.config.family_catalog import FAMILY_CATALOG, FamilyInfo, families_with
from lib_lora_train.config.layer_patterns import parse_layer_ranks, parse_layer_weights
from lib_lora_train.config.problems import error_at, hint_at, unused, warning_at
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import Problem

_SMALL_SCALE = 1 / 64
_HIGH_DROPOUT = 0.5
_SPECIFIC = (
    *("conv_rank", "conv_alpha", "rank_stabilized", "scalar", "tucker", "lokr_factor", "decompose_both"),
    *("full_matrix", "dylora_unit", "constraint", "rescaled"),
)
"""Settings for which it is enough to know that the family does not use them."""


def validate_network(config: TrainConfig) -> Iterator[Problem]:
    """All problems of family, rank, alpha and layers; none if the method is not LoRA, as they have no effect then."""
    if config.method != "lora":
        return
    yield from _limits(config)
    yield from _scale(config)
    yield from _rates(config)
    yield from _blocks(config)
    yield from _dropouts(config)
    yield from _without_effect(config)


def has_family_specific_lr(config: TrainConfig) -> bool:
    """Whether family or method need other learning rates than LoRA, so that the optimiser's limits do not apply."""
    rates = _info(config).rates
    return config.method != "lora" or (rates is not None and rates.low > 0)


def _info(config: TrainConfig) -> FamilyInfo:
    return FAMILY_CATALOG[config.family]


def _has_convolutions(config: TrainConfig) -> bool:
    return config.targets in ("all", "full")


def _limits(config: TrainConfig) -> Iterator[Problem]:
    family, rank, most = config.family, config.rank, _info(config).max_rank
    if config.dora and "dora" not in _info(config).uses:
        names = ", ".join(families_with("dora"))
        yield error_at("dora", f"does not work with {family}, only with {names}. Switch it off.")
    if most and rank > most:
        text = f"{rank} is high for {family}, whose update has a higher rank than this. Use at most {most}."
        yield warning_at("rank", text)
    conv_rank = rank if config.conv_rank is None else config.conv_rank
    max_conv = _info(config).max_conv_rank
    is_checked = config.conv_rank is not None or most is None  # otherwise `rank` is checked above
    if _has_convolutions(config) and max_conv and is_checked and conv_rank > max_conv:
        where = "rank" if config.conv_rank is None else "conv_rank"
        text = f"{conv_rank} is high for convolutions: files grow and images become rigid. Use at most {max_conv}"
        yield warning_at(where, f"{text}; set conv_rank." if where == "rank" else f"{text}.")
    if family == "dylora":
        yield from _dylora(config)
    if family == "glora" and _has_convolutions(config):
        yield warning_at("targets", "includes convolutions, but webuis read glora on linear layers only.")
    if family == "full":
        text = "full trains and saves all weights of these layers, gigabytes on disk and four times that in memory."
        yield warning_at("family", f"{text} A LoRA, or lokr with full_matrix, is nearly as good in most cases.")


def _dylora(config: TrainConfig) -> Iterator[Problem]:
    if config.batch_size > 1:
        text = (
            f"{config.batch_size} with dylora: each micro-batch trains one slice of ranks, so large batches cover few. "
            f"Set it to 1 and gradient_accumulation to {config.batch_size * config.gradient_accumulation}."
        )
        yield warning_at("batch_size", text)
    if config.rank % config.dylora_unit:
        text = f"{config.dylora_unit} does not divide the rank {config.rank}, so the last slice is smaller."
        yield warning_at("dylora_unit", text)


def _scale(config: TrainConfig) -> Iterator[Problem]:
    """The scale alpha / rank, in families that have one."""
    if "alpha" not in _info(config).uses or (config.family == "lokr" and config.full_matrix):
        if config.alpha is not None:
            yield hint_at("alpha", f"has no effect with {_named(config)}: its file format has no scale.")
        return
    root = config.rank**0.5 if config.rank_stabilized else 1.0
    scale = config.effective_alpha / config.rank * root
    if scale > 1:
        text = (
            f"{config.effective_alpha:g} with rank {config.rank} multiplies every update by {scale:g}, "
            "like a higher learning rate. Half the rank to the full rank is usual."
        )
        if config.rank_stabilized:
            text = (
                f"{config.effective_alpha:g} with rank {config.rank} and rank_stabilized multiplies every update by "
                f"{scale:g}. {config.rank**0.5:.2g} gives 1."
            )
        yield warning_at("alpha", text)
    if scale < _SMALL_SCALE:
        text = (
            f"{config.effective_alpha:g} with rank {config.rank} scales every update by {scale:g}, so little is learnt"
        )
        lost = ", and such small weights lose precision in fp16" if config.save_precision == "fp16" else ""
        yield warning_at("alpha", f"{text}{lost}. Half the rank to the full rank is usual.")


def _named(config: TrainConfig) -> str:
    return "full_matrix" if config.family == "lokr" else config.family


def _rates(config: TrainConfig) -> Iterator[Problem]:
    """Learning rates of the families that need others than LoRA."""
    rates = _info(config).rates
    if config.optimizer == "Prodigy" or rates is None:
        return
    rate = config.effective_unet_lr
    where = "learning_rate" if config.unet_lr is None else "unet_lr"
    if config.train_unet and 0 < rate < rates.low:
        yield warning_at(where, f"{rate:g} is low for {config.family}, {rates.advice}.")
    if config.train_unet and rate > rates.high:
        yield warning_at(where, f"{rate:g} is high for {config.family}, {rates.advice}.")
    if config.train_text_encoder:
        text_rate = config.effective_text_encoder_lr
        text_where = "learning_rate" if config.text_encoder_lr is None else "text_encoder_lr"
        if 0 < text_rate < rates.low and (text_where != where or not config.train_unet):
            yield warning_at(text_where, f"{text_rate:g} is low for {config.family}, {rates.text_advice}.")


def _blocks(config: TrainConfig) -> Iterator[Problem]:
    """Lists that cannot be read. Their length is checked later, when the model is known."""
    readers: dict[str, Callable[[str], object]] = {
        "block_ranks": parse_ranks,
        "block_alphas": parse_alphas,
        "down_lr_weight": lambda text: parse_weights(text, WEIGHT_COUNTS[0], WEIGHT_COUNTS),
        "mid_lr_weight": lambda text: parse_weights(text, MIDDLE_COUNTS[0], MIDDLE_COUNTS),
        "up_lr_weight": lambda text: parse_weights(text, WEIGHT_COUNTS[0], WEIGHT_COUNTS),
    }
    for name, read in readers.items():
        try:
            read(getattr(config, name))
        except ValueError as reason:
            yield error_at(name, f"{reason}.")
    for name, parse in (("layer_ranks", parse_layer_ranks), ("layer_lr_weights", parse_layer_weights)):
        try:
            parse(getattr(config, name))
        except ValueError as reason:
            yield error_at(name, f"{reason}.")
    if not config.train_unet:
        yield from unused(config, readers, "while train_unet is off: the blocks are those of the UNet")
    names = [name for name in ("block_ranks", "block_alphas") if name not in _info(config).uses]
    yield from unused(config, names, f"with {config.family}, whose rank works differently")


def _dropouts(config: TrainConfig) -> Iterator[Problem]:
    what = "dora" if config.dora else config.family
    uses = _info(config).uses
    if config.dora or "network_dropout" not in uses:
        others = ", ".join(name for name in FAMILY_CATALOG if name not in families_with("rank_dropout"))
        yield from unused(
            config, ["network_dropout"], f"with {what}: use rank_dropout, which works with every family but {others}"
        )
    if "rank_dropout" not in uses:
        why = f"with {config.family}: use module_dropout, which works with every family"
        yield from unused(config, ["rank_dropout"], why)
    for name in ("network_dropout", "rank_dropout", "module_dropout"):
        rate = getattr(config, name)
        if rate > _HIGH_DROPOUT:
            yield warning_at(name, f"{rate:g} drops more than half of the update. 0.1 to 0.3 is usual.")
    if config.scale_weight_norms and "ScheduleFree" in config.optimizer:
        text = f"has little effect with {config.optimizer}, which saves averaged weights. Use AdamW or Prodigy."
        yield warning_at("scale_weight_norms", text)
    if config.dora or "scale_weight_norms" not in uses:
        reason = "it sets the norm of the weights itself" if config.dora else "its updates have no norm to limit"
        yield from unused(config, ["scale_weight_norms"], f"with {what}: {reason}")


def _without_effect(config: TrainConfig) -> Iterator[Problem]:
    uses = _info(config).uses
    for name in _SPECIFIC:
        if name not in uses:
            yield from unused(config, [name], f"with {config.family}, only with {', '.join(families_with(name))}")
    if not _has_convolutions(config):
        why = f"with targets {config.targets}: there are no 3×3 convolutions"
        yield from unused(config, [name for name in ("conv_rank", "conv_alpha", "tucker") if name in uses], why)
    if config.targets == "attention":
        yield from unused(config, ["train_norm"], "with targets attention, which include no norm layers")
