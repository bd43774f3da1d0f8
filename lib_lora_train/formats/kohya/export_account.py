"""What an exported file cannot hold: it is imported again, and every difference is named with its reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lib_lora_train.config.parameters import parameters_of
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.config.validation.validate import validate
from lib_lora_train.core.errors import ConfigError
from lib_lora_train.core.words import has_word
from lib_lora_train.formats.kohya.dataset_export import Subset, with_own_values
from lib_lora_train.formats.kohya.import_state import NO_EFFECT, ONLY_HERE, SOMETIMES, IgnoredKey
from lib_lora_train.formats.kohya.importer import clear_redundant_values
from lib_lora_train.formats.kohya.script_export import all_optimizer_args

_ONLY_HERE = frozenset(
    (
        *("cache_to_disk", "caption_variants", "files_for_webui", "keep_last_states", "make_grid", "measure_likeness"),
        *("measure_prompts", "measure_steady_loss", "sample_cfg", "sample_steps", "save_from_epoch", "save_state"),
        *("save_state_every_n_steps", "tensorboard", "test_strengths", "webui_sampler", "write_card"),
        *("augment_variants",),
    )
)
"""Settings that do not change what is trained."""

_REASONS = {
    "epochs": "is left out: kohya's tools use either steps or epochs, and the steps are written",
    "seed": "is left out: kohya's tools take 1 to 4294967295, and the GUI takes 0 for a random one",
    "precision": "is written as fp16: change it if the card computes bf16",
    "lora_precision": "is left out: kohya's tools need the same mixed precision for it",
    "prediction_type": "is left out: kohya's tools train models that predict noise or v",
    "scale_v_pred_loss_like_noise_pred": "is left out: kohya's tools accept it with prediction_type v_prediction only",
    "v_pred_like_loss": "is left out: kohya's tools accept it without prediction_type v_prediction only",
    "lr_min_ratio": "is left out: kohya's tools ignore it with this lr_schedule",
    "min_bucket": "is written as the resolution: kohya's tools refuse a larger one",
    "max_bucket": "is written as the resolution: kohya's tools refuse a smaller one",
    "conv_rank": "is written as the rank: kohya's DyLoRA takes no other",
    "stop_text_encoder": "is ignored by kohya's tools for a LoRA",
    "trigger": "is written for images without a caption only: put it into every caption",
    "class_word": "is left out: kohya's tools do not have it for folders with a caption file",
    "colour_jitter": "is written as color_aug, which has its own strength",
    "is_regularisation": "is left out: kohya's tools have no regularisation images with a caption file",
    "caption_lines": f"{SOMETIMES} caption files of several lines: kohya's tools read the first one, or with wildcards "
    "a random one",
    "missing_captions": f"{SOMETIMES} images without a caption: kohya's tools use class_tokens, or the words of the "
    "folder's name",
    "affixes_as_tags": f"{SOMETIMES} keep_tokens and shuffling: in kohya's tools prefix and suffix are part of the "
    "caption",
    "keep_tokens_separator": f"{SOMETIMES} captions that contain it: the GUI has no field for it",
    "use_masks": f"{SOMETIMES} mask files beside the images: kohya's tools use the images' transparency",
}


_OF_BLOCKS = ("down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_ranks", "block_alphas")
_REASONS |= dict.fromkeys(
    (*_OF_BLOCKS, "rank_dropout", "module_dropout"),
    "is left out: the network of kohya's tools for this family ignores it",
)
_NO_TRIGGER = "is left out: put it into every caption"
_IN_FOLDERS = ("shuffle_captions", "keep_tokens", "caption_prefix", "caption_suffix", "caption_dropout", "tag_dropout")
"""Settings of the run that are compared folder by folder, since folders may have their own."""
_SIZES = {"resolution", "resolution_height", "min_bucket", "max_bucket"}
"""The same if every folder sets its resolutions."""


def lost_settings(
    config: TrainConfig, read_back: TrainConfig, subsets: Sequence[Subset], target: str
) -> tuple[IgnoredKey, ...]:
    """Every setting of which the file holds another value: what changes the training first.

    `subsets` are the folders in the file, `target` is the program's name.
    """
    skipped = set(_IN_FOLDERS if subsets else ())
    if subsets and not any(subset.concept.resolutions == str(config.resolution_side) for subset in subsets):
        skipped |= _SIZES
    if not _has_affixes(config):
        skipped.add("affixes_as_tags")
    found = [*_of_run(config, read_back, skipped, target), *_of_folders(config, read_back, subsets)]
    return tuple(sorted(found, key=_rank))


def _rank(lost: IgnoredKey) -> int:
    return 2 if lost.is_harmless else int(lost.reason.startswith(SOMETIMES))


def _of_run(config: TrainConfig, read_back: TrainConfig, skipped: set[str], target: str) -> Iterator[IgnoredKey]:
    idle = _without_effect(config)
    ours, theirs = _comparable(config), _comparable(read_back)
    for parameter in parameters_of(TrainConfig):
        name = parameter.name
        value = getattr(config, name)
        if name not in skipped and getattr(ours, name) != getattr(theirs, name):
            yield IgnoredKey(name, value, NO_EFFECT if name in idle else _reason(name, target))


def _of_folders(config: TrainConfig, read_back: TrainConfig, subsets: Sequence[Subset]) -> Iterator[IgnoredKey]:
    """What differs in the folders, once for each concept."""
    idle = set(_without_effect(config))
    for subset, found in zip(subsets, read_back.concepts, strict=True):
        ours, theirs = subset.concept, with_own_values(read_back, found)
        differing = [p.name for p in parameters_of(Concept) if getattr(ours, p.name) != getattr(theirs, p.name)]
        for name in [*differing, *(["use_masks"] if ours.use_masks and "use_masks" not in differing else [])]:
            where = f"concepts[{subset.place + 1}].{name}"
            is_alone = name == "trigger" and not has_word(ours.class_word, ours.trigger)
            reason = _NO_TRIGGER if is_alone else _reason(name, "kohya's tools")
            if where not in idle:
                yield IgnoredKey(where, getattr(ours, name), reason)
            idle.add(where)


def _without_effect(config: TrainConfig) -> frozenset[str]:
    """The settings that change nothing beside the others."""
    hints = (problem for problem in validate(config) if problem.level == "hint")
    return frozenset(hint.where for hint in hints if hint.message.startswith("has no effect"))


def _reason(name: str, target: str) -> str:
    return ONLY_HERE if name in _ONLY_HERE else _REASONS.get(name, f"is not available in {target}")


def _has_affixes(config: TrainConfig) -> bool:
    own = [text for concept in config.concepts for text in (concept.own_prefix, concept.own_suffix)]
    return any((config.caption_prefix, config.caption_suffix, *own))


def _comparable(config: TrainConfig) -> TrainConfig:
    """The same settings in one spelling: without values that repeat another, arguments as values.

    A part with a learning rate of 0 is not trained.
    """
    try:
        arguments = str(sorted(all_optimizer_args(config).items()))
    except ConfigError:
        arguments = config.optimizer_args
    is_constant = config.lr_schedule == "constant" and config.warmup
    has_unet = config.train_unet and config.effective_unet_lr > 0
    has_text = config.train_text_encoder and config.effective_text_encoder_lr > 0
    height = config.resolution_height
    return clear_redundant_values(config).replace(
        optimizer_args=arguments,
        lr_schedule="constant_with_warmup" if is_constant else config.lr_schedule,
        prediction_type="auto" if config.prediction_type == "epsilon" else config.prediction_type,  # kohya's default
        zero_terminal_snr="auto" if config.zero_terminal_snr == "off" else config.zero_terminal_snr,
        resolution_height=None if height == config.resolution else height,
        train_unet=has_unet,
        train_text_encoder=has_text,
        **({} if has_unet else {"unet_lr": None}),
        **({} if has_text else {"text_encoder_lr": None, "text_encoder_2_lr": None}),
    )
